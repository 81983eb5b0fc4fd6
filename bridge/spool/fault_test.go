package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDamageAsideIsCounted(t *testing.T) {
	d := newMemDisk()
	o := Options{MaxSize: 4 << 20, Segment: 64 << 10}
	s := openMem(t, d, o)
	defer func() { s.Close() }()
	const all = 4000
	for n := range all {
		to := []string{"a"}
		if n%4 == 0 {
			to = []string{"a", "slow"}
		}
		mustPut(t, s, Normal, numbered(n, 1000, to...))
		if n%50 == 49 {
			drain(t, s, "a")
		}
	}
	s.Close()
	hit := false
	for _, name := range sorted(d.dirs["normal"].files) {
		f := d.dirs["normal"].files[name]
		if h, ok := parseHeader(f.now); ok && h.side && !hit {
			f.now[page+100] ^= 1
			hit = true
		}
	}
	if !hit {
		t.Fatal("nothing was moved aside")
	}
	s = openMem(t, d, o)
	got := drain(t, s, "slow")
	balance(t, s)
	gone := uint64(all/4 - len(got))
	if n := s.Ledger()[1]; gone == 0 || gone > 200 || n.Dead != gone || n.Pending != 0 || s.Stats().Lost != gone {
		t.Errorf("%d gone, %+v, %d lost", gone, n, s.Stats().Lost)
	}
}

func TestFailedFlushIsNotRetriedOnTheFile(t *testing.T) {
	d := newMemDisk()
	s := openMem(t, d, Options{Segment: 64 << 10})
	mustPut(t, s, Normal, numbered(0, 100, "a"))
	var failures atomic.Int32
	var failed *memFile
	d.mu.Lock()
	d.failSync = func(f *memFile) error {
		if f == failed {
			t.Error("flushed again")
		}
		if f.framed() && failures.Add(-1) >= 0 {
			failed = f
			return unix.EIO
		}
		return nil
	}
	d.mu.Unlock()
	failures.Store(1)
	mustPut(t, s, Normal, numbered(1, 100, "a"))
	failures.Store(2)
	if _, err := put(t, s, Normal, numbered(2, 100, "a")); !errors.Is(err, ErrAmbiguous) || !errors.Is(err, unix.EIO) {
		t.Errorf("two failures: %v", err)
	}
	d.mu.Lock()
	failed = nil
	d.mu.Unlock()
	mustPut(t, s, Normal, numbered(3, 100, "a"))
	for _, how := range cuts {
		img := d.image(how, newRand(1))
		c := openMem(t, img, Options{Segment: 64 << 10})
		if got := drain(t, c, "a"); !slices.Equal(got, []int{0, 1, 3}) {
			t.Errorf("%s: %v", how, got)
		}
		if st := c.Stats(); st.Lost != 0 {
			t.Errorf("%s: %d lost", how, st.Lost)
		}
		c.Close()
	}
	if got := drain(t, s, "a"); !slices.Equal(got, []int{0, 1, 3}) {
		t.Errorf("%v", got)
	}
	balance(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestWriteThatFindsNoRoomIsRefused(t *testing.T) {
	d := newMemDisk()
	s := openMem(t, d, Options{Segment: 64 << 10})
	defer s.Close()
	mustPut(t, s, Normal, numbered(0, 100, "a"))
	var full atomic.Bool
	full.Store(true)
	d.mu.Lock()
	d.failWrite = func(*memFile, int64) error {
		if full.Load() {
			return unix.ENOSPC
		}
		return nil
	}
	d.mu.Unlock()
	if _, err := put(t, s, Normal, numbered(1, 100, "a")); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	full.Store(false)
	eventually(t, "room", func() bool {
		_, err := put(t, s, Normal, numbered(2, 100, "a"))
		return err == nil
	})
	if got := drain(t, s, "a"); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("%v", got)
	}
}

func TestDamageIsPassedOverAndCounted(t *testing.T) {
	const all = 400
	build := func(t *testing.T) (*memDisk, Options) {
		d, o := newMemDisk(), Options{Segment: 64 << 10}
		s := openMem(t, d, o)
		for n := range all {
			mustPut(t, s, Normal, numbered(n, 1500, "a", "b"))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return d, o
	}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := newRand(seed)
			d, o := build(t)
			m := d.dirs["normal"]
			names := sorted(m.files)
			f := m.files[names[rnd.IntN(len(names))]]
			switch seed % 4 {
			case 0: // one bit
				f.now[rnd.IntN(len(f.now))] ^= 1 << rnd.IntN(8)
			case 1: // a sector
				at := rnd.IntN(len(f.now)/512) * 512
				for i := range 512 {
					f.now[at+i] = byte(rnd.Uint32())
				}
			case 2: // the first page
				clear(f.now[:page])
			case 3: // the end is gone
				f.now = f.now[:rnd.IntN(len(f.now))]
			}
			s := openMem(t, d, o)
			a := drain(t, s, "a")
			b := drain(t, s, "b")
			if !slices.Equal(a, b) {
				t.Errorf("a reads %d, b %d", len(a), len(b))
			}
			balance(t, s)
			gone := uint64(all - len(a))
			// The newest records are not missed where nothing after them says that they were there.
			lost := s.Stats().Lost
			if lost > gone || lost < gone && a[len(a)-1] == all-1 {
				t.Errorf("%d are gone, %d counted", gone, lost)
			}
			for _, n := range s.Ledger() {
				if n.Pending != 0 {
					t.Errorf("%+v", n)
				}
			}
			// Nothing is in the way of what comes next, nor of opening again.
			mustPut(t, s, Normal, numbered(all, 100, "a"))
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			s = openMem(t, d, o)
			defer s.Close()
			if got := drain(t, s, "a"); !slices.Equal(got, []int{all}) {
				t.Errorf("afterwards: %v", got)
			}
			if s.Stats().Lost != lost {
				t.Errorf("%d lost, and %d before", s.Stats().Lost, lost)
			}
		})
	}
}

