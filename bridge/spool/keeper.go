package spool

import (
	"fmt"
	"time"
)

// surveyAtOnce is how many segments are read in one round, so that none of it takes long.
const surveyAtOnce = 8

// kick asks the keeper for a round.
func (s *Spool) kick() {
	select {
	case s.kicks <- struct{}{}:
	default:
	}
}

// round waits for a round of the keeper that begins from now on. Spool.mu is held.
func (s *Spool) round() {
	want := s.begun + 1
	s.kick()
	for s.ended < want && !s.closed {
		s.rounds.Wait()
	}
}

// keep does what is not to hold up a commit: it makes and deletes files, has the cursors written down, expires what is old,
// and makes room.
func (s *Spool) keep() {
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		s.begun++
		n, logs, closed := s.begun, s.logs, s.closed
		s.mu.Unlock()
		tight := false
		if !closed {
			for _, l := range logs {
				if l != nil && l.tend() {
					tight = true
				}
			}
		}
		s.mu.Lock()
		s.ended, s.tight = n, tight
		s.rounds.Broadcast()
		s.mu.Unlock()
		if closed {
			return
		}
		select {
		case <-s.kicks:
		case <-t.C:
			for _, l := range logs {
				if l != nil {
					l.age()
					l.writeDown()
				}
			}
		}
	}
}

// tend sees to the files of a class, and says whether max_size keeps it from having what it needs.
func (l *log) tend() (tight bool) {
	s := l.s
	s.mu.Lock()
	d := l.dir
	s.mu.Unlock()
	if d == nil {
		var err error
		if d, err = s.disk.Dir(l.class.String(), true); err != nil {
			s.mu.Lock()
			l.cause = err
			s.mu.Unlock()
			return false
		}
		s.mu.Lock()
		l.dir = d
		s.mu.Unlock()
	}
	l.clean(d)
	s.mu.Lock()
	for len(l.free) < spares {
		if err := l.room(); err != nil {
			l.cause = err
			tight = true
			break
		}
		l.names++
		name := segmentName(l.names)
		s.used += s.o.Segment
		s.mu.Unlock()
		seg, err := makeSegment(d, name, s.o.Segment)
		s.mu.Lock()
		if err != nil {
			s.used -= s.o.Segment
			l.cause = err
			break
		}
		l.free = append(l.free, seg)
	}
	l.weigh()
	short := len(l.free) < spares
	if short && !l.releasable() {
		l.survey()
	}
	if short || s.used >= s.capacity/2 {
		if l.skipAhead(); len(l.leaving) > 0 {
			l.flush = true
			l.ready.Signal()
		}
	}
	s.mu.Unlock()
	if s.o.DropOldest {
		if short {
			l.victim().drop()
		}
	} else {
		l.relieve(short)
	}
	return tight
}

// weigh reckons what is held for each connector where space matters, which is more than what it has pending: segments are used up
// as a whole, and commits begin on new pages. Spool.mu is held.
func (l *log) weigh() {
	for _, cur := range l.cursors {
		cur.held = 0
		if cur.pending == 0 || l.s.used < l.s.capacity/2 {
			continue
		}
		n, done := len(cur.side), max(cur.settled(), cur.moved)
		for i, seg := range l.segs {
			_, has := seg.holds[cur]
			if (has || seg.holds == nil) && (i+1 == len(l.segs) || l.segs[i+1].base-1 > done) {
				n++
			}
		}
		cur.held = int64(n) * l.s.o.Segment
	}
}

// survey finds out for whom the newest segments are of which that is not known, since they were there when the spool was opened.
// Spool.mu is held, but not while it reads.
func (l *log) survey() {
	n := 0
	for i := len(l.segs) - 2; i > 0 && n < surveyAtOnce; i-- {
		seg := l.segs[i]
		if seg.holds != nil {
			continue
		}
		n++
		epoch, last := seg.epoch, l.segs[i+1].base-1
		sc := scanner{file: seg.file, seed: seg.seed, off: page, end: seg.end}
		l.s.mu.Unlock()
		names, ok := sc.connectors(last)
		l.s.mu.Lock()
		i = min(i, len(l.segs)-1) // some may have been released meanwhile
		if !ok || seg.epoch != epoch {
			continue
		}
		holds := map[*cursor]struct{}{}
		for name := range names {
			if cur, ok := l.cursors[name]; ok {
				holds[cur] = struct{}{}
			}
		}
		seg.holds = holds
	}
}

// connectors names those that a segment has records for up to a sequence, and says no where it cannot tell.
func (sc *scanner) connectors(last uint64) (names map[string]struct{}, ok bool) {
	names = map[string]struct{}{}
	for {
		f, ok := sc.frame()
		if !ok {
			if !sc.resync() {
				return names, true
			}
			continue
		}
		if f.first > last {
			return names, true
		}
		it := f.records(sc.body(&f), false)
		var r raw
		for it.next(&r, func(_ []byte, to [][]byte) {
			for _, name := range to {
				names[string(name)] = struct{}{}
			}
		}) {
		}
		if it.left > 0 {
			return nil, false
		}
		sc.off += int64(f.span)
	}
}

