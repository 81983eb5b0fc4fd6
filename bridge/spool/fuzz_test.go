package spool

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func FuzzHeader(f *testing.F) {
	for _, h := range []header{
		{version: version, epoch: 1, serial: 2, base: 3, size: 4 << 20, time: 5},
		{version: version, side: true, epoch: 1 << 63, serial: 1, base: 1, owner: "cloud"},
	} {
		f.Add(h.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := parseHeader(b)
		if !ok || h.version != version {
			return
		}
		if got, ok := parseHeader(h.encode()); !ok || got != h {
			t.Errorf("%+v became %+v", h, got)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, side := range []bool{false, true} {
		fr := frame{first: 7, last: 6, time: 1_700_000_000_000}
		b := make([]byte, frameHead)
		l := &line{route: "r", cur: &cursor{consumer: &Consumer{name: "cloud"}}}
		routes := map[*line]uint64{}
		for i := range 3 {
			r := found{raw: raw{seq: 7 + uint64(2*i), time: fr.time + int64(i), expires: int64(i), data: []byte("data")}, line: l}
			if side {
				fr.last = max(fr.last, fr.first)
				b = appendSide(b, &r, routes, &fr)
			} else {
				b = append(b, byte(min(i, 1)))
				if i < 2 {
					b = append(b, "\x01r\x01\x05cloud"...)
				}
				b = appendRecord(b, r.id, r.time, r.expires, fr.time, r.data)
				fr.last++
				fr.count++
			}
		}
		f.Add(fr.seal(b, seed(1), 512), side)
	}
	f.Fuzz(func(t *testing.T, b []byte, side bool) {
		fr, ok := parseFrame(b, int64(len(b)))
		if !ok {
			return
		}
		fr.valid(b, seed(1))
		body := b[frameHead : frameHead+int(fr.body)]
		it := fr.records(body, side)
		var r raw
		var addrs uint64
		for it.next(&r, func(_ []byte, to [][]byte) {
			if addrs++; len(to) == 0 {
				t.Error("an address of nobody")
			}
		}) {
			if r.addr >= addrs || r.seq < fr.first {
				t.Errorf("%+v in %+v with %d addresses", r, fr, addrs)
			}
			// What was read is written in the same way again.
			once := appendRecord(nil, r.id, r.time, r.expires, fr.time, r.data)
			var again raw
			head := append([]byte{0, 0, 1, 0}, once...)
			if side {
				head = append([]byte{0, 0, 1, 0, 0}, once...)
			}
			two := frame{body: uint32(len(head)), first: r.seq, last: r.seq, time: fr.time, count: 1}
			it := two.records(head, side)
			if !it.next(&again, func([]byte, [][]byte) {}) || again.id != r.id || again.time != r.time || !bytes.Equal(again.data, r.data) {
				t.Errorf("%+v became %+v", r, again)
			}
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	c := checkpoint{
		lost: 1, dropped: 2, holes: []span{{3, 4}, {9, 9}}, gone: []span{{20, 30}},
		lines:   []lineState{{"r", "cloud", 5, 2, 1, 1}, {"q", "cloud", 5, 0, 0, 0}},
		cursors: []cursorState{{"cloud", 7, 8, 900, 1_700_000_000_000, []span{{9, 10}, {12, 12}}}},
	}
	f.Add(c.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := parseCheckpoint(b)
		if !ok {
			return
		}
		if got, ok := parseCheckpoint(c.append(nil)); !ok || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v became %+v", c, got)
		}
	})
}

// FuzzOpen opens a spool of which a part has become something else. It must open, read, balance and go on.
func FuzzOpen(f *testing.F) {
	o := Options{Segment: 64 << 10}
	build := func(t testing.TB) *memDisk {
		d := newMemDisk()
		s := openMem(t, d, o)
		for n := range 40 {
			mustPut(t, s, Normal, numbered(n, 3000, "a", "b"))
		}
		s.Close()
		return d
	}
	f.Add(uint8(0), uint32(page), []byte("FRAM"))
	f.Add(uint8(1), uint32(40), []byte{0xff})
	f.Add(uint8(0), uint32(2*page+9), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, which uint8, at uint32, junk []byte) {
		d := build(t)
		m := d.dirs["normal"]
		names := sorted(m.files)
		b := m.files[names[int(which)%len(names)]].now
		copy(b[int(at%uint32(len(b))):], junk)
		s := openMem(t, d, o)
		defer s.Close()
		a := drain(t, s, "a")
		if len(a) > 40 {
			t.Errorf("%d of 40", len(a))
		}
		drain(t, s, "b")
		balance(t, s)
		for _, n := range s.Ledger() {
			if n.Pending != 0 {
				t.Errorf("%+v", n)
			}
		}
		mustPut(t, s, Normal, Record{Time: time.Now(), Route: "r", To: []string{"a"}, Data: make([]byte, 8)})
	})
}
