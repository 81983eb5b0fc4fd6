package bridge

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// memory is a queue without a disk, with a knob for what Append answers. It keeps the spool's promises, and checks the bridge's:
// nothing is settled twice with different outcomes, nothing that was not handed out is settled.
type memory struct {
	t testing.TB

	mu      sync.Mutex
	fail    error // what Append answers, nil: it takes all
	max     int64 // what Stats gives
	lost    uint64
	pending map[string]int64
	seq     uint64
	records []*held
	readers map[string]*memoryReader
	tally   map[[2]string]*spool.Tally
	changed chan struct{} // closed and made anew at each append
}

type held struct {
	class spool.Class
	seq   uint64
	r     spool.Record
	open  map[string]bool
}

func newMemory(t testing.TB) *memory {
	return &memory{t: t, max: 1 << 30, pending: map[string]int64{}, readers: map[string]*memoryReader{}, tally: map[[2]string]*spool.Tally{}, changed: make(chan struct{})}
}

func (m *memory) Append(c spool.Class, r *spool.Record, done func(spool.Pos, error)) {
	m.mu.Lock()
	if err := m.fail; err != nil {
		m.mu.Unlock()
		done(spool.Pos{}, err)
		return
	}
	m.seq++
	h := &held{class: c, seq: m.seq, r: *r, open: map[string]bool{}}
	h.r.Data, h.r.To = slices.Clone(r.Data), slices.Clone(r.To)
	for _, to := range r.To {
		h.open[to] = true
		m.pending[to] += int64(len(h.r.Data))
		m.line(r.Route, to).Accepted++
		m.line(r.Route, to).Pending++
	}
	m.records = append(m.records, h)
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
	done(spool.Pos{Class: c, Seq: h.seq}, nil)
}

func (m *memory) line(route, to string) *spool.Tally {
	k := [2]string{route, to}
	if m.tally[k] == nil {
		m.tally[k] = &spool.Tally{Route: route, Connector: to}
	}
	return m.tally[k]
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	m.fail = err
	m.mu.Unlock()
}

func (m *memory) Consumers() []string { return nil }

func (m *memory) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = slices.DeleteFunc(m.records, func(h *held) bool {
		if h.open[name] {
			delete(h.open, name)
			l := m.line(h.r.Route, name)
			l.Pending--
			l.Expired++
			m.pending[name] -= int64(len(h.r.Data))
		}
		return len(h.open) == 0
	})
}

func (m *memory) Ledger() (list []spool.Tally) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.tally {
		if l.Accepted != l.Delivered+l.Expired+l.Dead+l.Pending {
			m.t.Errorf("the ledger does not add up: %+v", *l)
		}
		list = append(list, *l)
	}
	slices.SortFunc(list, func(a, b spool.Tally) int {
		return slices.Compare([]string{a.Route, a.Connector}, []string{b.Route, b.Connector})
	})
	return list
}

func (m *memory) Stats() spool.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return spool.Stats{MaxBytes: m.max, Full: errors.Is(m.fail, spool.ErrFull), Lost: m.lost, PendingBytes: maps.Clone(m.pending)}
}

func (m *memory) reader(name string) reader {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.readers[name] == nil {
		m.readers[name] = &memoryReader{m: m, name: name, out: map[spool.Pos]bool{}}
	}
	return m.readers[name]
}

type memoryReader struct {
	m    *memory
	name string
	out  map[spool.Pos]bool // guarded by m.mu; handed out, not settled
}

func (r *memoryReader) Read(ctx context.Context, lowest spool.Class, max, maxBytes int) ([]spool.Entry, error) {
	for {
		r.m.mu.Lock()
		list := r.take(lowest, max)
		changed := r.m.changed
		r.m.mu.Unlock()
		if len(list) > 0 {
			return list, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *memoryReader) take(lowest spool.Class, max int) (list []spool.Entry) {
	for class := spool.High; class <= lowest; class++ {
		for _, h := range r.m.records {
			if len(list) == max {
				return list
			}
			pos := spool.Pos{Class: h.class, Seq: h.seq}
			if h.class != class || !h.open[r.name] || r.out[pos] {
				continue
			}
			r.out[pos] = true
			list = append(list, spool.Entry{Pos: pos, ID: h.r.ID, Time: h.r.Time, Expires: h.r.Expires, Route: h.r.Route, Data: h.r.Data})
		}
	}
	return list
}

func (r *memoryReader) Settle(p spool.Pos, o spool.Outcome) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if !r.out[p] {
		r.m.t.Errorf("%v of %s was settled without having been handed out", p, r.name)
		return
	}
	delete(r.out, p)
	i, _ := slices.BinarySearchFunc(r.m.records, p.Seq, func(h *held, seq uint64) int { return cmp.Compare(h.seq, seq) })
	h := r.m.records[i]
	delete(h.open, r.name)
	r.m.pending[r.name] -= int64(len(h.r.Data))
	l := r.m.line(h.r.Route, r.name)
	l.Pending--
	switch o {
	case spool.Delivered:
		l.Delivered++
	case spool.Expired:
		l.Expired++
	case spool.Dead:
		l.Dead++
	}
	if len(h.open) == 0 {
		r.m.records = slices.Delete(r.m.records, i, i+1)
	}
}

func (r *memoryReader) Rewind() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	clear(r.out)
}

