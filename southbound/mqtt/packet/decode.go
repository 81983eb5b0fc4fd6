package packet

import "bytes"

// ConnectPacket is CONNECT (MQTT 5 section 3.1).
type ConnectPacket struct {
	Version     Version
	Clean       bool // Clean Start; Clean Session of 3.1.1
	KeepAlive   uint16
	ClientID    []byte
	Will        *Will
	HasUser     bool
	HasPassword bool
	User        []byte
	Password    []byte
	Props       Properties
}

// Will is the will message of a CONNECT.
type Will struct {
	QoS     byte
	Retain  bool
	Topic   []byte
	Payload []byte
	Props   Properties
}

// DecodeConnect reads the body of a CONNECT. Where the protocol is one that this package does not speak, the error has the
// code UnsupportedVersion and p.Version says what the client wanted.
func DecodeConnect(body []byte, p *ConnectPacket) error {
	*p = ConnectPacket{}
	c := cursor{b: body}
	name := c.text()
	p.Version = Version(c.u8())
	if c.err != nil {
		return c.err
	}
	if string(name) != "MQTT" || p.Version != V311 && p.Version != V5 {
		return &Error{UnsupportedVersion, "protocol, or version of MQTT, that is not spoken here"}
	}
	flags := c.u8()
	if flags&1 != 0 {
		return malformed("reserved flag of CONNECT")
	}
	p.Clean = flags&2 != 0
	p.KeepAlive = c.u16()
	if p.Version == V5 {
		c.properties(&p.Props, onConnect)
	}
	p.ClientID = c.text()
	if flags&4 != 0 {
		w := &Will{QoS: flags >> 3 & 3, Retain: flags&32 != 0}
		if w.QoS == 3 {
			return malformed("will with QoS 3")
		}
		if p.Version == V5 {
			c.properties(&w.Props, onWill)
		}
		w.Topic = c.text()
		w.Payload = c.binary()
		if c.err == nil && !ValidTopic(w.Topic) {
			return &Error{TopicNameInvalid, "will topic that is not a topic name"}
		}
		p.Will = w
	} else if flags&0x38 != 0 {
		return malformed("will flags without a will")
	}
	if p.HasUser = flags&128 != 0; p.HasUser {
		p.User = c.text()
	}
	if p.HasPassword = flags&64 != 0; p.HasPassword {
		if !p.HasUser && p.Version == V311 {
			return malformed("password without a user name")
		}
		p.Password = c.binary()
	}
	if err := c.end(); err != nil {
		return err
	}
	if p.Props.Has.Is(AuthData) && !p.Props.Has.Is(AuthMethod) {
		return protocol("authentication data without a method")
	}
	return nil
}

// PublishPacket is PUBLISH (MQTT 5 section 3.3).
type PublishPacket struct {
	Dup, Retain bool
	QoS         byte
	ID          uint16 // 0 with QoS 0
	Topic       []byte // empty where Props has a topic alias that stands for it
	Payload     []byte
	Props       Properties
}

// DecodePublish reads the body of a PUBLISH.
func DecodePublish(v Version, h Header, body []byte, p *PublishPacket) error {
	p.Dup, p.QoS, p.Retain = h.Flags&8 != 0, h.Flags>>1&3, h.Flags&1 != 0
	c := cursor{b: body}
	p.Topic = c.text()
	p.ID = 0
	if p.QoS > 0 {
		p.ID = c.packetID()
	}
	if v == V5 {
		c.properties(&p.Props, onPublish)
		if len(p.Props.SubscriptionIDs) > 0 && c.err == nil {
			c.fail(protocol("subscription identifier from a client"))
		}
	}
	if c.err != nil {
		return c.err
	}
	p.Payload = c.b
	if len(p.Topic) == 0 {
		if v != V5 || !p.Props.Has.Is(TopicAlias) {
			return protocol("PUBLISH without a topic")
		}
	} else if !ValidTopic(p.Topic) {
		return &Error{TopicNameInvalid, "topic name with a wildcard"}
	}
	return nil
}

// AckPacket is PUBACK, PUBREC, PUBREL or PUBCOMP.
type AckPacket struct {
	ID   uint16
	Code Code
}

// DecodeAck reads the body of a PUBACK, PUBREC, PUBREL or PUBCOMP.
func DecodeAck(v Version, body []byte) (p AckPacket, err error) {
	c := cursor{b: body}
	p.ID = c.packetID()
	if v == V5 && len(c.b) > 0 {
		p.Code = Code(c.u8())
		if len(c.b) > 0 {
			var props Properties
			c.properties(&props, onAck)
		}
	}
	return p, c.end()
}

// Filter is one entry of a SUBSCRIBE.
type Filter struct {
	Name              []byte
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0: send retained messages, 1: only where the subscription is new, 2: never
}

// SubscribePacket is SUBSCRIBE (MQTT 5 section 3.8).
type SubscribePacket struct {
	ID             uint16
	Filters        []Filter
	SubscriptionID uint32 // 0: none
}

