package mqtt

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// reasons are the reason codes of MQTT 5 section 2.4 that say no.
var reasons = map[byte]string{
	0x80: "unspecified error",
	0x81: "malformed packet",
	0x82: "protocol error",
	0x83: "implementation specific error",
	0x84: "unsupported protocol version",
	0x85: "client identifier not valid",
	0x86: "bad user name or password",
	0x87: "not authorized",
	0x88: "server unavailable",
	0x89: "server busy",
	0x8A: "banned",
	0x8B: "server shutting down",
	0x8C: "bad authentication method",
	0x8D: "keep alive timeout",
	0x8E: "session taken over: somebody else has logged in under this client id",
	0x8F: "topic filter invalid",
	0x90: "topic name invalid",
	0x91: "packet identifier in use",
	0x92: "packet identifier not found",
	0x93: "receive maximum exceeded",
	0x94: "topic alias invalid",
	0x95: "packet too large",
	0x96: "message rate too high",
	0x97: "quota exceeded",
	0x98: "administrative action",
	0x99: "payload format invalid",
	0x9A: "retain not supported",
	0x9B: "QoS not supported",
	0x9C: "use another server",
	0x9D: "server moved",
	0x9E: "shared subscriptions not supported",
	0x9F: "connection rate exceeded",
	0xA0: "maximum connect time",
	0xA1: "subscription identifiers not supported",
	0xA2: "wildcard subscriptions not supported",
}

// Reason is a reason code with what the broker said beside it. It is the error of whatever the broker refused.
type Reason struct {
	Code byte
	Why  string // the reason string; empty where the broker sent none
}

func (r *Reason) Error() string {
	text := reasons[r.Code]
	if text == "" {
		text = "refused"
	}
	if r.Why != "" {
		return fmt.Sprintf("%s (0x%02X): %q", text, r.Code, r.Why)
	}
	return fmt.Sprintf("%s (0x%02X)", text, r.Code)
}

// Ended is the cause of a session that the broker ended with DISCONNECT.
type Ended Reason

func (e *Ended) Error() string {
	if e.Code == 0 {
		return "the broker has ended the session"
	}
	return "the broker has ended the session: " + (*Reason)(e).Error()
}

func whyOf(p *packets.Properties) string {
	if p == nil {
		return ""
	}
	return p.ReasonString
}

// refusal turns the reason code of PUBACK or PUBREC into the error of that publication: nil where it was taken, permanent where
// sending it again would be refused again.
func refusal(code byte, props *packets.Properties) error {
	if code < 0x80 {
		return nil
	}
	err := fmt.Errorf("the broker refused it: %w", &Reason{code, whyOf(props)})
	switch code {
	case 0x87, 0x90, 0x95, 0x99, 0x9A, 0x9B:
		return msg.Permanent(err)
	}
	return err
}

// login codes of MQTT 3.1.1 section 3.2.2.3 as those of MQTT 5.
var login4 = map[byte]byte{1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}

// loginError is the error of a CONNACK that says no. It is permanent where a person has to mend it.
func loginError(version, code byte, props *packets.Properties) error {
	if version == V311 {
		if c, ok := login4[code]; ok {
			code = c
		}
	}
	err := fmt.Errorf("log-in refused: %w", &Reason{code, whyOf(props)})
	switch code {
	case 0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x9A, 0x9B, 0x9D:
		return msg.Permanent(err)
	}
	return err
}

var errHungUp = hungUp.Of(errors.New("the broker has closed the connection"), nil)

// lost says what the end of a connection means.
func lost(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errHungUp
	case errors.Is(err, net.ErrClosed):
		return errors.New("the connection was closed")
	}
	return err
}
