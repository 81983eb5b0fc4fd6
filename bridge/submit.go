package bridge

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// state is one Setup and what is remembered of it. A swap replaces it whole.
type state struct {
	s      Setup
	limits map[string]northbound.Limits
	plans  [16]planShard
	known  groupsCache
}

func newState(s Setup) *state {
	st := &state{s: s, limits: map[string]northbound.Limits{}}
	for name, c := range s.Connectors {
		if l, ok := c.(northbound.Limited); ok {
			st.limits[name] = l.Limits()
		}
	}
	return st
}

// plan is all that is known of a device's reports on a resource before a payload comes.
type plan struct {
	groups   []string // for which it was made
	err      error    // not nil: refused whatever the payload
	r        *upRoute
	topic    string
	payload  int    // the least limit of the route's connectors; 0: none
	tightest string // the connector with that limit
}

type planKey struct{ device, resource string }

// planShard remembers plans. It begins anew when it is full: a device that makes up resources costs no more memory than that.
type planShard struct {
	mu   sync.RWMutex
	m    map[planKey]*plan // guarded by mu
	size int               // guarded by mu; about how many octets m takes
}

const (
	maxPlans = 1 << 20  // octets of a shard
	maxPlan  = 16 << 10 // octets of a plan that is worth remembering
)

// plan gives the plan for m, made or remembered.
func (st *state) plan(m *msg.Message) *plan {
	shard := &st.plans[spread(m.Device, m.Resource)]
	shard.mu.RLock()
	p := shard.m[planKey{m.Device, m.Resource}]
	shard.mu.RUnlock()
	if p != nil && slices.Equal(p.groups, m.Groups) {
		return p
	}
	p = st.makePlan(m.Device, m.Groups, m.Resource)
	size := 300 + 2*len(m.Device) + 3*len(m.Resource) // the resource is in the key and in the topic or the refusal
	if size > maxPlan {
		return p
	}
	shard.mu.Lock()
	if shard.m == nil || shard.size+size > maxPlans {
		shard.m, shard.size = map[planKey]*plan{}, 0
	}
	shard.m[planKey{strings.Clone(m.Device), strings.Clone(m.Resource)}] = p
	shard.size += size
	shard.mu.Unlock()
	return p
}

// spread is FNV-1a over the ends of both strings, where names that are alike differ.
func spread(a, b string) int {
	h := uint32(2166136261)
	for _, s := range [...]string{a, b} {
		for i := max(0, len(s)-8); i < len(s); i++ {
			h = (h ^ uint32(s[i])) * 16777619
		}
	}
	return int((h ^ h>>16) & 15)
}

func (st *state) makePlan(device string, groups []string, resource string) *plan {
	p := &plan{groups: slices.Clone(groups)}
	if st.s.Policy == nil || !st.s.Policy.Allowed(&auth.Identity{Device: device, Groups: groups}, auth.Report, resource) {
		p.err = msg.Refuse(msg.Denied, "no rule allows %q to report on %q", device, resource)
		return p
	}
	st.known.learn(device, groups)
	r, captured := st.s.Table.uplink(device, groups, resource)
	if r == nil {
		p.err = msg.Refuse(msg.NoRoute, "no uplink takes %q of %q", resource, device)
		return p
	}
	topic, err := r.fill(st.s.Table.gateway, device, resource, captured)
	if err != nil {
		p.err = msg.Refuse(msg.Unprocessable, "uplink %q: topic: %v", r.name, err)
		return p
	}
	for _, name := range r.to {
		l := st.limits[name]
		if err := topicFits(topic, l); err != nil {
			p.err = msg.Refuse(msg.Unprocessable, "uplink %q: connector %q: %v", r.name, name, err)
			return p
		}
		if l.Payload > 0 && (p.payload == 0 || l.Payload < p.payload) {
			p.payload, p.tightest = l.Payload, name
		}
	}
	p.r, p.topic = r, topic
	return p
}

// job is what one Submit needs until the spool has answered.
type job struct {
	b      *Bridge
	r      spool.Record
	data   []byte
	route  *upRoute
	done   func(error)
	answer func(spool.Pos, error) // j.answered, made once
	users  atomic.Int32           // submit and answered: the last of the two gives the job back
}

func newJob(b *Bridge) *job {
	j := &job{b: b}
	j.answer = j.answered
	return j
}

// Submit takes a report: see southbound.Uplink. A payload that one of the route's connectors cannot bear is refused for
// all, so that the device hears of it; the dead letters are for what turns out later.
func (b *Bridge) Submit(m *msg.Message, done func(error)) {
	if err := b.submit(m, done); err != nil {
		b.count.refused(err)
		done(err)
	}
}