// DecodeSubscribe reads the body of a SUBSCRIBE. Whether a filter is well-formed is for the caller, by ValidFilter: it has a reason code of its own.
func DecodeSubscribe(v Version, body []byte) (p SubscribePacket, err error) {
	c := cursor{b: body}
	p.ID = c.packetID()
	if v == V5 {
		var props Properties
		c.properties(&props, onSubscribe)
		if len(props.SubscriptionIDs) > 1 {
			return p, protocol("two subscription identifiers")
		}
		if len(props.SubscriptionIDs) == 1 {
			p.SubscriptionID = props.SubscriptionIDs[0]
		}
	}
	for len(c.b) > 0 && c.err == nil {
		f := Filter{Name: c.text()}
		o := c.u8()
		f.QoS = o & 3
		if v == V5 {
			f.NoLocal, f.RetainAsPublished, f.RetainHandling = o&4 != 0, o&8 != 0, o>>4&3
		}
		switch {
		case c.err != nil:
		case v != V5 && o > 2, o>>6 != 0, f.QoS == 3:
			return p, malformed("reserved bits of the subscription options")
		case f.RetainHandling == 3:
			return p, protocol("retain handling 3")
		case f.NoLocal && IsShared(f.Name):
			return p, protocol("no local on a shared subscription")
		}
		p.Filters = append(p.Filters, f)
	}
	if err := c.end(); err != nil {
		return p, err
	}
	if len(p.Filters) == 0 {
		return p, protocol("SUBSCRIBE without a topic filter")
	}
	return p, nil
}

// UnsubscribePacket is UNSUBSCRIBE (MQTT 5 section 3.10).
type UnsubscribePacket struct {
	ID      uint16
	Filters [][]byte
}

// DecodeUnsubscribe reads the body of an UNSUBSCRIBE.
func DecodeUnsubscribe(v Version, body []byte) (p UnsubscribePacket, err error) {
	c := cursor{b: body}
	p.ID = c.packetID()
	if v == V5 {
		var props Properties
		c.properties(&props, onUnsubscribe)
	}
	for len(c.b) > 0 && c.err == nil {
		p.Filters = append(p.Filters, c.text())
	}
	if err := c.end(); err != nil {
		return p, err
	}
	if len(p.Filters) == 0 {
		return p, protocol("UNSUBSCRIBE without a topic filter")
	}
	return p, nil
}

// DisconnectPacket is DISCONNECT (MQTT 5 section 3.14).
type DisconnectPacket struct {
	Code  Code
	Props Properties
}

// DecodeDisconnect reads the body of a DISCONNECT.
func DecodeDisconnect(v Version, body []byte) (p DisconnectPacket, err error) {
	c := cursor{b: body}
	if v == V5 && len(c.b) > 0 {
		p.Code = Code(c.u8())
		if len(c.b) > 0 {
			c.properties(&p.Props, onDisconnect)
			if p.Props.Has.Is(ServerReference) && c.err == nil {
				c.fail(protocol("server reference from a client"))
			}
		}
	}
	return p, c.end()
}

// AuthPacket is AUTH (MQTT 5 section 3.15).
type AuthPacket struct {
	Code  Code
	Props Properties
}

// DecodeAuth reads the body of an AUTH.
func DecodeAuth(body []byte) (p AuthPacket, err error) {
	c := cursor{b: body}
	if len(c.b) > 0 {
		p.Code = Code(c.u8())
		c.properties(&p.Props, onAuth)
	}
	return p, c.end()
}

// DecodeEmpty reads the body of a PINGREQ: there must be none.
func DecodeEmpty(body []byte) error {
	c := cursor{b: body}
	return c.end()
}

// ValidTopic tells whether b is a topic name: not empty and without wildcards (section 4.7).
func ValidTopic[T string | []byte](b T) bool {
	for i := range len(b) {
		if b[i] == '+' || b[i] == '#' {
			return false
		}
	}
	return len(b) > 0
}

// ValidFilter tells whether b is a topic filter, shared or not (sections 4.7 and 4.8).
func ValidFilter[T string | []byte](b T) bool {
	f := string(b)
	if IsShared(b) {
		group, rest, ok := SplitShared(f)
		if !ok || !ValidTopic(group) {
			return false
		}
		f = rest
	}
	if f == "" {
		return false
	}
	for i := range len(f) {
		switch f[i] {
		case '#':
			if i != len(f)-1 || i > 0 && f[i-1] != '/' {
				return false
			}
		case '+':
			if i > 0 && f[i-1] != '/' || i < len(f)-1 && f[i+1] != '/' {
				return false
			}
		}
	}
	return true
}

const sharePrefix = "$share/"

// IsShared tells whether the filter asks for a shared subscription.
func IsShared[T string | []byte](filter T) bool {
	return len(filter) >= len(sharePrefix) && string(filter[:len(sharePrefix)]) == sharePrefix
}

// SplitShared takes "$share/GROUP/FILTER" apart.
func SplitShared(filter string) (group, rest string, ok bool) {
	if !IsShared(filter) {
		return "", filter, false
	}
	i := bytes.IndexByte([]byte(filter[len(sharePrefix):]), '/')
	if i <= 0 {
		return "", "", false
	}
	return filter[len(sharePrefix):][:i], filter[len(sharePrefix)+i+1:], true
}
