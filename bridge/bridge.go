// Package bridge carries messages between devices and clouds: reports up, commands down, replies up again.
//
// What always holds:
//   - A report is accepted only after policy, route and transform agree and it is on disk for every connector of its route
//     (or, with ack = "cloud", confirmed by each).
//   - What is accepted is delivered, expired by a rule that the user wrote, or kept as a dead letter with its reason.
//     For each route and connector accepted = delivered + expired + dead + pending.
//   - Publications of one device and priority are sent to a connector in the order in which they were accepted, also when they are
//     sent again. Only one that the cloud itself puts off, while it takes those behind it, arrives after these.
//   - One message that a cloud cannot take does not stop those behind it; a cloud that is away loses nothing.
//   - A payload of a route that seals is sealed before it is stored; one that cannot be sealed now is refused for now. A command of a route
//     that unseals is carried out once, and only if it is authentic, fresh and meant for this gateway, device and resource.
//   - A command reaches a device only if policy lets that connector command that device on that resource.
//   - Routes, policy, listeners and connectors are replaced as a whole; a message sees the old set or the new one, never a mix.
//
// A sealed command that waits in a mailbox lies there as it came, and is opened when the device is there.
//
// It speaks no protocol: it knows the contracts of southbound and northbound, never one that fulfils them.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// Options is what a Bridge is made of for as long as it lives.
type Options struct {
	Spool    *spool.Spool
	Dir      string // an existing directory, mode 0700, for mailboxes and dead letters
	Log      *slog.Logger
	Health   *health.Tracker
	Now      func() time.Time
	Correct  func(time.Time) time.Time // gives what a time that Now gave stands for, where the clock was set since; nil: it never is
	CloudAck time.Duration             // how long a device waits where ack = "cloud"; default 30 s

	Envelopes Envelopes // nil: routes that seal refuse everything
}

// Setup is what a reload replaces.
type Setup struct {
	Table      *Table
	Policy     auth.Policy
	Listeners  map[string]southbound.Listener
	Connectors map[string]northbound.Connector // those with northbound.Limited are held to their limits
	Budgets    map[string]Budget               // by connector; nil: there are none
}

// Beat is how a running task says that it moves; *supervise.Task is one.
type Beat interface {
	Progress(within time.Duration) // it moved, and will say so again within that time
	Waiting()                      // it waits for something that may take for ever
}

// Bridge is the middle of the gateway. It is a southbound.Uplink.
// Its methods may be called from any goroutine.
type Bridge struct {
	o       Options
	queue   queue
	store   *store
	state   atomic.Pointer[state]
	jobs    sync.Pool // of *job
	count   counters
	waiting cloudAcks
	dead    *deadLetters
	mail    *mailbox
	recent  recentCommands
	seals   seals
	opened  *openedCommands
	damage  *damage

	mu    sync.Mutex
	pumps map[string]*pump // guarded by mu; by connector, made when first named
}

var _ southbound.Uplink = (*Bridge)(nil)

// queue is the durable queue, as *spool.Spool is one.
type queue interface {
	Append(c spool.Class, r *spool.Record, done func(spool.Pos, error))
	Consumers() []string
	Forget(name string)
	Ledger() []spool.Tally
	Stats() spool.Stats
	reader(name string) reader
}

// reader is a connector's end of the queue, as *spool.Consumer is one.
type reader interface {
	Read(ctx context.Context, lowest spool.Class, max, maxBytes int) ([]spool.Entry, error)
	Settle(p spool.Pos, o spool.Outcome)
	Rewind()
}

type spoolQueue struct{ *spool.Spool }

func (q spoolQueue) reader(name string) reader { return q.Consumer(name) }

// Open makes a Bridge without routes: until the first Swap it refuses everything. It reads mailboxes and dead letters from
// o.Dir; files that it cannot read are put aside and reported, they do not keep it from starting.
func Open(o Options) (*Bridge, error) { return open(o, spoolQueue{o.Spool}) }

