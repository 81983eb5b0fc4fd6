package mqtt

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// What the store holds, by the first octet of its keys. The key of what belongs to a session goes on with the length of the session's key
// in two octets, and that key.
const (
	ofSession  = 'S' // sessionRecord
	ofQueued   = 'M' // outgoingRecord, by sequence in eight octets
	ofReceived = 'Q' // a QoS 2 publish that waits for PUBREL, by packet identifier in two octets
	ofRetained = 'R' // messageRecord, by topic
)

func storeKey(kind byte, session string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(session))), session...)
}

func (s *session) recordKey() string { return string(storeKey(ofSession, s.key)) }

func (s *session) queuedKey(seq uint64) string {
	return string(binary.BigEndian.AppendUint64(storeKey(ofQueued, s.key), seq))
}

func (s *session) receivedKey(id uint16) string {
	return string(binary.BigEndian.AppendUint16(storeKey(ofReceived, s.key), id))
}

func retainedKey(topic string) string { return string(rune(ofRetained)) + topic }

type messageRecord struct {
	Topic   string                `cbor:"1,keyasint"`
	Payload []byte                `cbor:"2,keyasint"`
	QoS     byte                  `cbor:"3,keyasint,omitempty"`
	Retain  bool                  `cbor:"4,keyasint,omitempty"`
	Expires int64                 `cbor:"5,keyasint,omitempty"` // Unix milliseconds
	Has     uint64                `cbor:"6,keyasint,omitempty"` // which of the properties below are there
	Format  byte                  `cbor:"7,keyasint,omitempty"`
	Type    []byte                `cbor:"8,keyasint,omitempty"`
	Reply   []byte                `cbor:"9,keyasint,omitempty"`
	Corr    []byte                `cbor:"10,keyasint,omitempty"`
	User    []packet.UserProperty `cbor:"11,keyasint,omitempty"`
	Taken   int64                 `cbor:"12,keyasint,omitempty"` // Unix milliseconds; of a message that expires
}

type outgoingRecord struct {
	Message messageRecord `cbor:"1,keyasint"`
	Level   byte          `cbor:"2,keyasint"`
	Keep    bool          `cbor:"3,keyasint,omitempty"`
	IDs     []uint32      `cbor:"4,keyasint,omitempty"`
	ID      uint16        `cbor:"5,keyasint"`
	Release bool          `cbor:"7,keyasint,omitempty"`
}

type subscriptionRecord struct {
	Filter       string `cbor:"1,keyasint"`
	QoS          byte   `cbor:"2,keyasint,omitempty"`
	NoLocal      bool   `cbor:"3,keyasint,omitempty"`
	AsPublished  bool   `cbor:"4,keyasint,omitempty"`
	CommandsOnly bool   `cbor:"5,keyasint,omitempty"`
	ID           uint32 `cbor:"6,keyasint,omitempty"`
}

type willRecord struct {
	Message messageRecord `cbor:"1,keyasint"`
	Delay   uint32        `cbor:"2,keyasint,omitempty"`
	Publish bool          `cbor:"3,keyasint,omitempty"`
	Report  bool          `cbor:"4,keyasint,omitempty"`
	Groups  []string      `cbor:"5,keyasint,omitempty"`
}

type sessionRecord struct {
	ClientID string               `cbor:"1,keyasint"`
	Device   string               `cbor:"2,keyasint"`
	Expiry   uint32               `cbor:"3,keyasint,omitempty"`
	Left     int64                `cbor:"4,keyasint,omitempty"` // Unix milliseconds; 0: it was connected
	Subs     []subscriptionRecord `cbor:"5,keyasint,omitempty"`
	Will     *willRecord          `cbor:"6,keyasint,omitempty"`
}

// encode gives the octets of a record. A record of these types can always be written.
func encode(record any) []byte {
	b, err := cbor.Marshal(record)
	if err != nil {
		panic(err)
	}
	return b
}

func (m *message) record() messageRecord {
	r := messageRecord{Topic: m.topic, Payload: m.payload, QoS: m.qos, Retain: m.retain}
	if !m.expires.IsZero() {
		r.Taken, r.Expires = m.taken.UnixMilli(), m.expires.UnixMilli()
	}
	if p := m.props; p != nil {
		r.Has, r.Format, r.Type, r.Reply, r.Corr, r.User = uint64(p.Has), p.PayloadFormat, p.ContentType, p.ResponseTopic, p.Correlation, p.User
	}
	return r
}

func (r *messageRecord) message() *message {
	m := &message{topic: r.Topic, payload: r.Payload, qos: r.QoS, retain: r.Retain}
	if r.Expires != 0 {
		m.taken, m.expires = time.UnixMilli(r.Taken), time.UnixMilli(r.Expires)
	}
	if r.Has != 0 {
		m.props = &packet.Properties{PayloadFormat: r.Format, ContentType: r.Type, ResponseTopic: r.Reply, Correlation: r.Corr, User: r.User}
		m.props.Has = packet.Set(r.Has)
	}
	return m
}

