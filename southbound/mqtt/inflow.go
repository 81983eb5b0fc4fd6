package mqtt

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// inflow holds the QoS 1 and 2 publishes of one connection that have not been acknowledged, in the order in which
// they came. Each goes through three stages: the uplink has it, the devices that hear it have been given it, all of that is on disk.
// The second stage and the acknowledgement happen in order; the waiting does not stop others.
type inflow struct {
	mu       sync.Mutex
	head     *inbound      // guarded by mu: the oldest
	tail     *inbound      // guarded by mu
	unrouted *inbound      // guarded by mu: the oldest that has not come to the second stage
	waiting  int           // guarded by mu: how many there are, QoS 0 at the uplink included
	quota    int           // guarded by mu: publishes that count against the receive maximum
	closed   bool          // guarded by mu: the connection has ended
	room     chan struct{} // told when waiting falls
}

// inbound is one PUBLISH of a client.
type inbound struct {
	c       *conn
	next    *inbound
	exactly *exactly // of a QoS 2 publish
	message *message // what other devices are to hear; nil: nothing
	id      uint16
	qos     byte
	stage   stage
	uplink  bool // it has been submitted
	stores  int  // stores that must still answer; guarded by inflow.mu
	code    packet.Code
	refusal *msg.Refusal // why code is not a success
}

type stage byte

const (
	atUplink stage = iota
	uplinked
	atStore
	settled
)

// add puts e at the end and tells how many count against the receive maximum.
func (f *inflow) add(e *inbound) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tail == nil {
		f.head = e
	} else {
		f.tail.next = e
	}
	f.tail = e
	if f.unrouted == nil {
		f.unrouted = e
	}
	f.waiting++
	f.quota++
	return f.quota
}

// enter counts a QoS 0 publish at the uplink once there is room for it; left is its outcome.
func (f *inflow) enter(limit int, stopped <-chan struct{}) {
	f.mu.Lock()
	if f.waiting >= limit {
		f.mu.Unlock()
		f.hold(limit, stopped)
		f.mu.Lock()
	}
	f.waiting++
	f.mu.Unlock()
}

func (f *inflow) left(error) {
	f.mu.Lock()
	f.leave()
	f.mu.Unlock()
}

// completed counts a QoS 2 publish whose PUBREL has come.
func (f *inflow) completed() {
	f.mu.Lock()
	f.quota = max(0, f.quota-1)
	f.mu.Unlock()
}

// hold waits until fewer than limit publishes wait, or the connection is to end: a client without a receive maximum is held back
// by not being read.
func (f *inflow) hold(limit int, stopped <-chan struct{}) {
	for {
		f.mu.Lock()
		ok := f.waiting < limit
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-f.room:
		case <-stopped:
			return
		}
	}
}

// leave counts one that waits no more.
func (f *inflow) leave() { // f.mu held
	f.waiting--
	select {
	case f.room <- struct{}{}:
	default:
	}
}

// done takes the uplink's outcome. It is what Submit calls.
func (e *inbound) done(err error) {
	e.code, e.refusal = outcome(err)
	e.advance(uplinked)
}

// outcome turns an outcome of the uplink into a reason code.
func outcome(err error) (packet.Code, *msg.Refusal) {
	if err == nil {
		return packet.Success, nil
	}
	r, ok := errors.AsType[*msg.Refusal](err)
	if !ok {
		r = &msg.Refusal{Reason: msg.ReasonOf(err)}
	}
	return codes[r.Reason], r
}

// codes gives the reason code of MQTT 5 for each reason of a refusal.
var codes = map[msg.Reason]packet.Code{
	msg.Denied:        packet.NotAuthorized,
	msg.NoRoute:       packet.NoMatchingSubscribers,
	msg.Full:          packet.QuotaExceeded,
	msg.BadPayload:    packet.PayloadFormatInvalid,
	msg.TooLarge:      packet.PacketTooLarge,
	msg.Unavailable:   packet.UnspecifiedError,
	msg.Unconfirmed:   packet.UnspecifiedError,
	msg.Unprocessable: packet.ImplementationError,
}