// clean deletes what is not to be used again, and of what is free all but a few.
func (l *log) clean(d dir) {
	s := l.s
	s.mu.Lock()
	keep := hoard
	if s.tight {
		keep = spares
	}
	if n := len(l.free); n > keep {
		l.trash = append(l.trash, l.free[keep:]...)
		l.free = l.free[:keep:keep]
	}
	trash := l.trash
	l.trash = nil
	s.mu.Unlock()
	for i, seg := range trash {
		if err := d.Remove(seg.name); err != nil {
			s.mu.Lock()
			l.trash = append(l.trash, trash[i:]...)
			s.mu.Unlock()
			return
		}
		seg.file.Close() // what it has to say about a deleted file does not matter
		s.mu.Lock()
		s.used -= seg.size
		s.mu.Unlock()
	}
}

// room says whether the class may have one more segment. Two are set aside for each class, also for those that were not used yet,
// so that a backlog of one cannot shut out another. Spool.mu is held.
func (l *log) room() error {
	need := l.s.used + l.s.o.Segment
	for c, other := range l.s.logs {
		if Class(c) != l.class {
			need += l.s.o.Segment * int64(max(0, spares-other.files()))
		}
	}
	if need > l.s.o.MaxSize {
		return fmt.Errorf("%w: max_size of %d octets is reached", ErrFull, l.s.o.MaxSize)
	}
	return nil
}

// files counts the segments of a class.
func (l *log) files() int {
	if l == nil {
		return 0
	}
	n := len(l.segs) + len(l.free) + len(l.trash) + len(l.leaving)
	for _, cur := range l.cursors {
		n += len(cur.side)
	}
	return n
}

// writeDown has the cursors written down where no append does it.
func (l *log) writeDown() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.changes != l.saved && time.Since(l.flushed) >= flushEvery {
		l.flush = true
		l.ready.Signal()
	}
}

// victim is the class of which something is to go, so that this one has room: the lowest with a backlog.
func (l *log) victim() *log {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for class := classes - 1; class > l.class; class-- {
		if low := l.s.logs[class]; low != nil && len(low.segs) > 2 {
			return low
		}
	}
	return l
}

// drop expires the oldest segment's worth, unless that was done and needs only to be written down.
func (l *log) drop() {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(l.segs) < 2 {
		return
	}
	l.flush = true
	l.ready.Signal()
	if l.releasable() {
		return
	}
	upTo := l.segs[1].base - 1
	for _, cur := range l.behind(upTo) {
		s.mu.Unlock()
		cur.consumer.reading.Lock()
		n := cur.expire(func(seq uint64, _ int64) bool { return seq <= upTo })
		cur.consumer.reading.Unlock()
		s.mu.Lock()
		l.dropped += n
	}
}

// age expires what is older than max_age and waits for a connector that does not read. What is in flight is left to the one who has it.
func (l *log) age() {
	s := l.s
	s.mu.Lock()
	before := s.o.Now().Add(-s.o.MaxAge).UnixMilli()
	aged := func(ms int64) bool { return ms <= before && ms+s.late(ms) <= before }
	var old []*cursor
	for _, cur := range l.cursors {
		if cur.pending > 0 && aged(cur.oldest) && len(cur.flight) == 0 {
			old = append(old, cur)
		}
	}
	s.mu.Unlock()
	for _, cur := range old {
		cur.consumer.reading.Lock()
		cur.expire(func(_ uint64, ms int64) bool { return aged(ms) })
		cur.consumer.reading.Unlock()
	}
}

// expire counts as expired what is in flight and, from where the cursor is, what is to be read, as long as goes says so; and how many that are.
// The caller holds Consumer.reading.
func (cur *cursor) expire(goes func(seq uint64, time int64) bool) (n uint64) {
	s := cur.log.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range cur.flight {
		if f := &cur.flight[i]; !f.settled && goes(f.seq, f.time) {
			cur.settle(f, Expired)
			n++
		}
	}
	cur.advance()
	for more := true; more && cur.pending > 0; {
		cur.reader.seq = max(cur.reader.seq, cur.read)
		s.mu.Unlock()
		list := cur.reader.next(nil, maxCount, maxBatch)
		s.mu.Lock()
		more = len(list) > 0
		for i := range list {
			f := &list[i]
			fl := flight{seq: f.seq, line: f.line, cost: cost(f.data), time: f.time, settled: true}
			if !cur.passed(f.seq) {
				if !goes(f.seq, f.time) {
					cur.reader.leave()
					cur.reader.seq = f.seq
					cur.oldest = f.time
					more = false
					break
				}
				f.line.settle(Expired, fl.cost)
				n++
			}
			cur.flight = append(cur.flight, fl)
		}
		cur.read = max(cur.read, cur.reader.seq)
		cur.advance()
	}
	cur.consumer.wake()
	return n
}
