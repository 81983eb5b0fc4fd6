package spool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// recovery is what Open knows of one class while it reads.
type recovery struct {
	l     *log
	main  []*segment
	side  map[string][]*segment
	next  uint64 // sequence that the next frame should begin with; 0 before the first
	holes []span
	told  bool // a checkpoint was read
	fresh bool // records came after the newest
	lines [][]*line
}

// recover reads what is on disk. Whatever it finds there, it does not fail; only a disk that cannot be read at all,
// or a layout of a later version, is an error.
func (l *log) recover() error {
	rec := &recovery{l: l, side: map[string][]*segment{}}
	if err := rec.files(); err != nil {
		return err
	}
	rec.main = rec.row(rec.main)
	l.segs = rec.main
	if n := len(rec.main); n > 0 {
		// What a killed process has written may be in memory only, and is taken for safe from here on.
		newest := rec.main[n-1]
		if err := newest.file.Sync(); err != nil {
			l.sealed, newest.bad = true, true
		}
		from := n - 1
		for from > 0 && !rec.hasCheckpoint(from) {
			from--
		}
		for i := from; i < n; i++ {
			rec.roll(i)
		}
	}
	for owner, segs := range rec.side {
		rec.attach(owner, rec.row(segs))
	}
	for _, cur := range l.cursors {
		cur.reader.seq = cur.read
	}
	for _, h := range rec.holes {
		low := h.last
		for _, cur := range l.cursors {
			if cur.pending > 0 {
				low = min(low, max(cur.floor, cur.moved))
			}
		}
		if !rec.told {
			low = h.first - 1 // the checkpoint is gone too: nobody knows for whom they were
		}
		if low < h.last {
			l.hole(max(h.first, low+1), h.last)
		}
	}
	if rec.fresh {
		l.changes++
	}
	l.segs = slices.DeleteFunc(l.segs, func(seg *segment) bool {
		released := slices.ContainsFunc(l.gone, func(g span) bool { return g.first <= seg.base && seg.base <= g.last })
		if released {
			l.discard(seg)
		}
		return released
	})
	l.release(0)
	return nil
}

// files opens what is there and reads the headers.
func (rec *recovery) files() error {
	l := rec.l
	names, err := l.dir.Names()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		n, ok := segmentNumber(name)
		if !ok {
			continue
		}
		l.names = max(l.names, n)
		f, err := l.dir.Open(name)
		if err != nil {
			return err
		}
		size, err := f.Size()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		l.s.used += size
		seg := &segment{name: name, file: f}
		b := make([]byte, page)
		got, _ := f.ReadAt(b, 0) // what cannot be read does not pass
		h, ok := parseHeader(b[:got])
		if ok && h.version != version {
			return errors.Join(fmt.Errorf("%s is of format version %d, and this program reads version %d", name, h.version, version), f.Close())
		}
		seg.header = h
		seg.size, seg.end = size, size
		l.serial = max(l.serial, h.serial)
		switch {
		case !ok:
			l.discard(seg)
		case h.side:
			seg.seed = seed(h.epoch)
			rec.side[h.owner] = append(rec.side[h.owner], seg)
		default:
			seg.seed = seed(h.epoch)
			rec.main = append(rec.main, seg)
		}
	}
	return nil
}

// row puts the segments of one log in order. A later use with the same or a lower base takes the place of those that were given up.
func (rec *recovery) row(segs []*segment) (row []*segment) {
	slices.SortFunc(segs, func(a, b *segment) int { return cmp.Compare(a.serial, b.serial) })
	for _, seg := range segs {
		for len(row) > 0 && row[len(row)-1].base >= seg.base {
			rec.l.discard(row[len(row)-1])
			row = row[:len(row)-1]
		}
		row = append(row, seg)
	}
	return row
}

