// Package queue orders the work of one chip.
//
// What always holds: at most Workers operations run at once; waiting users take turns, one operation each, however many one of them
// has waiting; each user has at most Depth operations waiting, what is above is refused at once; nobody waits longer than Timeout for
// a turn and Timeout for the operation. An operation that does not return is given up: its turn passes to others, and
// the error names the chip. While too many such operations hang, new ones are refused rather than hung as well.
package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Options say what a chip bears. Zero fields have the defaults given.
type Options struct {
	Chip    string        // its name in errors and figures
	Workers int           // operations at once; default 1
	Depth   int           // waiting operations per user; default 256
	Timeout time.Duration // default 10s
}

// Queue is the queue of one chip. Make it with New.
type Queue struct {
	o       Options
	buckets []time.Duration
	tooSlow error // made once: it goes with every operation
	tooLate error

	mu      sync.Mutex // guards what follows
	running int
	hung    int                  // operations given up that have not returned
	waiting map[string][]*ticket // per user, first come first
	turn    []string             // users with waiting operations, in the order of their turns
	stats   hwcrypto.QueueStats
}

type ticket struct{ ready chan struct{} }

// New makes a queue.
func New(o Options) *Queue {
	if o.Workers == 0 {
		o.Workers = 1
	}
	if o.Depth == 0 {
		o.Depth = 256
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	b := hwcrypto.QueueBuckets()
	tooLong := func(what string) error {
		return fmt.Errorf("%s: %w: %s took more than %v", o.Chip, hwcrypto.ErrTimeout, what, o.Timeout)
	}
	return &Queue{o: o, buckets: b, tooSlow: tooLong("an operation"), tooLate: tooLong("waiting for a turn"), waiting: map[string][]*ticket{},
		stats: hwcrypto.QueueStats{Chip: o.Chip, Histogram: make([]uint64, len(b)+1)}}
}

// Stats gives the figures so far.
func (q *Queue) Stats() hwcrypto.QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Histogram = append([]uint64(nil), s.Histogram...)
	s.Depth = q.running
	for _, w := range q.waiting {
		s.Depth += len(w)
	}
	return s
}

// Do runs f when it is the turn of the context's user and gives f's error. The context that f is given ends when nobody
// waits for f any longer; f should let go of the chip then. f must touch nothing that Do's caller uses after Do has returned:
// hand results over through Call.
func (q *Queue) Do(ctx context.Context, f func(context.Context) error) error {
	_, err := Call(ctx, q, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Call is Do for an operation with a result.
func Call[T any](ctx context.Context, q *Queue, f func(context.Context) (T, error)) (T, error) {
	var zero T
	if err := q.enter(ctx); err != nil {
		return zero, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, q.o.Timeout, q.tooSlow)
	defer cancel()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	call := &operation{q: q, begin: time.Now()}
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r = result{err: fmt.Errorf("%s: panic in an operation: %v", q.o.Chip, p)}
			}
			call.returned(r.err)
			done <- r
		}()
		r.v, r.err = f(ctx)
	}()
	// An operation that was interrupted for its time may return just before that is seen here: its time is the reason.
	outcome := func(r result) (T, error) {
		if r.err != nil && ctx.Err() != nil {
			return zero, context.Cause(ctx)
		}
		return r.v, r.err
	}
	select {
	case r := <-done:
		return outcome(r)
	case <-ctx.Done():
	}
	select { // both may be ready: a result that is there counts
	case r := <-done:
		return outcome(r)
	default:
	}
	call.abandon()
	return zero, context.Cause(ctx)
}

// enter returns when the caller may run one operation.
func (q *Queue) enter(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	user := hwcrypto.User(ctx)
	q.mu.Lock()
	if q.hung >= 2*q.o.Workers+2 {
		q.stats.Failed++
		q.mu.Unlock()
		return fmt.Errorf("%s: %w: %d operations never returned", q.o.Chip, hwcrypto.ErrTimeout, 2*q.o.Workers+2)
	}
	if q.running < q.o.Workers && len(q.turn) == 0 {
		q.running++
		q.mu.Unlock()
		return nil
	}
	if len(q.waiting[user]) >= q.o.Depth {
		q.stats.Failed++
		q.mu.Unlock()
		return fmt.Errorf("%s: %w: %d operations of %q wait", q.o.Chip, hwcrypto.ErrBusy, q.o.Depth, user)
	}
	t := &ticket{make(chan struct{})}
	if len(q.waiting[user]) == 0 {
		q.turn = append(q.turn, user)
	}
	q.waiting[user] = append(q.waiting[user], t)
	q.mu.Unlock()

	timer := time.NewTimer(q.o.Timeout)
	defer timer.Stop()
	var err error
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = q.tooLate
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-t.ready: // the turn came at the same moment: pass it on
		q.running--
		q.next()
	default:
		q.leave(user, t)
	}
	q.stats.TimedOut++
	return err
}

// leave takes a ticket out of its user's list.
func (q *Queue) leave(user string, t *ticket) {
	list := q.waiting[user]
	for i, w := range list {
		if w == t {
			q.waiting[user] = append(list[:i], list[i+1:]...)
		}
	}
	if len(q.waiting[user]) > 0 {
		return
	}
	delete(q.waiting, user)
	for i, u := range q.turn {
		if u == user {
			q.turn = append(q.turn[:i], q.turn[i+1:]...)
			return
		}
	}
}

// next hands free turns to the users in order. q.mu is held.
func (q *Queue) next() {
	for q.running < q.o.Workers && len(q.turn) > 0 {
		user := q.turn[0]
		q.turn = q.turn[1:]
		list := q.waiting[user]
		t := list[0]
		if len(list) > 1 {
			q.waiting[user] = list[1:]
			q.turn = append(q.turn, user)
		} else {
			delete(q.waiting, user)
		}
		q.running++
		close(t.ready)
	}
}

// operation is one that runs.
type operation struct {
	q         *Queue
	begin     time.Time
	abandoned bool // guarded by q.mu
	over      bool // guarded by q.mu
}

func (o *operation) returned(err error) {
	took := time.Since(o.begin)
	q := o.q
	q.mu.Lock()
	defer q.mu.Unlock()
	o.over = true
	if o.abandoned {
		q.hung--
		return
	}
	q.running--
	q.next()
	if err != nil && !answer(err) {
		q.stats.Failed++
		return
	}
	q.stats.Done++
	if q.stats.Latency == 0 {
		q.stats.Latency = took
	}
	q.stats.Latency += (took - q.stats.Latency) / 16
	i := 0
	for i < len(q.buckets) && took > q.buckets[i] {
		i++
	}
	q.stats.Histogram[i]++
}

// answer tells whether an error is what the chip was asked for, rather than a fault of it.
func answer(err error) bool {
	return errors.Is(err, hwcrypto.ErrNoKey) || errors.Is(err, hwcrypto.ErrKeyExists) || errors.Is(err, hwcrypto.ErrNotSealed)
}

// abandon gives the turn of an operation that hangs to others.
func (o *operation) abandon() {
	q := o.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.over {
		return
	}
	o.abandoned = true
	q.stats.TimedOut++
	q.hung++
	q.running--
	q.next()
}
