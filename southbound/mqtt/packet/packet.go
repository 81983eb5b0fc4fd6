// Package packet reads what MQTT clients send and writes what a server answers: MQTT 3.1.1 and 5 (OASIS).
//
// Decoding never panics and never allocates more than what it is given is worth: what it decodes points into the octets
// that were passed in, and is good only as long as they are. Every "must" of the standard that
// can be checked on one packet alone is checked here, so that whoever gets a packet can rely on it. An error is always an [*Error]
// that carries the reason code the standard asks for.
//
// It holds no state of a connection: topic aliases, quotas and sessions are for the caller.
package packet

import (
	"fmt"
	"unicode/utf8"
)

// Type is the control packet type (MQTT 5 section 2.1.2).
type Type byte

// The control packet types.
const (
	Connect Type = iota + 1
	Connack
	Publish
	Puback
	Pubrec
	Pubrel
	Pubcomp
	Subscribe
	Suback
	Unsubscribe
	Unsuback
	Pingreq
	Pingresp
	Disconnect
	Auth
)

// Version is the protocol level of CONNECT.
type Version byte

// The versions that this package speaks.
const (
	V311 Version = 4
	V5   Version = 5
)

// Code is a reason code (MQTT 5 section 2.4).
type Code byte

// The reason codes that a server sends or understands.
const (
	Success                Code = 0x00
	DisconnectWithWill     Code = 0x04
	NoMatchingSubscribers  Code = 0x10
	NoSubscriptionExisted  Code = 0x11
	ContinueAuthentication Code = 0x18
	ReAuthenticate         Code = 0x19
	UnspecifiedError       Code = 0x80
	MalformedPacket        Code = 0x81
	ProtocolError          Code = 0x82
	ImplementationError    Code = 0x83
	UnsupportedVersion     Code = 0x84
	ClientIDNotValid       Code = 0x85
	BadUserOrPassword      Code = 0x86
	NotAuthorized          Code = 0x87
	ServerUnavailable      Code = 0x88
	ServerBusy             Code = 0x89
	ServerShuttingDown     Code = 0x8b
	BadAuthMethod          Code = 0x8c
	KeepAliveTimeout       Code = 0x8d
	SessionTakenOver       Code = 0x8e
	TopicFilterInvalid     Code = 0x8f
	TopicNameInvalid       Code = 0x90
	PacketIDInUse          Code = 0x91
	PacketIDNotFound       Code = 0x92
	ReceiveMaximumExceeded Code = 0x93
	TopicAliasInvalid      Code = 0x94
	PacketTooLarge         Code = 0x95
	MessageRateTooHigh     Code = 0x96
	QuotaExceeded          Code = 0x97
	AdministrativeAction   Code = 0x98
	PayloadFormatInvalid   Code = 0x99
	ConnectionRateExceeded Code = 0x9f
	MaximumConnectTime     Code = 0xa0
)

// Error says what is wrong with a packet.
type Error struct {
	Code Code
	Why  string
}

func (e *Error) Error() string { return fmt.Sprintf("%s (0x%02x)", e.Why, byte(e.Code)) }

func malformed(why string) error { return &Error{MalformedPacket, why} }
func protocol(why string) error  { return &Error{ProtocolError, why} }

// Header is the fixed header.
type Header struct {
	Type  Type
	Flags byte // the low four bits
}

// Scan looks for one packet at the start of b. It gives the length of the fixed header and of the whole packet; total is 0 where b does not
// yet hold enough to tell. The type, its flags and a length above limit are judged as soon as they can be seen:
// nothing needs to be allocated for a packet that will be refused.
func Scan(b []byte, limit int) (h Header, head, total int, err error) {
	if len(b) == 0 {
		return h, 0, 0, nil
	}
	h = Header{Type(b[0] >> 4), b[0] & 15}
	switch h.Type {
	case Publish:
		if h.Flags&6 == 6 {
			return h, 0, 0, malformed("PUBLISH with QoS 3")
		}
		if h.Flags&14 == 8 {
			return h, 0, 0, malformed("PUBLISH with QoS 0 and DUP")
		}
	case Pubrel, Subscribe, Unsubscribe:
		if h.Flags != 2 {
			return h, 0, 0, malformed("reserved flags of the fixed header")
		}
	case 0:
		return h, 0, 0, malformed("packet of type 0")
	default:
		if h.Flags != 0 {
			return h, 0, 0, malformed("reserved flags of the fixed header")
		}
	}
	n := 0
	for i := 1; ; i++ {
		if i > 4 {
			return h, 0, 0, malformed("remaining length of more than four octets")
		}
		if i >= len(b) {
			return h, 0, 0, nil
		}
		n |= int(b[i]&127) << (7 * (i - 1))
		if b[i] < 128 {
			head = i + 1
			break
		}
	}
	if head+n > limit {
		return h, head, 0, &Error{PacketTooLarge, "packet larger than allowed"}
	}
	return h, head, head + n, nil
}

// cursor reads fields in order. The first failure sticks, and every read after it gives zero.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.fail(malformed("packet shorter than its fields"))
		return nil
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return uint16(b[0])<<8 | uint16(b[1])
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	return 0
}

func (c *cursor) varint() uint32 {
	var n uint32
	for i := range 4 {
		b := c.u8()
		n |= uint32(b&127) << (7 * i)
		if b < 128 {
			return n
		}
	}
	c.fail(malformed("variable byte integer of more than four octets"))
	return 0
}

func (c *cursor) binary() []byte { return c.take(int(c.u16())) }

// text reads a UTF-8 encoded string (MQTT 5 section 1.5.4).
func (c *cursor) text() []byte {
	b := c.binary()
	if !ValidText(b) {
		c.fail(malformed("string that is not UTF-8"))
		return nil
	}
	return b
}

// ValidText tells whether b may stand in a UTF-8 encoded string: no U+0000, no surrogates (MQTT 5 section 1.5.4).
func ValidText(b []byte) bool {
	ascii := true
	for _, x := range b {
		if x == 0 {
			return false
		}
		ascii = ascii && x < 128
	}
	return ascii || utf8.Valid(b)
}

func (c *cursor) end() error {
	if c.err == nil && len(c.b) > 0 {
		c.err = malformed("packet longer than its fields")
	}
	return c.err
}

func (c *cursor) packetID() uint16 {
	id := c.u16()
	if id == 0 && c.err == nil {
		c.fail(malformed("packet identifier 0"))
	}
	return id
}
