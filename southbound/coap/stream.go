package coap

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound"
)

// CoAP over TCP and TLS (RFC 8323). A connection is a session like any other, but that it is reliable: there are no message ids,
// acknowledgements or repetitions. Each connection has two goroutines.

const (
	maxUnsent    = 256 << 10 // octets that may wait for a connection that does not read
	writeTimeout = 30 * time.Second

	optMaxMessageSize message.OptionID = 2 // of a CSM
	optCustody        message.OptionID = 2 // of Ping and Pong
)

// stream is the connection of a session.
type stream struct {
	conn  net.Conn
	state tls.ConnectionState
	out   []byte        // guarded by the listener's lock: what is to be written
	kick  chan struct{} // there is something in out, or the session is dead
	mid   uint16        // of the next request; for what knows exchanges by message ids
}

func (l *listener) serveStreams(ctx context.Context, up southbound.Uplink) error {
	ln, err := l.listenStream(ctx)
	if err != nil {
		return err
	}
	defer ln.Close()
	kept := l.restoreValues()
	l.mu.Lock()
	l.up, l.serving, l.ctx = up, true, ctx
	l.mu.Unlock()
	if l.env.Bound != nil {
		l.env.Bound(ln.Addr())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer func() { l.forget(ctx) }()
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { l.complete(ctx) })
	wg.Go(func() { l.clock(ctx) })
	wg.Go(func() { l.keepValues(ctx, kept) })
	open := make(chan struct{}, l.cfg.MaxHandshakes)
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too many files, or the peer has gone
			l.count.socketErrors.Add(1)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		from := unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())
		l.mu.Lock()
		allowed := l.limits.allow(from.Addr(), time.Now())
		l.mu.Unlock()
		select {
		case open <- struct{}{}:
		default:
			allowed = false
		}
		if !allowed {
			l.count.refusedHandshakes.Add(1)
			c.Close()
			continue
		}
		wg.Go(func() {
			s, err := l.greet(ctx, c, from)
			<-open
			if err != nil {
				c.Close()
				l.count.handshakesFailed.Add(1)
				return
			}
			l.converse(ctx, s)
		})
	}
}

func (l *listener) listenStream(ctx context.Context) (net.Listener, error) {
	if l.env.Socket != nil {
		if ln, _ := l.env.Socket(); ln != nil {
			return ln, nil
		}
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", l.cfg.Listen)
}

// greet does the TLS handshake, where there is one, and makes the session.
func (l *listener) greet(ctx context.Context, c net.Conn, from netip.AddrPort) (*session, error) {
	id := &auth.Identity{Device: "anonymous", Method: "none"}
	st := &stream{conn: c, kick: make(chan struct{}, 1)}
	if l.clientCAs != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(l.cfg.HandshakeTimeout))
		defer cancel()
		tc := tls.Server(c, &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				cert, err := l.certificate(ctx)
				if err != nil {
					l.env.Health.Set(&keyUnavailable, err.Error())
				}
				return cert, err
			},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: l.clientCAs, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"coap"}, Time: l.env.Now, SessionTicketsDisabled: true,
		})
		if err := tc.HandshakeContext(ctx); err != nil {
			l.refuse(from, err)
			return nil, err
		}
		st.conn, st.state = tc, tc.ConnectionState()
		fresh, err := l.env.Auth.Certificate(ctx, l.env.Name, st.state.VerifiedChains[0])
		if err != nil {
			l.refuse(from, err)
			return nil, err
		}
		id = &fresh
		l.env.Health.Clear(&keyUnavailable)
	}
	l.count.handshakesOK.Add(1)
	s := &session{stream: st, addr: from, id: id, credit: unlimited, slot: noSlot}
	t := l.begin(time.Now())
	s.since, s.seen = t.now, t.now
	size := uint32(l.cfg.MaxPayload) + maxStreamOptions
	t.signal(s, codes.CSM, nil, uintOption(optMaxMessageSize, size)) // first, also before commands that wait
	l.add(t, s)
	l.end(t)
	if l.clientCAs != nil {
		l.awake(id)
	}
	return s, nil
}

func (l *listener) refuse(from netip.AddrPort, err error) {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	if !unknown && !invalid && !errors.Is(err, auth.ErrUnknown) {
		return
	}
	l.count.fail("client-certificate")
	l.env.Health.Set(&credentialsRefused, "client-certificate")
	l.mu.Lock()
	l.refusedAt = time.Now()
	l.limits.refused(from.Addr(), l.refusedAt)
	l.mu.Unlock()
}

