package coap

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
)

// errSilent says that a device has not acknowledged a command within MAX_TRANSMIT_WAIT. It may have been carried out.
var errSilent = errors.New("device does not answer")

// wakeful is how long a sleepy device is taken to listen after it has spoken. Later the mailbox keeps its commands until it speaks again.
const wakeful = 10 * time.Second

// maxCommands is how many commands may wait for one device.
const maxCommands = 16

// talk is what goes from the gateway to a device. At most one confirmable message is under way at a time (NSTART, RFC 7252 section 4.7).
type talk struct {
	commands []*command // the first may be under way
	observed []*observation
	watches  []*watch
	tokens   uint64
}

// command is a command that waits for the device.
type command struct {
	m      msg.Message
	token  []byte
	sent   *transmission // nil until it is under way
	seen   *observation  // it goes as a notification
	watch  *watch        // it asks for an observation, or for the rest of a notification
	cancel bool          // it ends the observation
	ended  bool
	result chan outcome // nil: nobody waits

	block   block  // of the payload, the one to send
	given   int    // octets of the payload, with that one
	fetched int    // octets of the answer
	fetch   block  // of the answer, the last one
	answer  []byte // what has come of it
	etag    []byte // of the answer
}

type outcome struct {
	reply msg.Reply
	err   error
}

func (c *command) end(reply msg.Reply, err error) {
	if !c.ended && c.result != nil {
		c.ended = true
		c.result <- outcome{reply, err}
	}
}

func (s *session) speak() *talk {
	if s.talk == nil {
		s.talk = &talk{tokens: rand.Uint64()}
	}
	return s.talk
}

// underWay gives the command that has been sent, nil where there is none.
func (k *talk) underWay() *command {
	if k == nil || len(k.commands) == 0 || k.commands[0].sent == nil {
		return nil
	}
	return k.commands[0]
}

// handOver takes the commands that have not been answered, to be sent anew on another association, which makes observations of its own.
func (k *talk) handOver(l *listener) (list []*command) {
	for _, c := range k.commands {
		if c.sent != nil {
			l.untrack(c.sent)
		}
		if c.watch != nil {
			c.watch.asking = false
			continue
		}
		c.sent, c.seen = nil, nil
		c.block, c.fetched, c.answer = block{szx: maxBlockSZX}, 0, nil
		list = append(list, c)
	}
	k.commands = nil
	return list
}

// Deliver implements southbound.Listener.
func (l *listener) Deliver(ctx context.Context, m msg.Message) (msg.Reply, error) {
	if _, ok := methodCode(m.Method); !ok {
		return msg.Reply{Status: msg.Refused, Code: "method"}, nil
	}
	c := &command{m: m, result: make(chan outcome, 1), block: block{szx: maxBlockSZX}}
	t := l.begin(time.Now())
	list := l.byDevice[m.Device] // empty when it does not serve
	if len(list) == 0 {
		l.end(t)
		return msg.Reply{}, southbound.ErrNotHere
	}
	s := list[len(list)-1]
	if s.id.Sleepy && t.now.Sub(s.seen) > wakeful {
		l.end(t)
		return msg.Reply{}, southbound.ErrNotHere
	}
	k := s.speak()
	if len(k.commands) >= maxCommands+len(k.watches) {
		l.end(t)
		return msg.Reply{}, msg.Refuse(msg.Full, "%d commands wait for the device", maxCommands)
	}
	// What the gateway asks for itself waits.
	if i := slices.IndexFunc(k.commands, func(o *command) bool { return o.watch != nil && o.sent == nil }); i >= 0 {
		k.commands = slices.Insert(k.commands, i, c)
	} else {
		k.commands = append(k.commands, c)
	}
	t.next(s)
	l.end(t)
	select {
	case o := <-c.result:
		return o.reply, o.err
	case <-ctx.Done():
	}
	t = l.begin(time.Now())
	defer l.end(t)
	select {
	case o := <-c.result:
		return o.reply, o.err
	default:
	}
	t.withdraw(c)
	return msg.Reply{}, context.Cause(ctx)
}

// withdraw takes back a command that nobody waits for any more, so that those behind it can go.
func (t *turn) withdraw(c *command) {
	c.ended = true
	for _, s := range slices.Clone(t.l.byDevice[c.m.Device]) {
		t.drop(s, c)
		t.next(s)
	}
}

// abandon ends what waits for a session that is gone.
func (l *listener) abandon(s *session) {
	if s.talk == nil {
		return
	}
	for _, c := range s.talk.commands {
		if c.sent == nil {
			c.end(msg.Reply{}, southbound.ErrNotHere)
			continue
		}
		l.untrack(c.sent)
		c.end(msg.Reply{}, errSilent)
	}
	s.talk = nil
}