func open(o Options, q queue) (*Bridge, error) {
	if o.CloudAck == 0 {
		o.CloudAck = 30 * time.Second
	}
	if o.Correct == nil {
		o.Correct = func(t time.Time) time.Time { return t }
	}
	st, err := openStore(o.Dir, o.Now())
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	b := &Bridge{o: o, queue: q, store: st, pumps: map[string]*pump{}}
	b.jobs.New = func() any { return newJob(b) }
	if b.dead, err = openDeadLetters(st.db, o.Now); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge: dead letters: %w", err), st.close())
	}
	if b.mail, err = openMailbox(b); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge: mailboxes: %w", err), st.close())
	}
	if b.opened, err = openOpened(st.db); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge: opened commands: %w", err), st.close())
	}
	if b.damage, err = openDamage(st.db, q.Stats().Lost); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge: what was lost: %w", err), st.close())
	}
	b.seals.b = b
	if st.damaged != "" {
		o.Health.For("").Set(&StoreDamaged, st.damaged)
	}
	b.state.Store(newState(Setup{Table: &Table{}}))
	return b, nil
}

// Swap takes over a new setup at once. Connectors that are new are started by the caller with RunConnector; tasks of those
// that are gone or replaced are to be stopped before. A session whose subscriptions change ends and is dialled again.
// Where the tables behind s.Policy change, call it after that change: verdicts are remembered from one Swap to the next.
func (b *Bridge) Swap(s Setup) {
	old := b.state.Swap(newState(s))
	for name := range s.Connectors {
		b.pump(name).account.swap(s.Budgets[name], b.o.Now())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, p := range b.pumps {
		if !slices.Equal(old.s.Table.filters(name), s.Table.filters(name)) {
			p.endSession(errTopicsChanged)
		}
	}
}

// Close lets go of the files. Every task (Run, RunConnector) and listener has ended before.
// Devices that still wait for a cloud are told that it did not confirm.
func (b *Bridge) Close() error {
	b.waiting.closeAll()
	b.keepAccounts(b.o.Now())
	return b.store.close()
}

// Run does what has to be done from time to time, and delivers mailboxes, until ctx ends; then it returns nil.
func (b *Bridge) Run(ctx context.Context, beat Beat) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range mailWorkers {
		wg.Go(func() { b.mail.serve(ctx) })
	}
	wg.Go(func() { b.seals.run(ctx) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	kept := b.o.Now()
	for {
		beat.Progress(10 * sweepEvery)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := b.o.Now()
		b.waiting.expire(now)
		b.mail.expire(now)
		b.recent.expire(now)
		if err := b.opened.expire(now); err != nil {
			b.o.Log.Warn("opened commands: they cannot be forgotten", "err", err)
		}
		b.examine()
		if now.Sub(kept).Abs() >= keepAccountsEvery {
			b.keepAccounts(now)
			kept = now
		}
	}
}

const sweepEvery = time.Second

// RunConnector dials the connector called name in the last Setup, again and again, and pumps what is queued for it,
// until ctx ends; then it returns nil. Nothing that the connector or the cloud does ends it. One task per connector at a time.
func (b *Bridge) RunConnector(ctx context.Context, name string, beat Beat) error {
	c := b.state.Load().s.Connectors[name]
	if c == nil {
		return fmt.Errorf("bridge: connector %q: not in the setup", name)
	}
	return b.pump(name).run(ctx, c, beat)
}

// Pause ends the connector's session and dials no more until Resume or the end of the process. Its queue grows meanwhile.
func (b *Bridge) Pause(connector string) { b.pump(connector).pause() }

// Resume ends a pause, and any wait between two attempts to dial.
func (b *Bridge) Resume(connector string) { b.pump(connector).resume() }

// Awake tells that a device has spoken or subscribed, so that what waits in its mailbox goes out now.
// It is cheap and never blocks: it is made for southbound.Env.Awake.
func (b *Bridge) Awake(device string) { b.mail.awake(device) }

// pump gives the connector's pump, which outlives its tasks.
func (b *Bridge) pump(name string) *pump {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pumps[name]
	if p == nil {
		p = newPump(b, name)
		b.pumps[name] = p
	}
	return p
}
