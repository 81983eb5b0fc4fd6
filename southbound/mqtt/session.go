package mqtt

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// session is what a client id stands for (MQTT 5 section 4.1). It outlives connections where the client asked for that.
//
// Locks are taken in the order broker.mu, inflow.mu, session.mu, output.mu; topics.mu is held alone or last.
type session struct {
	number    uint64 // distinguishes sessions for good
	key       string // place in broker.sessions
	clientID  string
	broker    *broker
	device    *device
	connected atomic.Bool

	mu       sync.Mutex
	home     *listener                // guarded by mu: where it connected last
	conn     *conn                    // guarded by mu; nil: nobody is connected
	gone     bool                     // guarded by mu: removed from the broker
	recorded bool                     // guarded by mu: the store has a record of it
	expiry   uint32                   // guarded by mu: seconds it outlives its connection; neverExpires
	left     time.Time                // guarded by mu: when the last connection ended
	since    time.Time                // guarded by mu: when the present or last connection began
	will     *will                    // guarded by mu
	subs     map[string]*subscription // guarded by mu, by filter
	queue    []*outgoing              // guarded by mu: not sent yet, in order
	inflight []*outgoing              // guarded by mu: sent with QoS 1 or 2, not acknowledged, in order
	byID     map[uint16]*outgoing     // guarded by mu: everything that has a packet identifier
	lastID   uint16                   // guarded by mu
	seq      uint64                   // guarded by mu: of the last message queued
	storedTo uint64                   // guarded by mu: messages up to this sequence are on disk
	weight   int                      // guarded by mu: octets in queue
	unacked  int                      // guarded by mu: octets in inflight
	received map[uint16]*exactly      // guarded by mu: QoS 2 publishes of the client that wait for PUBREL
}

const neverExpires = 0xffffffff

// durable tells whether the session is to outlive the gateway.
func (s *session) durable() bool { return s.expiry > 0 && !s.gone } // s.mu held

// will is what is published when a connection ends without DISCONNECT.
type will struct {
	message *message
	delay   uint32 // seconds
	publish bool   // other devices hear it
	report  bool   // it goes to the uplink
	groups  []string
}

// exactly is one QoS 2 publish of the client. The fields are guarded by session.mu.
type exactly struct {
	owner   *conn    // the connection on which it came last
	decided bool     // the uplink has answered
	taken   bool     // PUBREC has been sent or is due: a copy is not taken again
	pending *inbound // the copy of it, on a later connection, that waits for the outcome too
	code    packet.Code
	refusal *msg.Refusal
}

// highWater is how many octets may wait in a connection's output before its session holds back.
const highWater = 256 << 10

// maxIDs is how many packet identifiers one session may use: some are always left.
const maxIDs = 65000

// deliver queues o and sends what can be sent. It gives the store that must have it before it counts as delivered, if there is one.
func (s *session) deliver(o *outgoing) *store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.enqueue(o) && o.kept {
		return s.home.store
	}
	return nil
}

// enqueue tells whether o was taken.
func (s *session) enqueue(o *outgoing) bool { // s.mu held
	if s.gone || s.conn == nil && (o.level == 0 || o.command != nil) {
		return false
	}
	if o.command == nil && !s.room(o) {
		return false
	}
	s.seq++
	o.seq = s.seq
	s.queue = append(s.queue, o)
	s.weigh(o.size())
	if s.durable() && o.level > 0 && o.command == nil {
		o.kept = true
		s.number16(o)
		s.home.store.queued(s.queuedKey(o.seq), o.record(), s, o.seq)
	} else {
		s.pump()
	}
	return true
}

// weigh counts what waits.
func (s *session) weigh(octets int) { // s.mu held
	s.weight += octets
	s.broker.weight.Add(int64(octets))
}

// stored is told by the store how far it has got.
func (s *session) stored(seq uint64) {
	s.mu.Lock()
	s.storedTo = max(s.storedTo, seq)
	s.pump()
	s.mu.Unlock()
}

