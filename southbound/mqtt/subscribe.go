package mqtt

import (
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// subscribe takes a SUBSCRIBE.
func (c *conn) subscribe(body []byte) error {
	p, err := packet.DecodeSubscribe(c.version, body)
	if err != nil {
		return err
	}
	granted := make([]*subscription, len(p.Filters))
	codes := make([]packet.Code, len(p.Filters))
	fresh := make([]bool, len(p.Filters))
	s := c.session
	s.mu.Lock()
	for i, f := range p.Filters {
		sub := &subscription{
			session: s, filter: string(f.Name), qos: f.QoS, noLocal: f.NoLocal, retainAsPublished: f.RetainAsPublished, id: p.SubscriptionID,
		}
		if codes[i] = packet.QuotaExceeded; i < c.l.cfg.MaxSubscriptions {
			codes[i] = c.mayHear(sub)
		}
		if codes[i] >= packet.UnspecifiedError {
			if c.version != packet.V5 {
				codes[i] = packet.UnspecifiedError
			}
			continue
		}
		if s.gone {
			break
		}
		granted[i], fresh[i] = sub, s.subs[sub.filter] == nil
		if s.subs == nil {
			s.subs = map[string]*subscription{}
		}
		s.subs[sub.filter] = sub
		s.broker.topics.subscribe(sub)
	}
	if s.durable() {
		s.save()
		s.home.store.sync(func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			c.subscribed(&p, granted, codes, fresh, err)
		})
	} else {
		c.subscribed(&p, granted, codes, fresh, nil)
	}
	s.mu.Unlock()
	return nil
}

// subscribed answers a SUBSCRIBE once what it changed is on disk, and sends what is retained.
func (c *conn) subscribed(p *packet.SubscribePacket, granted []*subscription, codes []packet.Code, fresh []bool, err error) { // session.mu held
	s := c.session
	if err != nil {
		for i, sub := range granted {
			codes[i] = packet.UnspecifiedError
			if sub != nil && fresh[i] && s.subs[sub.filter] == sub {
				delete(s.subs, sub.filter)
				s.broker.topics.unsubscribe(sub)
			}
		}
	}
	c.out.append(func(b []byte) []byte { return packet.AppendSuback(b, c.version, packet.Suback, p.ID, codes) })
	if err != nil || s.conn != c {
		return
	}
	for i, sub := range granted {
		if h := p.Filters[i].RetainHandling; sub != nil && !sub.commandsOnly && !packet.IsShared(sub.filter) && (h == 0 || h == 1 && fresh[i]) {
			s.sendRetained(sub)
		}
	}
	c.awake()
}

// mayHear decides on a subscription: the QoS that is granted, or why it is not.
func (c *conn) mayHear(sub *subscription) packet.Code { // session.mu held
	l, s := c.l, c.session
	pattern := sub.pattern()
	switch {
	case !packet.ValidFilter(sub.filter), len(sub.filter) > maxTopic, strings.Count(pattern, "/") >= l.cfg.MaxTopicLevels:
		return packet.TopicFilterInvalid
	case s.subs[sub.filter] == nil && len(s.subs) >= l.cfg.MaxSubscriptions:
		return packet.QuotaExceeded
	}
	id := c.ident.Load()
	sub.commandsOnly = false
	if pattern[0] != '$' && l.env.Policy.Allowed(id, auth.Subscribe, pattern) {
		return packet.Code(sub.qos)
	}
	if scope, ok := l.env.Policy.(auth.CommandScope); ok && scope.CommandsWithin(id, pattern) {
		sub.commandsOnly = true
		return packet.Code(sub.qos)
	}
	return packet.NotAuthorized
}

// sendRetained queues what is retained on the topics that sub matches.
func (s *session) sendRetained(sub *subscription) { // s.mu held
	now := s.home.now()
	var ids []uint32
	if sub.id != 0 {
		ids = []uint32{sub.id}
	}
	var all []*message
	s.broker.topics.kept(sub.filter, func(m *message) {
		if !s.home.expired(m, now) {
			all = append(all, m)
		}
	})
	for _, m := range all {
		s.enqueue(&outgoing{message: m, level: min(m.qos, sub.qos), keep: true, ids: ids})
	}
}

// unsubscribe takes an UNSUBSCRIBE.
func (c *conn) unsubscribe(body []byte) error {
	p, err := packet.DecodeUnsubscribe(c.version, body)
	if err != nil {
		return err
	}
	codes := make([]packet.Code, len(p.Filters))
	s := c.session
	s.mu.Lock()
	for i, f := range p.Filters {
		switch sub := s.subs[string(f)]; {
		case sub != nil:
			delete(s.subs, sub.filter)
			s.broker.topics.unsubscribe(sub)
		case !packet.ValidFilter(f):
			codes[i] = packet.TopicFilterInvalid
		default:
			codes[i] = packet.NoSubscriptionExisted
		}
	}
	if s.durable() {
		s.save()
	}
	s.whenStored(s.durable(), func(error) {
		c.out.append(func(b []byte) []byte { return packet.AppendSuback(b, c.version, packet.Unsuback, p.ID, codes) })
	})
	s.mu.Unlock()
	return nil
}

// awake tells the bridge that the device may be sent what waits for it.
func (c *conn) awake() {
	if c.l.env.Awake != nil {
		c.l.env.Awake(c.session.device.name)
	}
}

// reconsider applies changed rules to a session, unless c has left it: its client is told when it comes back. It tells whether the session
// hears anything.
func (c *conn) reconsider() bool {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == c {
		c.judge()
	}
	return len(s.subs) > 0
}

// hears tells whether the session hears anything.
func (c *conn) hears() bool {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subs) > 0
}

// judge takes away what a session may no longer hear, and what waits for it because of that. A client that does not know it is
// disconnected, so that it subscribes again and is told.
func (c *conn) judge() { // session.mu held
	s := c.session
	lost, less := false, false
	for filter, sub := range s.subs {
		now := *sub
		if code := c.mayHear(&now); code >= packet.UnspecifiedError {
			delete(s.subs, filter)
			s.broker.topics.unsubscribe(sub)
			lost = true
		} else if now.commandsOnly != sub.commandsOnly {
			s.subs[filter] = &now
			s.broker.topics.subscribe(&now)
			less = less || now.commandsOnly
		}
	}
	if lost || less {
		s.sift()
	}
	if lost {
		if s.durable() {
			s.save()
		}
		c.stopReading(&ending{code: packet.NotAuthorized, text: "the rules have changed"})
	}
}

// sift lets go of what devices have said that no subscription asks for any more.
func (s *session) sift() { // s.mu held
	s.queue = slices.DeleteFunc(s.queue, func(o *outgoing) bool {
		if o.command != nil {
			return false
		}
		for _, sub := range s.subs {
			if !sub.commandsOnly && matches(sub.pattern(), o.topic) {
				return false
			}
		}
		s.weigh(-o.size())
		s.forget(o)
		return true
	})
}
