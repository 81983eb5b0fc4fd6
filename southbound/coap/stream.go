package coap

import (
	"bufio"
	"bytes"
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
	optBlockWise      message.OptionID = 4 // of a CSM: Block-Wise-Transfer
	optBadCSM         message.OptionID = 2 // of Abort: the number of the option that is not known
	optCustody        message.OptionID = 2 // of Ping and Pong
)

// stream is the connection of a session.
type stream struct {
	conn  net.Conn
	state tls.ConnectionState
	out   []byte        // guarded by the listener's lock: what is to be written
	kick  chan struct{} // there is something in out, or the session is dead
	mid   uint16        // of the next request; for what knows exchanges by message ids

	peerMax   int           // Max-Message-Size of the peer
	blockWise bool          // it knows Block-Wise-Transfer, and so BERT
	submitted []uint16      // requests that the uplink has not decided
	pongs     []pong        // that wait for earlier requests
	released  bool          // the peer has said Release
	drained   chan struct{} // closed when it has and nothing is submitted
}

// pong is the answer to a Ping with Custody.
type pong struct {
	token []byte
	mid   uint16
}

const (
	defaultMessage = 1152 // Max-Message-Size (RFC 8323 section 5.3.1)
	frameOverhead  = 128  // of a message beside payload and path, at most
	maxPongs       = 8
)

// room tells how much payload a message to the peer may hold beside path octets of a path: as one of several blocks of the greatest szx, most
// octets; as the only one, whole.
func (s *session) room(path int) (szx uint8, most, whole int) {
	if s.stream == nil {
		return maxBlockSZX, 1024, 1024
	}
	whole = s.stream.peerMax - frameOverhead - path
	switch {
	case s.stream.blockWise && whole >= 2048:
		return bertSZX, whole &^ 1023, whole
	case whole >= 1024:
		return maxBlockSZX, 1024, whole
	}
	for szx = maxBlockSZX - 1; szx > 0 && 16<<szx > whole; {
		szx--
	}
	return szx, 16 << szx, max(whole, 16)
}

// holds tells whether one message may hold a payload of n octets.
func (s *session) holds(n int) bool {
	_, _, whole := s.room(0)
	return n <= whole
}

// answered notes that a request has had its answer: what has waited for it may go.
func (t *turn) answered(s *session, mid uint16) {
	st := s.stream
	st.submitted = slices.DeleteFunc(st.submitted, func(m uint16) bool { return m == mid })
	st.pongs = slices.DeleteFunc(st.pongs, func(p pong) bool {
		if slices.ContainsFunc(st.submitted, func(m uint16) bool { return int16(m-p.mid) < 0 }) {
			return false
		}
		t.signal(s, codes.Pong, p.token, message.Option{ID: optCustody})
		return true
	})
	if st.released && len(st.submitted) == 0 {
		st.released = false
		close(st.drained)
	}
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
	l.mu.Lock()
	rules := l.rules
	l.mu.Unlock()
	id := &auth.Identity{Device: "anonymous", Method: "none"}
	st := &stream{conn: c, kick: make(chan struct{}, 1), peerMax: defaultMessage, drained: make(chan struct{})}
	if l.clientCAs != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(l.cfg.HandshakeTimeout))
		defer cancel()
		tc := tls.Server(c, &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				cert, err := l.certificate(ctx)
				if err != nil {
					l.env.Health.Fail(&keyUnavailable, err)
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
	t := l.begin(time.Now())
	if id = l.current(id, rules); id == nil {
		l.end(t)
		return nil, auth.ErrUnknown
	}
	l.count.handshakesOK.Add(1)
	s := &session{stream: st, addr: from, id: id, credit: unlimited, slot: noSlot}
	s.since, s.seen = t.now, t.now
	size := uint32(l.cfg.MaxPayload) + maxStreamOptions
	t.signal(s, codes.CSM, nil, uintOption(optMaxMessageSize, size), message.Option{ID: optBlockWise}) // first, also before commands that wait
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
	l.env.Health.Fail(&credentialsRefused, err)
	l.mu.Lock()
	l.refusedAt = time.Now()
	l.limits.refused(from.Addr(), l.refusedAt)
	l.mu.Unlock()
}

// converse reads and writes until one side ends the connection.
func (l *listener) converse(ctx context.Context, s *session) {
	written, stopped := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		t := l.begin(time.Now())
		t.bye(s)
		l.end(t)
		select {
		case <-written:
		case <-time.After(time.Second):
			s.stream.conn.Close()
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(written)
		l.write(s)
	})
	err := l.readStream(s)
	if errors.Is(err, errReleased) {
		select {
		case <-s.stream.drained:
		case <-ctx.Done():
		case <-time.After(drainTimeout):
		}
	}
	t := l.begin(time.Now())
	if a, ok := errors.AsType[*abort](err); ok && !s.dead {
		m := message.Message{Code: codes.Abort, Payload: []byte(a.why)}
		if a.option != 0 {
			m.Options = append(m.Options, uintOption(optBadCSM, uint32(a.option)))
		}
		t.sendMessage(s, &m)
	}
	l.remove(s)
	l.end(t)
	wg.Wait()
	_, _ = io.Copy(io.Discard, s.stream.conn) // write has set an end to this
	s.stream.conn.Close()
	if !stop() {
		<-stopped
	}
}

