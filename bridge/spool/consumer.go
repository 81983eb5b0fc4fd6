package spool

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Consumer reads what is for one connector.
type Consumer struct {
	s    *Spool
	name string
	news chan struct{} // there may be something to read

	reading sync.Mutex // held before Spool.mu; guards the readers of the cursors
	list    []found    // room for what is read at once

	cursors [classes]*cursor // guarded by Spool.mu, as is bytes
	bytes   int64            // pending in all classes
}

// wake tells Read to look again.
func (c *Consumer) wake() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// Read gives up to max entries of the classes up to lowest, of about maxBytes octets together but at least one, in the order in which they
// were appended, higher classes first. It waits until there is one. What was handed out before and is not settled is not handed out again; where
// that is very much already (thousands, see Options.Segment) it waits for some to be settled. What has expired is counted, not handed out.
// It ends with the cause of ctx, or ErrClosed. One goroutine at a time should read.
func (c *Consumer) Read(ctx context.Context, lowest Class, max, maxBytes int) ([]Entry, error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		list, err := c.read(lowest, max, maxBytes)
		if err != nil || len(list) > 0 {
			return list, err
		}
		select {
		case <-ctx.Done():
		case <-c.s.done:
			return nil, ErrClosed
		case <-c.news:
		}
	}
}

func (c *Consumer) read(lowest Class, max, maxBytes int) (out []Entry, err error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.s.mu.Lock()
	cursors, closed := c.cursors, c.s.closing
	c.s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	for class, cur := range cursors {
		if cur == nil || Class(class) > lowest {
			continue
		}
		for len(out) < max && maxBytes > 0 {
			room := cur.begin()
			if room <= 0 {
				cur.reader.rest()
				break
			}
			list := cur.reader.next(c.list[:0], min(max-len(out), room), maxBytes)
			data := make([]byte, 0, cur.take(list))
			out = slices.Grow(out, len(list))
			for i := range list {
				f := &list[i]
				if f.line == nil {
					continue // it was settled before, or has expired
				}
				data = append(data, f.data...)
				out = append(out, f.entry(cur.log.class, data[len(data)-len(f.data):len(data):len(data)]))
				maxBytes -= int(cost(f.data))
			}
			end := len(list) == 0
			clear(list)
			c.list = list[:0]
			if end {
				break
			}
		}
	}
	return out, nil
}

func (f *found) entry(class Class, data []byte) Entry {
	e := Entry{Pos: Pos{class, f.seq}, ID: f.id, Time: time.UnixMilli(f.time), Route: f.line.route, Data: data}
	if f.expires != 0 {
		e.Expires = time.UnixMilli(f.expires)
	}
	return e
}

// begin brings the reader to where the cursor is, and says how many records it may take.
func (cur *cursor) begin() int {
	s := cur.log.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if cur.pending == 0 {
		return 0
	}
	cur.reader.seq = max(cur.reader.seq, cur.read)
	room := s.window() - len(cur.flight)
	cur.blocked = room <= 0
	return room
}

// take puts what was read in flight, and clears the line of what is not to be handed out. It gives the octets of data of the rest.
func (cur *cursor) take(list []found) (octets int) {
	s := cur.log.s
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now().UnixMilli()
	for i := range list {
		f := &list[i]
		fl := flight{seq: f.seq, line: f.line, cost: cost(f.data), time: f.time}
		switch {
		case cur.passed(f.seq):
			fl.settled = true
			f.line = nil
		case s.expired(&f.raw, now):
			cur.settle(&fl, Expired)
			f.line = nil
		default:
			octets += len(f.data)
		}
		cur.flight = append(cur.flight, fl)
	}
	cur.read = max(cur.read, cur.reader.seq)
	cur.advance()
	return octets
}

// expired says whether a record is of no use any more.
func (s *Spool) expired(r *raw, now int64) bool {
	end := r.time + s.o.MaxAge.Milliseconds()
	if r.expires != 0 {
		end = min(end, r.expires)
	}
	return end <= now && end+s.late(r.time) <= now
}

// late says by how many ms the clock stood back at a time that it gave. It is asked only where it matters.
func (s *Spool) late(ms int64) int64 {
	t := time.UnixMilli(ms)
	return s.o.Correct(t).Sub(t).Milliseconds()
}

// Settle says what became of an entry that was handed out. Entries may be settled in any order; settling one twice counts once.
// After Rewind only what was handed out again can be settled.
func (c *Consumer) Settle(p Pos, o Outcome) {
	if p.Class >= classes || o < Delivered || o > Dead {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	cur := c.cursors[p.Class]
	if cur == nil {
		return
	}
	f := cur.find(p.Seq)
	if f == nil || f.settled {
		return
	}
	cur.settle(f, o)
	if f == &cur.flight[0] {
		cur.advance()
		if cur.blocked {
			cur.blocked = false
			c.wake()
		}
	}
}

// Rewind makes Read hand out again, in order, what was handed out and is not settled.
func (c *Consumer) Rewind() {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, cur := range c.cursors {
		if cur != nil {
			cur.rewind()
		}
	}
	c.wake()
}
