package spool

import (
	"encoding/binary"
	"slices"
	"time"
)

const (
	relieveAgain = 5 * time.Second // after it did not work
	moveAtOnce   = 64 << 10        // octets of a frame
)

// relieve moves what slow connectors have left in the oldest main segments to side segments of theirs, close together,
// so that the former can be used again. It does so when space is short or half of it is used, and where it gains something.
func (l *log) relieve(short bool) {
	s := l.s
	s.mu.Lock()
	if len(l.segs) < 3 || l.releasable() || !short && s.used < s.capacity/2 || time.Now().Before(l.relieving) {
		s.mu.Unlock()
		return
	}
	upTo := l.segs[min(len(l.segs)/2, surveyAtOnce)].base - 1
	slow := l.behind(upTo)
	var bytes int64
	for _, cur := range slow {
		here := cur.bytes
		for _, seg := range cur.side {
			here -= seg.end - page
		}
		bytes += max(here, 0)
	}
	held, free := int64(len(l.segs))*s.o.Segment, len(l.free)
	if !l.tail() {
		free--
	}
	s.mu.Unlock()
	if bytes*2 > held || free < len(slow) {
		return
	}
	ok := true
	for _, cur := range slow {
		cur.consumer.reading.Lock()
		ok = ok && cur.move(upTo)
		cur.consumer.reading.Unlock()
	}
	s.mu.Lock()
	if ok {
		l.flush = true
		l.ready.Signal()
	} else {
		l.relieving = time.Now().Add(relieveAgain)
	}
	s.mu.Unlock()
}

// tail says whether the newest segment has room for a checkpoint more, whatever is on its way there. Spool.mu is held.
func (l *log) tail() bool {
	seg := l.active()
	return seg != nil && max(seg.end, seg.promised)+l.reserve() <= seg.size
}

// reserve is what is kept free at the end of the newest segment where no other is ready,
// so that what is settled can be written down and frees one.
func (l *log) reserve() int64 { return l.s.aligned(2*l.checkpointLen + page) }

// move copies what is pending for the connector in the main log up to a sequence to its side segments, and says whether it is all there.
// It counts only when the next checkpoint says so; what is in a side segment beyond that is not read. The caller holds Consumer.reading.
func (cur *cursor) move(upTo uint64) bool {
	s, l := cur.log.s, cur.log
	s.mu.Lock()
	r := newReader(cur, max(cur.floor, cur.moved)+1)
	m := &mover{cur: cur}
	if n := len(cur.side); n > 0 && !cur.side[n-1].bad {
		m.seg, m.end = cur.side[n-1], cur.side[n-1].end
		m.seg.busy = true
		m.old, m.oldEnd = m.seg, m.end
	}
	s.mu.Unlock()
	defer r.leave()
	ok := true
	for ok && r.seq <= upTo {
		list := r.next(nil, maxCount, maxBatch)
		if len(list) == 0 {
			break
		}
		s.mu.Lock()
		list = slices.DeleteFunc(list, func(f found) bool { return f.seq > upTo || cur.knows(f.seq) })
		s.mu.Unlock()
		for i := range list {
			ok = ok && m.add(&list[i])
		}
	}
	ok = ok && m.write() && m.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.old != nil {
		m.old.busy = false
	}
	if !ok {
		for _, seg := range m.segs {
			l.discard(seg)
		}
		if m.old != nil {
			m.old.bad = true // takes no more
		}
		return false
	}
	if m.old != nil {
		m.old.end = m.oldEnd
	}
	cur.side = append(cur.side, m.segs...)
	cur.moved = upTo
	l.changes++
	return true
}

// knows says whether a record is settled already. Spool.mu is held.
func (cur *cursor) knows(seq uint64) bool {
	if seq <= cur.floor {
		return true
	}
	if seq < cur.read {
		f := cur.find(seq)
		return f == nil || f.settled
	}
	return slices.ContainsFunc(cur.spans, func(s span) bool { return s.first <= seq && seq <= s.last })
}

// mover writes frames to the side segments of one connector.
type mover struct {
	cur    *cursor
	seg    *segment // nil where there is none yet
	end    int64    // in it
	old    *segment // the one that was there before
	oldEnd int64
	segs   []*segment // those that have come since
	buf    []byte     // the frame in the making
	frame  frame
	routes map[*line]uint64 // in that frame
}

// add puts a record into the frame in the making, and writes one that is full.
func (m *mover) add(r *found) bool {
	if len(m.buf) > 0 && len(m.buf)+len(r.data) > moveAtOnce && !m.write() {
		return false
	}
	if len(m.buf) == 0 {
		m.buf = append(m.buf, zeros[:frameHead]...)
		m.routes = map[*line]uint64{}
		m.frame = frame{first: r.seq, last: r.seq, time: max(r.time, 0)}
	}
	m.buf = appendSide(m.buf, r, m.routes, &m.frame)
	return true
}

// appendSide adds a record for one connector to a frame, with its sequence.
func appendSide(b []byte, r *found, routes map[*line]uint64, f *frame) []byte {
	n, ok := routes[r.line]
	if !ok {
		n = uint64(len(routes))
		routes[r.line] = n
	}
	b = binary.AppendUvarint(b, n)
	if !ok {
		b = appendName(b, r.line.route)
		b = binary.AppendUvarint(b, 1)
		b = appendName(b, r.line.cur.consumer.name)
	}
	b = binary.AppendUvarint(b, r.seq-f.last)
	f.last = r.seq
	f.count++
	return appendRecord(b, r.id, r.time, r.expires, f.time, r.data)
}

// write puts the frame in the making, if there is one, behind the one before.
func (m *mover) write() bool {
	if len(m.buf) == 0 {
		return true
	}
	s := m.cur.log.s
	if m.seg == nil || m.end+s.aligned(int64(len(m.buf))) > m.seg.size {
		if !m.flush() || !m.next(m.frame.first) {
			return false
		}
	}
	m.buf = m.frame.seal(m.buf, m.seg.seed, s.o.Align)
	if _, err := m.seg.file.WriteAt(m.buf, m.end); err != nil {
		return false
	}
	m.buf = m.buf[:0]
	m.end += int64(m.frame.span)
	s.mu.Lock()
	s.written += int64(m.frame.span)
	if m.seg == m.old {
		m.oldEnd = m.end
	} else {
		m.seg.end = m.end
	}
	s.mu.Unlock()
	return true
}

// flush makes safe what was written to the segment.
func (m *mover) flush() bool {
	if m.seg == nil {
		return true
	}
	if err := m.seg.file.Sync(); err != nil {
		m.cur.log.s.mu.Lock()
		m.seg.bad = true
		m.cur.log.s.mu.Unlock()
		return false
	}
	return true
}

// next takes a free segment; the last one only where a checkpoint can be written without it.
func (m *mover) next(base uint64) bool {
	l := m.cur.log
	l.s.mu.Lock()
	n := len(l.free)
	if n == 0 || n == 1 && !l.tail() {
		l.s.mu.Unlock()
		return false
	}
	m.seg = l.free[0]
	l.free = l.free[1:]
	m.segs = append(m.segs, m.seg)
	l.use(m.seg, header{side: true, base: base, owner: m.cur.consumer.name})
	m.end = m.seg.end
	l.s.mu.Unlock()
	_, err := m.seg.file.WriteAt(m.seg.encode(), 0)
	return err == nil
}
