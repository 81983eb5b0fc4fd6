package spool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	maxBatch        = 256 << 10 // octets of one commit, beyond which it takes no more records
	maxCount        = 1000
	maxWaiting      = 32 // batches between Append and the end of their completions
	checkpointEvery = 250 * time.Millisecond
	flushEvery      = time.Second            // of the cursors, where no append carries them
	refuseFor       = 200 * time.Millisecond // after the disk was full, before it is asked again
)

// log is one class: a row of main segments, and for slow connectors side segments. One goroutine commits, a second one completes.
// All fields are guarded by Spool.mu, but for those that never change.
type log struct {
	s         *Spool
	class     Class
	ready     *sync.Cond // there is work for the committer
	idle      bool       // it waits for that
	completed chan *batch

	queue   []*batch // to be committed; the last is open unless it is full
	spare   []*batch // to be used again
	waiting int
	crowd   int           // how many seem to append at a time
	sync    time.Duration // of the newest commit
	landing time.Time     // when that was done
	want    int           // records that the next one waits for
	refuse  time.Time     // until then there is no room
	cause   error         // why there was none

	dir           dir        // nil until it is made
	segs          []*segment // main, by base
	sealed        bool       // the last of segs takes no more
	free          []*segment // ready for use; the last one of them is for freeing others
	trash         []*segment // to be deleted
	leaving       []*segment // free when a checkpoint says that they are gone
	names         uint64     // of the newest file
	serial        uint64     // of the newest use of a file
	last          uint64     // newest sequence on disk
	changes       uint64     // of what a checkpoint holds
	saved         uint64     // changes that are on disk
	flushed       time.Time  // when
	flush         bool       // the keeper asks for a checkpoint
	checkpointLen int64      // of the newest
	relieving     time.Time  // not before
	parted        bool       // the last checkpoint before the end was tried
	parting       error      // what became of it

	lost, dropped uint64
	holes         []span // records that are missing, as far as somebody may come across
	gone          []span // records that were released before older ones
	lines         map[lineKey]*line
	order         []*line // as they came up
	cursors       map[string]*cursor
	addresses     map[string]*address
	key           []byte // room for a key of addresses
}

type lineKey struct{ route, connector string }

// line counts for one route and connector.
type line struct {
	route                              string
	cur                                *cursor
	accepted, delivered, expired, dead uint64
}

func (n *line) pending() uint64 { return n.accepted - n.delivered - n.expired - n.dead }

// settle counts one record that was pending.
func (n *line) settle(o Outcome, cost int64) {
	switch o {
	case Delivered:
		n.delivered++
	case Expired:
		n.expired++
	case Dead:
		n.dead++
	}
	n.cur.pending--
	n.cur.bytes -= cost
	n.cur.consumer.bytes -= cost
	n.cur.log.changes++
}

func newLog(s *Spool, class Class) *log {
	return &log{
		s:         s,
		class:     class,
		ready:     sync.NewCond(&s.mu),
		completed: make(chan *batch, maxWaiting+1),
		lines:     map[lineKey]*line{},
		cursors:   map[string]*cursor{},
		addresses: map[string]*address{},
	}
}

func (l *log) start() {
	l.s.committers.Go(l.run)
	l.s.committers.Go(l.complete)
}

// cursor gives that of a connector; a new one has settled everything up to floor.
func (l *log) cursor(name string, floor uint64) *cursor {
	cur, ok := l.cursors[name]
	if !ok {
		cur = &cursor{log: l, consumer: l.s.consumer(name), floor: floor, read: floor + 1, saved: place{floor: floor}}
		cur.reader = newReader(cur, cur.read)
		cur.consumer.cursors[l.class] = cur
		l.cursors[name] = cur
	}
	return cur
}

func (l *log) line(route string, cur *cursor) *line {
	k := lineKey{route, cur.consumer.name}
	n, ok := l.lines[k]
	if !ok {
		n = &line{route: route, cur: cur}
		l.lines[k] = n
		l.order = append(l.order, n)
	}
	return n
}

// run commits until the spool is closed and nothing is left.
func (l *log) run() {
	defer close(l.completed)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for {
		b := l.take()
		if b == nil {
			return
		}
		b.err = l.commit(b)
		if len(b.done) > 0 {
			l.completed <- b // has room for all that may wait
		} else {
			if l.parted {
				l.parting = b.err
			}
			l.recycle(b)
		}
	}
}

// complete tells those who wait, so that it does not hold up the next commit.
func (l *log) complete() {
	for b := range l.completed {
		pos := Pos{Class: l.class, Seq: b.frame.first}
		for _, done := range b.done {
			if b.err != nil {
				done(Pos{}, b.err)
			} else {
				done(pos, nil)
			}
			pos.Seq++
		}
		l.s.mu.Lock()
		l.waiting--
		l.recycle(b)
		l.s.mu.Unlock()
	}
}

// take waits for what is to be committed; an empty batch is for a checkpoint alone, nil is the end.
func (l *log) take() *batch {
	for {
		dirty := l.changes != l.saved && l.dir != nil
		switch {
		case len(l.queue) > 0:
			l.gather(l.queue[0])
			b := l.queue[0]
			l.queue = slices.Delete(l.queue, 0, 1)
			return b
		case l.flush:
			l.flush = false
			if dirty {
				return l.newBatch()
			}
		case l.s.closing && dirty && !l.parted:
			l.parted = true
			return l.newBatch()
		case l.s.closing:
			return nil
		default:
			l.idle = true
			l.ready.Wait()
			l.idle = false
		}
	}
}

