package broker

import (
	"strings"
	"time"
)

const (
	queueMax    = 100_000 // messages that wait for one session
	retainedMax = 10_000
)

// session outlives its connections where the client asks for it. All of it is guarded by Broker.mu.
type session struct {
	id       string
	client   *client // nil: nobody is connected
	until    time.Time
	expiry   time.Duration
	filters  map[string]subscription
	queue    []Message  // waits for room in the window
	inflight []inflight // in order of sending
	nextID   uint16
	received map[uint16]bool // QoS 2 publications of the client whose PUBREL has not come
}

type subscription struct {
	qos     byte
	noLocal bool
}

type inflight struct {
	m        Message
	id       uint16
	released bool // QoS 2: PUBREC has come
}

func (s *session) over(now time.Time) bool { return s.client == nil && now.After(s.until) }

// wants tells the highest QoS with which the session has subscribed to m.
func (s *session) wants(m *Message) (qos byte, ok bool) {
	for filter, sub := range s.filters {
		if Match(filter, m.Topic) && !(sub.noLocal && m.From == s.id) {
			qos, ok = max(qos, sub.qos), true
		}
	}
	return qos, ok
}

// enqueue sends m, or keeps it until the window has room or the client is back.
func (s *session) enqueue(m Message) {
	if m.QoS == 0 {
		if s.client != nil {
			s.client.send(s.client.publish(m, 0))
		}
		return
	}
	if len(s.queue) >= queueMax {
		return
	}
	s.queue = append(s.queue, m)
	s.advance()
}

// advance sends as much of the queue as the client's receive maximum allows.
func (s *session) advance() {
	for s.client != nil && len(s.queue) > 0 && len(s.inflight) < s.client.window {
		m := s.queue[0]
		s.queue = s.queue[1:]
		id := s.freeID()
		// What is larger than the client takes counts as delivered (MQTT 5 section 3.1.2.11.4).
		if s.client.send(s.client.publish(m, id)) {
			s.inflight = append(s.inflight, inflight{m: m, id: id})
		}
	}
}

func (s *session) freeID() uint16 {
	for {
		s.nextID++
		if s.nextID != 0 && s.find(s.nextID) < 0 {
			return s.nextID
		}
	}
}

func (s *session) find(id uint16) int {
	for i := range s.inflight {
		if s.inflight[i].id == id {
			return i
		}
	}
	return -1
}

// settle forgets what the client has acknowledged.
func (s *session) settle(id uint16) {
	if i := s.find(id); i >= 0 {
		s.inflight = append(s.inflight[:i], s.inflight[i+1:]...)
		s.advance()
	}
}

// resume sends again what was in flight (MQTT 5 section 4.4), and then what waits.
func (s *session) resume() {
	for i := range s.inflight {
		f := &s.inflight[i]
		if f.released {
			s.client.send(s.client.pubrel(f.id))
			continue
		}
		f.m.Dup = true
		s.client.send(s.client.publish(f.m, f.id))
	}
	s.advance()
}

// Match tells whether a topic name matches a topic filter (MQTT 5 section 4.7).
func Match(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#")) {
		return false
	}
	for {
		level, moreFilter, filterGoesOn := strings.Cut(filter, "/")
		if level == "#" {
			return true
		}
		name, moreTopic, topicGoesOn := strings.Cut(topic, "/")
		if level != "+" && level != name {
			return false
		}
		if !topicGoesOn {
			return !filterGoesOn || moreFilter == "#"
		}
		if !filterGoesOn {
			return false
		}
		filter, topic = moreFilter, moreTopic
	}
}
