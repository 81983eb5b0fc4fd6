package mqtt

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// broker is what all MQTT listeners of a gateway share: one topic space and one set of sessions.
type broker struct {
	topics topics
	rules  atomic.Uint64 // generation of the policy; never 0
	number atomic.Uint64 // of the last session
	weight atomic.Int64  // octets that wait for all sessions

	mu       sync.RWMutex
	sessions map[string]*session // guarded by mu, by key
	devices  map[string]*device  // guarded by mu, by name
}

func newBroker() *broker {
	b := &broker{sessions: map[string]*session{}, devices: map[string]*device{}}
	b.rules.Store(1)
	return b
}

// device gives the device of a name, nil where it has no session.
func (b *broker) device(name string) *device {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.devices[name]
}

// route gives m to every session that is to hear it. It tells how many those are, and which stores have to be
// waited for before the publisher may be told.
func (b *broker) route(m *message, origin *session) (heard int, stores []*store) {
	if m.retain {
		stores = addStore(stores, b.retain(m, origin))
	}
	var few [8]target
	targets := b.topics.match(few[:0], m.topic, origin)
	for _, t := range targets {
		o := &outgoing{message: m, level: min(m.qos, t.qos), keep: m.retain && t.retain, ids: t.ids}
		stores = addStore(stores, t.session.deliver(o))
	}
	return len(targets), stores
}

// retain keeps m as the last word on its topic; an empty payload clears. It gives the store that has to know.
func (b *broker) retain(m *message, origin *session) *store {
	origin.mu.Lock()
	l := origin.home
	origin.mu.Unlock()
	key := retainedKey(m.topic)
	if len(m.payload) == 0 {
		var knows *store
		b.topics.clear(m.topic, func(old *message) {
			knows = old.home
			knows.put(key, nil)
		})
		return knows
	}
	kept, record := *m, encode(m.record())
	kept.home = l.store
	if !b.topics.keep(&kept, l.cfg.MaxRetained, int64(l.cfg.MaxRetainedSize), func(old *message) {
		if old != nil && old.home != l.store {
			old.home.put(key, nil)
		}
		l.store.put(key, record)
	}) {
		l.count.dropped.Add(1)
		return nil
	}
	return l.store
}

// testament publishes a will, as far as the rules still allow it.
func (b *broker) testament(s *session, l *listener, w *will) {
	id := auth.Identity{Device: s.device.name, Groups: w.groups}
	now := l.now()
	if m := *w.message; !m.expires.IsZero() { // it lasts from now on (section 3.1.3.2.4)
		m.taken, m.expires = now, now.Add(m.expires.Sub(m.taken))
		w = &will{message: &m, publish: w.publish, report: w.report, groups: w.groups}
	}
	if w.publish && l.env.Policy.Allowed(&id, auth.Publish, w.message.topic) {
		b.route(w.message, s)
	}
	if w.report && l.env.Policy.Allowed(&id, auth.Report, "/"+w.message.topic) {
		m := msg.Message{
			ID: msg.NewID(now), Time: now, Expires: w.message.expires, Listener: l.env.Name, Device: s.device.name, Groups: w.groups,
			Method: "POST", Resource: "/" + w.message.topic, Payload: w.message.payload,
		}
		if p := w.message.props; p != nil {
			m.Type = mediaType(p)
		}
		l.up.Submit(&m, func(err error) {
			if err != nil {
				l.count.willsRefused.Add(1)
				l.trouble.note("will", err)
			}
		})
	}
}

// claim is what a CONNECT asks of the broker.
type claim struct {
	key      string // of the session
	clientID string
	device   string
	clean    bool
	expiry   uint32
	will     *will
}

// attach gives c the session that it claims: the one that is there, unless clean, else a new one. A connection that the session has
// is ended. welcome writes the CONNACK before anything else can be written; it is not called where the code is not Success.
func (b *broker) attach(c *conn, want *claim, welcome func(present bool)) packet.Code {
	b.mu.Lock()
	if d := b.devices[want.device]; d != nil && b.sessions[want.key] == nil && d.count() >= c.l.cfg.MaxSessions {
		b.mu.Unlock()
		return packet.QuotaExceeded
	}
	former := b.sessions[want.key]
	s, last, ok := b.vacate(c, want)
	if !ok {
		b.mu.Unlock()
		return packet.ClientIDNotValid
	}
	present := s != nil
	if !present {
		s = b.create(want)
	}
	c.session = s
	s.mu.Lock()
	welcome(present)
	s.move(c.l)
	s.conn, s.expiry, s.will, s.since = c, want.expiry, want.will, c.l.now()
	s.connected.Store(true)
	if present {
		c.judge() // before what waits is sent
	}
	s.save()
	s.resume()
	s.mu.Unlock()
	b.mu.Unlock()
	if last != nil {
		b.testament(former, c.l, last)
	}
	return packet.Success
}

