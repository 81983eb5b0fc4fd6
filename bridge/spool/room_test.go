package spool

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// numbered makes a record with a number in it.
func numbered(n, size int, to ...string) Record {
	r := Record{Route: "r", To: to, Data: make([]byte, max(size, 8))}
	binary.BigEndian.PutUint64(r.Data, uint64(n))
	return r
}

func number(e Entry) int { return int(binary.BigEndian.Uint64(e.Data)) }

// eventually waits for what another goroutine will do.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {

			t.Fatalf("never came: %s", what)
		}
	}
}

// drain reads and settles all that is pending, and checks that it comes in order.
func drain(t *testing.T, s *Spool, name string) (got []int) {
	t.Helper()
	c := s.Consumer(name)
	for {
		list, err := c.read(Low, 100, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return got
		}
		for _, e := range list {
			if n := number(e); len(got) > 0 && n <= got[len(got)-1] {
				t.Errorf("%s: %d after %d", name, n, got[len(got)-1])
			}
			got = append(got, number(e))
			c.Settle(e.Pos, Delivered)
		}
	}
}

// fill appends until the answer is ErrFull, and gives the numbers that were taken.
func fill(t *testing.T, s *Spool, from, size int, to ...string) (taken []int) {
	t.Helper()
	for n := from; ; n++ {
		_, err := put(t, s, Normal, numbered(n, size, to...))
		if errors.Is(err, ErrFull) {
			return taken
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, n)
		if len(taken) > 100000 {
			t.Fatal("it never fills up")
		}
	}
}

func TestFullAnswersReadsOnAndRecovers(t *testing.T) {
	for name, open := range map[string]func(*testing.T) (*Spool, int64){
		"max_size": func(t *testing.T) (*Spool, int64) {
			return openMem(t, newMemDisk(), Options{MaxSize: 2 << 20, Segment: 64 << 10, Share: 1 << 40}), 2 << 20
		},
		"disk full": func(t *testing.T) (*Spool, int64) {
			d := newMemDisk()
			d.capacity = 2 << 20
			return openMem(t, d, Options{Segment: 64 << 10, Share: 1 << 40}), d.capacity
		},
		"tiny disk": func(t *testing.T) (*Spool, int64) {
			d := newMemDisk()
			d.capacity = 200 << 10
			return openMem(t, d, Options{Share: 1 << 40}), d.capacity
		},
		"share": func(t *testing.T) (*Spool, int64) {
			return openMem(t, newMemDisk(), Options{MaxSize: 4 << 20, Segment: 64 << 10, Share: 1 << 20}), 1 << 20
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, room := open(t)
			defer s.Close()
			from := 0
			for round := range 3 {
				taken := fill(t, s, from, 3900, "a")
				if got := int64(len(taken)) * 3900; got > room || round > 0 && got == 0 {
					t.Errorf("round %d: %d octets taken of %d", round, got, room)
				}
				if name != "tiny disk" && int64(len(taken))*3900 < room/2 {
					t.Errorf("round %d: only %d octets taken of %d", round, len(taken)*3900, room)
				}
				if s.o.MaxSize > 0 && s.Stats().Bytes > s.o.MaxSize {
					t.Errorf("%d octets on disk", s.Stats().Bytes)
				}
				if name != "share" && !s.Stats().Full {
					t.Error("does not say that it is full")
				}
				if got := drain(t, s, "a"); !slices.Equal(got, taken) {
					t.Fatalf("round %d: %d read, %d taken", round, len(got), len(taken))
				}
				from += 1 << 20
				eventually(t, "room after all was settled", func() bool {
					_, err := put(t, s, Normal, numbered(from, 1000, "a"))
					return err == nil
				})
				if got := drain(t, s, "a"); !slices.Equal(got, []int{from}) {
					t.Fatalf("round %d: %v", round, got)
				}
				from++
			}
			balance(t, s)
		})
	}
}

func TestRoomReturnsOnTheDisk(t *testing.T) {
	d := newMemDisk()
	d.capacity = 1 << 20
	s := openMem(t, d, Options{Segment: 64 << 10, Share: 1 << 40})
	defer s.Close()
	taken := fill(t, s, 0, 1000, "a")
	d.mu.Lock()
	d.capacity = 2 << 20
	d.mu.Unlock()
	eventually(t, "room", func() bool {
		_, err := put(t, s, Normal, numbered(len(taken), 1000, "a"))
		return err == nil
	})
	if got := drain(t, s, "a"); len(got) != len(taken)+1 {
		t.Errorf("%d of %d", len(got), len(taken)+1)
	}
}

func TestFullOnTmpfs(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		needs.Missing(t, "the right to mount a file system is missing:", err)
	}
	defer unix.Unmount(dir, 0)
	s, err := Open(filepath.Join(dir, "spool"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := fill(t, s, 0, 1000, "a")
	if len(taken) < 600 {
		t.Errorf("only %d taken", len(taken))
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room", func() bool {
		_, err := put(t, s, Normal, numbered(len(taken), 1000, "a"))
		return err == nil
	})
	if got := drain(t, s, "a"); len(got) != len(taken)+1 {
		t.Errorf("%d of %d", len(got), len(taken)+1)
	}
}

