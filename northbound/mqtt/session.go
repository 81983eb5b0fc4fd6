package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// ErrClosed is the cause of a session that was closed by its owner.
var ErrClosed = errors.New("session closed")

const (
	outMax     = 256 << 10        // octets that may wait for the network before Send blocks
	ackTimeout = time.Minute      // longest silence about what is in flight
	farewell   = time.Second      // how long Close waits for confirmations, and then for the last octets
	leastWrite = 10 * time.Second // shortest time after which a write that does not move ends the session
)

// Session is one MQTT connection that is logged in. It implements northbound.Session.
//
// Publications go out in the order in which Send got them, as many at once as the window allows, in as few writes as the network takes.
// After Context has ended nothing is done any more: what was not done by then belongs to the next session.
type Session struct {
	opts   Options
	server Server
	conn   net.Conn
	r      *bufio.Reader
	codec  codec
	inbox  inbox

	work   context.Context // ends first: what deliveries see
	stop   context.CancelFunc
	ctx    context.Context // ends when reader and writer have
	cancel context.CancelCauseFunc
	gone   chan struct{} // closed when every goroutine of the session has ended
	kick   chan struct{} // wakes the writer
	auths  chan *packets.Auth

	mu       sync.Mutex
	room     *sync.Cond // with mu: window, output buffer or the end has changed
	out      bytes.Buffer
	unwired  []confirm // QoS 0: done once they are written
	slots    []slot    // by packet id; 0 is not used
	free     []uint16  // packet ids, the longest unused first
	acked    time.Time // when the platform last confirmed something, or the first of what is in flight was sent
	sent     time.Time // last write
	heard    time.Time // last packet read
	pinged   time.Time // zero: no PINGREQ is unanswered
	busy     bool      // the writer writes
	closing  bool
	end      error // why the session ends; nil while it is up
	counters Counts
}

// Counts is what a session has moved.
type Counts struct{ OctetsOut, OctetsIn int64 }

// confirm is whom to tell about one publication.
type confirm struct {
	done func(int, error)
	i    int
}

// slot is what a packet id is used for; all nil: nothing.
type slot struct {
	confirm
	answer   chan packets.Packet // of SUBSCRIBE and UNSUBSCRIBE
	released bool                // QoS 2: PUBREL is out
}

// Context ends when the session does; its cause says why.
func (s *Session) Context() context.Context { return s.ctx }

// Server tells what the broker said of itself.
func (s *Session) Server() Server { return s.server }

// Send is as northbound.Session says. It also returns when ctx ends.
func (s *Session) Send(ctx context.Context, batch []msg.Publication, done func(i int, err error)) error {
	defer context.AfterFunc(ctx, s.wake)()
	for i := range batch {
		p, err := s.outgoing(&batch[i])
		if err == nil {
			err = s.post(ctx, p, slot{confirm: confirm{done, i}})
		}
		switch {
		case err == nil:
		case msg.IsPermanent(err):
			done(i, err)
		default:
			return err
		}
	}
	return nil
}

func (s *Session) wake() {
	s.mu.Lock()
	s.room.Broadcast()
	s.mu.Unlock()
}

// post puts p in line once there is room for it. An error that is not permanent says that the session or ctx has ended.
func (s *Session) post(ctx context.Context, p *packets.Publish, to slot) error {
	s.mu.Lock()
	for s.end == nil && !s.closing && ctx.Err() == nil && (s.out.Len() >= outMax || p.QoS > 0 && len(s.free) == 0) {
		s.room.Wait()
	}
	switch {
	case s.end != nil || s.closing:
		s.mu.Unlock()
		<-s.ctx.Done()
		return context.Cause(s.ctx)
	case ctx.Err() != nil:
		s.mu.Unlock()
		return context.Cause(ctx)
	}
	defer s.mu.Unlock()
	if p.QoS > 0 {
		p.PacketID = s.free[0]
	}
	before := s.out.Len()
	if err := s.codec.encode(&s.out, p); err != nil {
		s.out.Truncate(before)
		return msg.Permanent(err)
	}
	if n := s.out.Len() - before; n > s.server.MaxPacket {
		s.out.Truncate(before)
		return msg.Permanent(fmt.Errorf("a packet of %d octets: the broker takes %d at most", n, s.server.MaxPacket))
	}
	if p.QoS == 0 {
		s.unwired = append(s.unwired, to.confirm)
	} else {
		if len(s.free) == len(s.slots)-1 {
			s.acked = time.Now()
		}
		s.free = s.free[1:]
		s.slots[p.PacketID] = to
	}
	s.flush()
	return nil
}

// flush wakes the writer; mu is held.
func (s *Session) flush() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// write puts a packet that needs no window in line.
func (s *Session) write(p packets.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.codec.encode(&s.out, p); err != nil {
		s.fail(err)
		return
	}
	s.flush()
}