// gather waits a little for company: as long as the user asked for, or else until those have come back who were told of the
// last commit, but no longer than half a flush takes, and not where it is the first for a while.
func (l *log) gather(b *batch) {
	wait := l.s.o.Linger - time.Since(b.opened)
	l.want = maxCount
	if l.s.o.Linger == 0 {
		if time.Since(l.landing) > l.sync {
			return
		}
		wait, l.want = min(l.sync/2, time.Millisecond), l.crowd
	}
	if len(b.done) >= l.want || wait <= 0 {
		return
	}
	late := false
	t := time.AfterFunc(wait, func() {
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		late = true
		l.ready.Signal()
	})
	for !late && len(b.done) < l.want && !b.full && !l.s.closing {
		l.ready.Wait()
	}
	t.Stop()
}

// commit writes a batch to the newest segment, or to the next one. What fails there is written once more to another.
func (l *log) commit(b *batch) error {
	b.full = true
	var broken error
	if len(b.done) > 0 && !l.restock() {
		return l.full(b, l.cause)
	}
	seg := l.active()
	due := len(b.done) == 0 || l.changes != l.saved && time.Since(l.flushed) >= checkpointEvery
	if seg != nil && !l.prepare(b, seg, due) {
		seg = nil
	}
	for range 2 {
		fresh := seg == nil
		if fresh {
			if seg = l.acquire(); seg == nil {
				break
			}
			l.use(seg, header{base: l.last + 1})
			if !l.prepare(b, seg, true) {
				l.free = append(l.free, seg)
				return l.full(b, errors.New("the checkpoint leaves no room in a segment"))
			}
		}
		l.s.mu.Unlock()
		took, err := l.write(b, seg, fresh)
		l.s.mu.Lock()
		switch {
		case err == nil:
			if fresh {
				l.segs, l.sealed = append(l.segs, seg), false
			}
			l.landed(b, seg, took)
			return nil
		case errors.Is(err, errWrite) && noRoom(err):
			// Nothing was flushed, so what stood there stands there still.
			if fresh {
				l.free = append(l.free, seg)
			}
			if broken == nil {
				return l.full(b, err)
			}
		case fresh:
			l.trash = append(l.trash, seg)
		default:
			// What the failed flush has done to the file is unknown, and asking it again would not tell.
			l.sealed, seg.bad = true, true
		}
		broken, seg = err, nil
	}
	if broken != nil {
		return fmt.Errorf("%w: %w", ErrAmbiguous, broken)
	}
	return l.full(b, l.cause)
}

// full says why there is no room, and spares the disk further questions for a while.
func (l *log) full(b *batch, cause error) error {
	cause = asFull(cause)
	if len(b.done) > 0 {
		l.s.full = true
		l.cause, l.refuse = cause, time.Now().Add(refuseFor)
	}
	return cause
}

// asFull says that there is no room, and why.
func asFull(cause error) error {
	switch {
	case cause == nil:
		return ErrFull
	case errors.Is(cause, ErrFull):
		return cause
	}
	return fmt.Errorf("%w: %w", ErrFull, cause)
}

func (l *log) active() *segment {
	if n := len(l.segs); n > 0 && !l.sealed {
		return l.segs[n-1]
	}
	return nil
}

// prepare completes the body of the frame, and says whether it fits into the segment.
func (l *log) prepare(b *batch, seg *segment, withCheckpoint bool) bool {
	b.buf = b.buf[:b.end]
	if b.checkpoint = withCheckpoint; withCheckpoint {
		b.changes = l.changes
		b.buf = l.checkpoint().append(b.buf)
	}
	b.frame.first = l.last + 1
	b.frame.last = l.last + uint64(len(b.done))
	b.frame.count = uint32(len(b.done))
	b.frame.checkpoint = uint32(len(b.buf) - b.end)
	if withCheckpoint {
		l.checkpointLen = int64(b.frame.checkpoint)
	}
	need := l.s.aligned(int64(len(b.buf)))
	end := seg.end + need
	if len(l.free) <= 1 && len(l.segs) > 0 && (len(b.done) > 0 || !l.s.closing && !l.releasable()) {
		need += l.reserve()
	}
	if seg.end+need > seg.size {
		return false
	}
	seg.promised = end
	return true
}

// landed takes note of what is now on disk.
func (l *log) landed(b *batch, seg *segment, took time.Duration) {
	s := l.s
	seg.end += int64(b.frame.span)
	l.last = b.frame.last
	s.commits++
	s.written += int64(b.frame.span)
	s.syncs.add(took)
	if len(b.done) > 0 {
		l.sync, l.landing = took, time.Now()
		crowd := len(b.done)
		for _, next := range l.queue {
			crowd += len(next.done)
		}
		l.crowd = max(crowd, l.crowd-(l.crowd+7)/8) // some may be on their way
		s.full = false
		l.refuse = time.Time{}
	}
	if b.checkpoint {
		l.saved = b.changes
		l.flushed = time.Now()
		for _, cur := range l.cursors {
			cur.saved.floor = max(cur.saved.floor, cur.written.floor)
			cur.saved.moved = max(cur.saved.moved, cur.written.moved)
		}
		l.release(b.changes)
	}
	for i := range b.counts {
		c := &b.counts[i]
		for _, n := range c.address.lines {
			if seg.holds != nil {
				seg.holds[n.cur] = struct{}{}
			}
			n.accept(b.frame.first, b.frame.time, c.n, c.cost)
		}
	}
}

// accept counts n records of the commit that begins with first.
func (n *line) accept(first uint64, time int64, count uint64, cost int64) {
	cur := n.cur
	if cur.pending == 0 {
		cur.floor, cur.read = max(cur.floor, first-1), max(cur.read, first)
		cur.spans, cur.oldest = nil, time
	}
	n.accepted += count
	cur.pending += count
	cur.bytes += cost
	cur.consumer.bytes += cost
	cur.consumer.wake()
}