func TestDropOldestMakesRoomAndCounts(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{MaxSize: 2 << 20, Segment: 64 << 10, DropOldest: true})
	defer s.Close()
	const all = 5000
	for n := range all {
		if _, err := put(t, s, Normal, numbered(n, 1000, "a")); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
	}
	got := drain(t, s, "a")
	balance(t, s)
	line, st := s.Ledger()[0], s.Stats()
	// Some may have gone between Read and Settle.
	if got[len(got)-1] != all-1 || len(got) < 300 || line.Expired < uint64(all-len(got)) || line.Delivered+line.Expired != all || st.Dropped != line.Expired {
		t.Errorf("%d read, last %d; %+v; %d dropped", len(got), got[len(got)-1], line, st.Dropped)
	}
}

func TestDropOldestBeginsWithTheLowestClass(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{MaxSize: 4 << 20, Segment: 64 << 10, DropOldest: true})
	defer s.Close()
	for n := range 1500 {
		mustPut(t, s, Low, numbered(n, 3900, "low"))
	}
	before := s.Stats().Dropped
	const all = 500 // half of what there is room for
	for n := range all {
		mustPut(t, s, High, numbered(n, 3900, "high"))
	}
	if got := drain(t, s, "high"); len(got) != all {
		t.Errorf("%d of %d", len(got), all)
	}
	if before == 0 || s.Stats().Dropped == before {
		t.Errorf("%d dropped before, %d after", before, s.Stats().Dropped)
	}
	balance(t, s)
}

// A connector that is away must not take the space of the others: what it has pending is moved aside.
func TestStalledConnectorHoldsUpNobody(t *testing.T) {
	d := newMemDisk()
	o := Options{MaxSize: 8 << 20}
	s := openMem(t, d, o)
	const all = 12000 // six times what there is room for
	var slow []int
	for n := range all {
		to := []string{"a"}
		if n%20 == 0 {
			to = append(to, "slow")
			slow = append(slow, n)
		}
		n := n
		eventually(t, "room", func() bool {
			_, err := put(t, s, Normal, numbered(n, 1000, to...))
			return err == nil
		})
		if n%50 == 0 {
			drain(t, s, "a")
		}
		if n%487 == 0 {
			c := openMem(t, d.image(cuts[n/487%len(cuts)], newRand(uint64(n))), o)
			if got := drain(t, c, "slow"); !slices.Equal(got, slow) {
				t.Fatalf("after a power cut: %d of %d", len(got), len(slow))
			}
			if st := c.Stats(); st.Lost != 0 || st.PendingBytes["slow"] != 0 {
				t.Errorf("after a power cut: %+v", st)
			}
			c.Close()
		}
		if n == all/2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openMem(t, d, o)
		}
	}
	drain(t, s, "a")
	s.mu.Lock()
	moved := s.logs[Normal].cursors["slow"].moved
	s.mu.Unlock()
	if moved == 0 {
		t.Error("nothing was moved aside")
	}
	c := s.Consumer("slow")
	if got := take(t, c, 100); number(got[99]) != slow[99] {
		t.Errorf("%d, want %d", number(got[99]), slow[99])
	}
	c.Rewind()
	if got := drain(t, s, "slow"); !slices.Equal(got, slow) {
		t.Errorf("%d of %d", len(got), len(slow))
	}
	balance(t, s)
	for _, n := range s.Ledger() {
		if n.Pending != 0 || n.Dead != 0 {
			t.Errorf("%+v", n)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openMem(t, d, o)
	defer s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.logs[Normal].cursors["slow"].side); n > 0 {
		t.Errorf("%d side segments are left", n)
	}
}