// fail ends the session for err unless it is ending already; mu is held.
func (s *Session) fail(err error) {
	if s.end != nil {
		return
	}
	s.end = err
	s.room.Broadcast()
	s.stop() // keep closes the connection, which may take time
}

func (s *Session) failNow(err error) {
	s.mu.Lock()
	s.fail(err)
	s.mu.Unlock()
}

// start sets the goroutines of a session going that is logged in.
func (s *Session) start() {
	var wires, all sync.WaitGroup
	now := time.Now()
	s.acked, s.sent, s.heard = now, now, now
	wires.Go(func() { s.failNow(s.read()) })
	wires.Go(func() { s.failNow(s.pour()) })
	wires.Go(func() { s.keep() })
	all.Go(func() {
		wires.Wait()
		s.cancel(s.end)
	})
	go func() {
		all.Wait()
		s.inbox.wait()
		close(s.gone)
	}()
}

// Close stops taking publications, waits a little for confirmations, says DISCONNECT and ends the session.
// It returns when nothing of the session is left. It must not be called by what the session itself calls.
func (s *Session) Close() error {
	s.mu.Lock()
	first := !s.closing && s.end == nil
	s.closing = true
	s.room.Broadcast()
	s.mu.Unlock()
	if first {
		s.await(farewell, func() bool { return len(s.free) == len(s.slots)-1 })
		s.write(&packets.Disconnect{})
		s.await(farewell, func() bool { return s.out.Len() == 0 && !s.busy })
		s.failNow(ErrClosed)
	}
	<-s.gone
	return nil
}

// await waits until what holds, the session's end, or d has passed. what is called with mu held.
func (s *Session) await(d time.Duration, what func() bool) {
	late := false
	defer time.AfterFunc(d, func() {
		s.mu.Lock()
		late = true
		s.room.Broadcast()
		s.mu.Unlock()
	}).Stop()
	s.mu.Lock()
	for s.end == nil && !late && !what() {
		s.room.Wait()
	}
	s.mu.Unlock()
}

// pour writes what waits in out, all of it at once.
func (s *Session) pour() error {
	var buf bytes.Buffer
	var unwired []confirm
	for {
		select {
		case <-s.kick:
		case <-s.work.Done():
			return nil
		}
		for {
			s.mu.Lock()
			if s.out.Len() == 0 || s.end != nil {
				s.mu.Unlock()
				break
			}
			s.out, buf = buf, s.out
			s.unwired, unwired = unwired[:0], s.unwired
			s.busy = true
			s.mu.Unlock()

			s.conn.SetWriteDeadline(time.Now().Add(max(leastWrite, s.server.KeepAlive)))
			n, err := s.conn.Write(buf.Bytes())
			s.opts.Sent.Add(int64(n))
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
			for _, c := range unwired {
				c.done(c.i, nil)
			}
			if buf.Cap() > 2*outMax {
				buf = bytes.Buffer{}
			}
			buf.Reset()
			clear(unwired)
			s.mu.Lock()
			s.busy = false
			s.sent = time.Now()
			s.room.Broadcast()
			s.mu.Unlock()
		}
	}
}

// keep sees that the connection lives: it pings when nothing was sent or heard for half the keep alive, and ends the session
// when nobody answers, or when publications stay unconfirmed. At the end it closes the connection.
func (s *Session) keep() {
	defer s.conn.Close()
	alive := s.server.KeepAlive
	tick := time.NewTicker(max(alive/8, time.Millisecond))
	defer tick.Stop()
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-s.work.Done():
			return
		}
		s.mu.Lock()
		idle := max(now.Sub(s.sent), now.Sub(s.heard))
		switch {
		case len(s.free) < len(s.slots)-1 && now.Sub(s.acked) > s.opts.AckTimeout:
			s.fail(fmt.Errorf("the broker has confirmed nothing for %s", s.opts.AckTimeout))
		case !s.pinged.IsZero() && now.Sub(s.pinged) > alive/2 && now.Sub(s.heard) > alive/2:
			s.fail(fmt.Errorf("the broker has not answered a ping for %s", now.Sub(s.pinged).Round(time.Millisecond)))
		case s.pinged.IsZero() && idle >= alive/2:
			s.pinged = now
			if err := s.codec.encode(&s.out, &packets.Pingreq{}); err != nil {
				s.fail(err)
			}
			s.flush()
		}
		s.mu.Unlock()
	}
}

// settled is a publication whose confirmation waits to be passed on.
type settled struct {
	confirm
	err error
}

