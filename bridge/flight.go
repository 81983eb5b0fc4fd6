package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// Bounds of what a pump has under way.
const (
	maxInFlight      = 4096    // publications
	maxInFlightBytes = 8 << 20 // octets of their records; one may exceed it alone
	maxBatch         = 512
	stallTime        = 2 * time.Minute // without a confirmation for anything: the session is dead
	drainTime        = 5 * time.Second
)

var errStalled = errors.New("the cloud confirms nothing any more")

// flight is what one session has under way.
type flight struct {
	p      *pump
	s      northbound.Session
	cancel context.CancelCauseFunc
	limits northbound.Limits
	dec    decoder
	held   []spool.Entry           // read but not sent
	halt   context.CancelCauseFunc // stops sending; what is in flight may still be confirmed
	trying bool                    // a step of probe was under way when the session ended
	pair   *batch                  // the last that it sent

	room  chan struct{} // capacity 1: something was settled
	grave chan struct{} // capacity 1: something is to be buried

	mu        sync.Mutex
	over      bool          // guarded by mu; confirmations that come later count no more: what they are for will be sent again
	count     int           // guarded by mu; publications in flight
	refused   int           // guarded by mu; of these, how many the cloud did not take
	bytes     int           // guarded by mu
	sent      int           // guarded by mu
	delivered int           // guarded by mu
	burials   []burial      // guarded by mu
	moved     int           // guarded by mu; settled in any way
	deadRun   int           // guarded by mu; see probe
	latency   time.Duration // guarded by mu; moving mean from send to confirmation
}

func newFlight(p *pump, s northbound.Session, cancel context.CancelCauseFunc) *flight {
	return &flight{
		p: p, s: s, cancel: cancel, limits: p.b.state.Load().limits[p.name],
		dec: decoder{correct: p.b.o.Correct}, room: make(chan struct{}, 1), grave: make(chan struct{}, 1), deadRun: p.probe.deadRun,
	}
}

// run pumps until ctx ends, and tells why it did.
func (f *flight) run(ctx context.Context, beat Beat) error {
	// While the session lasts this is a known wait: tend ends one that stalls. Once it has ended, all has to come to its end soon.
	beat.Waiting()
	var wg sync.WaitGroup
	wg.Go(func() { f.tend(ctx, beat) })
	sending, halt := context.WithCancelCause(ctx)
	f.halt = halt
	err := f.pump(sending)
	if cause := context.Cause(sending); cause != nil {
		err = cause
	}
	halt(err)
	f.drain(ctx)
	f.cancel(err)
	_ = f.s.Close() // why it ended is known
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	wg.Wait()
	return err
}

// drain gives what was sent the time to be confirmed, unless the session itself has ended: it may have been halted because of one message.
func (f *flight) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for {
		f.mu.Lock()
		n := f.count - f.refused
		f.mu.Unlock()
		if n <= 0 {
			return
		}
		select {
		case <-f.room:
		case <-ctx.Done():
			return
		}
	}
}

// pump reads and sends.
func (f *flight) pump(ctx context.Context) error {
	for {
		for f.p.probe.careful > 0 {
			if err := f.try(ctx); err != nil {
				return err
			}
		}
		n, err := f.waitForRoom(ctx)
		if err != nil {
			return err
		}
		if err := f.read(ctx, min(n, maxBatch)); err != nil {
			return err
		}
		entries := f.held
		f.held = nil
		if err := f.send(ctx, f.prepare(entries)); err != nil {
			return err
		}
	}
}

// read fills held, if it is empty, with up to n entries.
func (f *flight) read(ctx context.Context, n int) (err error) {
	if len(f.held) > 0 {
		return nil
	}
	if f.held, err = f.next(ctx, n); err == nil {
		err = f.linger(ctx, n)
	}
	return err
}

// next reads what the budget has room for. When that may have changed it looks again.
func (f *flight) next(ctx context.Context, n int) ([]spool.Entry, error) {
	for {
		lowest := f.p.account.lowest(f.p.b.o.Now())
		if lowest != spool.High {
			n = f.p.account.most(n)
		}
		look, done := context.WithTimeoutCause(ctx, budgetLook, errLookAgain)
		list, err := f.p.consumer.Read(look, lowest, n, maxInFlightBytes/8)
		done()
		if ctx.Err() != nil || !errors.Is(err, errLookAgain) {
			return list, err
		}
	}
}