// cloud is a connector whose sessions do as its knobs say.
type cloud struct {
	limits northbound.Limits

	mu       sync.Mutex
	dial     error                         // what Dial answers
	take     func(p msg.Publication) error // what becomes of a publication; errSilence: nothing; nil func: it is taken
	breaks   func(p msg.Publication) bool  // the session ends without an answer when it sees p
	got      []msg.Publication             // confirmed, in order
	seen     []msg.ID                      // sent, in order
	dials    int
	topics   []string
	down     northbound.Downlink
	session  *cloudSession
	inFlight int
	most     int
	pending  []func() // confirmations held back while hold
	hold     bool
}

var errSilence = errors.New("no answer")

func (c *cloud) Limits() northbound.Limits { return c.limits }

func (c *cloud) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials++
	if c.dial != nil {
		return nil, c.dial
	}
	c.topics, c.down = down.Topics(), down
	s := &cloudSession{c: c}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.session = s
	return s, nil
}

func (c *cloud) set(f func(c *cloud)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

// payloads gives what was confirmed, in order.
func (c *cloud) payloads() (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.got {
		list = append(list, string(p.Payload))
	}
	return list
}

type cloudSession struct {
	c      *cloud
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (s *cloudSession) Context() context.Context { return s.ctx }
func (s *cloudSession) Close() error             { s.cancel(errors.New("closed")); return nil }

func (s *cloudSession) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	for i, p := range batch {
		if err := s.ctx.Err(); err != nil {
			return context.Cause(s.ctx)
		}
		s.c.mu.Lock()
		s.c.seen = append(s.c.seen, p.ID)
		if s.c.breaks != nil && s.c.breaks(p) {
			s.c.mu.Unlock()
			s.cancel(errors.New("connection reset"))
			return context.Cause(s.ctx)
		}
		var err error
		if s.c.take != nil {
			err = s.c.take(p)
		}
		if err == nil {
			q := p
			q.Payload = slices.Clone(p.Payload)
			s.c.got = append(s.c.got, q)
		}
		if s.c.hold {
			s.c.inFlight++
			s.c.most = max(s.c.most, s.c.inFlight)
			s.c.pending = append(s.c.pending, func() { done(i, err) })
			s.c.mu.Unlock()
			continue
		}
		s.c.mu.Unlock()
		if !errors.Is(err, errSilence) {
			done(i, err)
		}
	}
	return nil
}

// field is a listener whose devices are functions.
type field struct {
	mu      sync.Mutex
	devices map[string]func(context.Context, msg.Message) (msg.Reply, error)
	groups  map[string][]string
}

func (f *field) Serve(ctx context.Context, _ southbound.Uplink) error { <-ctx.Done(); return nil }

func (f *field) Deliver(ctx context.Context, m msg.Message) (msg.Reply, error) {
	f.mu.Lock()
	d := f.devices[m.Device]
	f.mu.Unlock()
	if d == nil {
		return msg.Reply{}, southbound.ErrNotHere
	}
	return d(ctx, m)
}

func (f *field) connect(name string, d func(context.Context, msg.Message) (msg.Reply, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.devices == nil {
		f.devices = map[string]func(context.Context, msg.Message) (msg.Reply, error){}
	}
	f.devices[name] = d
}

func (f *field) Devices(yield func(southbound.DeviceInfo) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.devices {
		if !yield(southbound.DeviceInfo{Device: name, Groups: f.groups[name]}) {
			return
		}
	}
}

func (f *field) Disconnect(string) int { return 0 }

type stillness struct{}

func (stillness) Progress(time.Duration) {}
func (stillness) Waiting()               {}

// rig is a bridge with fakes on all sides.
type rig struct {
	*Bridge
	t     *testing.T
	queue *memory
	field *field
	dir   string
	log   *health.Tracker
	clock setClock
}

// standard is the configuration of most tests.
func standard() *config.Config {
	return &config.Config{
		Gateway: config.Gateway{ID: "gw"},
		Devices: map[string]*config.Device{"th-17": {Groups: []string{"thermostat"}}, "bed-1": {Sleepy: true}},
		Uplinks: []*config.Uplink{
			{Name: "sensors", Resource: "/sensors/{kind}", Topic: "dt/{gateway}/{device}/{kind}", To: []string{"cloud"}, QoS: 1},
			{Name: "both", Resource: "/both/{kind}", Topic: "dt/{device}/{kind}", To: []string{"cloud", "plant"}, QoS: 1},
			{Name: "sure", Resource: "/sure", Topic: "sure/{device}", To: []string{"cloud", "plant"}, Ack: "cloud"},
			{Name: "brief", Resource: "/brief", Topic: "brief", To: []string{"cloud"}, TTL: config.Duration(time.Minute)},
			{Name: "alarm", Resource: "/alarm", Topic: "alarm", To: []string{"cloud"}, Priority: "high"},
			{Name: "picked", Resource: "/picked", Topic: "picked", To: []string{"cloud"}, Transform: "jq:select(.v > 1) | .v"},
		},
		Downlinks: []*config.Downlink{
			{Name: "setpoint", From: "cloud", Topic: "cmd/{gateway}/{device}/setpoint", Method: "PUT", Resource: "/actuators/setpoint",
				Reply: "cmd/{gateway}/{device}/setpoint/reply", TTL: config.Duration(10 * time.Minute)},
			{Name: "quiet", From: "cloud", Topic: "quiet/{device}/{what}", Method: "POST", Resource: "/x/{what}", Transform: "json-text"},
		},
	}
}

// setClock is a clock that can be set, and that knows of it.
type setClock struct{ by, before atomic.Int64 }

func (c *setClock) set(d time.Duration) {
	c.before.Store(time.Now().UnixNano() + 1)
	c.by.Store(int64(d))
}

func (c *setClock) now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

func (c *setClock) correct(at time.Time) time.Time {
	if at.UnixNano() < c.before.Load() {
		return at.Add(time.Duration(c.by.Load()))
	}
	return at
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, queue: newMemory(t), field: &field{}, dir: t.TempDir()}
	r.reopen()
	t.Cleanup(func() {
		if err := r.Bridge.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// reopen makes the bridge on the same queue and files.
func (r *rig) reopen() {
	r.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	r.log = health.New(log, time.Now)
	b, err := open(Options{Dir: r.dir, Log: log, Health: r.log, Now: r.clock.now, Correct: r.clock.correct}, r.queue)
	if err != nil {
		r.t.Fatal(err)
	}
	b.store.db.NoSync = true // these tests cut no power, and a busy disk would make them slow
	r.Bridge = b
}

func (r *rig) table(cfg *config.Config) *Table {
	r.t.Helper()
	table, err := Compile(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return table
}

// use swaps in the standard routes with the connectors.
func (r *rig) use(connectors map[string]northbound.Connector) {
	r.t.Helper()
	r.Swap(Setup{Table: r.table(standard()), Policy: rules{}, Listeners: map[string]southbound.Listener{"field": r.field}, Connectors: connectors})
}

// report submits and waits for the answer.
func (r *rig) report(device, resource, payload string) error {
	return southbound.Accept(r.t.Context(), r.Bridge, &msg.Message{Device: device, Resource: resource, Method: "POST", Payload: []byte(payload)})
}

// problems gives the codes that are shown.
func (r *rig) problems() (codes []string) {
	for _, p := range r.log.Problems() {
		codes = append(codes, p.Code)
	}
	return codes
}

// run starts the bridge's tasks for the connectors and gives what stops them.
func (r *rig) run(connectors ...string) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx, stillness{}); err != nil {
			r.t.Error(err)
		}
	})
	for _, name := range connectors {
		wg.Go(func() {
			if err := r.RunConnector(ctx, name, stillness{}); err != nil {
				r.t.Error(err)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// release gives the confirmations that were held back, the last first.
func (c *cloud) release() {
	c.mu.Lock()
	list := c.pending
	c.pending, c.inFlight = nil, 0
	c.mu.Unlock()
	slices.Reverse(list)
	for _, f := range list {
		f()
	}
}

// all gives what was confirmed, in order.
func (c *cloud) all() []msg.Publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}
