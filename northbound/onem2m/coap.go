package onem2m

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	piondtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Options of the binding (TS-0008 table 6.2.2.4.0-1).
const (
	optRTURI message.OptionID = 263
	optTY    message.OptionID = 267
	optRVI   message.OptionID = 271
	optFR    message.OptionID = 279
	optRQI   message.OptionID = 283
	optRQET  message.OptionID = 291
	optRSC   message.OptionID = 307
)

var coapMethods = map[number]codes.Code{
	opCreate: codes.POST, opRetrieve: codes.GET, opUpdate: codes.PUT, opDelete: codes.DELETE, opNotify: codes.POST,
}

// coapCodes are the response status codes of answers that carry none (TS-0008 table 6.2.4-1), as far as they are clear.
var coapCodes = map[codes.Code]number{
	codes.Created: rscCreated, codes.Deleted: 2002, codes.Changed: 2004, codes.Content: rscOK,
	codes.NotFound: rscNotFound, codes.Forbidden: rscNoPrivilege, codes.Unauthorized: rscNotKnown, codes.InternalServerError: rscInternal,
	codes.NotImplemented: rscNotImplemented, codes.BadGateway: rscPeerAway, codes.ServiceUnavailable: rscPeerAway, codes.GatewayTimeout: rscTimeout,
}

// queryMax is the longest Uri-Query (RFC 7252 section 5.10).
const queryMax = 255

// overCoAP is the CoAP binding (TS-0008) over DTLS.
type overCoAP struct {
	c    *Connector
	conn *client.Conn
}

func (s *session) dialCoAP(ctx context.Context, b badge) (wire, error) {
	c := s.c
	security, err := c.dtls(ctx, b)
	if err != nil {
		return nil, err
	}
	reach := c.env.Dial
	if reach == nil {
		reach = new(net.Dialer).DialContext
	}
	raw, err := reach(ctx, "udp", c.hostPort())
	if err != nil {
		return nil, c.explain(err)
	}
	conn, err := piondtls.ClientWithOptions(connected{raw}, raw.RemoteAddr(), security...)
	if err != nil {
		raw.Close()
		return nil, msg.Permanent(fmt.Errorf("dtls: %w", err))
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		raw.Close()
		return nil, c.explain(b.refused(fmt.Errorf("dtls: %w", alerted(err))))
	}
	parallel := c.cfg.requests()
	w := &overCoAP{c, coapdtls.Client(conn, options.WithCloseSocket(), options.WithErrors(func(error) {}), // each request gives its own error
		options.WithTransmission(uint32(parallel), 2*time.Second, 4), options.WithMaxMessageSize(bodyMax),
		options.WithLimitClientParallelRequest(int64(parallel)), options.WithLimitClientEndpointParallelRequest(int64(parallel)),
		options.WithBlockwise(true, blockwise.SZX1024, requestTime),
		options.WithKeepAlive(2, 15*time.Second, func(dead *client.Conn) { dead.Close() }))}
	s.tasks.Go(func() {
		select {
		case <-w.conn.Context().Done():
			s.fail(w.ended())
		case <-s.ctx.Done():
		}
	})
	return w, nil
}

// connected makes a connected socket a packet connection.
type connected struct{ net.Conn }

func (c connected) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// dtls makes the security association of TS-0003 clause 8.2: by a pre-shared key or by certificates.
func (c *Connector) dtls(ctx context.Context, b badge) ([]piondtls.ClientOption, error) {
	if b.pskID != "" {
		key, err := c.kpsa(ctx, b)
		if err != nil {
			return nil, err
		}
		return []piondtls.ClientOption{
			piondtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), piondtls.WithPSKIdentityHint([]byte(b.pskID)),
			piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		}, nil
	}
	t, err := c.tls(ctx, b)
	if err != nil {
		return nil, err
	}
	o := []piondtls.ClientOption{
		piondtls.WithServerName(t.ServerName),
		piondtls.WithCipherSuites(piondtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, piondtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
	}
	if t.RootCAs != nil {
		o = append(o, piondtls.WithRootCAs(t.RootCAs))
	}
	if t.VerifyPeerCertificate != nil {
		o = append(o, piondtls.WithVerifyPeerCertificate(t.VerifyPeerCertificate))
	}
	if len(t.Certificates) > 0 {
		o = append(o, piondtls.WithGetClientCertificate(func(*piondtls.CertificateRequestInfo) (*tls.Certificate, error) { return &t.Certificates[0], nil }))
	}
	return o, nil
}

