package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// conn is one connection of a client. One goroutine reads it, and handles what it reads; see output for the other.
type conn struct {
	l       *listener
	nc      net.Conn
	remote  string
	version packet.Version
	session *session
	ident   atomic.Pointer[auth.Identity] // replaced when the policy changes or the client re-authenticates

	out output
	in  inflow

	keepAlive    time.Duration // 0: none
	peerReceive  int           // how many QoS 1 and 2 publishes the client takes at once
	peerPacket   int           // how large a packet it takes
	peerAliases  int           // how many topic aliases it takes
	problemInfo  bool          // it wants reason strings
	authMethod   string        // of enhanced authentication
	aliases      map[uint16]string
	sentAliases  map[string]uint16 // guarded by session.mu
	quit         bool              // guarded by session.mu: the will is not published, as after a DISCONNECT that reports no error
	lastSeen     atomic.Int64      // Unix seconds
	end          atomic.Pointer[ending]
	stopped      chan struct{} // closed once end is set
	topic        known
	message      *msg.Message // what goes to the uplink; nil until something does
	leftQoS0     func(error)  // in.left, bound once
	deadlineSet  time.Time
	cools        bool     // a read that times out does no harm
	cooling      bool     // the deadline set is the end of being hot
	afterSilence bool     // what is read now came after a silence
	small        [64]byte // what an idle connection reads into
}

// ending says why and how a connection is ended by us.
type ending struct {
	code  packet.Code
	text  string
	pause time.Duration // 3.1.1: wait before closing
	why   *msg.Refusal
}

func (e *ending) Error() string { return e.text }

// known remembers what the policy says about the topic that was published to last.
type known struct {
	topic    string
	resource string
	rules    uint64 // generation of the policy
	publish  bool   // other devices may hear it
	report   bool   // it goes to the uplink
}

