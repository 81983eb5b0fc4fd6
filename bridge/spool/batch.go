package spool

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// address is a route with the connectors of a record.
type address struct {
	lines []*line
	batch uint64 // the batch that defines it
	index int    // there
}

// batch is one commit in the making: the frame, and whom to tell.
type batch struct {
	id         uint64
	buf        []byte
	end        int // of the records in buf
	opened     time.Time
	full       bool
	frame      frame
	counts     []count // by address
	done       []func(Pos, error)
	err        error
	checkpoint bool
	changes    uint64
}

type count struct {
	address *address
	n       uint64
	cost    int64
}

// address gives that of a record; its encoded form is in l.key.
func (l *log) address(route string, to []string) *address {
	k := appendName(l.key[:0], route)
	k = binary.AppendUvarint(k, uint64(len(to)))
	for _, name := range to {
		k = appendName(k, name)
	}
	l.key = k
	a, ok := l.addresses[string(k)]
	if !ok {
		a = &address{}
		for _, name := range to {
			n := l.line(route, l.cursor(name, l.last))
			if !slices.Contains(a.lines, n) {
				a.lines = append(a.lines, n)
			}
		}
		l.addresses[string(k)] = a
	}
	return a
}

// append adds a record to the open batch.
func (l *log) append(r *Record, done func(Pos, error)) error {
	if !l.refuse.IsZero() && time.Now().Before(l.refuse) {
		// The keeper may have found another reason since.
		return asFull(l.cause)
	}
	a := l.address(r.Route, r.To)
	if !l.s.o.DropOldest {
		for _, n := range a.lines {
			if n.cur.consumer.bytes > l.s.o.Share || n.cur.pending > 0 && n.cur.held > l.s.o.Share {
				return fmt.Errorf("%w: connector %q has its share pending", ErrFull, n.cur.consumer.name)
			}
		}
	}
	var b *batch
	if k := len(l.queue); k > 0 && !l.queue[k-1].full {
		b = l.queue[k-1]
	} else {
		if l.waiting >= maxWaiting {
			return fmt.Errorf("%w: the disk does not keep up", ErrFull)
		}
		b = l.newBatch()
		l.waiting++
		l.queue = append(l.queue, b)
		if l.idle {
			l.idle = false
			l.ready.Signal()
		}
	}
	if a.batch != b.id {
		a.batch, a.index = b.id, len(b.counts)
		b.counts = append(b.counts, count{address: a})
		b.buf = binary.AppendUvarint(b.buf, uint64(a.index))
		b.buf = append(b.buf, l.key...)
	} else {
		b.buf = binary.AppendUvarint(b.buf, uint64(a.index))
	}
	c := &b.counts[a.index]
	c.n++
	c.cost += cost(r.Data)
	var expires int64
	if !r.Expires.IsZero() {
		expires = r.Expires.UnixMilli()
	}
	b.buf = appendRecord(b.buf, r.ID, r.Time.UnixMilli(), expires, b.frame.time, r.Data)
	b.end = len(b.buf)
	b.done = append(b.done, done)
	if b.end >= l.s.maxBatch || len(b.done) >= maxCount {
		b.full = true
		l.ready.Signal()
	} else if len(b.done) == l.want {
		l.ready.Signal()
	}
	return nil
}

// cost is what a record is reckoned to take.
func cost(data []byte) int64 { return int64(len(data)) + recordCost }

func (l *log) newBatch() *batch {
	var b *batch
	if n := len(l.spare); n > 0 {
		b, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		b = &batch{buf: make([]byte, 0, page)}
	}
	l.s.batches++
	clear(b.done)
	clear(b.counts)
	*b = batch{
		id:     l.s.batches,
		buf:    slices.Grow(b.buf[:0], frameHead)[:frameHead],
		end:    frameHead,
		opened: time.Now(),
		frame:  frame{time: max(l.s.o.Now().UnixMilli(), 0)},
		counts: b.counts[:0],
		done:   b.done[:0],
	}
	return b
}

// recycle keeps a batch for the next use, unless it is one of many or large.
func (l *log) recycle(b *batch) {
	if len(l.spare) < 4 && cap(b.buf) <= 2*maxBatch {
		l.spare = append(l.spare, b)
	}
}