func (o *outgoing) record() []byte {
	return encode(outgoingRecord{o.message.record(), o.level, o.keep, o.ids, o.id, o.release})
}

func (r *outgoingRecord) outgoing(seq uint64) *outgoing {
	return &outgoing{message: r.Message.message(), level: r.Level, keep: r.Keep, ids: r.IDs, id: r.ID, seq: seq, kept: true, again: true, release: r.Release}
}

func (s *session) record() []byte { // s.mu held
	r := sessionRecord{ClientID: s.clientID, Device: s.device.name, Expiry: s.expiry}
	if s.conn == nil {
		r.Left = s.left.UnixMilli()
	}
	for _, sub := range s.subs {
		r.Subs = append(r.Subs, subscriptionRecord{sub.filter, sub.qos, sub.noLocal, sub.retainAsPublished, sub.commandsOnly, sub.id})
	}
	if w := s.will; w != nil {
		r.Will = &willRecord{w.message.record(), w.delay, w.publish, w.report, w.groups}
	}
	return encode(r)
}

// load brings back what the store of l holds. A session that is in memory already, because it has moved to another listener, is not
// brought back, and what belongs to no session is removed.
func (b *broker) load(l *listener) error {
	queued := map[string][]*outgoing{}
	received := map[string][]uint16{}
	var orphans []string
	now := l.now()
	err := l.store.each(func(key, value []byte) error {
		kind, rest := key[0], key[1:]
		if kind == ofRetained {
			var r messageRecord
			if cbor.Unmarshal(value, &r) == nil {
				if m := r.message(); !l.expired(m, now) {
					m.home = l.store
					b.topics.keep(m, math.MaxInt, math.MaxInt64, func(*message) {})
					return nil
				}
			}
			orphans = append(orphans, string(key))
			return nil
		}
		if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
			orphans = append(orphans, string(key))
			return nil
		}
		n := 2 + int(binary.BigEndian.Uint16(rest))
		of, tail := string(rest[2:n]), rest[n:]
		var sr sessionRecord
		var or outgoingRecord
		switch {
		case kind == ofQueued && len(tail) == 8 && cbor.Unmarshal(value, &or) == nil:
			queued[of] = append(queued[of], or.outgoing(binary.BigEndian.Uint64(tail)))
		case kind == ofReceived && len(tail) == 2:
			received[of] = append(received[of], binary.BigEndian.Uint16(tail))
		case kind == ofSession && cbor.Unmarshal(value, &sr) == nil && b.restore(l, of, &sr, queued[of], received[of]):
			delete(queued, of)
			delete(received, of)
		default:
			orphans = append(orphans, string(key))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("session store: %w", err)
	}
	for key, list := range queued {
		s := &session{key: key}
		for _, o := range list {
			orphans = append(orphans, s.queuedKey(o.seq))
		}
	}
	for key, ids := range received {
		s := &session{key: key}
		for _, id := range ids {
			orphans = append(orphans, s.receivedKey(id))
		}
	}
	for _, key := range orphans {
		l.store.put(key, nil)
	}
	return nil
}

// restore makes a session of its record. It tells whether it did.
func (b *broker) restore(l *listener, key string, r *sessionRecord, queue []*outgoing, received []uint16) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[key] != nil {
		return false
	}
	s := b.create(&claim{key: key, clientID: r.ClientID, device: r.Device})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.home, s.expiry, s.recorded = l, r.Expiry, true
	s.left = l.now()
	if r.Left != 0 {
		s.left = time.UnixMilli(r.Left)
	}
	s.since = s.left
	if w := r.Will; w != nil {
		s.will = &will{w.Message.message(), w.Delay, w.Publish, w.Report, w.Groups}
	}
	for _, sub := range r.Subs {
		x := &subscription{
			session: s, filter: sub.Filter, qos: sub.QoS, noLocal: sub.NoLocal, retainAsPublished: sub.AsPublished,
			commandsOnly: sub.CommandsOnly, id: sub.ID,
		}
		if s.subs == nil {
			s.subs = map[string]*subscription{}
		}
		s.subs[x.filter] = x
		b.topics.subscribe(x)
	}
	for _, o := range queue {
		if s.byID == nil {
			s.byID = map[uint16]*outgoing{}
		}
		s.byID[o.id] = o
		s.seq, s.storedTo = o.seq, o.seq
		if o.release {
			o.sent = true
			s.inflight = append(s.inflight, o)
			s.unacked += o.size()
		} else {
			s.queue = append(s.queue, o)
			s.weigh(o.size())
		}
	}
	for _, id := range received {
		if s.received == nil {
			s.received = map[uint16]*exactly{}
		}
		s.received[id] = &exactly{decided: true, taken: true}
	}
	return true
}