// linger waits for company where the user wants that, unless there is something urgent or plenty.
func (f *flight) linger(ctx context.Context, n int) error {
	wait := f.p.account.linger()
	if wait <= 0 || len(f.held) >= n || f.held[0].Pos.Class == spool.High {
		return nil
	}
	// What is urgent ends the wait.
	until, done := context.WithTimeoutCause(ctx, wait, errLookAgain)
	urgent, err := f.p.consumer.Read(until, spool.High, n, maxInFlightBytes/8)
	done()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, errLookAgain) {
		return err
	}
	f.held = append(urgent, f.held...)
	now, done := context.WithTimeoutCause(ctx, time.Millisecond, errLookAgain)
	defer done()
	more, err := f.p.consumer.Read(now, f.p.account.lowest(f.p.b.o.Now()), max(1, n-len(f.held)), maxInFlightBytes/8)
	if f.held = append(f.held, more...); ctx.Err() != nil || !errors.Is(err, errLookAgain) {
		return err
	}
	return nil
}

// waitForRoom waits until a good part of what may be in flight is free, so that batches stay large, and tells how much.
func (f *flight) waitForRoom(ctx context.Context) (int, error) {
	most := maxInFlight
	if w := f.limits.Window; w > 0 {
		most = min(most, w)
	}
	for {
		f.mu.Lock()
		n := most - f.count
		full := n < max(1, most/4) || f.count > 0 && f.bytes >= maxInFlightBytes
		f.mu.Unlock()
		if !full {
			return n, nil
		}
		select {
		case <-f.room:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// batch is what one Send was given.
type batch struct {
	f       *flight
	entries []spool.Entry
	pubs    []msg.Publication
	done    []confirmation // guarded by f.mu
	sent    time.Time
}

type confirmation byte

const (
	taken confirmation = iota + 1
	refused
)

// took tells whether publication i of the batch was taken.
func (b *batch) took(i int) bool {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	return i < len(b.done) && b.done[i] == taken
}

// prepare settles what need not be sent, and makes a batch of the rest.
func (f *flight) prepare(entries []spool.Entry) *batch {
	now := f.p.b.o.Now()
	b := &batch{f: f}
	var dead []burial
	for i := range entries {
		e := &entries[i]
		if f.p.b.ended(e.Time, e.Expires, now) {
			f.p.consumer.Settle(e.Pos, spool.Expired)
			f.p.b.waiting.settle(e.ID, f.p.name, msg.Refuse(msg.Unconfirmed, "expired before %s took it", f.p.name))
			continue
		}
		p, err := f.dec.publication(e)
		if err == nil {
			err = fits(&p, f.limits)
		}
		if err != nil {
			dead = append(dead, burial{*e, err.Error()})
			continue
		}
		b.entries = append(b.entries, *e)
		b.pubs = append(b.pubs, p)
	}
	b.done = make([]confirmation, len(b.pubs))
	f.mu.Lock()
	for _, l := range dead {
		f.count++
		f.bytes += len(l.e.Data)
		f.buryLocked(l)
	}
	f.mu.Unlock()
	return b
}

// send hands a batch to the session, at the pace that the platform bears.
func (f *flight) send(ctx context.Context, b *batch) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(b.pubs) == 0 {
		return nil
	}
	b.sent = time.Now()
	f.mu.Lock()
	f.count += len(b.entries)
	f.sent += len(b.entries)
	for i := range b.entries {
		f.bytes += len(b.entries[i].Data)
	}
	f.mu.Unlock()
	if f.limits.Rate > 0 {
		return f.sendPaced(ctx, b)
	}
	return f.s.Send(ctx, b.pubs, b.confirm)
}

// sendPaced sends in parts of a tenth of a second.
func (f *flight) sendPaced(ctx context.Context, b *batch) error {
	part := max(1, int(f.limits.Rate/10))
	for from := 0; from < len(b.pubs); from += part {
		to := min(from+part, len(b.pubs))
		if err := f.s.Send(ctx, b.pubs[from:to], func(i int, err error) { b.confirm(from+i, err) }); err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(float64(to-from) / f.limits.Rate * float64(time.Second))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// confirm is the done of Send.
func (b *batch) confirm(i int, err error) {
	f := b.f
	e := &b.entries[i]
	f.mu.Lock()
	if f.over || b.done[i] != 0 {
		f.mu.Unlock()
		return
	}
	b.done[i] = refused
	took := time.Since(b.sent)
	if f.latency == 0 {
		f.latency = took
	}
	f.latency += (took - f.latency) / 16
	switch {
	case err == nil:
		b.done[i] = taken
		f.delivered++
		f.p.account.sent(e.Route, len(b.pubs[i].Topic)+len(b.pubs[i].Payload))
		f.deadRun = 0
		f.landLocked(e, spool.Delivered)
	case msg.IsPermanent(err):
		f.deadRun++
		f.buryLocked(burial{*e, err.Error()})
	default:
		f.refused++
	}
	all := f.deadRun >= maxDeadRun
	f.mu.Unlock()
	switch {
	case err == nil:
		f.p.b.waiting.settle(e.ID, f.p.name, nil)
	case !msg.IsPermanent(err):
		f.halt(&notTaken{e.ID, err})
		signal(f.room)
	case all:
		f.p.health.Set(&CloudRefusesAll, err.Error())
		f.halt(msg.Permanent(fmt.Errorf("every message is refused: %w", err)))
	}
}

// notTaken ends a session in which the cloud did not take a message for now.
type notTaken struct {
	id  msg.ID
	err error
}

func (n *notTaken) Error() string { return fmt.Sprintf("message %s: %v", n.id, n.err) }
func (n *notTaken) Unwrap() error { return n.err }

// landLocked settles an entry that is counted in flight. It does so under the lock, so that none is settled after the
// session is over and the entry is read again.
func (f *flight) landLocked(e *spool.Entry, o spool.Outcome) {
	f.count--
	f.bytes -= len(e.Data)
	f.moved++
	f.p.consumer.Settle(e.Pos, o)
	signal(f.room)
}

// buryLocked leaves an entry, which is counted in flight, to tend.
func (f *flight) buryLocked(l burial) {
	f.burials = append(f.burials, l)
	signal(f.grave)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tend buries what is dead, durably before it is settled, and ends a session that confirms nothing any more.
func (f *flight) tend(ctx context.Context, beat Beat) {
	tick := time.NewTicker(stallTime)
	defer tick.Stop()
	moved, busy := 0, false // when the clock last ticked
	for {
		select {
		case <-f.grave:
			f.bury()
		case <-tick.C:
			f.mu.Lock()
			stalled := busy && f.count > 0 && f.moved == moved
			moved, busy = f.moved, f.count > 0
			f.mu.Unlock()
			if stalled {
				f.cancel(fmt.Errorf("%w: for %v", errStalled, stallTime))
			}
		case <-ctx.Done():
			beat.Progress(time.Minute)
			f.bury()
			return
		}
	}
}

func (f *flight) bury() {
	f.mu.Lock()
	list := f.burials
	f.burials = nil
	f.mu.Unlock()
	if len(list) == 0 {
		return
	}
	if err := f.p.b.dead.bury(f.p.name, list); err != nil {
		problem := &DeadLettersFailing
		if errors.Is(err, errLettersFull) {
			problem = &DeadLettersFull
		}
		f.p.health.Set(problem, err.Error())
		f.cancel(fmt.Errorf("dead letters: %w", err))
		return
	}
	f.p.health.Clear(&DeadLettersFailing)
	for i := range list {
		l := &list[i]
		f.mu.Lock()
		f.landLocked(&l.e, spool.Dead)
		f.mu.Unlock()
		f.p.b.waiting.settle(l.e.ID, f.p.name, msg.Refuse(msg.Unprocessable, "%s refused it: %s", f.p.name, l.reason))
	}
}