// advance moves e on, and with it what has waited behind it.
func (e *inbound) advance(to stage) {
	f := &e.c.in
	f.mu.Lock()
	defer f.mu.Unlock()
	e.stage = to
	for u := f.unrouted; u != nil && u.stage != atUplink; u = f.unrouted {
		f.unrouted = u.next
		u.route()
	}
	f.settle()
}

// settle acknowledges what is settled, in order.
func (f *inflow) settle() { // f.mu held
	for f.head != nil && f.head.stage == settled {
		h := f.head
		if f.head = h.next; f.head == nil {
			f.tail = nil
		}
		f.leave()
		h.acknowledge()
	}
}

// route gives what the uplink has taken to those who hear it, and waits for the store where something has to be kept there.
func (e *inbound) route() { // inflow.mu held
	s := e.c.session
	e.stage = settled
	if e.code >= packet.UnspecifiedError {
		return
	}
	var stores []*store
	if in := e.exactlyIn(); in != nil {
		// What others hear and that this publish has been taken are one change: after a crash the client's copy of it
		// is either new or known to all.
		in.whole.RLock()
		defer in.whole.RUnlock()
		in.put(s.receivedKey(e.id), []byte{1})
		stores = addStore(stores, in)
	}
	if e.message != nil {
		heard, of := s.broker.route(e.message, s)
		for _, in := range of {
			stores = addStore(stores, in)
		}
		if heard > 0 {
			e.code = packet.Success
		} else if !e.uplink {
			e.code = packet.NoMatchingSubscribers
		}
	}
	if e.stores = len(stores); e.stores > 0 {
		e.stage = atStore
		for _, in := range stores {
			in.sync(e.kept)
		}
	}
}

// exactlyIn gives the store that has to remember a QoS 2 publish, if one has to.
func (e *inbound) exactlyIn() *store {
	s := e.c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.exactly == nil || !s.durable() || s.gone {
		return nil
	}
	return s.home.store
}

// kept is what the store calls.
func (e *inbound) kept(err error) {
	f := &e.c.in
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		e.code, e.refusal = outcome(err)
	}
	if e.stores--; e.stores == 0 {
		e.stage = settled
		f.settle()
	}
}

func addStore(list []*store, s *store) []*store {
	if s == nil || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// acknowledge answers the client: PUBACK or PUBREC, or, to a client of 3.1.1 that cannot be told no, the end of the connection.
func (e *inbound) acknowledge() { // inflow.mu held
	c := e.c
	ok := e.code < packet.UnspecifiedError
	if ok {
		c.l.count.publishesTaken.Add(1)
	} else {
		c.l.count.publishesRefused.Add(1)
	}
	t := packet.Puback
	if e.qos == 2 {
		t = packet.Pubrec
		c.session.decided(e, ok)
	} else if c.in.closed {
		return
	}
	if !ok && c.version != packet.V5 {
		c.refuse(e.refusal)
		return
	}
	if !ok || e.qos == 1 {
		c.in.quota--
	}
	c.out.ack(c.version, t, e.id, e.code, c.reason(e.refusal))
}

// decided ends a QoS 2 publish that waited: a copy that has come on a later connection is answered there.
func (s *session) decided(e *inbound, ok bool) {
	s.mu.Lock()
	x := e.exactly
	x.decided, x.taken, x.code, x.refusal = true, ok, e.code, e.refusal
	if s.received[e.id] == x && !ok {
		delete(s.received, e.id)
		if s.durable() && !s.gone {
			s.home.store.put(s.receivedKey(e.id), nil)
		}
	}
	copied := x.pending
	x.pending = nil
	s.mu.Unlock()
	if copied != nil {
		copied.code, copied.refusal = e.code, e.refusal
		copied.advance(settled) // inflow locks are taken from the older connection to the newer
	}
}

// refuse ends a connection of 3.1.1 without the acknowledgement that would be untrue. The pause keeps a client that comes
// back at once, with the same message, from doing so in a tight loop.
func (c *conn) refuse(r *msg.Refusal) {
	pause := time.Second
	if r != nil && r.RetryAfter > pause {
		pause = min(r.RetryAfter, 10*time.Second)
	}
	c.stopReading(&ending{code: packet.QuotaExceeded, pause: pause, why: r})
}