// drainTimeout is how long a peer that has said Release may wait for its answers.
const drainTimeout = 10 * time.Second

// errReleased says that the peer asks nothing more.
var errReleased = errors.New("released")

// abort is a violation of the protocol, told to the peer.
type abort struct {
	why    string
	option message.OptionID // of a CSM, that is not known
}

func (a *abort) Error() string { return a.why }

// lingers is how long a peer that has been told the last is listened to: closing with unread input would throw away what it has yet to read
// (RFC 1122 section 4.2.2.13).
const lingers = 500 * time.Millisecond

// write writes what is queued, until nothing more is to come or the peer takes it no more. In the end reading ends soon.
func (l *listener) write(s *session) {
	c := s.stream.conn
	var spare []byte
	for range s.stream.kick {
		l.mu.Lock()
		b, dead := s.stream.out, s.dead
		s.stream.out = spare[:0]
		l.mu.Unlock()
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := c.Write(b)
		if err == nil && dead {
			if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				c.SetReadDeadline(time.Now().Add(lingers))
				return
			}
		}
		if err != nil || dead {
			c.Close()
			return
		}
		l.count.bytesOut.Add(int64(len(b)))
		if spare = b; cap(spare) > 16<<10 {
			spare = nil
		}
	}
}

// maxPeerMessage is what a message to a peer has at most, whatever it takes.
const maxPeerMessage = 128 << 10

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
			return &abort{why: "token length"}
		}
		if length > int64(limit) {
			return &abort{why: "message too large"}
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
			return &abort{why: "no CSM"} // RFC 8323 section 5.3
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
	t.sendMessage(s, &message.Message{Code: code, Token: token, Options: opts})
}

// frame takes one message.
func (t *turn) frame(s *session, code codes.Code, token, rest []byte) error {
	p := &t.pkt
	p.code, p.token, p.typ, p.bert = code, token, message.Confirmable, true
	p.options = p.options[:0]
	if err := p.parseRest(rest); err != nil {
		t.l.count.malformed.Add(1)
		return &abort{why: "message format"}
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
	known := map[codes.Code][]message.OptionID{codes.CSM: {optMaxMessageSize, optBlockWise}, codes.Ping: {optCustody}, codes.Pong: {optCustody}, codes.Release: {2, 4}, codes.Abort: {2}}
	for _, o := range p.options {
		if o.ID&1 == 1 && !slices.Contains(known[p.code], o.ID) {
			a := &abort{why: fmt.Sprintf("option %d", o.ID)}
			if p.code == codes.CSM {
				a.option = o.ID
			}
			return a
		}
	}
	st := s.stream
	switch p.code {
	case codes.CSM:
		if n, ok := p.number(optMaxMessageSize); ok {
			st.peerMax = int(min(n, maxPeerMessage))
		}
		if _, ok := p.option(optBlockWise); ok {
			st.blockWise = true
		}
	case codes.Ping:
		switch _, custody := p.option(optCustody); {
		case custody && len(st.submitted) == 0:
			t.signal(s, codes.Pong, p.token, message.Option{ID: optCustody})
		case custody && len(st.pongs) < maxPongs:
			st.pongs = append(st.pongs, pong{bytes.Clone(p.token), p.mid})
		default:
			t.signal(s, codes.Pong, p.token)
		}
	case codes.Release:
		st.released = true
		t.answered(s, p.mid)
		return errReleased
	case codes.Abort:
		return io.EOF
	}
	return nil
}
