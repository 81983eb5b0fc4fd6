package mqtt

import (
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// aliasMaximum is how many topic aliases a client may use.
const aliasMaximum = 64

// maxTopic is how many octets a topic or filter may have: aliases, subscriptions and sessions hold them.
const maxTopic = 2048

// published takes a PUBLISH: a reply to a command, a report for the uplink, something for other devices, or both of these.
func (c *conn) published(h packet.Header, body []byte) error {
	var p packet.PublishPacket
	if err := packet.DecodePublish(c.version, h, body, &p); err != nil {
		return err
	}
	if err := c.resolve(&p); err != nil {
		return err
	}
	c.l.count.publishesIn.Add(1)
	if p.QoS == 0 {
		if !c.session.device.mayPublish(c.l.cfg.MaxRate) {
			c.l.count.publishesRefused.Add(1)
			return nil
		}
		c.publishedQoS0(&p)
		return nil
	}
	e := &inbound{c: c, id: p.ID, qos: p.QoS}
	limit := c.l.cfg.ReceiveMaximum
	if c.version != packet.V5 {
		c.in.hold(limit, c.stopped)
	}
	if p.QoS == 2 {
		if first, err := c.receive(e); err != nil || !first {
			return err
		}
	}
	// From here on e is in order. What it amounts to is set before it can advance.
	allowed := c.allowed()
	if c.topic.publish {
		c.letOthersBeRead()
	}
	reply := c.session.device.answered(c, &p)
	switch {
	case reply:
	case !c.session.device.mayPublish(c.l.cfg.MaxRate):
		e.code = packet.MessageRateTooHigh
		e.refusal = &msg.Refusal{Reason: msg.Full, RetryAfter: time.Second, Why: "more publishes per second than allowed"}
	case !c.topic.publish && !c.topic.report:
		e.code = packet.NotAuthorized
		e.refusal = &msg.Refusal{Reason: msg.Denied, Why: "no rule allows this device to publish or report here"}
	case c.topic.publish:
		e.message = newMessage(c.topic.topic, p.Payload, p.QoS, p.Retain, &p.Props, c.l.now())
	}
	e.uplink = !reply && e.code == packet.Success && c.topic.report
	// A client of 3.1.1 knows no maximum, but has no reason either to leave so many QoS 2 publishes without PUBREL.
	if n := c.in.add(e); n > limit && c.version == packet.V5 || n > 4*limit {
		return &packet.Error{Code: packet.ReceiveMaximumExceeded, Why: "more publishes unacknowledged than the receive maximum"}
	}
	if !e.uplink {
		e.advance(uplinked)
		return nil
	}
	c.l.up.Submit(c.report(&p, allowed), e.done)
	return nil
}

// publishedQoS0 does the same where nobody waits for an acknowledgement.
func (c *conn) publishedQoS0(p *packet.PublishPacket) {
	id := c.allowed()
	if c.session.device.answered(c, p) {
		return
	}
	if !c.topic.publish && !c.topic.report {
		c.l.count.publishesRefused.Add(1)
		return
	}
	if c.topic.publish {
		c.letOthersBeRead()
		_, _ = c.l.broker.route(newMessage(c.topic.topic, p.Payload, 0, p.Retain, &p.Props, c.l.now()), c.session)
	}
	if c.topic.report {
		c.in.enter(max(c.l.cfg.ReceiveMaximum, 1000), c.stopped)
		c.l.up.Submit(c.report(p, id), c.leftQoS0)
	}
	c.l.count.publishesTaken.Add(1)
}

// resolve puts the topic that an alias stands for in its place and checks what the codec cannot.
func (c *conn) resolve(p *packet.PublishPacket) error {
	if p.Props.Has.Is(packet.TopicAlias) {
		if p.Props.TopicAlias > aliasMaximum {
			return &packet.Error{Code: packet.TopicAliasInvalid, Why: "topic alias above the maximum"}
		}
		if len(p.Topic) > 0 {
			if c.aliases == nil {
				c.aliases = map[uint16]string{}
			}
			c.aliases[p.Props.TopicAlias] = string(p.Topic[:min(len(p.Topic), maxTopic+1)])
		} else {
			topic, ok := c.aliases[p.Props.TopicAlias]
			if !ok {
				return &packet.Error{Code: packet.TopicAliasInvalid, Why: "topic alias that stands for nothing"}
			}
			p.Topic = []byte(topic)
		}
	}
	if c.topic.topic != string(p.Topic) {
		topic := string(p.Topic)
		if len(topic) > maxTopic || strings.Count(topic, "/") >= c.l.cfg.MaxTopicLevels {
			return &packet.Error{Code: packet.TopicNameInvalid, Why: "topic longer or with more levels than allowed"}
		}
		c.topic = known{topic: topic, resource: "/" + topic}
	}
	if p.Props.PayloadFormat == 1 && !packet.ValidText(p.Payload) {
		return &packet.Error{Code: packet.PayloadFormatInvalid, Why: "payload that is not the UTF-8 it is said to be"}
	}
	return nil
}

// allowed brings c.topic up to date with the policy and gives the identity.
func (c *conn) allowed() *auth.Identity {
	g := c.l.broker.rules.Load() // before the identity, which changes first
	id := c.ident.Load()
	if c.topic.rules != g {
		c.topic.rules = g
		c.topic.report = c.l.env.Policy.Allowed(id, auth.Report, c.topic.resource)
		// Topics with a $ are the server's own (section 4.7.2).
		c.topic.publish = c.topic.topic[0] != '$' && c.l.env.Policy.Allowed(id, auth.Publish, c.topic.topic)
	}
	return id
}

// report makes the message that the uplink gets. It points into the read buffer, and the next one takes its place.
func (c *conn) report(p *packet.PublishPacket, id *auth.Identity) *msg.Message {
	if c.message == nil {
		c.message = &msg.Message{}
	}
	now, m := c.l.env.Now(), c.message
	*m = msg.Message{
		ID: msg.NewID(now), Time: now, Listener: c.l.env.Name, Device: id.Device, Groups: id.Groups,
		Method: "POST", Resource: c.topic.resource, Payload: p.Payload,
	}
	m.Type = mediaType(&p.Props)
	if p.Props.Has.Is(packet.MessageExpiry) {
		m.Expires = now.Add(time.Duration(p.Props.MessageExpiry) * time.Second)
	}
	return m
}

// mediaType gives what the properties say of the payload.
func mediaType(p *packet.Properties) string {
	if len(p.ContentType) == 0 && p.PayloadFormat == 1 {
		return "text/plain;charset=utf-8"
	}
	return string(p.ContentType)
}

// receive notes a QoS 2 publish in the session. It tells whether e is the first of its identifier; if not, it has been seen to.
func (c *conn) receive(e *inbound) (first bool, err error) {
	s := c.session
	s.mu.Lock()
	x := s.received[e.id]
	if x == nil && len(s.received) >= 4*c.l.cfg.ReceiveMaximum {
		s.mu.Unlock()
		return false, &packet.Error{Code: packet.ReceiveMaximumExceeded, Why: "more publishes without PUBREL than a session may have"}
	}
	if x == nil {
		if s.received == nil {
			s.received = map[uint16]*exactly{}
		}
		e.exactly = &exactly{owner: c}
		s.received[e.id] = e.exactly
		s.mu.Unlock()
		return true, nil
	}
	taken, owner := x.taken, x.owner
	x.owner = c
	s.mu.Unlock()
	switch {
	case taken:
		c.out.ack(c.version, packet.Pubrec, e.id, packet.Success, "")
	case owner == c: // the outcome of the first will answer both
	default: // it came on a former connection and has no outcome yet
		e.exactly = x
		c.in.add(e)
		s.mu.Lock()
		waits := !x.decided
		if waits {
			x.pending = e
		}
		e.code, e.refusal = x.code, x.refusal
		s.mu.Unlock()
		if !waits {
			e.advance(settled)
		}
	}
	return false, nil
}

// bucket limits a rate: up to a second's worth at once.
type bucket struct {
	left float64
	last time.Time
}

func (b *bucket) take(now time.Time, perSecond int) bool {
	b.left = min(float64(perSecond), b.left+now.Sub(b.last).Seconds()*float64(perSecond))
	b.last = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// reasonOf gives the word for what a device heard, for command replies.
func reasonOf(code packet.Code) string {
	words := map[packet.Code]string{
		packet.NotAuthorized: "not-authorized", packet.TopicNameInvalid: "topic-name-invalid", packet.QuotaExceeded: "quota-exceeded",
		packet.PayloadFormatInvalid: "payload-format-invalid", packet.ImplementationError: "implementation-specific-error",
		packet.PacketIDInUse: "packet-identifier-in-use",
	}
	if w := words[code]; w != "" {
		return w
	}
	return "unspecified-error"
}