// Nor where it has its share of the disk pending, with nothing in between that could be moved aside.
func TestOthersGoOnBehindAFullShare(t *testing.T) {
	d := newMemDisk()
	o := Options{MaxSize: 4 << 20}
	s := openMem(t, d, o)
	away := fill(t, s, 0, 3900, "a", "away")
	drain(t, s, "a")
	next := len(away)
	for range 3 {
		for range 1500 { // more than there is room for
			eventually(t, "room", func() bool {
				_, err := put(t, s, Normal, numbered(next, 3900, "a"))
				return err == nil
			})
			if next++; next%20 == 0 {
				drain(t, s, "a")
			}
			if next%97 == 0 && next%20 > 0 {
				img := d.image(cuts[next/97%len(cuts)], newRand(uint64(next)))
				c := openMem(t, img, o)
				if got := drain(t, c, "away"); !slices.Equal(got, away) {
					t.Fatalf("after a power cut: %d of %d", len(got), len(away))
				}
				if got := drain(t, c, "a"); len(got) == 0 || got[len(got)-1] != next-1 {
					t.Fatalf("after a power cut: a reads %v, and %d was the last", got, next-1)
				}
				if st := c.Stats(); st.Lost != 0 || st.Records != 0 {
					t.Errorf("after a power cut: %+v", st)
				}
				balance(t, c)
				c.Close()
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openMem(t, d, o)
	}
	defer s.Close()
	if got := drain(t, s, "away"); !slices.Equal(got, away) {
		t.Errorf("%d of %d", len(got), len(away))
	}
	drain(t, s, "a")
	balance(t, s)
	if st := s.Stats(); st.Lost != 0 || st.Records != 0 {
		t.Errorf("%+v", st)
	}
	mustPut(t, s, Normal, numbered(next, 3900, "away"))
}

func TestShareIsPerConnector(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{MaxSize: 8 << 20, Segment: 64 << 10, Share: 100 << 10})
	defer s.Close()
	fill(t, s, 0, 1000, "away")
	if _, err := put(t, s, Normal, numbered(0, 1000, "a")); err != nil {
		t.Errorf("to another: %v", err)
	}
	if _, err := put(t, s, High, numbered(0, 1000, "a", "away")); !errors.Is(err, ErrFull) {
		t.Errorf("to both: %v", err)
	}
	if got := s.Stats().PendingBytes["away"]; got < 100<<10 || got > 110<<10 {
		t.Errorf("%d octets pending", got)
	}
}

func TestBacklogOfOneClassLeavesRoomForAnother(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{MaxSize: 2 << 20, Segment: 64 << 10})
	defer s.Close()
	fill(t, s, 0, 1000, "away")
	if _, err := put(t, s, High, numbered(0, 1000, "a")); err != nil {
		t.Error(err)
	}
}

func TestExpiry(t *testing.T) {
	var now atomic.Int64
	now.Store(1_000_000)
	d := newMemDisk()
	o := Options{Segment: 64 << 10, MaxAge: time.Hour, Now: func() time.Time { return time.UnixMilli(now.Load()) }}
	s := openMem(t, d, o)
	defer s.Close()
	for n := range 100 {
		r := numbered(n, 1000, "a", "away")
		if n%2 == 0 {
			r.Expires = o.Now().Add(time.Minute)
		}
		mustPut(t, s, Normal, r)
	}
	now.Add(time.Minute.Milliseconds())
	if got := drain(t, s, "a"); len(got) != 50 || got[0] != 1 {
		t.Errorf("%d read", len(got))
	}
	now.Add(time.Hour.Milliseconds())
	mustPut(t, s, Normal, numbered(100, 10, "away"))
	eventually(t, "expiry by age", func() bool {
		for _, n := range s.Ledger() {
			if n.Connector == "away" && n.Expired == 100 && n.Pending == 1 {
				return true
			}
		}
		return false
	})
	if got := s.Stats().Oldest; !got.Equal(o.Now()) {
		t.Errorf("oldest %v", got)
	}
	balance(t, s)
}

// A clock that stood back was set: what was taken before is as old as the time that has passed.
func TestExpiryWhenTheClockIsSet(t *testing.T) {
	const leap = 1000 * time.Hour
	var now, before atomic.Int64
	now.Store(1_000_000)
	o := Options{
		Segment: 64 << 10, MaxAge: time.Hour, Now: func() time.Time { return time.UnixMilli(now.Load()) },
		Correct: func(at time.Time) time.Time {
			if at.UnixMilli() <= before.Load() {
				return at.Add(leap)
			}
			return at
		},
	}
	s := openMem(t, newMemDisk(), o)
	defer s.Close()
	for n := range 100 {
		r := numbered(n, 1000, "a", "away")
		if n%2 == 0 {
			r.Expires = o.Now().Add(time.Minute)
		}
		mustPut(t, s, Normal, r)
	}
	before.Store(now.Load())
	now.Add(leap.Milliseconds())
	if got := drain(t, s, "a"); len(got) != 100 {
		t.Errorf("%d read after the leap", len(got))
	}
	s.logs[Normal].age()
	if n := s.logs[Normal].cursors["away"].pending; n != 100 {
		t.Errorf("%d pending after the leap", n)
	}
	now.Add(time.Minute.Milliseconds())
	s.Consumer("a").Rewind()
	if got := drain(t, s, "away"); len(got) != 50 || got[0] != 1 {
		t.Errorf("%d read a minute later", len(got))
	}
	balance(t, s)
}

func TestTooLargeAndForNobody(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{Segment: 64 << 10})
	defer s.Close()
	if _, err := put(t, s, Normal, numbered(0, 40<<10, "a")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large: %v", err)
	}
	if _, err := put(t, s, Normal, numbered(0, 10)); err == nil {
		t.Error("for nobody: taken")
	}
	if _, err := put(t, s, classes, numbered(0, 10, "a")); err == nil {
		t.Error("no class: taken")
	}
	if p := mustPut(t, s, Normal, numbered(0, 31<<10, "a")); p.Seq != 1 {
		t.Errorf("%v", p)
	}
}

// What was given up, in the main log or on the way aside, must not come between what took its place.