func TestDamageThatTakesTheOnlyCheckpointIsCounted(t *testing.T) {
	d, o := newMemDisk(), Options{Segment: 64 << 10}
	s := openMem(t, d, o)
	for n := range 10 {
		mustPut(t, s, Normal, numbered(n, 100, "a"))
	}
	crashed := d.image(cutAll, newRand(1))
	s.Close()
	damaged := 0
	for _, f := range crashed.dirs["normal"].files {
		if _, ok := parseHeader(f.now); ok { // the one that is made for later may be empty yet
			f.now[page+frameHead] ^= 1
			damaged++
		}
	}
	if damaged != 1 {
		t.Fatalf("%d segments", damaged)
	}
	s = openMem(t, crashed, o)
	defer s.Close()
	if got := drain(t, s, "a"); len(got) != 9 || got[0] != 1 {
		t.Errorf("%v", got)
	}
	balance(t, s)
	if lost := s.Stats().Lost; lost != 1 {
		t.Errorf("%d lost", lost)
	}
}

func TestLaterVersionIsRefused(t *testing.T) {
	d := newMemDisk()
	s := openMem(t, d, Options{})
	mustPut(t, s, Normal, numbered(0, 10, "a"))
	s.Close()
	for _, f := range d.dirs["normal"].files {
		if h, ok := parseHeader(f.now); ok {
			b := h.encode()
			le.PutUint16(b[8:], version+1)
			le.PutUint32(b[headerLen-4:], crc32.Checksum(b[:headerLen-4], castagnoli))
			copy(f.now, b)
		}
	}
	if s, err := open(d, Options{}); err == nil {
		s.Close()
		t.Error("opened")
	}
}

func TestGivenUpSegmentsAreVoid(t *testing.T) {
	type use struct{ base, serial uint64 }
	for name, c := range map[string]struct{ found, row []use }{
		"in order":                     {[]use{{900, 3}, {1, 1}, {400, 2}}, []use{{1, 1}, {400, 2}, {900, 3}}},
		"a failed start of a segment":  {[]use{{1, 1}, {400, 2}, {400, 3}}, []use{{1, 1}, {400, 3}}},
		"a move that came half way":    {[]use{{1, 5}, {400, 6}, {1, 9}, {600, 10}}, []use{{1, 9}, {600, 10}}},
		"what was settled in between":  {[]use{{1, 5}, {400, 6}, {7, 9}, {600, 10}}, []use{{1, 5}, {7, 9}, {600, 10}}},
		"old lives of what is free":    {[]use{{1, 1}, {900, 4}, {300, 2}}, []use{{1, 1}, {300, 2}, {900, 4}}},
		"a flush that failed and more": {[]use{{1, 1}, {400, 2}, {350, 3}, {350, 4}, {500, 5}}, []use{{1, 1}, {350, 4}, {500, 5}}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recovery{l: &log{s: &Spool{}}}
			var segs []*segment
			for _, u := range c.found {
				segs = append(segs, &segment{header: header{base: u.base, serial: u.serial}})
			}
			var row []use
			for _, seg := range rec.row(segs) {
				row = append(row, use{seg.base, seg.serial})
			}
			if !slices.Equal(row, c.row) || len(rec.l.free) != len(c.found)-len(row) {
				t.Errorf("%v, and %d free", row, len(rec.l.free))
			}
		})
	}
}

func TestMakeDirMakesThoseAbove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil {
			t.Error("opened twice")
		}
		s.Close()
	}
}