// stopReading wakes the goroutine that reads and lets it end the connection as e says.
func (c *conn) stopReading(e *ending) {
	if !c.end.CompareAndSwap(nil, e) {
		return
	}
	close(c.stopped)
	if _, ok := c.nc.(*web); ok { // its reading cannot be interrupted and its writing go on
		c.out.close(c.farewell(e))
		return
	}
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// farewell is what the client is told at the end.
func (c *conn) farewell(e *ending) []byte {
	if c.version != packet.V5 {
		return nil
	}
	return packet.AppendDisconnect(nil, e.code, c.fit(e.text))
}

// serve reads until the connection ends, and cleans up.
func (c *conn) serve(ctx context.Context, buf []byte) {
	err := c.read(buf)
	c.in.mu.Lock()
	c.in.closed = true
	c.in.mu.Unlock()
	c.finish(ctx, err)
	c.session.detach(c)
}

// finish tells the client why, as far as its protocol can, and closes.
func (c *conn) finish(ctx context.Context, err error) {
	end := c.end.Load()
	if end == nil {
		if bad, ok := errors.AsType[*packet.Error](err); ok {
			end = &ending{code: bad.Code, text: bad.Why}
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			end = &ending{code: packet.KeepAliveTimeout, text: "keep alive has run out"}
		}
	}
	if end == nil { // the client has gone
		c.out.kill()
		c.out.finish(nil)
		return
	}
	c.l.count.ended(end.code)
	if c.version != packet.V5 && end.pause > 0 {
		select {
		case <-time.After(end.pause):
		case <-ctx.Done():
		}
	}
	c.out.finish(c.farewell(end))
	linger(c.nc)
	c.out.kill()
}

// linger lets the peer read what was written last: closing with unread input would throw it away (RFC 1122 section 4.2.2.13).
func linger(nc net.Conn) {
	var half interface{ CloseWrite() error }
	switch x := nc.(type) {
	case *tls.Conn:
		half = x
	case *net.TCPConn:
		half = x
	default:
		return
	}
	if half.CloseWrite() != nil || nc.SetReadDeadline(time.Now().Add(500*time.Millisecond)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, nc, 64<<10)
}

// fit gives a reason string, or nothing where the client does not want one.
func (c *conn) fit(text string) string {
	if !c.problemInfo || len(text)+32 > c.peerPacket {
		return ""
	}
	return text
}

func (c *conn) reason(r *msg.Refusal) string {
	if r == nil {
		return ""
	}
	return c.fit(r.Why)
}

// hot is how long a connection keeps its larger buffer after it was last needed.
const hot = 2 * time.Second

// A PUBLISH may come to be read earlier than a SUBSCRIBE that another client sent before it. Therefore a client that publishes after a
// silence lets those who wait to be read go first; one that publishes without pause is not held up.
const (
	silence = 2 * time.Millisecond
	waiting = 200 * time.Microsecond
)

// letOthersBeRead is called before what c has published is given to others.
func (c *conn) letOthersBeRead() {
	if c.afterSilence {
		c.afterSilence = false
		time.Sleep(waiting)
	}
}

// read takes packets until one of them, or the connection, ends it. buf is what has been read already.
func (c *conn) read(buf []byte) error {
	big := cap(buf) > len(c.small)
	for {
		done := 0
		need := 0
		for {
			h, head, total, err := packet.Scan(buf[done:], int(c.l.cfg.MaxPacket))
			if err != nil {
				return err
			}
			if total == 0 || len(buf)-done < total {
				need = total
				break
			}
			if err := c.handle(h, buf[done+head:done+total]); err != nil {
				return err
			}
			if done += total; done == len(buf) {
				break
			}
		}
		left := copy(buf, buf[done:])
		buf = buf[:left]
		if left == 0 && !big {
			buf = c.small[:0]
		} else if left == cap(buf) || need > cap(buf) {
			buf = c.grow(buf, need)
			big = true
		}
		c.out.holdBack()
		if e := c.end.Load(); e != nil {
			return e
		}
		n, err := c.fill(buf, big)
		if e := c.end.Load(); e != nil { // what has come since counts no more
			return e
		}
		if n == 0 && err != nil {
			if !c.cooling || !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			c.cooling, c.deadlineSet = false, time.Time{}
			if len(buf) == 0 {
				c.l.chunks.put(buf)
				buf, big = c.small[:0], false
			}
			continue
		}
		buf = buf[:len(buf)+n]
		if !big && len(buf) == cap(buf) {
			buf = c.grow(buf, 0)
			big = true
		}
	}
}

// grow gives a buffer with room for more; it does not trust need further than what has been read.
func (c *conn) grow(buf []byte, need int) []byte {
	size := max(2*cap(buf), len(chunk{}))
	if need > 0 {
		size = max(min(size, need), len(buf)+1)
	}
	var b []byte
	if size <= len(chunk{}) {
		b = c.l.chunks.get()
	} else {
		b = make([]byte, 0, size)
	}
	b = append(b, buf...)
	c.l.chunks.put(buf)
	return b
}

// fill reads once. The deadline is that of the keep-alive (one and a half times, MQTT 5 section 3.1.2.10), of the credential, or, with a
// big buffer, the end of being hot.
func (c *conn) fill(buf []byte, big bool) (int, error) {
	now := time.Now()
	late := time.Second // by how much the deadline may be, to be set the less often
	if c.keepAlive > 0 {
		late = min(late, c.keepAlive/4)
	}
	if now.Sub(c.deadlineSet) > late || c.deadlineSet.IsZero() {
		var d time.Time
		if c.keepAlive > 0 {
			d = now.Add(c.keepAlive + c.keepAlive/2)
		}
		c.cooling = big && len(buf) == 0 && c.cools && (c.keepAlive == 0 || hot < c.keepAlive)
		if c.cooling {
			d = now.Add(hot)
		}
		if err := c.nc.SetReadDeadline(d); err != nil {
			return 0, err
		}
		c.deadlineSet = now
		if e := c.end.Load(); e != nil {
			return 0, e
		}
	}
	n, err := c.nc.Read(buf[len(buf):cap(buf)])
	if n > 0 {
		c.lastSeen.Store(now.Unix())
		c.afterSilence = time.Since(now) > silence
	}
	return n, err
}

// handle takes one packet.
func (c *conn) handle(h packet.Header, body []byte) error {
	c.l.count.packetsIn.Add(1)
	switch h.Type {
	case packet.Publish:
		return c.published(h, body)
	case packet.Puback, packet.Pubrec, packet.Pubrel, packet.Pubcomp:
		return c.acked(h.Type, body)
	case packet.Subscribe:
		return c.subscribe(body)
	case packet.Unsubscribe:
		return c.unsubscribe(body)
	case packet.Pingreq:
		if err := packet.DecodeEmpty(body); err != nil {
			return err
		}
		c.out.append(packet.AppendPingresp)
		return nil
	case packet.Disconnect:
		return c.disconnected(body)
	case packet.Auth:
		return c.reauthenticate(body)
	}
	return &packet.Error{Code: packet.ProtocolError, Why: "packet that a client does not send here"}
}

// acked takes what belongs to the handshakes of QoS 1 and 2.
func (c *conn) acked(t packet.Type, body []byte) error {
	p, err := packet.DecodeAck(c.version, body)
	if err != nil {
		return err
	}
	switch {
	case t == packet.Pubrel:
		c.in.completed()
		c.session.completed(c, p.ID)
	case t == packet.Pubrec && p.Code < packet.UnspecifiedError:
		c.session.released(c, p.ID)
	default:
		c.session.acknowledged(t, p)
	}
	return nil
}

// errGone ends the loop of a client that has said goodbye.
var errGone = errors.New("client has disconnected")

func (c *conn) disconnected(body []byte) error {
	p, err := packet.DecodeDisconnect(c.version, body)
	if err != nil {
		return err
	}
	if p.Props.Has.Is(packet.SessionExpiry) {
		s := c.session
		s.mu.Lock()
		was := s.expiry
		if was != 0 && s.conn == c {
			s.expiry = c.l.expiry(p.Props.SessionExpiry)
			s.save()
		}
		s.mu.Unlock()
		if was == 0 && p.Props.SessionExpiry != 0 {
			return &packet.Error{Code: packet.ProtocolError, Why: "session expiry on DISCONNECT of a session that had none"}
		}
	}
	c.session.mu.Lock()
	c.quit = p.Code == packet.Success
	c.session.mu.Unlock()
	return errGone
}

// disown takes back the will of a device that is no longer known.
func (c *conn) disown() {
	c.session.mu.Lock()
	c.quit = true
	c.session.mu.Unlock()
}

// publish writes o to the client. It tells whether the client takes a packet of that size.
func (c *conn) publish(o *outgoing, dup bool, now time.Time) bool { // session.mu held
	p := o.packet(dup, c.l.endOf(o.message), now)
	topic := o.topic
	alias, fresh := c.alias(o.topic)
	if alias != 0 {
		p.Props.TopicAlias = alias
		p.Props.Has.Add(packet.TopicAlias)
		if !fresh {
			topic = ""
		}
	}
	if packet.PublishSize(c.version, &p, topic) > c.peerPacket {
		return false
	}
	if fresh {
		if c.sentAliases == nil {
			c.sentAliases = map[string]uint16{}
		}
		c.sentAliases[topic] = alias
	}
	c.out.append(func(b []byte) []byte { return packet.AppendPublish(b, c.version, &p, topic) })
	c.l.count.publishesSent.Add(1)
	return true
}

// maxSentAliases bounds what is remembered for a client, whatever it offers.
const maxSentAliases = 16

// alias gives the topic alias of a topic, and whether the client does not know it yet; 0 where it has none.
func (c *conn) alias(topic string) (alias uint16, fresh bool) { // session.mu held
	if c.peerAliases == 0 {
		return 0, false
	}
	if a := c.sentAliases[topic]; a != 0 {
		return a, false
	}
	if len(c.sentAliases) >= min(c.peerAliases, maxSentAliases) {
		return 0, false
	}
	return uint16(len(c.sentAliases) + 1), true
}
