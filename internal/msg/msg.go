// Package msg holds what crosses the bridge: messages of devices, publications of clouds, and the answers to both.
//
// It is a leaf: it imports nothing else of this module, and everything else may import it.
package msg

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ID names one message for as long as it exists anywhere: in the spool, at a cloud, in a reply.
// It is a UUID of version 7 (RFC 9562 section 5.7): ordered by the millisecond in which it was made.
type ID [16]byte

// idState is random at start and counts up, so that IDs of one process never repeat
// and those of two processes differ.
var idState atomic.Uint64

var idProcess = func() (b [8]byte) {
	var seed [16]byte
	rand.Read(seed[:])
	idState.Store(binary.BigEndian.Uint64(seed[8:]))
	copy(b[:], seed[:8])
	return b
}()

// NewID makes an ID for a message accepted at t.
func NewID(t time.Time) (id ID) {
	ms := uint64(t.UnixMilli())
	id[0], id[1], id[2] = byte(ms>>40), byte(ms>>32), byte(ms>>24)
	id[3], id[4], id[5] = byte(ms>>16), byte(ms>>8), byte(ms)
	n := idState.Add(1)
	id[6] = 0x70 | idProcess[0]&0x0f
	id[7] = idProcess[1]
	binary.BigEndian.PutUint64(id[8:], n^binary.BigEndian.Uint64(idProcess[:]))
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String gives the ID in the form of RFC 9562 section 4.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ParseID reads what String wrote.
func ParseID(s string) (id ID, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, fmt.Errorf("message id %q: not a UUID", s)
	}
	_, err = hex.Decode(id[:], []byte(s[0:8]+s[9:13]+s[14:18]+s[19:23]+s[24:36]))
	if err != nil {
		return id, fmt.Errorf("message id %q: not a UUID", s)
	}
	return id, nil
}

// Message is what a device says (a report) or is told (a command).
type Message struct {
	ID       ID
	Time     time.Time // when the gateway took it
	Expires  time.Time // zero: never
	Listener string    // the listener's name, empty for a command
	Device   string    // the name its credential gives it
	Groups   []string  // the groups its credential puts it in
	Method   string    // "POST", "PUT", ... ; an MQTT PUBLISH is "POST"
	Resource string    // absolute path: "/sensors/temp"
	Type     string    // media type; empty where the device did not say
	Payload  []byte
	// WantReply says that somebody waits for what the device answers to this command,
	// so a listener whose protocol has no answers of its own should wait a little for one.
	WantReply bool
}

// Publication is what a cloud is sent or sends.
type Publication struct {
	ID         ID
	Time       time.Time // when the gateway took what it was made from
	Expires    time.Time // zero: never
	Device     string    // empty where a cloud sent it
	Route      string    // the route that made it
	Topic      string
	Type       string // media type
	QoS        byte
	Retain     bool
	Payload    []byte
	Properties map[string]string // nil where the route asks for none
	// ResponseTopic and Correlation are set where a cloud asked for a reply (MQTT 5 section 4.10).
	ResponseTopic string
	Correlation   []byte
}

// Status is how a command ended.
type Status uint8

const (
	Done    Status = iota + 1 // the device has carried it out, or has at least acknowledged it
	Queued                    // it waits in the device's mailbox
	Refused                   // it will not be carried out; Reply.Code says why
)

// String gives the word that replies carry.
func (s Status) String() string {
	switch s {
	case Done:
		return "done"
	case Queued:
		return "queued"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// Reply is the answer to a command.
type Reply struct {
	Status  Status
	Code    string // the device's own code where it has one: "2.04", "4.04"; else a word such as "not-connected", "denied", "expired"
	Type    string // media type of Payload
	Payload []byte // what the device answered; may be empty
}

// Reason says why a message was not taken. Listeners turn it into their protocol's code.
type Reason uint8

const (
	Denied        Reason = iota + 1 // no rule allows it: 4.03, 0x87
	NoRoute                         // allowed, but no route leads anywhere: 4.04, 0x10 or 0x90
	Full                            // no room on disk or in a connector's share; RetryAfter says when to try again: 5.03 with Max-Age, 0x97
	BadPayload                      // the route's transform cannot read it: 4.00, 0x99
	TooLarge                        // 4.13, 0x95
	Unavailable                     // the gateway stops or its disk fails: 5.03, 0x88 or silence
	Unconfirmed                     // ack = "cloud" and the cloud did not confirm in time; it may still arrive: 5.04, 0x80
	Unprocessable                   // well-formed, but a limit of the platform forbids it: 4.00, 0x83
)

var reasonWords = [...]string{"", "denied", "no-route", "full", "bad-payload", "too-large", "unavailable", "unconfirmed", "unprocessable"}

// String gives the reason as one word, as metrics and replies name it.
func (r Reason) String() string {
	if int(r) < len(reasonWords) && r > 0 {
		return reasonWords[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Refusal is the error with which a message is not taken.
type Refusal struct {
	Reason     Reason
	RetryAfter time.Duration // zero where trying again is pointless or the time is unknown
	Why        string        // for a person; never the payload
}

func (r *Refusal) Error() string {
	if r.Why == "" {
		return r.Reason.String()
	}
	return r.Reason.String() + ": " + r.Why
}

// Refuse makes a Refusal.
func Refuse(reason Reason, format string, args ...any) error {
	return &Refusal{Reason: reason, Why: fmt.Sprintf(format, args...)}
}

// ReasonOf gives the reason for which err refuses a message; Unavailable for any other error, 0 for nil.
func ReasonOf(err error) Reason {
	if err == nil {
		return 0
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason
	}
	return Unavailable
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks err as one that trying again cannot mend: the publication goes to the dead letters.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// IsPermanent tells whether err, or one it wraps, was marked by Permanent.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[permanent](err)
	return ok
}
