// Package lanes keeps the order of each device while requests of several devices run at the same time.
//
// It is for protocols in which a request waits for its response: the publications of one lane go out one batch after the other, and lanes take
// turns. What is not done when the context ends is dropped: it belongs to the next session. It repeats nothing.
package lanes

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// ErrClosed is what Send gives after Drain.
var ErrClosed = errors.New("session closed")

// Options say how the lanes work.
type Options struct {
	Parallel int                                    // batches under way at the same time, at least 1
	Batch    int                                    // most publications in one batch, at least 1
	Lane     func(p *msg.Publication) string        // names the lane of a publication
	Check    func(p *msg.Publication) error         // says why one cannot be sent at all; nil: any can
	Post     func(batch []*msg.Publication) []error // sends a batch of one lane and gives the outcome of each
}

// Lanes are the lines of one session. Its context's end stops them.
type Lanes struct {
	ctx  context.Context
	o    Options
	room int // most publications that are not done

	wg      sync.WaitGroup
	mu      sync.Mutex
	change  *sync.Cond // with mu: something was done, or the end has come
	closing bool
	lanes   map[string]*lane // guarded by mu: those that have something to do
	ready   []*lane          // guarded by mu: those which no worker has
	queued  int              // guarded by mu: publications that are not done
	workers int              // guarded by mu
}

type lane struct {
	name  string
	items []item
}

// item is a publication and whom to tell.
type item struct {
	p    *msg.Publication
	i    int
	done func(int, error)
}

// New makes lanes without a goroutine: there are some only while there is something to send.
func New(ctx context.Context, o Options) *Lanes {
	l := &Lanes{ctx: ctx, o: o, room: max(16*o.Parallel, 4*o.Batch), lanes: map[string]*lane{}}
	l.change = sync.NewCond(&l.mu)
	return l
}

func (l *Lanes) wake() {
	l.mu.Lock()
	l.change.Broadcast()
	l.mu.Unlock()
}

// Send is as northbound.Session says.
func (l *Lanes) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	defer context.AfterFunc(ctx, l.wake)()
	defer context.AfterFunc(l.ctx, l.wake)()
	for i := range batch {
		p := &batch[i]
		if l.ctx.Err() != nil {
			return context.Cause(l.ctx)
		}
		if l.o.Check != nil {
			if err := l.o.Check(p); err != nil {
				done(i, msg.Permanent(err))
				continue
			}
		}
		if err := l.queue(ctx, item{p, i, done}); err != nil {
			return err
		}
	}
	return nil
}

// queue puts an item into its lane once there is room.
func (l *Lanes) queue(ctx context.Context, it item) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closing && l.ctx.Err() == nil && ctx.Err() == nil && l.queued >= l.room {
		l.change.Wait()
	}
	switch {
	case l.ctx.Err() != nil:
		return context.Cause(l.ctx)
	case l.closing:
		return ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	l.queued++
	name := l.o.Lane(it.p)
	line := l.lanes[name]
	if line == nil {
		line = &lane{name: name}
		l.lanes[name] = line
		l.ready = append(l.ready, line)
		if l.workers < l.o.Parallel {
			l.workers++
			l.wg.Go(l.work)
		}
	}
	line.items = append(line.items, it)
	return nil
}

// work takes a batch of each lane in turn until there is none.
func (l *Lanes) work() {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.workers-- }()
	for len(l.ready) > 0 && l.ctx.Err() == nil {
		line := l.ready[0]
		l.ready = l.ready[1:]
		n := min(len(line.items), l.o.Batch)
		items := line.items[:n:n]
		line.items = line.items[n:]
		l.mu.Unlock()
		batch := make([]*msg.Publication, n)
		for i := range items {
			batch[i] = items[i].p
		}
		errs := l.o.Post(batch)
		for i, it := range items {
			if l.ctx.Err() == nil {
				it.done(it.i, errs[i])
			}
		}
		l.mu.Lock()
		l.queued -= n
		if len(line.items) > 0 {
			l.ready = append(l.ready, line)
		} else {
			delete(l.lanes, line.name)
		}
		l.change.Broadcast()
	}
}

// Drain takes nothing more and waits until everything is done, the context has ended, or d has passed.
func (l *Lanes) Drain(d time.Duration) {
	defer context.AfterFunc(l.ctx, l.wake)()
	late := false
	defer time.AfterFunc(d, func() {
		l.mu.Lock()
		late = true
		l.change.Broadcast()
		l.mu.Unlock()
	}).Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	l.change.Broadcast()
	for l.queued > 0 && l.ctx.Err() == nil && !late {
		l.change.Wait()
	}
}

// Wait waits for every goroutine; the context has ended before.
func (l *Lanes) Wait() { l.wg.Wait() }
