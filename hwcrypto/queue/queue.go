// Package queue orders the work of one chip.
//
// What always holds: at most Workers operations run at once; waiting users take turns, one operation each, however many one of them
// has waiting; each user has at most Depth operations waiting, what is above is refused at once; nobody waits longer than Timeout for
// a turn and Timeout for the operation. An operation that does not return is given up: its turn passes to others, and
// the error names the chip. While too many such operations hang, new ones are refused rather than hung as well.
//
// Nothing can interrupt a call into a chip's driver. So that its caller is given back all the same, an operation is handed to another
// goroutine. That wakes a processor where one idles, which costs as much as a third of a signature of a chip in software: who is
// patient (hwcrypto.WithPatience) has its operations run on its own goroutine, and is given back when they return.
package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// Queue is the queue of one chip. Make it with New, and Close it.
type Queue struct {
	o       Options
	buckets []time.Duration
	tooSlow error // made once: it goes with every operation
	tooLate error

	mu      sync.Mutex // guards what follows
	busy    int        // turns taken
	runs    []*operation
	hung    int                  // operations given up that have not returned
	waiting map[string][]*ticket // per user, first come first
	turn    []string             // users with waiting operations, in the order of their turns
	stats   hwcrypto.QueueStats
	idle    []*worker   // without an operation, at most as many as may run at once
	timer   *time.Timer // goes off when the time of an operation may be over; nil before the first
	armed   bool        // it will go off
	closed  bool
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
	s.Depth = q.busy
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := new(T) // the operation's until it is done
	o := &operation{cancel: cancel, gaveUp: hwcrypto.Patience(ctx), run: func() error {
		var err error
		*v, err = f(ctx)
		return err
	}}
	if o.gaveUp != nil {
		q.begin(o)
		q.do(o)
		q.end(o)
	} else {
		o.done = make(chan struct{})
		q.handOver(o)
		select {
		case <-o.done:
		case <-ctx.Done():
			if q.abandon(o) {
				return zero, context.Cause(ctx)
			}
			<-o.done // both at the same moment: a result that is there counts
		}
	}
	// An operation that was interrupted for its time may return just before that is seen here: its time is the reason.
	if o.abandoned || o.err != nil && ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	return *v, o.err
}

// Close ends the goroutines that are kept for operations to come. Those that run end when their operations return.
func (q *Queue) Close() {
	q.mu.Lock()
	idle := q.idle
	q.idle, q.closed = nil, true
	if q.timer != nil && len(q.runs) == 0 {
		q.timer.Stop()
	}
	q.mu.Unlock()
	for _, w := range idle {
		close(w.next)
		<-w.ended
	}
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
	if q.busy < q.o.Workers && len(q.turn) == 0 {
		q.busy++
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
		q.busy--
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
	for q.busy < q.o.Workers && len(q.turn) > 0 {
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
		q.busy++
		close(t.ready)
	}
}

// operation is one that runs.
type operation struct {
	run    func() error
	cancel context.CancelCauseFunc
	gaveUp func(error)   // of a caller with patience, else nil
	done   chan struct{} // closed when it has returned; nil where its caller runs it
	err    error         // good when it has returned

	started   time.Time
	abandoned bool // guarded by the queue's mu until it has returned
	over      bool // guarded by the queue's mu
}

// begin counts the operation's time from now on. One timer looks for all, and is not set and stopped for each, which may wake a thread.
func (q *Queue) begin(o *operation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.started(o)
}

func (q *Queue) started(o *operation) {
	o.started = time.Now()
	q.runs = append(q.runs, o)
	switch {
	case q.armed:
		return
	case q.timer == nil:
		q.timer = time.AfterFunc(q.o.Timeout, q.look)
	default:
		q.timer.Reset(q.o.Timeout)
	}
	q.armed = true
}

// look gives up the operations whose time is over.
func (q *Queue) look() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.armed = false
	for _, o := range slices.Clone(q.runs) {
		if time.Since(o.started) >= q.o.Timeout {
			q.giveUp(o)
			o.cancel(q.tooSlow)
			if o.gaveUp != nil {
				o.gaveUp(q.tooSlow)
			}
		}
	}
	if len(q.runs) > 0 { // in the order in which they began
		q.armed = true
		q.timer.Reset(q.o.Timeout - time.Since(q.runs[0].started))
	}
}

// do runs an operation; a panic is an error.
func (q *Queue) do(o *operation) {
	defer func() {
		if p := recover(); p != nil {
			o.err = fmt.Errorf("%s: panic in an operation: %v", q.o.Chip, p)
		}
	}()
	o.err = o.run()
}

// end gives the turn on.
func (q *Queue) end(o *operation) {
	took := time.Since(o.started)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended(o, took)
}

func (q *Queue) ended(o *operation, took time.Duration) {
	o.over = true
	if o.abandoned {
		q.hung--
		return
	}
	q.release(o)
	q.count(took, o.err)
}

// release takes an operation out of those that run, and gives its turn on.
func (q *Queue) release(o *operation) {
	i := slices.Index(q.runs, o)
	q.runs = slices.Delete(q.runs, i, i+1)
	q.busy--
	q.next()
}

// abandon gives the turn of an operation that nobody waits for to others. It tells whether it did: the operation may have returned meanwhile.
func (q *Queue) abandon(o *operation) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.over {
		return o.abandoned
	}
	if !o.abandoned {
		q.giveUp(o)
	}
	return true
}

func (q *Queue) giveUp(o *operation) {
	o.abandoned = true
	q.stats.TimedOut++
	q.hung++
	q.release(o)
}

// worker is a goroutine that runs operations one after another, and is kept: a new one would have to grow its stack for every operation.
type worker struct {
	q     *Queue
	next  chan *operation
	ended chan struct{}
}

// handOver has a worker run the operation.
func (q *Queue) handOver(o *operation) {
	q.mu.Lock()
	var w *worker
	if n := len(q.idle); n > 0 {
		w = q.idle[n-1]
		q.idle = q.idle[:n-1]
	} else {
		w = &worker{q: q, next: make(chan *operation, 1), ended: make(chan struct{})}
		go w.work()
	}
	q.started(o)
	q.mu.Unlock()
	w.next <- o
}

// work runs operations until the queue has no more use for the worker.
func (w *worker) work() {
	defer close(w.ended)
	for o := range w.next {
		w.q.do(o)
		if kept := w.returned(o); !kept {
			return
		}
	}
}

// returned ends the operation, and tells whether the worker is kept.
func (w *worker) returned(o *operation) bool {
	took := time.Since(o.started)
	q := w.q
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := !q.closed && len(q.idle) < q.o.Workers
	if kept {
		q.idle = append(q.idle, w)
	}
	q.ended(o, took)
	close(o.done)
	return kept
}

// count adds an operation to the figures. q.mu is held.
func (q *Queue) count(took time.Duration, err error) {
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