// read takes packets until the connection ends.
func (s *Session) read() error {
	scratch := make([]byte, 64)
	var batch []settled
	pass := func() {
		for _, c := range batch {
			c.done(c.i, c.err)
		}
		batch = batch[:0]
	}
	defer pass()
	for {
		first, body, err := readFrame(s.r, s.opts.MaxPacket, scratch)
		if err != nil {
			return lost(err)
		}
		s.opts.Read.Add(int64(len(body) + 2))
		p, err := s.codec.decode(first, body)
		if err != nil {
			return err
		}
		pub, isPublish := p.(*packets.Publish)
		s.mu.Lock()
		s.heard = time.Now()
		if !isPublish {
			batch, err = s.take(p, batch)
		}
		s.mu.Unlock()
		if isPublish {
			err = s.inbox.put(s, pub)
		}
		if err != nil {
			return err
		}
		// Confirmations that have arrived together are passed on together.
		if s.r.Buffered() == 0 || len(batch) >= 256 {
			pass()
		}
	}
}

// take acts on one packet that is no PUBLISH; mu is held. Publications that it settles are added to batch.
func (s *Session) take(p packets.Packet, batch []settled) ([]settled, error) {
	switch p := p.(type) {
	case *packets.Puback:
		if sl, ok := s.release(p.PacketID); ok && sl.done != nil {
			batch = append(batch, settled{sl.confirm, refusal(p.ReasonCode, p.Properties)})
		}
	case *packets.Pubrec:
		if int(p.PacketID) >= len(s.slots) || s.slots[p.PacketID].done == nil {
			break
		}
		if err := refusal(p.ReasonCode, p.Properties); err != nil {
			sl, _ := s.release(p.PacketID)
			batch = append(batch, settled{sl.confirm, err})
			break
		}
		s.slots[p.PacketID].released = true
		s.acked = time.Now()
		return batch, s.answer(&packets.Pubrel{PacketID: p.PacketID})
	case *packets.Pubcomp:
		if int(p.PacketID) < len(s.slots) && s.slots[p.PacketID].released {
			sl, _ := s.release(p.PacketID)
			batch = append(batch, settled{sl.confirm, nil})
		}
	case *packets.Pubrel:
		return batch, s.answer(&packets.Pubcomp{PacketID: p.PacketID})
	case *packets.Suback:
		p.Reasons = slices.Clone(p.Reasons) // the library leaves them in the reader's buffer
		s.reply(p.PacketID, p)
	case *packets.Unsuback:
		p.Reasons = slices.Clone(p.Reasons)
		s.reply(p.PacketID, p)
	case *packets.Pingresp:
		s.pinged = time.Time{}
	case *packets.Auth:
		select {
		case s.auths <- p:
		default:
			return batch, errors.New("protocol error: the broker sent an AUTH that nobody asked for")
		}
	case *packets.Disconnect:
		return batch, &Ended{Code: p.ReasonCode, Why: whyOf(p.Properties)}
	default:
		return batch, fmt.Errorf("protocol error: the broker sent %T", p)
	}
	return batch, nil
}

// answer puts a packet in line; mu is held.
func (s *Session) answer(p packets.Packet) error {
	if err := s.codec.encode(&s.out, p); err != nil {
		return err
	}
	s.flush()
	return nil
}

// release frees a packet id; mu is held. It tells whether the id was in use.
func (s *Session) release(id uint16) (slot, bool) {
	if int(id) >= len(s.slots) {
		return slot{}, false
	}
	sl := s.slots[id]
	if sl.done == nil && sl.answer == nil {
		return slot{}, false
	}
	s.slots[id] = slot{}
	s.free = append(s.free, id)
	s.acked = time.Now()
	s.room.Broadcast()
	return sl, true
}

func (s *Session) reply(id uint16, p packets.Packet) {
	if int(id) < len(s.slots) && s.slots[id].answer != nil {
		sl, _ := s.release(id)
		sl.answer <- p
	}
}

// ask sends a packet that is answered under its packet id, and waits for the answer.
func (s *Session) ask(ctx context.Context, build func(id uint16) packets.Packet) (packets.Packet, error) {
	answer := make(chan packets.Packet, 1)
	defer context.AfterFunc(ctx, s.wake)()
	s.mu.Lock()
	for s.end == nil && !s.closing && ctx.Err() == nil && len(s.free) == 0 {
		s.room.Wait()
	}
	if s.end == nil && !s.closing && ctx.Err() == nil {
		id := s.free[0]
		if len(s.free) == len(s.slots)-1 {
			s.acked = time.Now()
		}
		s.free = s.free[1:]
		s.slots[id] = slot{answer: answer}
		if err := s.answer(build(id)); err != nil {
			s.fail(err)
		}
	}
	s.mu.Unlock()
	select {
	case p := <-answer:
		return p, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// Publish sends one publication and waits until the broker has confirmed it.
func (s *Session) Publish(ctx context.Context, p msg.Publication) error {
	confirmed := make(chan error, 1)
	if err := s.Send(ctx, []msg.Publication{p}, func(_ int, err error) { confirmed <- err }); err != nil {
		return err
	}
	select {
	case err := <-confirmed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}
