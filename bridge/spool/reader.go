package spool

import (
	"cmp"
	"slices"
)

// reader walks the records of one class that are for one connector, in order: those that were moved aside first.
// Consumer.reading guards it.
type reader struct {
	cur   *cursor
	seq   uint64 // of the next record
	scan  scanner
	seg   *segment
	epoch uint64
	frame records                         // what is left of the frame at hand
	lines []*line                         // by address in it; nil where that is not for this connector
	note  func(route []byte, to [][]byte) // define
}

func newReader(cur *cursor, seq uint64) *reader {
	r := &reader{cur: cur, seq: seq}
	r.note = r.define
	return r
}

// found is a record for this connector. Its data is valid until the reader goes on to another frame.
type found struct {
	raw
	line *line
}

// leave gives up the place where it reads.
func (r *reader) leave() {
	r.seg = nil
	r.frame = records{}
	r.rest()
}

// rest gives back the memory where nothing of a frame is left.
func (r *reader) rest() {
	if r.frame.left == 0 {
		r.cur.log.s.buffers.put(r.scan.buf)
		r.scan.buf, r.frame = nil, records{}
	}
}

// next adds records to list, all from one frame: up to limit, and until they take octets. It gives none at the end of the log.
// r.seq is then behind the last of them, and behind all in between that are not for this connector.
func (r *reader) next(list []found, limit, octets int) []found {
	for {
		var f found
		for len(list) < limit && octets > 0 && r.frame.next(&f.raw, r.note) {
			if f.seq < r.seq {
				continue
			}
			r.seq = f.seq + 1
			if f.line = r.lines[f.addr]; f.line != nil {
				list = append(list, f)
				octets -= int(cost(f.data))
			}
		}
		if len(list) > 0 {
			return list
		}
		if r.frame.left > 0 && !r.frame.sparse {
			r.skip(r.frame.seq+uint64(r.frame.left), false) // it passed, but makes no sense
		}
		r.frame = records{}
		if !r.load() {
			return list
		}
	}
}

// define notes whether an address of the frame is for this connector.
func (r *reader) define(route []byte, to [][]byte) {
	var n *line
	for _, name := range to {
		if string(name) == r.cur.consumer.name {
			s := r.cur.log.s
			s.mu.Lock()
			n = r.cur.log.line(string(route), r.cur)
			s.mu.Unlock()
			break
		}
	}
	r.lines = append(r.lines, n)
}

// stretch is the part of a segment that holds a sequence.
type stretch struct {
	seg  *segment
	scan scanner
	last uint64 // what is beyond does not count
}

// locate finds where the record with r.seq is; where there is a gap before what is left, it says where that ends.
// It is sound that records are missing in a side segment, or where some were released. Spool.mu is held.
func (r *reader) locate() (at stretch, gap uint64, sound bool) {
	l, cur := r.cur.log, r.cur
	list, last := l.segs, l.last
	if r.seq <= cur.moved {
		list, last = cur.side, cur.moved
	} else {
		for _, g := range l.gone {
			if g.first > r.seq {
				last = min(last, g.first-1)
			} else if g.last >= r.seq {
				return at, g.last + 1, true
			}
		}
	}
	i := len(list)
	for i > 0 && list[i-1].base > r.seq {
		i--
	}
	if i == 0 {
		if len(list) > 0 {
			last = min(last, list[0].base-1)
		}
		return at, last + 1, r.seq <= cur.moved
	}
	if i < len(list) {
		last = min(last, list[i].base-1)
	}
	seg := list[i-1]
	return stretch{seg: seg, scan: scanner{file: seg.file, seed: seg.seed, end: seg.end}, last: last}, 0, r.seq <= cur.moved
}

// load goes to the frame that holds r.seq, or to the first behind it.
func (r *reader) load() bool {
	s := r.cur.log.s
	for {
		s.mu.Lock()
		if r.seq > r.cur.log.last {
			s.mu.Unlock()
			r.rest()
			return false
		}
		at, gap, sound := r.locate()
		side := r.seq <= r.cur.moved
		if gap == 0 && (at.seg != r.seg || at.seg.epoch != r.epoch) {
			r.seg, r.epoch = at.seg, at.seg.epoch
			r.scan.off = page
		}
		s.mu.Unlock()
		if gap > 0 {
			r.skip(gap, sound)
			continue
		}
		if r.scan.buf == nil {
			r.scan.buf = s.buffers.get()
		}
		at.scan.off, at.scan.buf = r.scan.off, r.scan.buf
		r.scan = at.scan
		f, ok := r.scan.frame()
		if !ok {
			first := r.scan.off == page // where a side segment always has one
			found := r.scan.resync()
			if side && (first || found) {
				r.hurt()
			}
			if !found {
				r.skip(at.last+1, sound)
			}
			continue
		}
		r.scan.off += int64(f.span)
		switch {
		case f.first > at.last:
			r.skip(at.last+1, sound)
		case f.count > 0 && f.last >= r.seq:
			if f.first > r.seq {
				r.skip(f.first, sound)
			}
			r.frame = f.records(r.scan.body(&f), side)
			r.lines = r.lines[:0]
			return true
		}
	}
}

// hurt notes that records that were moved aside are gone. How many is known when the cursor has come to the end.
func (r *reader) hurt() {
	s := r.cur.log.s
	s.mu.Lock()
	defer s.mu.Unlock()
	r.cur.hurt = true
}

// skip goes on to seq, since there is nothing before it, which is sound or means damage.
func (r *reader) skip(seq uint64, sound bool) {
	if !sound && seq > r.seq {
		r.hole(r.seq, seq-1)
	}
	r.seq = max(r.seq, seq)
}

// hole notes that records are gone.
func (r *reader) hole(first, last uint64) {
	l := r.cur.log
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	// Where nothing is pending, the segment may have been put to another use meanwhile.
	if r.cur.pending > 0 && last > r.cur.settled() {
		l.hole(max(first, r.cur.settled()+1), last)
	}
}

// hole adds to those that are known, and counts what is new. What was released is none.
func (l *log) hole(first, last uint64) {
	known := slices.Clone(l.holes)
	for _, g := range l.gone {
		known = addSpan(known, g)
	}
	fresh := last - first + 1
	for _, k := range known {
		if a, b := max(k.first, first), min(k.last, last); a <= b {
			fresh -= b - a + 1
		}
	}
	if fresh == 0 {
		return
	}
	l.lost += fresh
	l.changes++
	l.holes = addSpan(l.holes, span{first, last})
}

// addSpan gives the spans with another, in order, and joined where they touch.
func addSpan(spans []span, s span) []span {
	all := append(slices.Clone(spans), s)
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	joined := all[:1]
	for _, next := range all[1:] {
		if end := &joined[len(joined)-1]; next.first <= end.last+1 {
			end.last = max(end.last, next.last)
		} else {
			joined = append(joined, next)
		}
	}
	return joined
}