// next sends the first command that waits, unless one is under way.
func (t *turn) next(s *session) {
	for k := s.talk; k != nil && len(k.commands) > 0 && k.commands[0].sent == nil; {
		c := k.commands[0]
		m := message.Message{Type: message.Confirmable, MessageID: int32(s.nextMID())}
		// A notification is one message; what is longer goes as a request, in blocks.
		if c.seen = k.observation(c.m.Resource); c.seen != nil && c.watch == nil && s.holds(len(c.m.Payload)) {
			m.Code, m.Token = codes.Content, c.seen.token
			m.Options = append(m.Options, uintOption(message.Observe, c.seen.next()))
		} else {
			c.seen = nil
			m.Code, _ = methodCode(c.m.Method)
			if c.registers() && !s.doubted {
				c.token, m.Options = c.watch.token, c.watch.options(c.cancel)
			} else {
				k.tokens++
				c.token = binary.BigEndian.AppendUint64(nil, k.tokens)[4:]
			}
			m.Token = c.token
			m.Options = pathOptions(m.Options, c.m.Resource)
		}
		c.prepare(s, &m)
		data := t.sendMessage(s, &m)
		if data == nil {
			k.commands = k.commands[1:]
			c.end(msg.Reply{Status: msg.Refused, Code: "unprocessable"}, nil)
			continue
		}
		t.l.count.commands.Add(1)
		if c.seen != nil && s.stream != nil { // nothing more will be heard of it
			k.commands = k.commands[1:]
			c.end(msg.Reply{Status: msg.Done}, nil)
			continue
		}
		c.sent = &transmission{s: s, mid: uint16(m.MessageID), data: bytes.Clone(data), cmd: c}
		t.track(c.sent)
	}
}

// registers tells whether the request is the one that makes or ends an observation, not one for the rest of a representation.
func (c *command) registers() bool { return c.watch != nil && c.fetched == 0 }

// drop takes a command from the session.
func (t *turn) drop(s *session, c *command) {
	if s.talk != nil {
		s.talk.commands = slices.DeleteFunc(s.talk.commands, func(o *command) bool { return o == c })
	}
	if c.sent != nil {
		t.l.untrack(c.sent)
	}
}

// finish ends the command under way and sends the next one.
func (t *turn) finish(s *session, c *command, reply msg.Reply, err error) {
	t.drop(s, c)
	if c.watch != nil && s.talk != nil {
		t.watched(s, c, nil, err != nil)
	}
	c.end(reply, err)
	t.next(s)
}

// acknowledged takes an empty ACK.
func (t *turn) acknowledged(s *session, p *packet) {
	x := t.l.transmission(s, p.mid)
	if x == nil {
		return
	}
	s.credit = unlimited // it has heard what was sent to its address
	switch c := x.cmd; {
	case c == nil:
		t.l.untrack(x)
	case c.seen != nil:
		t.finish(s, c, msg.Reply{Status: msg.Done}, nil)
	default: // the answer comes on its own
		x.acked = true
		x.due = t.now.Add(exchangeLifetime * time.Second)
		t.l.timers.fix(x)
	}
}

// wasReset takes a RST: the device does not know what the message was about.
func (t *turn) wasReset(s *session, mid uint16) {
	x := t.l.transmission(s, mid)
	if x == nil {
		if s.talk != nil {
			for _, o := range s.talk.observed {
				if o.mid == mid { // a notification that was not confirmable
					t.forgetObservation(s, o)
					return
				}
			}
		}
		return
	}
	t.l.untrack(x)
	switch c := x.cmd; {
	case x.seen != nil:
		t.forgetObservation(s, x.seen)
	case c == nil:
	case c.seen != nil: // it has forgotten its observation: the command goes as a request
		s.talk.forget(c.seen.token)
		t.l.keep(s)
		c.sent, c.seen = nil, nil
		t.next(s)
	default:
		t.finish(s, c, msg.Reply{Status: msg.Refused, Code: "reset"}, nil)
	}
}

