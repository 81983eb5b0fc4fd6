package mqtt

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// subscription is what one session asked for. It is immutable: a new SUBSCRIBE replaces it.
type subscription struct {
	session           *session
	filter            string // as the client wrote it, "$share/" included
	qos               byte
	noLocal           bool
	retainAsPublished bool
	commandsOnly      bool   // no rule lets the device hear others here: it sees commands to itself alone
	id                uint32 // subscription identifier; 0: none
}

// pattern gives the filter without "$share/GROUP/".
func (s *subscription) pattern() string {
	_, f, _ := packet.SplitShared(s.filter)
	return f
}

// topics is the tree of topic levels that holds subscriptions and retained messages.
type topics struct {
	mu       sync.RWMutex
	root     level // guarded by mu
	retained int   // guarded by mu: how many messages are retained
	octets   int64 // guarded by mu: what they weigh

	soonest time.Time // guarded by mu: no retained message expires before; zero: none expires
}

type level struct {
	next     map[string]*level // by topic level, "+" and "#" among them
	subs     map[*session]*subscription
	shared   map[string]*group // by share name
	retained *message
}

// group is a shared subscription: each message goes to one member.
type group struct {
	members []*subscription
	turn    atomic.Uint32
}

func (l *level) empty() bool {
	return len(l.next) == 0 && len(l.subs) == 0 && len(l.shared) == 0 && l.retained == nil
}

// reach gives the level at the end of path, made where it is not there yet.
func (l *level) reach(path string) *level {
	for part := range strings.SplitSeq(path, "/") {
		child := l.next[part]
		if child == nil {
			child = &level{}
			if l.next == nil {
				l.next = map[string]*level{}
			}
			l.next[strings.Clone(part)] = child
		}
		l = child
	}
	return l
}

// prune applies change to the level at the end of path and removes the levels that hold nothing any more.
func (l *level) prune(path string, change func(*level)) {
	part, rest, more := strings.Cut(path, "/")
	child := l.next[part]
	if child == nil {
		return
	}
	if more {
		child.prune(rest, change)
	} else {
		change(child)
	}
	if child.empty() {
		delete(l.next, part)
	}
}

// subscribe adds s, in place of what its session had under the same filter.
func (t *topics) subscribe(s *subscription) {
	name, pattern, shared := packet.SplitShared(s.filter)
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.root.reach(pattern)
	if !shared {
		if l.subs == nil {
			l.subs = map[*session]*subscription{}
		}
		l.subs[s.session] = s
		return
	}
	if l.shared == nil {
		l.shared = map[string]*group{}
	}
	g := l.shared[name]
	if g == nil {
		g = &group{}
		l.shared[name] = g
	}
	if i := slices.IndexFunc(g.members, func(o *subscription) bool { return o.session == s.session }); i >= 0 {
		g.members[i] = s
	} else {
		g.members = append(g.members, s)
	}
}

func (t *topics) unsubscribe(s *subscription) {
	name, pattern, shared := packet.SplitShared(s.filter)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.root.prune(pattern, func(l *level) {
		if !shared {
			delete(l.subs, s.session)
		} else if g := l.shared[name]; g != nil {
			g.members = slices.DeleteFunc(g.members, func(o *subscription) bool { return o.session == s.session })
			if len(g.members) == 0 {
				delete(l.shared, name)
			}
		}
	})
}

// target is a session that a message goes to, with what its matching subscriptions amount to.
type target struct {
	session *session
	qos     byte
	retain  bool // keep the RETAIN flag as it was published
	ids     []uint32
}

// match appends the sessions that hear a message on topic from origin, each once, its overlapping subscriptions merged.
func (t *topics) match(to []target, topic string, origin *session) []target {
	m := matcher{to: to, origin: origin}
	t.mu.RLock()
	m.walk(&t.root, topic, true)
	t.mu.RUnlock()
	if len(m.to) < 2 {
		return m.to
	}
	slices.SortStableFunc(m.to, func(a, b target) int { return cmp.Compare(a.session.number, b.session.number) })
	n := 0
	for _, x := range m.to[1:] {
		if y := &m.to[n]; y.session == x.session {
			y.qos = max(y.qos, x.qos)
			y.retain = y.retain || x.retain
			y.ids = append(y.ids, x.ids...)
			continue
		}
		n++
		m.to[n] = x
	}
	clear(m.to[n+1:])
	return m.to[:n+1]
}

type matcher struct {
	to     []target
	origin *session
}

