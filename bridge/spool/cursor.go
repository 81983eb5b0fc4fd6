package spool

import "sort"

// cursor is how far one connector has come in one class. Guarded by Spool.mu, but for reader, which Consumer.reading guards.
type cursor struct {
	log      *log
	consumer *Consumer

	floor   uint64   // everything up to it is settled
	read    uint64   // the next to be read; what is between them is in flights
	flight  []flight // by sequence; the first is not settled
	spans   []span   // settled already, from read on
	blocked bool     // there is more to read, but too much in flight
	moved   uint64   // everything up to it is in side, not in the main log
	side    []*segment

	hurt bool // some of that is gone

	pending uint64 // records that are not settled
	bytes   int64  // what they take
	held    int64  // octets of the segments that are kept for it, as the keeper has last reckoned
	oldest  int64  // time of the first of them in ms, as far as is known

	written place // as the newest checkpoint says that is on its way
	saved   place // as one says that is on disk

	reader *reader
}

type place struct{ floor, moved uint64 }

// flight is a record that was handed out, or that was found to be settled already.
type flight struct {
	seq     uint64
	line    *line
	cost    int64
	time    int64
	settled bool
}

// settled is the sequence up to which nothing is pending.
func (cur *cursor) settled() uint64 {
	if cur.pending == 0 {
		return cur.log.last
	}
	return cur.floor
}

// sideLast is the last sequence that side segment i may hold.
func (cur *cursor) sideLast(i int) uint64 {
	if i+1 < len(cur.side) {
		return cur.side[i+1].base - 1
	}
	return cur.moved
}

// find gives the record in flight with this sequence.
func (cur *cursor) find(seq uint64) *flight {
	i := 0
	if len(cur.flight) > 0 && cur.flight[0].seq != seq {
		i = sort.Search(len(cur.flight), func(i int) bool { return cur.flight[i].seq >= seq })
	}
	if i == len(cur.flight) || cur.flight[i].seq != seq {
		return nil
	}
	return &cur.flight[i]
}

// settle counts a record in flight, once.
func (cur *cursor) settle(f *flight, o Outcome) {
	if !f.settled {
		f.settled = true
		f.line.settle(o, f.cost)
	}
}

// advance moves the floor over what is settled.
func (cur *cursor) advance() {
	n := 0
	for n < len(cur.flight) && cur.flight[n].settled {
		n++
	}
	cur.flight = cur.flight[n:]
	floor := cur.read - 1
	if len(cur.flight) > 0 {
		floor = cur.flight[0].seq - 1
		cur.oldest = cur.flight[0].time
	} else {
		cur.flight = nil
	}
	if floor > cur.floor {
		cur.floor = floor
		cur.log.changes++
	}
	if cur.read > cur.log.last && len(cur.flight) == 0 && cur.pending > 0 {
		cur.reconcile()
	}
}

// reconcile is for a cursor that has come to the end with something pending: that is gone from the disk.
func (cur *cursor) reconcile() {
	for _, n := range cur.log.order {
		if n.cur == cur {
			n.dead += n.pending()
		}
	}
	if cur.hurt {
		cur.log.lost += cur.pending
		cur.hurt = false
	}
	cur.consumer.bytes -= cur.bytes
	cur.pending, cur.bytes = 0, 0
	cur.log.changes++
}

// passed says whether a record that is being read was settled before.
func (cur *cursor) passed(seq uint64) bool {
	for len(cur.spans) > 0 && cur.spans[0].last < seq {
		cur.spans = cur.spans[1:]
	}
	return len(cur.spans) > 0 && cur.spans[0].first <= seq
}

// islands gives what is settled above the floor.
func (cur *cursor) islands() []span {
	var spans []span
	open := false
	for i := range cur.flight {
		f := &cur.flight[i]
		switch {
		case !f.settled:
			open = false
		case open:
			spans[len(spans)-1].last = f.seq
		default:
			spans = append(spans, span{f.seq, f.seq})
			open = true
		}
	}
	for _, s := range cur.spans {
		if s.last >= cur.read {
			spans = append(spans, span{max(s.first, cur.read), s.last})
		}
	}
	return spans
}

// rewind forgets what was handed out, but not what of it is settled. The caller holds Consumer.reading too.
func (cur *cursor) rewind() {
	cur.spans = cur.islands()
	cur.flight = nil
	cur.read = cur.floor + 1
	cur.reader.leave()
	cur.reader.seq = cur.read
}

// checkpoint gives the state of the class, and notes for each cursor what it says.
func (l *log) checkpoint() *checkpoint {
	c := &checkpoint{lost: l.lost, dropped: l.dropped, holes: l.holes, gone: l.gone}
	for _, n := range l.order {
		c.lines = append(c.lines, lineState{
			route: n.route, connector: n.cur.consumer.name,
			accepted: n.accepted, delivered: n.delivered, expired: n.expired, dead: n.dead,
		})
	}
	for name, cur := range l.cursors {
		k := cursorState{connector: name, floor: cur.settled(), moved: cur.moved}
		if cur.pending > 0 {
			k.bytes, k.oldest, k.spans = max(cur.bytes, 0), cur.oldest, cur.islands()
		}
		cur.written = place{k.floor, k.moved}
		c.cursors = append(c.cursors, k)
	}
	return c
}