// vacate takes the session of the claim from its former connection. It gives the session where it goes on, and the will that is due.
func (b *broker) vacate(c *conn, want *claim) (s *session, last *will, ok bool) { // b.mu held
	if s = b.sessions[want.key]; s == nil {
		return nil, nil, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A client id that has changed hands, where ids are free, brings nothing of its former owner along.
	fresh := want.clean || s.expiry == 0 || s.over(c.l.now()) || s.device.name != want.device
	if old := s.conn; old != nil {
		if c.l.cfg.Takeover == "refuse" {
			return nil, nil, false
		}
		old.stopReading(&ending{code: packet.SessionTakenOver, text: "another connection uses this client id"})
		last = s.part(old, c.l.now())
	}
	if w := s.will; w != nil && fresh {
		last = w // the session ends, and with it the delay (section 3.1.3.2.2)
	}
	s.will = nil
	if fresh {
		b.drop(s)
		return nil, last, true
	}
	return s, last, true
}

// create makes a session. b.mu is held.
func (b *broker) create(want *claim) *session {
	d := b.devices[want.device]
	if d == nil {
		d = &device{name: want.device}
		b.devices[want.device] = d
	}
	s := &session{number: b.number.Add(1), key: want.key, clientID: want.clientID, broker: b, device: d}
	d.mu.Lock()
	d.sessions = append(d.sessions, s)
	d.mu.Unlock()
	b.sessions[want.key] = s
	return s
}

// drop ends a session for good. b.mu and s.mu are held.
func (b *broker) drop(s *session) {
	for _, sub := range s.subs {
		b.topics.unsubscribe(sub)
	}
	s.subs = nil
	for _, o := range slices.Concat(s.inflight, s.queue) {
		s.forget(o)
	}
	if s.recorded {
		s.home.store.put(s.recordKey(), nil)
		for id := range s.received {
			s.home.store.put(s.receivedKey(id), nil)
		}
	}
	s.queue, s.inflight, s.byID = nil, nil, nil
	b.remove(s)
}

// remove takes a session out of memory. b.mu and s.mu are held.
func (b *broker) remove(s *session) {
	s.gone = true
	s.weigh(-s.weight)
	delete(b.sessions, s.key)
	d := s.device
	d.mu.Lock()
	d.sessions = slices.DeleteFunc(d.sessions, func(o *session) bool { return o == s })
	if len(d.sessions) == 0 {
		delete(b.devices, d.name)
	}
	d.mu.Unlock()
}

// part takes the connection from its session. It gives the will where it is due now.
func (s *session) part(c *conn, now time.Time) (last *will) { // s.mu held
	s.conn = nil
	s.connected.Store(false)
	s.left = now
	s.abandon()
	if s.will != nil {
		s.will.groups = c.ident.Load().Groups // a reload may have changed them
	}
	if w := s.will; w != nil && (c.quit || w.delay == 0 || s.expiry == 0) {
		s.will = nil
		if !c.quit {
			return w
		}
	}
	return nil
}

// detach ends the hold of c on its session, if it still has it.
func (s *session) detach(c *conn) {
	b := s.broker
	b.mu.Lock()
	s.mu.Lock()
	if s.conn != c {
		s.mu.Unlock()
		b.mu.Unlock()
		return
	}
	last := s.part(c, c.l.now())
	if s.expiry == 0 {
		b.drop(s)
	} else {
		s.save()
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if last != nil {
		b.testament(s, c.l, last)
	}
}

// over tells whether nobody has been connected for as long as the session lasts.
func (s *session) over(now time.Time) bool { // s.mu held
	return s.conn == nil && s.expiry != neverExpires && s.home.passed(s.expiry, s.left, now)
}

// sweep publishes wills whose delay has run out and ends sessions and retained messages that have expired.
func (b *broker) sweep(l *listener) {
	now := l.now()
	b.topics.expire(now, func(m *message) bool {
		if !l.expired(m, now) {
			return false
		}
		m.home.put(retainedKey(m.topic), nil) // before another one can be put there
		return true
	})
	var offline []*session
	b.mu.RLock()
	for _, s := range b.sessions {
		if !s.connected.Load() {
			offline = append(offline, s)
		}
	}
	b.mu.RUnlock()
	for _, s := range offline {
		b.mu.Lock()
		s.mu.Lock()
		var last *will
		if s.conn == nil && !s.gone && s.home == l {
			over := s.over(now)
			if w := s.will; w != nil && (over || l.passed(w.delay, s.left, now)) {
				last, s.will = w, nil
				s.save()
			}
			if over {
				b.drop(s)
			}
		}
		s.mu.Unlock()
		b.mu.Unlock()
		if last != nil {
			b.testament(s, l, last)
		}
	}
}

// all gives every session.
func (b *broker) all() []*session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	list := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		list = append(list, s)
	}
	return list
}

// evict ends a session that belongs to l, and its connection.
func (b *broker) evict(s *session, l *listener) bool {
	b.mu.Lock()
	s.mu.Lock()
	mine := s.home == l && !s.gone
	var last *will
	if mine {
		if s.conn != nil {
			s.conn.stopReading(&ending{code: packet.AdministrativeAction, text: "disconnected by the operator"})
			last = s.part(s.conn, l.now())
		}
		b.drop(s)
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if last != nil {
		b.testament(s, l, last)
	}
	return mine
}

// leave takes the sessions of a listener that stops out of memory. Those that outlive the gateway stay in its store.
func (b *broker) leave(l *listener) {
	for _, s := range b.all() {
		b.mu.Lock()
		s.mu.Lock()
		if s.home == l && !s.gone {
			if s.durable() {
				for _, sub := range s.subs {
					b.topics.unsubscribe(sub)
				}
				b.remove(s)
			} else {
				b.drop(s)
			}
		}
		s.mu.Unlock()
		b.mu.Unlock()
	}
}