// kpsa gives the pre-shared key: the one that is named, or the one that is derived from the enrolment key.
func (c *Connector) kpsa(ctx context.Context, b badge) ([]byte, error) {
	if b.psk == "" {
		ke, err := c.env.Keys.MAC(ctx, c.cfg.EnrolmentKey)
		if err != nil {
			return nil, fmt.Errorf("enrolment_key: %w", err)
		}
		return kpsa(ctx, ke, c.csi)
	}
	secret, err := c.env.Keys.Secret(ctx, string(b.psk))
	if err != nil {
		return nil, fmt.Errorf("psk: %w", err)
	}
	key, err := hwcrypto.DecodeSecret(secret)
	if err != nil {
		return nil, fmt.Errorf("psk: %w", err)
	}
	return key, nil
}

func (w *overCoAP) ended() error {
	return fmt.Errorf("%s: the DTLS association has ended", w.c.hostPort())
}

func (w *overCoAP) join(context.Context, string) error { return nil }

func (w *overCoAP) close() {
	w.conn.Close()
	<-w.conn.Done()
}

// coapPath gives the Uri-Path of a primitive (TS-0008 clause 6.2.2.2).
func coapPath(to string) string {
	switch {
	case strings.HasPrefix(to, "//"):
		return "/_" + to[1:]
	case strings.HasPrefix(to, "/"):
		return "/~" + to
	}
	return "/" + to
}

func (w *overCoAP) ask(ctx context.Context, q *request) (*response, error) {
	m := w.conn.AcquireMessage(ctx)
	defer w.conn.ReleaseMessage(m)
	token, err := message.GetToken()
	if err != nil {
		return nil, err
	}
	m.SetToken(token)
	m.SetType(message.Confirmable)
	m.SetCode(coapMethods[q.Op])
	if err := m.SetPath(coapPath(q.To)); err != nil {
		return nil, unsendable{fmt.Errorf("%s: %w", q.To, err)}
	}
	for name, values := range q.query() {
		for _, v := range values {
			m.AddQuery(name + "=" + v)
		}
	}
	for _, t := range q.Tokens {
		if len("tkns=")+len(t) > queryMax {
			return nil, msg.Permanent(errors.New("a token longer than CoAP carries in a query"))
		}
		m.AddQuery("tkns=" + t)
	}
	m.SetOptionString(optFR, q.From)
	m.SetOptionString(optRQI, q.ID)
	m.SetOptionString(optRVI, q.Release)
	if q.Deadline != "" {
		m.SetOptionString(optRQET, q.Deadline)
	}
	if q.Op == opCreate {
		m.SetOptionUint32(optTY, uint32(q.Type))
	}
	if q.Response != nil { // such a request is a POST that says in its query what it asks for
		m.SetCode(codes.POST)
		m.AddQuery("op=" + strconv.Itoa(int(q.Op)))
		if len(q.Response.To) > 0 {
			m.SetOptionString(optRTURI, strings.Join(q.Response.To, "&"))
		}
	}
	m.SetAccept(message.AppJSON)
	if q.Content != nil {
		m.SetContentFormat(message.AppJSON)
		m.SetBody(bytes.NewReader(q.Content))
	}
	got, err := w.conn.Do(m)
	switch {
	case err != nil && w.conn.Context().Err() != nil:
		return nil, w.ended()
	case err != nil:
		return nil, fmt.Errorf("%s: %w", w.c.hostPort(), err)
	}
	defer w.conn.ReleaseMessage(got)
	r := &response{ID: q.ID}
	if n, err := got.GetOptionUint32(optRSC); err == nil {
		r.RSC = number(n)
	} else if r.RSC = coapCodes[got.Code()]; r.RSC == 0 {
		r.RSC = 4000 // BAD_REQUEST
	}
	body, err := got.ReadBody()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.c.hostPort(), err)
	}
	if json.Valid(body) {
		r.Content = body
	}
	return r, nil
}
