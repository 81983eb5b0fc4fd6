package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// Pauses between attempts to dial: they double, with jitter. One that a person has to mend is tried again slowly.
const (
	firstPause  = time.Second
	refusedWait = time.Minute
	lastPause   = 5 * time.Minute
	dialTime    = time.Minute // chips are slow
)

// The causes with which the bridge itself ends a session.
var (
	errPaused        = errors.New("paused by an operator")
	errTopicsChanged = errors.New("the subscriptions changed")
)

// orderly tells whether a session ended for a reason that is no fault.
func orderly(err error) bool {
	return errors.Is(err, errPaused) || errors.Is(err, errTopicsChanged) || errors.Is(err, northbound.ErrRenew)
}

// The states of a connector.
const (
	StateStopped   = "stopped"   // no task runs it
	StateDialing   = "dialing"   // it connects and logs in
	StateConnected = "connected" // it has a session
	StateWaiting   = "waiting"   // it tries again at Next
	StatePaused    = "paused"    // by an operator
)

// pump takes a connector's queue to its cloud. It outlives its task, as what it has learned of the queue does.
type pump struct {
	b        *Bridge
	name     string
	consumer reader
	health   *health.Reporter
	nudge    chan struct{} // capacity 1: ends a wait
	probe    probe
	account  account

	mu     sync.Mutex
	paused bool                    // guarded by mu
	cancel context.CancelCauseFunc // guarded by mu; ends the session, nil where there is none
	flight *flight                 // guarded by mu; of the session, nil where there is none
	seen   ConnectorStatus         // guarded by mu
}

func newPump(b *Bridge, name string) *pump {
	p := &pump{
		b: b, name: name, consumer: b.queue.reader(name), health: b.o.Health.For("connector " + name),
		nudge: make(chan struct{}, 1), seen: ConnectorStatus{Name: name, State: StateStopped, Since: b.o.Now()},
	}
	p.account.used = b.store.used(name)
	return p
}

func (p *pump) run(ctx context.Context, c northbound.Connector, beat Beat) error {
	defer func() {
		p.set(StateStopped, nil)
		p.health.ClearAll()
	}()
	pause := firstPause
	for {
		for p.isPaused() {
			p.health.Set(&ConnectorPaused, "")
			p.set(StatePaused, nil)
			beat.Waiting()
			p.wait(ctx, -1)
			if ctx.Err() != nil {
				return nil
			}
			pause = firstPause
		}
		p.health.Clear(&ConnectorPaused)
		began := time.Now()
		delivered, err := p.session(ctx, c, beat)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case errors.Is(err, northbound.ErrRenew) && time.Since(began) < firstPause:
			// A connector that renews without end does not get to dial without end.
		case orderly(err):
			pause = firstPause
			continue
		case msg.IsPermanent(err):
			pause = max(pause, refusedWait)
		case delivered > 0:
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		if p.probe.hurried() {
			wait = firstPause
		}
		p.set(StateWaiting, err)
		p.setNext(p.b.o.Now().Add(wait))
		beat.Waiting()
		if p.wait(ctx, wait) {
			pause = firstPause
		} else {
			pause = min(2*pause, lastPause)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// wait waits for d (for ever where it is negative), a nudge or the end of ctx; it tells whether it was nudged.
func (p *pump) wait(ctx context.Context, d time.Duration) bool {
	var timer <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-p.nudge:
		return true
	case <-timer:
	case <-ctx.Done():
	}
	return false
}

// session dials and pumps until the session ends. It tells how many publications the cloud confirmed, and why it ended.
func (p *pump) session(ctx context.Context, c northbound.Connector, beat Beat) (delivered int, err error) {
	p.set(StateDialing, nil)
	beat.Progress(2 * dialTime)
	p.consumer.Rewind()
	task := ctx
	ctx, cancel := context.WithCancelCause(task)
	defer cancel(nil)
	if !p.setCancel(cancel) {
		return 0, errPaused
	}
	defer p.setCancel(nil)

	dialCtx, dialed := context.WithTimeoutCause(ctx, dialTime, fmt.Errorf("no session within %v: %w", dialTime, os.ErrDeadlineExceeded))
	s, err := c.Dial(dialCtx, &downlink{p.b, p.name, p.b.state.Load().s.Table.filters(p.name)})
	dialed()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return 0, cause
		}
		if msg.IsPermanent(err) {
			p.health.Fail(&CloudRefusesLogin, err)
			p.health.Clear(&CloudUnreachable)
		} else {
			p.health.Fail(&CloudUnreachable, err)
			p.health.Clear(&CloudRefusesLogin)
		}
		return 0, err
	}
	stop := context.AfterFunc(s.Context(), func() { cancel(context.Cause(s.Context())) })
	defer stop()
	p.health.Clear(&CloudRefusesLogin)
	p.health.Clear(&CloudUnreachable)
	p.set(StateConnected, nil)
	p.b.o.Log.Info("connected", "connector", p.name)

	f := newFlight(p, s, cancel)
	p.setFlight(f)
	err = f.run(ctx, beat)
	p.setFlight(nil)
	if task.Err() == nil && !orderly(err) {
		p.probe.ended(f, err)
		p.health.Fail(&CloudUnreachable, err)
	}
	return f.delivered, err
}

// setCancel remembers how to end the session. It is false where the connector has been paused meanwhile.
func (p *pump) setCancel(cancel context.CancelCauseFunc) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = cancel
	return !p.paused
}

// endSession ends the session, if there is one; the next is dialled at once or later, by what the cause says.
func (p *pump) endSession(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil {
		p.cancel(cause)
	}
}

func (p *pump) pause() {
	p.mu.Lock()
	p.paused = true
	p.mu.Unlock()
	p.endSession(errPaused)
	p.poke()
}

func (p *pump) resume() {
	p.mu.Lock()
	p.paused = false
	p.mu.Unlock()
	p.poke()
}

func (p *pump) poke() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

func (p *pump) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// set says what the pump does now.
func (p *pump) set(state string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen.State != state {
		p.seen.State, p.seen.Since = state, p.b.o.Now()
	}
	p.seen.Next = time.Time{}
	switch state {
	case StateDialing:
		p.seen.Attempts++
	case StateConnected:
		p.seen.Attempts = 0
		p.seen.Sessions++
	}
	if err != nil {
		p.seen.LastFault = p.b.o.Now()
		p.seen.LastError, _ = health.Words(err, p.seen.LastFault)
	}
}

func (p *pump) setFlight(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.measure()
	p.flight = f
}

// measure takes over the figures of the session; the caller holds mu.
func (p *pump) measure() {
	p.seen.InFlight = 0
	if f := p.flight; f != nil {
		f.mu.Lock()
		p.seen.InFlight = f.count
		if f.latency > 0 {
			p.seen.Latency = f.latency
		}
		f.mu.Unlock()
	}
}

// status gives what the pump does.
func (p *pump) status() ConnectorStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.measure()
	return p.seen
}

func (p *pump) setNext(at time.Time) {
	p.mu.Lock()
	p.seen.Next = at
	p.mu.Unlock()
}
