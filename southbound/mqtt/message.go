package mqtt

import (
	"bytes"
	"time"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// message is what one device said to others, or the gateway to a device. It is immutable and shared by all who hear it.
type message struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
	taken   time.Time          // of one that expires: when the gateway took it
	expires time.Time          // zero: never
	props   *packet.Properties // what MQTT 5 passes on with a message; nil: nothing
	home    *store             // of a retained message: where it is kept
}

// passedOn are the properties of a PUBLISH or will that go through to those who hear it (MQTT 5 section 3.3.2.3).
const passedOn = 1<<packet.PayloadFormat | 1<<packet.ContentType | 1<<packet.ResponseTopic | 1<<packet.Correlation | 1<<packet.User

// newMessage copies what is passed on: payload and p may point into a read buffer.
func newMessage(topic string, payload []byte, qos byte, retain bool, p *packet.Properties, now time.Time) *message {
	m := &message{topic: topic, payload: bytes.Clone(payload), qos: qos, retain: retain}
	if p.Has.Is(packet.MessageExpiry) {
		m.taken, m.expires = now, now.Add(time.Duration(p.MessageExpiry)*time.Second)
	}
	if p.Has&passedOn != 0 {
		m.props = &packet.Properties{
			PayloadFormat: p.PayloadFormat, ContentType: bytes.Clone(p.ContentType), ResponseTopic: bytes.Clone(p.ResponseTopic),
			Correlation: bytes.Clone(p.Correlation),
		}
		m.props.Has = p.Has & passedOn
		for _, u := range p.User {
			m.props.User = append(m.props.User, packet.UserProperty{Name: bytes.Clone(u.Name), Value: bytes.Clone(u.Value)})
		}
	}
	return m
}

// size is what the message weighs in a queue.
func (m *message) size() int {
	n := len(m.topic) + len(m.payload) + 128
	if p := m.props; p != nil {
		n += len(p.ContentType) + len(p.ResponseTopic) + len(p.Correlation)
		for _, u := range p.User {
			n += len(u.Name) + len(u.Value) + 48
		}
	}
	return n
}

// outgoing is one message on its way to one session.
type outgoing struct {
	*message
	level   byte // QoS of this delivery
	keep    bool // RETAIN flag of this delivery
	ids     []uint32
	id      uint16   // packet identifier; 0 until it has one
	seq     uint64   // place in the session's order
	kept    bool     // the store has it, or will have once session.storedTo reaches seq
	again   bool     // it may have been sent before the gateway was started
	sent    bool     // on this or a former connection
	release bool     // PUBREC has come: what is left is PUBREL
	command *command // who waits for the acknowledgement; nil for what devices say to each other
}

// packet makes the PUBLISH of a message that ends at end. The properties are those of this delivery.
func (o *outgoing) packet(dup bool, end, now time.Time) packet.PublishPacket {
	p := packet.PublishPacket{Dup: dup, Retain: o.keep, QoS: o.level, ID: o.id, Payload: o.payload}
	if o.props != nil {
		p.Props = *o.props
	}
	if !end.IsZero() {
		p.Props.MessageExpiry = uint32(max(1, (end.Sub(now)+time.Second-1)/time.Second))
		p.Props.Has.Add(packet.MessageExpiry)
	}
	p.Props.SubscriptionIDs = o.ids
	return p
}
