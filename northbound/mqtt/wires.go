package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

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
		case s.lost():
			s.fail(fmt.Errorf("the broker has confirmed publications, but not what was sent %s before them", s.opts.AckTimeout))
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

// lost tells whether a publication waits for its confirmation although one that was sent long after it has been confirmed: on a slow line both
// would wait. mu is held.
func (s *Session) lost() bool {
	return slices.ContainsFunc(s.slots, func(sl slot) bool { return sl.done != nil && s.passed.Sub(sl.since) > s.opts.AckTimeout })
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
	if sl.since.After(s.passed) {
		s.passed = sl.since
	}
	s.room.Broadcast()
	return sl, true
}

func (s *Session) reply(id uint16, p packets.Packet) {
	if int(id) < len(s.slots) && s.slots[id].answer != nil {
		sl, _ := s.release(id)
		sl.answer <- p
	}
}
