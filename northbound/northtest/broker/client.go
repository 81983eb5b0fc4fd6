package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	loginTime   = 10 * time.Second
	loginPacket = 64 << 10 // octets, before anybody has logged in
	largest     = 16 << 20 // octets
	outMax      = 64 << 20 // octets that wait for one client before QoS 0 is dropped
	wireTime    = 30 * time.Second
)

// client is one connection.
type client struct {
	b       *Broker
	conn    net.Conn
	r       *bufio.Reader
	session *session // nil before CONNECT; written once, with Broker.mu held
	login   Login
	limits  Limits
	window  int // what the client takes at once
	largest int // octets that the client takes
	aliases map[uint16]string
	will    *Message
	unacked []*ack // in order of arrival; guarded by mu

	mu     sync.Mutex
	out    bytes.Buffer // guarded by mu
	closed bool         // guarded by mu
	kick   chan struct{}
}

// ack is the confirmation of one publication of the client.
type ack struct {
	packet packets.Packet
	ready  bool
}

// ServeConn serves one client over conn until it leaves or ctx ends, and closes conn.
func (b *Broker) ServeConn(ctx context.Context, conn net.Conn) { b.serveConn(ctx, conn, nil) }

func (b *Broker) serveConn(ctx context.Context, conn net.Conn, r *http.Request) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &client{b: b, conn: conn, r: bufio.NewReaderSize(conn, 4<<10), kick: make(chan struct{}, 1), aliases: map[uint16]string{}}
	if c.login.Request = r; r != nil {
		c.login.TLS = r.TLS
	}
	b.mu.Lock()
	b.conns[c] = struct{}{}
	b.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(c.pour)
	err := c.serve(ctx)
	b.leave(c, err)
	c.end()
	wg.Wait()
	b.opts.Log.Debug("client gone", "client", c.login.ClientID, "remote", conn.RemoteAddr().String(), "cause", err)
}

// leave takes the client out of its session and publishes its will, unless it said goodbye.
func (b *Broker) leave(c *client, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	if s := c.session; s != nil && s.client == c {
		s.client = nil
		s.until = time.Now().Add(s.expiry)
		if s.expiry == 0 {
			delete(b.sessions, s.id)
		}
	}
	if c.will != nil && !errors.Is(err, errGoodbye) {
		b.pass(*c.will)
	}
}

var errGoodbye = errors.New("the client has said goodbye")

// refuse is an error that the client is told as a reason code.
type refuse struct {
	code byte
	why  string
}

func (r *refuse) Error() string { return fmt.Sprintf("refused with 0x%02X %s", r.code, r.why) }

func (c *client) serve(ctx context.Context) error {
	c.conn.SetReadDeadline(time.Now().Add(loginTime))
	if t, ok := c.conn.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return err
		}
		state := t.ConnectionState()
		c.login.TLS = &state
	}
	c.login.Local = c.conn.LocalAddr()
	pk, err := c.read(loginPacket)
	if err != nil {
		return err
	}
	if pk.FixedHeader.Type != packets.Connect {
		return errors.New("the first packet is no CONNECT")
	}
	if err := c.connect(pk); err != nil {
		return err
	}
	for {
		c.conn.SetReadDeadline(time.Time{})
		alive := c.login.KeepAlive
		if c.limits.ServerKeepAlive > 0 {
			alive = c.limits.ServerKeepAlive
		}
		if alive > 0 {
			c.conn.SetReadDeadline(time.Now().Add(time.Duration(alive) * 1500 * time.Millisecond))
		}
		most := largest
		if c.limits.MaximumPacketSize > 0 {
			most = int(c.limits.MaximumPacketSize)
		}
		pk, err := c.read(most)
		if err == nil {
			err = c.handle(pk)
		}
		if err == nil {
			continue
		}
		if r, ok := errors.AsType[*refuse](err); ok && c.login.Version == 5 {
			p := c.packet(packets.Disconnect)
			p.ReasonCode, p.Properties.ReasonString = r.code, r.why
			c.send(p)
		}
		return err
	}
}

// read reads and decodes one packet. The library panics on some malformed ones.
func (c *client) read(most int) (pk *packets.Packet, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &refuse{0x81, fmt.Sprint("malformed packet: ", v)}
		}
	}()
	first, err := c.r.ReadByte()
	if err != nil {
		return nil, err
	}
	pk = c.packet(0)
	if err := pk.FixedHeader.Decode(first); err != nil {
		return nil, &refuse{0x81, err.Error()}
	}
	if pk.FixedHeader.Remaining, _, err = packets.DecodeLength(c.r); err != nil {
		return nil, &refuse{0x81, err.Error()}
	}
	header := 2
	for n := pk.FixedHeader.Remaining; n > 127; n >>= 7 {
		header++
	}
	if pk.FixedHeader.Remaining+header > most {
		return nil, &refuse{0x95, "packet too large"}
	}
	body := make([]byte, pk.FixedHeader.Remaining)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	if err := decode(pk, body); err != nil {
		return nil, &refuse{0x81, err.Error()}
	}
	return pk, nil
}