// response takes the answer to a command.
func (t *turn) response(s *session, p *packet) {
	c := s.talk.underWay()
	known := c != nil && c.seen == nil && bytes.Equal(c.token, p.token)
	switch {
	case !known:
	case p.typ == message.Acknowledgement:
		known = p.mid == c.sent.mid
	case c.registers() && !s.doubted: // before an ACK it is a notification with the same token
		known = c.sent.acked
	}
	if !known && t.notification(s, p) {
		return
	}
	if p.typ == message.Confirmable {
		if !known {
			t.reset(s, p.mid)
			return
		}
		t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
	}
	if !known {
		if _, ok := p.option(message.Observe); ok && p.typ == message.NonConfirmable && s.stream == nil {
			t.reset(s, p.mid) // an observation that is not wanted any more (RFC 7641 section 3.6)
		}
		return
	}
	s.credit = unlimited
	doubted := s.doubted
	s.doubted, s.challenge, s.tries = false, nil, 0 // the token was made after a power cut: so was the answer
	if p.vet() != 0 {                               // RFC 7252 section 5.4.1: a response with a critical option that is not known is rejected
		t.finish(s, c, msg.Reply{Status: msg.Refused, Code: "bad-option"}, nil)
		return
	}
	if c.registers() && !c.cancel && p.code>>5 == 2 {
		c.watch.note(p, t.now)
		if doubted { // it was only read
			c.watch.due = t.now
		}
	}
	again, bad := c.proceed(p, int(t.l.cfg.MaxPayload))
	if again {
		t.l.untrack(c.sent)
		c.sent = nil
		t.next(s)
		return
	}
	if bad {
		t.finish(s, c, msg.Reply{Status: msg.Refused, Code: "bad-block"}, nil)
		return
	}
	if c.watch != nil {
		t.watched(s, c, p, false)
		t.drop(s, c)
		t.next(s)
		return
	}
	reply := msg.Reply{Status: msg.Refused, Code: codeText(p.code), Payload: c.answer}
	if p.code>>5 == 2 {
		reply.Status = msg.Done
	}
	if n, ok := p.number(message.ContentFormat); ok && len(c.answer) > 0 {
		reply.Type = mediaType(n)
	}
	t.finish(s, c, reply, nil)
}

// transmission is a confirmable message that is repeated until it is acknowledged (RFC 7252 section 4.2).
type transmission struct {
	s     *session
	mid   uint16
	data  []byte
	tries int
	wait  time.Duration
	due   time.Time
	acked bool
	cmd   *command     // nil for an answer of its own, and where seen is not
	seen  *observation // it is a notification of a last value
	index int          // in the heap; -1 when it is not there
}

// transmissions is a heap by due.
type transmissions []*transmission

func (h transmissions) Len() int           { return len(h) }
func (h transmissions) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h transmissions) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *transmissions) Push(x any) {
	x.(*transmission).index = len(*h)
	*h = append(*h, x.(*transmission))
}
func (h *transmissions) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	x.index = -1
	return x
}

func (h *transmissions) fix(x *transmission) { heap.Fix(h, x.index) }

// track begins to repeat x, which has just been sent.
func (t *turn) track(x *transmission) {
	timeout := time.Duration(t.l.cfg.AckTimeout)
	x.wait = timeout + rand.N(timeout/2+1) // ACK_RANDOM_FACTOR 1.5
	x.due = t.now.Add(x.wait)
	if x.s.stream != nil { // what is reliable is not repeated, but waited for
		x.acked, x.due = true, t.now.Add(exchangeLifetime*time.Second)
	}
	heap.Push(&t.l.timers, x)
}

func (l *listener) untrack(x *transmission) {
	if x.index >= 0 && x.index < len(l.timers) && l.timers[x.index] == x {
		heap.Remove(&l.timers, x.index)
	}
}

// transmission finds what the session was sent under a message id.
func (l *listener) transmission(s *session, mid uint16) *transmission {
	if c := s.talk.underWay(); c != nil && c.sent.mid == mid && !c.sent.acked {
		return c.sent
	}
	for _, x := range l.timers {
		if x.s == s && x.mid == mid && x.cmd == nil {
			return x
		}
	}
	return nil
}

// retransmit repeats what is due, with exponential back-off, and gives up in the end.
func (l *listener) retransmit(t *turn) {
	for len(l.timers) > 0 && !l.timers[0].due.After(t.now) {
		x := l.timers[0]
		if x.s.dead {
			l.untrack(x)
			continue
		}
		if x.acked || x.tries >= l.cfg.MaxRetransmit {
			l.untrack(x)
			if x.seen != nil {
				t.forgetObservation(x.s, x.seen)
			}
			if c := x.cmd; c != nil {
				if c.seen != nil && x.s.talk != nil {
					x.s.talk.forget(c.seen.token) // RFC 7641 section 4.5
					l.keep(x.s)
				}
				t.finish(x.s, c, msg.Reply{}, errSilent)
			}
			continue
		}
		x.tries++
		x.wait *= 2
		x.due = t.now.Add(x.wait)
		l.timers.fix(x)
		l.count.retransmissions.Add(1)
		t.send(x.s, x.data)
	}
}
