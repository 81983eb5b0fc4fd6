package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
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

	mu      sync.Mutex
	room    *sync.Cond // with mu: window, output buffer or the end has changed
	out     bytes.Buffer
	unwired []confirm // QoS 0: done once they are written
	slots   []slot    // by packet id; 0 is not used
	free    []uint16  // packet ids, the longest unused first
	aliases aliases   // of topics
	swept   bool      // QoS 2: the broker holds nothing of an earlier session under our packet ids
	acked   time.Time // when the platform last confirmed something, or the first of what is in flight was sent
	passed  time.Time // when the latest of what was confirmed had been put in line
	sent    time.Time // last write
	heard   time.Time // last packet read
	pinged  time.Time // zero: no PINGREQ is unanswered
	busy    bool      // the writer writes
	closing bool
	leaving error // why it is closing
	end     error // why the session ends; nil while it is up
}

// confirm is whom to tell about one publication.
type confirm struct {
	done func(int, error)
	i    int
}

// slot is what a packet id is used for; done and answer nil: nothing.
type slot struct {
	confirm
	answer   chan packets.Packet // of SUBSCRIBE and UNSUBSCRIBE
	released bool                // QoS 2: PUBREL is out
	since    time.Time           // when it was put in line
}

// Context ends when the session does; its cause says why.
func (s *Session) Context() context.Context { return s.ctx }

// Server tells what the broker said of itself.
func (s *Session) Server() Server { return s.server }

// Send is as northbound.Session says. It also returns when ctx ends.
func (s *Session) Send(ctx context.Context, batch []msg.Publication, done func(i int, err error)) error {
	defer context.AfterFunc(ctx, s.wake)()
	for i := range batch {
		p, refused := s.outgoing(&batch[i])
		if refused == nil {
			var over error
			if refused, over = s.post(ctx, p, slot{confirm: confirm{done, i}}); over != nil {
				return over
			}
		}
		if refused != nil {
			done(i, refused)
		}
	}
	return nil
}

func (s *Session) wake() {
	s.mu.Lock()
	s.room.Broadcast()
	s.mu.Unlock()
}

// post puts p in line once there is room for it. refused says that this publication cannot be sent, over that the session or ctx has ended.
func (s *Session) post(ctx context.Context, p *packets.Publish, to slot) (refused, over error) {
	s.mu.Lock()
	for s.end == nil && !s.closing && ctx.Err() == nil && (s.out.Len() >= outMax || p.QoS > 0 && len(s.free) == 0) {
		s.room.Wait()
	}
	switch {
	case s.end != nil || s.closing:
		s.mu.Unlock()
		<-s.ctx.Done()
		return nil, context.Cause(s.ctx)
	case ctx.Err() != nil:
		s.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	defer s.mu.Unlock()
	if p.QoS > 0 {
		p.PacketID = s.free[0]
	}
	if p.QoS == 2 {
		if err := s.sweep(); err != nil {
			return msg.Permanent(err), nil
		}
	}
	before := s.out.Len()
	sent := s.aliases.shorten(p)
	if err := s.codec.encode(&s.out, p); err != nil {
		s.out.Truncate(before)
		return msg.Permanent(err), nil
	}
	if n := s.out.Len() - before; n > s.server.MaxPacket {
		s.out.Truncate(before)
		return msg.Permanent(fmt.Errorf("a packet of %d octets: the broker takes %d at most", n, s.server.MaxPacket)), nil
	}
	sent()
	if p.QoS == 0 {
		s.unwired = append(s.unwired, to.confirm)
	} else {
		to.since = time.Now()
		if len(s.free) == len(s.slots)-1 {
			s.acked = to.since
		}
		s.free = s.free[1:]
		s.slots[p.PacketID] = to
	}
	s.flush()
	return nil, nil
}

// sweep releases what an earlier session may have left at the broker under our packet ids: a QoS 2 publication under such an id would
// count as a repetition, and be lost (MQTT 5 section 4.3.3). The answers find no publication to confirm. mu is held.
func (s *Session) sweep() error {
	if s.swept || !s.server.SessionPresent {
		return nil
	}
	s.swept = true
	for id := 1; id <= s.opts.Window; id++ {
		if err := s.codec.encode(&s.out, &packets.Pubrel{PacketID: uint16(id)}); err != nil {
			return err
		}
	}
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
	if s.leaving != nil {
		s.end = s.leaving // the broker closes when it hears DISCONNECT
	}
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
	s.End(ErrClosed)
	<-s.gone
	return nil
}

// End is Close for another cause, and does not wait for the session's goroutines.
func (s *Session) End(cause error) {
	s.mu.Lock()
	first := !s.closing && s.end == nil
	s.closing = true
	if first {
		s.leaving = cause
	}
	s.room.Broadcast()
	s.mu.Unlock()
	if first {
		s.await(farewell, func() bool { return len(s.free) == len(s.slots)-1 })
		s.write(&packets.Disconnect{})
		s.await(farewell, func() bool { return s.out.Len() == 0 && !s.busy })
		s.failNow(cause)
	}
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