// scan calls f for each frame of main segment i that counts, until f says no, and gives the end of the last.
func (rec *recovery) scan(i int, f func(*frame, []byte) bool) int64 {
	seg := rec.main[i]
	end, limit := int64(page), ^uint64(0)
	if i+1 < len(rec.main) {
		limit = rec.main[i+1].base
	}
	sc := scanner{file: seg.file, seed: seg.seed, off: page, end: seg.size}
	for {
		fr, ok := sc.frame()
		if !ok {
			if !sc.resync() {
				return end
			}
			continue
		}
		if fr.first >= limit && (fr.first > limit || fr.count > 0) || fr.first < seg.base {
			return end
		}
		if !f(&fr, sc.body(&fr)) {
			return end
		}
		sc.off += int64(fr.span)
		end = sc.off
	}
}

func (rec *recovery) hasCheckpoint(i int) (has bool) {
	rec.scan(i, func(f *frame, _ []byte) bool {
		has = f.checkpoint > 0
		return !has
	})
	return has
}

// roll applies main segment i.
func (rec *recovery) roll(i int) {
	l, seg := rec.l, rec.main[i]
	rec.expect(seg.base)
	end := rec.scan(i, func(f *frame, body []byte) bool {
		if rec.next > f.first {
			return true
		}
		rec.expect(f.first)
		if f.checkpoint > 0 {
			if c, ok := parseCheckpoint(body[f.body-f.checkpoint:]); ok {
				l.restore(&c)
				rec.told, rec.fresh = true, false
			}
		}
		rec.records(f, body)
		rec.next = f.last + 1
		l.last = f.last
		return true
	})
	if i == len(rec.main)-1 {
		seg.end = min(l.s.aligned(end), seg.size)
	}
}

// expect goes on at seq, and notes what is missing before it.
func (rec *recovery) expect(seq uint64) {
	if rec.next > 0 && seq > rec.next {
		rec.holes = append(rec.holes, span{rec.next, seq - 1})
	}
	rec.next = max(rec.next, seq)
	rec.l.last = rec.next - 1
}

// records counts those of a frame as accepted.
func (rec *recovery) records(f *frame, body []byte) {
	it := f.records(body, false)
	rec.lines = rec.lines[:0]
	var r raw
	for it.next(&r, func(route []byte, to [][]byte) {
		var lines []*line
		for _, name := range to {
			n := rec.l.line(string(route), rec.l.cursor(string(name), f.first-1))
			if !slices.Contains(lines, n) {
				lines = append(lines, n)
			}
		}
		rec.lines = append(rec.lines, lines)
	}) {
		rec.fresh = true
		for _, n := range rec.lines[r.addr] {
			n.accept(f.first, f.time, 1, cost(r.data))
		}
	}
}

// restore puts the class in the state that a checkpoint describes.
func (l *log) restore(c *checkpoint) {
	l.lost, l.dropped, l.holes, l.gone = c.lost, c.dropped, c.holes, c.gone
	for _, cur := range l.cursors {
		cur.consumer.cursors[l.class] = nil
	}
	clear(l.lines)
	clear(l.cursors)
	clear(l.addresses)
	l.order = nil
	for i := range c.cursors {
		k := &c.cursors[i]
		cur := l.cursor(k.connector, k.floor)
		cur.moved, cur.bytes, cur.oldest, cur.spans = k.moved, k.bytes, k.oldest, k.spans
		cur.saved.moved = k.moved
	}
	for i := range c.lines {
		k := &c.lines[i]
		n := l.line(k.route, l.cursor(k.connector, l.last))
		n.delivered, n.expired, n.dead = k.delivered, k.expired, k.dead
		n.accepted = max(k.accepted, k.delivered+k.expired+k.dead)
		n.cur.pending += n.pending()
	}
}

// attach gives a connector its side segments, as far as they still count.
func (rec *recovery) attach(owner string, segs []*segment) {
	cur := rec.l.cursors[owner]
	for i, seg := range segs {
		if cur == nil || seg.base > cur.moved || i+1 < len(segs) && segs[i+1].base <= cur.floor+1 {
			rec.l.discard(seg)
		} else {
			cur.side = append(cur.side, seg)
		}
	}
}