// submit gives the error of a message that is refused at once; with nil, done is or will be called.
func (b *Bridge) submit(m *msg.Message, done func(error)) error {
	st := b.state.Load()
	p := st.plan(m)
	if p.err != nil {
		return p.err
	}
	now := b.o.Now()
	taken := m.Time
	if taken.IsZero() {
		taken = now
	}
	typ, payload, err := p.r.pipeline.Apply(transform.Input{Type: m.Type, Data: m.Payload, Time: taken, Device: m.Device, Resource: m.Resource})
	if errors.Is(err, transform.ErrNothing) {
		b.count.filtered.Add(1)
		done(nil)
		return nil
	}
	if err != nil {
		return msg.Refuse(msg.BadPayload, "uplink %q: %v", p.r.name, err)
	}
	r := report{id: m.ID, device: m.Device, typ: typ, payload: payload, time: taken, expires: earliest(m.Expires, p.r.ttl, now), done: done}
	if r.id == (msg.ID{}) {
		r.id = msg.NewID(now)
	}
	if p.r.seal.Seal == "" {
		return b.enqueue(p, &r, now)
	}
	r.device, r.payload = strings.Clone(m.Device), nil
	return b.seals.submit(&sealing{p: p, r: r, envelope: msg.Envelope{
		ID: r.id.String(), Issuer: st.s.Table.gateway, Subject: msg.SubjectOf(m.Device, m.Resource), Time: taken,
		Type: strings.Clone(typ), Payload: slices.Clone(payload),
	}})
}

// enqueue appends a report to the queue; with nil, its done is or will be called.
func (b *Bridge) enqueue(p *plan, r *report, now time.Time) error {
	if p.payload > 0 && len(r.payload) > p.payload {
		return msg.Refuse(msg.TooLarge, "%d octets; connector %q takes %d", len(r.payload), p.tightest, p.payload)
	}
	j := b.jobs.Get().(*job)
	pub := msg.Publication{Device: r.device, Topic: p.topic, Type: r.typ, QoS: p.r.qos, Retain: p.r.retain, Payload: r.payload}
	j.data = appendRecord(j.data[:0], &pub, p.r.properties)
	j.r = spool.Record{ID: r.id, Time: r.time, Expires: r.expires, Route: p.r.name, To: p.r.to, Data: j.data}
	j.route, j.done = p.r, r.done
	if p.r.cloudAck {
		if err := b.waiting.add(j.r.ID, p.r.to, now.Add(b.o.CloudAck), r.done); err != nil {
			j.users.Store(1)
			j.release()
			return err
		}
	}
	j.users.Store(2)
	b.queue.Append(p.r.class, &j.r, j.answer)
	j.release()
	return nil
}

// earliest gives the earlier of two ends: at, and ttl from now; zero is none.
func earliest(at time.Time, ttl time.Duration, now time.Time) time.Time {
	if end := now.Add(ttl); ttl > 0 && (at.IsZero() || end.Before(at)) {
		return end
	}
	return at
}

// answered is the spool's answer to the job's append.
func (j *job) answered(_ spool.Pos, err error) {
	b, done, id, cloudAck := j.b, j.done, j.r.ID, j.route.cloudAck
	j.release()
	if err != nil {
		err = b.refusal(err)
		b.count.refused(err)
		if cloudAck {
			b.waiting.settle(id, "", err)
			return
		}
	} else if b.count.accepted.Add(1); cloudAck {
		return
	}
	done(err)
}

// release gives the job back where nobody uses it any more.
func (j *job) release() {
	if j.users.Add(-1) > 0 {
		return
	}
	const keep = 64 << 10
	if cap(j.data) > keep {
		j.data = nil
	}
	j.r, j.route, j.done = spool.Record{}, nil, nil
	j.b.jobs.Put(j)
}

// refusal turns the spool's error into what a device is told.
func (b *Bridge) refusal(err error) error {
	switch {
	case errors.Is(err, spool.ErrFull):
		return &msg.Refusal{Reason: msg.Full, RetryAfter: fullRetry, Why: "the queue on disk is full"}
	case errors.Is(err, spool.ErrTooLarge):
		return msg.Refuse(msg.TooLarge, "%v", err)
	case errors.Is(err, spool.ErrClosed):
		return msg.Refuse(msg.Unavailable, "the gateway is stopping")
	}
	return msg.Refuse(msg.Unavailable, "%v", err)
}

// fullRetry is when a device is asked to try again while the spool is full.
const fullRetry = 30 * time.Second

// counters counts what the ledger does not.
type counters struct {
	accepted  atomic.Int64
	filtered  atomic.Int64
	byReason  [msg.Unprocessable + 1]atomic.Int64
	commands  atomic.Int64
	replyLost atomic.Int64
}

func (c *counters) refused(err error) {
	c.byReason[msg.ReasonOf(err)].Add(1)
}

// groupsCache remembers which groups the devices have shown that the configuration does not give them.
type groupsCache struct {
	mu sync.Mutex
	m  map[string][]string // guarded by mu
}

const maxKnownGroups = 1 << 16

func (c *groupsCache) learn(device string, groups []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(c.m[device], groups) {
		return
	}
	if c.m == nil || len(c.m) >= maxKnownGroups {
		c.m = map[string][]string{}
	}
	c.m[strings.Clone(device)] = slices.Clone(groups)
}

func (c *groupsCache) get(device string) ([]string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.m[device]
	return g, ok
}

// words gives the refusals by reason, those that have occurred.
func (c *counters) words() map[string]int64 {
	m := map[string]int64{}
	for r := msg.Denied; r <= msg.Unprocessable; r++ {
		if n := c.byReason[r].Load(); n > 0 {
			m[r.String()] = n
		}
	}
	return m
}