func decode(pk *packets.Packet, body []byte) error {
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return pk.ConnectDecode(body)
	case packets.Publish:
		return pk.PublishDecode(body)
	case packets.Puback:
		return pk.PubackDecode(body)
	case packets.Pubrec:
		return pk.PubrecDecode(body)
	case packets.Pubrel:
		return pk.PubrelDecode(body)
	case packets.Pubcomp:
		return pk.PubcompDecode(body)
	case packets.Subscribe:
		return pk.SubscribeDecode(body)
	case packets.Unsubscribe:
		return pk.UnsubscribeDecode(body)
	case packets.Pingreq:
		return nil
	case packets.Disconnect:
		if len(body) == 0 {
			return nil
		}
		return pk.DisconnectDecode(body)
	case packets.Auth:
		return pk.AuthDecode(body)
	}
	return errors.New("a packet that no client sends")
}

func encode(pk *packets.Packet, w *bytes.Buffer) error {
	switch pk.FixedHeader.Type {
	case packets.Connack:
		return pk.ConnackEncode(w)
	case packets.Publish:
		return pk.PublishEncode(w)
	case packets.Puback:
		return pk.PubackEncode(w)
	case packets.Pubrec:
		return pk.PubrecEncode(w)
	case packets.Pubrel:
		return pk.PubrelEncode(w)
	case packets.Pubcomp:
		return pk.PubcompEncode(w)
	case packets.Suback:
		return pk.SubackEncode(w)
	case packets.Unsuback:
		return pk.UnsubackEncode(w)
	case packets.Pingresp:
		return pk.PingrespEncode(w)
	case packets.Disconnect:
		return pk.DisconnectEncode(w)
	case packets.Auth:
		return pk.AuthEncode(w)
	}
	return fmt.Errorf("packet type %d: not one that a server sends", pk.FixedHeader.Type)
}

// packet begins a packet to the client, or one from it.
func (c *client) packet(kind byte) *packets.Packet {
	p := &packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, ProtocolVersion: c.login.Version}
	p.Mods.AllowResponseInfo = true // else the library leaves response topics out
	if kind == packets.Pubrel {
		p.FixedHeader.Qos = 1
	}
	return p
}

func (c *client) publish(m Message, id uint16) *packets.Packet {
	p := c.packet(packets.Publish)
	p.FixedHeader.Qos, p.FixedHeader.Retain, p.FixedHeader.Dup = m.QoS, m.Retain, m.Dup && m.QoS > 0
	p.TopicName, p.Payload, p.PacketID = m.Topic, m.Payload, id
	p.Properties.ContentType, p.Properties.MessageExpiryInterval = m.Type, m.Expiry
	p.Properties.ResponseTopic, p.Properties.CorrelationData = m.ResponseTopic, m.Correlation
	for k, v := range m.User {
		p.Properties.User = append(p.Properties.User, packets.UserProperty{Key: k, Val: v})
	}
	return p
}

func (c *client) pubrel(id uint16) *packets.Packet {
	p := c.packet(packets.Pubrel)
	p.PacketID = id
	return p
}

// send puts a packet in line. It never waits. False: the client does not take it.
func (c *client) send(p *packets.Packet) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.FixedHeader.Type == packets.Publish && p.FixedHeader.Qos == 0 && c.out.Len() > outMax {
		return false
	}
	before := c.out.Len()
	if err := encode(p, &c.out); err != nil || c.largest > 0 && c.out.Len()-before > c.largest {
		c.out.Truncate(before)
		return false
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
	return true
}

// end lets the writer finish.
func (c *client) end() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// pour writes what waits, all of it at once.
func (c *client) pour() {
	defer c.conn.Close()
	var buf bytes.Buffer
	for range c.kick {
		c.mu.Lock()
		c.out, buf = buf, c.out
		closed := c.closed
		c.mu.Unlock()
		if buf.Len() > 0 {
			c.conn.SetWriteDeadline(time.Now().Add(wireTime))
			if _, err := c.conn.Write(buf.Bytes()); err != nil {
				return
			}
		}
		if closed {
			return
		}
		if buf.Cap() > 1<<20 {
			buf = bytes.Buffer{}
		}
		buf.Reset()
	}
}