// room makes place for o where the limits say that there is none, or tells that there is not.
func (s *session) room(o *outgoing) bool { // s.mu held
	cfg := s.home.cfg
	full := func() bool {
		return len(s.queue) >= cfg.MaxQueued || len(s.byID) >= maxIDs || s.weight+o.size() > int(cfg.MaxQueuedBytes) ||
			s.broker.weight.Load()+int64(o.size()) > int64(cfg.MaxQueuedTotal)
	}
	if over := s.broker.weight.Load() + int64(o.size()) - int64(cfg.MaxQueuedTotal); over > int64(s.weight) {
		s.home.count.dropped.Add(1)
		return false // to let go of what waits here would not help
	}
	for full() {
		i := -1
		if cfg.QueueFull == "drop-old" {
			i = slices.IndexFunc(s.queue, func(q *outgoing) bool { return q.command == nil })
		}
		s.home.count.dropped.Add(1)
		if i < 0 {
			return false
		}
		s.weigh(-s.queue[i].size())
		s.forget(s.queue[i])
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	return true
}

// pump sends from the queue what the connection and the client's receive maximum have room for.
func (s *session) pump() { // s.mu held
	c := s.conn
	if c == nil || len(s.queue) == 0 {
		return
	}
	now := c.l.now()
	n := 0
	for _, o := range s.queue {
		if o.kept && o.seq > s.storedTo || o.level > 0 && !s.mayFly(c) || !c.out.hasRoom() {
			break
		}
		n++
		s.weigh(-o.size())
		if c.l.expired(o.message, now) {
			s.forget(o)
			continue
		}
		if o.level > 0 && o.id == 0 {
			s.number16(o)
		}
		if !c.publish(o, o.again, now) { // larger than the client takes: it is dropped (MQTT 5 section 3.1.2.11.4)
			c.l.count.dropped.Add(1)
			s.forget(o)
			continue
		}
		o.sent = true
		if o.level > 0 {
			s.inflight = append(s.inflight, o)
			s.unacked += o.size()
		} else if o.command != nil {
			o.command.acknowledged(packet.Success)
		}
	}
	clear(s.queue[:n])
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
}

// mayFly tells whether one more message may wait for its acknowledgement.
func (s *session) mayFly(c *conn) bool { // s.mu held
	return len(s.inflight) < c.peerReceive && s.unacked < int(c.l.cfg.MaxQueuedBytes)
}

// number16 gives o a packet identifier that is not in use.
func (s *session) number16(o *outgoing) { // s.mu held
	if s.byID == nil {
		s.byID = map[uint16]*outgoing{}
	}
	for {
		s.lastID++
		if s.lastID != 0 && s.byID[s.lastID] == nil {
			break
		}
	}
	o.id = s.lastID
	s.byID[o.id] = o
}

// forget lets go of what will not be sent, or has been acknowledged.
func (s *session) forget(o *outgoing) { // s.mu held
	if o.id != 0 {
		delete(s.byID, o.id)
	}
	if o.kept {
		s.home.store.put(s.queuedKey(o.seq), nil)
	}
	if o.command != nil {
		o.command.lost()
	}
}

// acknowledged takes a PUBACK, a PUBCOMP, or a PUBREC that refuses. It tells whether the identifier was in use.
func (s *session) acknowledged(t packet.Type, p packet.AckPacket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byID[p.ID]
	if o == nil || !o.sent {
		return false
	}
	if t == packet.Puback && o.level != 1 || t == packet.Pubrec && (o.level != 2 || o.release) || t == packet.Pubcomp && !o.release {
		return false
	}
	s.unacked -= o.size()
	if i := slices.Index(s.inflight, o); i == 0 {
		s.inflight[0] = nil
		s.inflight = s.inflight[1:]
	} else if i > 0 {
		s.inflight = slices.Delete(s.inflight, i, i+1)
	}
	if o.command != nil {
		o.command.acknowledged(p.Code)
		o.command = nil
	}
	s.forget(o)
	s.pump()
	return true
}

// released takes a PUBREC that accepts. PUBREL follows once it is on disk that this message is not to be sent again.
func (s *session) released(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byID[id]
	if o == nil || o.level != 2 || !o.sent {
		c.out.ack(c.version, packet.Pubrel, id, packet.PacketIDNotFound, "")
		return
	}
	o.release = true
	if o.kept {
		s.home.store.put(s.queuedKey(o.seq), o.record())
	}
	s.whenStored(o.kept, func(err error) {
		if err == nil {
			c.out.ack(c.version, packet.Pubrel, id, packet.Success, "")
		}
	})
}

// completed takes a PUBREL. PUBCOMP follows once it is on disk that the identifier is free: the next publish with it is another one.
func (s *session) completed(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received[id] == nil {
		c.out.ack(c.version, packet.Pubcomp, id, packet.PacketIDNotFound, "")
		return
	}
	delete(s.received, id)
	if s.durable() {
		s.home.store.put(s.receivedKey(id), nil)
	}
	s.whenStored(s.durable(), func(err error) {
		if err == nil {
			c.out.ack(c.version, packet.Pubcomp, id, packet.Success, "")
		}
	})
}

// whenStored calls f once what has been put in the session's store is on disk, at once where nothing was. f must not take s.mu
// where it may be called at once.
func (s *session) whenStored(put bool, f func(error)) { // s.mu held
	if put {
		s.home.store.sync(f)
	} else {
		f(nil)
	}
}

// save has the session's record written, or removed where it need not outlive the gateway.
func (s *session) save() { // s.mu held
	if s.gone {
		return // the record is of another session by now
	}
	if !s.durable() {
		for id := range s.received { // of when it was: a later session is not to take them for its own
			s.home.store.put(s.receivedKey(id), nil)
		}
	}
	if s.durable() || s.will != nil {
		s.home.store.put(s.recordKey(), s.record())
	} else if s.recorded {
		s.home.store.put(s.recordKey(), nil)
	}
	s.recorded = s.durable() || s.will != nil
}

// move has everything of the session written to the store of another listener.
func (s *session) move(to *listener) { // s.mu held
	from := s.home
	s.home = to
	if from == nil || from == to || !s.recorded {
		return
	}
	from.store.put(s.recordKey(), nil)
	for _, o := range slices.Concat(s.inflight, s.queue) {
		if o.kept {
			from.store.put(s.queuedKey(o.seq), nil)
			to.store.put(s.queuedKey(o.seq), o.record())
		}
	}
	for id := range s.received {
		from.store.put(s.receivedKey(id), nil)
		to.store.put(s.receivedKey(id), []byte{1})
	}
}

// resume sends again, in order, what a former connection left unacknowledged, then what waits.
func (s *session) resume() { // s.mu held
	now := s.conn.l.now()
	for _, o := range s.inflight {
		if o.release {
			s.conn.out.append(func(b []byte) []byte {
				return packet.AppendAck(b, s.conn.version, packet.Pubrel, o.id, packet.Success, "")
			})
		} else {
			s.conn.publish(o, true, now)
		}
	}
	s.pump()
}

// abandon lets go of what does not outlive a connection: QoS 0, and commands, whose senders are told and may send them again.
func (s *session) abandon() { // s.mu held
	s.inflight = slices.DeleteFunc(s.inflight, func(o *outgoing) bool {
		if o.command == nil {
			return false
		}
		s.unacked -= o.size()
		s.forget(o)
		return true
	})
	s.queue = slices.DeleteFunc(s.queue, func(o *outgoing) bool {
		if o.command == nil && o.level > 0 {
			return false
		}
		s.weigh(-o.size())
		s.forget(o)
		return true
	})
}