// converse reads and writes until one side ends the connection.
func (l *listener) converse(ctx context.Context, s *session) {
	stop := context.AfterFunc(ctx, func() { s.stream.conn.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { l.write(s) })
	err := l.readStream(s)
	t := l.begin(time.Now())
	if _, ok := errors.AsType[*abort](err); ok && !s.dead {
		t.signal(s, codes.Abort, []byte(err.Error()))
	}
	l.remove(s)
	l.end(t)
	wg.Wait()
}

// abort is a violation of the protocol, told to the peer.
type abort struct{ why string }

func (a *abort) Error() string { return a.why }

// write writes what is queued, and closes the connection in the end.
func (l *listener) write(s *session) {
	defer s.stream.conn.Close()
	var spare []byte
	for range s.stream.kick {
		l.mu.Lock()
		b, dead := s.stream.out, s.dead
		s.stream.out = spare[:0]
		l.mu.Unlock()
		s.stream.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := s.stream.conn.Write(b); err != nil || dead {
			return
		}
		l.count.bytesOut.Add(int64(len(b)))
		if spare = b; cap(spare) > 16<<10 {
			spare = nil
		}
	}
}

// maxStreamOptions is the room for options beside the payload of the greatest message.
const maxStreamOptions = 4 << 10

// readStream takes messages (RFC 8323 section 3.2).
func (l *listener) readStream(s *session) error {
	r := bufio.NewReaderSize(s.stream.conn, 4<<10)
	limit := int(l.cfg.MaxPayload) + maxStreamOptions
	var body []byte
	for first := true; ; first = false {
		head, err := r.ReadByte()
		if err != nil {
			return err
		}
		length, err := frameLength(r, head>>4)
		if err != nil {
			return err
		}
		tkl := int(head & 15)
		if tkl > message.MaxTokenSize {
			return &abort{"token length"}
		}
		if length > int64(limit) {
			return &abort{"message too large"}
		}
		n := int(length)
		code, err := r.ReadByte()
		if err != nil {
			return err
		}
		if cap(body) < tkl+n || cap(body) > 16<<10 {
			body = make([]byte, tkl+n)
		}
		body = body[:tkl+n]
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		l.count.bytesIn.Add(int64(2 + len(body)))
		if first && codes.Code(code) != codes.CSM {
			return &abort{"no CSM"} // RFC 8323 section 5.3
		}
		t := l.begin(time.Now())
		if s.dead {
			err = net.ErrClosed
		} else {
			s.seen = t.now
			err = t.frame(s, codes.Code(code), body[:tkl], body[tkl:])
			t.renew(s, true)
		}
		l.end(t)
		if err != nil {
			return err
		}
	}
}

// frameLength gives the length of options and payload, which is more than 32 bits hold.
func frameLength(r io.Reader, nibble byte) (int64, error) {
	var b [4]byte
	switch nibble {
	case 13:
		_, err := io.ReadFull(r, b[3:])
		return int64(b[3]) + 13, err
	case 14:
		_, err := io.ReadFull(r, b[2:])
		return int64(binary.BigEndian.Uint16(b[2:])) + 269, err
	case 15:
		_, err := io.ReadFull(r, b[:])
		return int64(binary.BigEndian.Uint32(b[:])) + 65805, err
	}
	return int64(nibble), nil
}

// appendFrame appends a message for a stream that was encoded for a datagram.
func appendFrame(dst, datagram []byte) []byte {
	tkl := datagram[0] & 15
	rest := datagram[4+int(tkl):]
	switch n := len(rest); {
	case n < 13:
		dst = append(dst, byte(n)<<4|tkl)
	case n < 269:
		dst = append(dst, 13<<4|tkl, byte(n-13))
	case n < 65805:
		dst = binary.BigEndian.AppendUint16(append(dst, 14<<4|tkl), uint16(n-269))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, 15<<4|tkl), uint32(n-65805))
	}
	dst = append(dst, datagram[1])
	return append(dst, datagram[4:]...)
}

// queue gives a message to the writer. Empty messages have no meaning on a stream.
func (t *turn) queue(s *session, datagram []byte) {
	if codes.Code(datagram[1]) == codes.Empty {
		return
	}
	if len(s.stream.out) > maxUnsent {
		t.l.remove(s)
		return
	}
	s.stream.out = appendFrame(s.stream.out, datagram)
	s.stream.wake()
}

func (st *stream) wake() {
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

// signal sends a signaling message (RFC 8323 section 5).
func (t *turn) signal(s *session, code codes.Code, token []byte, opts ...message.Option) {
	m := message.Message{Code: code, Token: token, Options: opts}
	if code == codes.Abort {
		m.Token, m.Payload = nil, token
	}
	t.sendMessage(s, &m)
}

// frame takes one message.
func (t *turn) frame(s *session, code codes.Code, token, rest []byte) error {
	p := &t.pkt
	p.code, p.token, p.typ = code, token, message.Confirmable
	p.options = p.options[:0]
	if err := p.parseRest(rest); err != nil {
		t.l.count.malformed.Add(1)
		return &abort{"message format"}
	}
	s.stream.mid++
	p.mid = s.stream.mid
	switch code >> 5 {
	case 7:
		return t.signaled(s, p)
	case 0:
		if code != codes.Empty {
			t.request(s, p)
		}
	case 2, 4, 5:
		p.typ = message.NonConfirmable
		t.response(s, p)
	}
	return nil
}

// signaled takes a signaling message. Their options are numbered anew for each code.
func (t *turn) signaled(s *session, p *packet) error {
	known := map[codes.Code][]message.OptionID{codes.CSM: {optMaxMessageSize, 4}, codes.Ping: {optCustody}, codes.Pong: {optCustody}, codes.Release: {2, 4}, codes.Abort: {2}}
	for _, o := range p.options {
		if o.ID&1 == 1 && !slices.Contains(known[p.code], o.ID) {
			return &abort{fmt.Sprintf("option %d", o.ID)}
		}
	}
	switch p.code {
	case codes.Ping:
		t.signal(s, codes.Pong, p.token)
	case codes.Release, codes.Abort:
		return io.EOF
	}
	return nil
}