func (m *matcher) walk(l *level, topic string, first bool) {
	wild := !first || topic == "" || topic[0] != '$' // section 4.7.2
	if h := l.next["#"]; h != nil && wild {
		m.add(h)
	}
	part, rest, more := strings.Cut(topic, "/")
	for _, name := range [...]string{part, "+"} {
		child := l.next[name]
		if child == nil || name == "+" && !wild {
			continue
		}
		if more {
			m.walk(child, rest, false)
			continue
		}
		m.add(child)
		if h := child.next["#"]; h != nil {
			m.add(h)
		}
	}
}

func (m *matcher) add(l *level) {
	for _, s := range l.subs {
		m.take(s)
	}
	for _, g := range l.shared {
		if s := g.pick(); s != nil {
			m.take(s)
		}
	}
}

func (m *matcher) take(s *subscription) {
	if s.commandsOnly || s.noLocal && s.session == m.origin {
		return
	}
	t := target{session: s.session, qos: s.qos, retain: s.retainAsPublished}
	if s.id != 0 {
		t.ids = []uint32{s.id}
	}
	m.to = append(m.to, t)
}

// pick gives the member whose turn it is: a connected one where there is one.
func (g *group) pick() (choice *subscription) {
	start := int(g.turn.Add(1))
	for i := range g.members {
		s := g.members[(start+i)%len(g.members)]
		if s.commandsOnly {
			continue
		}
		if s.session.connected.Load() {
			return s
		}
		if choice == nil {
			choice = s
		}
	}
	return choice
}

// keep retains m on its topic, and tells note what was there, or nil, before anybody can take its place. It refuses (false) what goes beyond
// so many messages or octets.
func (t *topics) keep(m *message, limit int, octets int64, note func(old *message)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.root.reach(m.topic)
	old := l.retained
	if old == nil && t.retained >= limit || t.octets+int64(m.size()) > octets {
		t.root.prune(m.topic, func(*level) {})
		return false
	}
	t.weigh(old, m)
	l.retained = m
	t.expect(m)
	note(old)
	return true
}

// expect has m looked at when it may have expired.
func (t *topics) expect(m *message) { // t.mu held
	if !m.expires.IsZero() && (t.soonest.IsZero() || m.expires.Before(t.soonest)) {
		t.soonest = m.expires
	}
}

// expire takes away the retained messages that have expired.
func (t *topics) expire(now time.Time, expired func(*message) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.soonest.IsZero() || now.Before(t.soonest) {
		return
	}
	t.soonest = time.Time{}
	var ended []*message
	collect(&t.root, "#", false, func(m *message) {
		if expired(m) {
			ended = append(ended, m)
		} else {
			t.expect(m)
		}
	})
	for _, m := range ended {
		t.root.prune(m.topic, func(l *level) { l.retained = nil })
		t.weigh(m, nil)
	}
}

// clear takes away what is retained on a topic, and tells note of it as keep does.
func (t *topics) clear(topic string, note func(old *message)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.root.prune(topic, func(l *level) {
		if old := l.retained; old != nil {
			t.weigh(old, nil)
			l.retained = nil
			note(old)
		}
	})
}

// weigh counts one message in place of another.
func (t *topics) weigh(old, m *message) { // t.mu held
	if old != nil {
		t.retained--
		t.octets -= int64(old.size())
	}
	if m != nil {
		t.retained++
		t.octets += int64(m.size())
	}
}

// kept calls visit for every retained message whose topic the filter matches.
func (t *topics) kept(filter string, visit func(*message)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	collect(&t.root, filter, true, visit)
}

func collect(l *level, filter string, first bool, visit func(*message)) {
	part, rest, more := strings.Cut(filter, "/")
	switch part {
	case "#":
		if !first {
			see(l, visit)
		}
		for name, child := range l.next {
			if !first || !strings.HasPrefix(name, "$") {
				collect(child, "#", false, visit)
			}
		}
	case "+":
		for name, child := range l.next {
			if !first || !strings.HasPrefix(name, "$") {
				descend(child, rest, more, visit)
			}
		}
	default:
		if child := l.next[part]; child != nil {
			descend(child, rest, more, visit)
		}
	}
}

func descend(l *level, rest string, more bool, visit func(*message)) {
	if more {
		collect(l, rest, false, visit)
	} else {
		see(l, visit)
	}
}

func see(l *level, visit func(*message)) {
	if l.retained != nil {
		visit(l.retained)
	}
}

// matches tells whether the filter, not shared, matches the topic.
func matches(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && (filter == "" || filter[0] != '$') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		switch {
		case !fmore && !tmore:
			return true
		case !tmore:
			return frest == "#"
		case !fmore:
			return false
		}
		filter, topic = frest, trest
	}
}
