package northtest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"

	piondtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/dtls/server"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp/client"
)

// ServeCoAP adds the CoAP binding (TS-0008) over DTLS, and gives its URL. Clients show a certificate, or, where psk is not nil, a KpsaID with
// its key and the cipher suite of TS-0003.
func (c *CSE) ServeCoAP(psk func(id string) []byte) (url string) {
	c.t.Helper()
	var security []piondtls.ServerOption
	if psk != nil {
		security = append(security, piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8), piondtls.WithPSK(func(id []byte) ([]byte, error) {
			if key := psk(string(id)); key != nil {
				return key, nil
			}
			return nil, errors.New("no such key")
		}))
	} else {
		security = append(security, piondtls.WithCipherSuites(piondtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
			piondtls.WithCertificates(c.server().Certificates...),
			piondtls.WithClientAuth(piondtls.RequireAndVerifyClientCert), piondtls.WithClientCAs(c.CA.Pool()))
	}
	l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(security...))
	if err != nil {
		c.t.Fatal(err)
	}
	var mu sync.Mutex
	conns := map[*client.Conn]bool{}
	drop := func() {
		mu.Lock()
		defer mu.Unlock()
		for conn := range conns {
			conn.Close()
		}
	}
	c.drop = append(c.drop, drop)
	s := coapdtls.NewServer(options.WithErrors(func(error) {}), options.WithMaxMessageSize(1<<20), options.WithTransmission(64, 2e9, 4),
		options.WithBlockwise(true, blockwise.SZX1024, patience),
		options.WithOnNewConn(func(conn *client.Conn) {
			mu.Lock()
			defer mu.Unlock()
			conns[conn] = true
			conn.AddOnClose(func() {
				mu.Lock()
				defer mu.Unlock()
				delete(conns, conn)
			})
		}),
		options.WithMux(mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) { c.serveCoAP(w, r, drop) })))
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	c.t.Cleanup(func() {
		stopCoAP(s, l)
		served.Wait()
	})
	return "coaps://localhost:" + strconv.Itoa(l.Addr().(*net.UDPAddr).Port)
}

// badgeOf gives the common name or the KpsaID that a client has shown.
func badgeOf(conn mux.Conn) string {
	secured, ok := conn.NetConn().(*piondtls.Conn)
	if !ok {
		return ""
	}
	state, ok := secured.ConnectionState()
	if !ok || len(state.PeerCertificates) == 0 {
		return string(state.IdentityHint)
	}
	leaf, err := x509.ParseCertificate(state.PeerCertificates[0])
	if err != nil {
		return ""
	}
	return leaf.Subject.CommonName
}

func stopCoAP(s *server.Server, l *coapnet.DTLSListener) {
	s.Stop()
	l.Close()
}

// cseCodes is table 6.2.4-1 of TS-0008, as far as this CSE answers.
var cseCodes = map[int]codes.Code{
	1001: codes.Created, 1002: codes.Created, 2000: codes.Content, 2001: codes.Created, 2004: codes.Changed, 4000: codes.BadRequest, 4004: codes.NotFound, 4005: codes.MethodNotAllowed,
	4008: codes.GatewayTimeout, 4102: codes.BadRequest, 4103: codes.Forbidden, 4105: codes.Forbidden, 4106: codes.Forbidden,
	4108: codes.Forbidden, 4110: codes.BadRequest, 4117: codes.Forbidden, 5000: codes.InternalServerError, 5204: codes.InternalServerError,
	5206: codes.NotImplemented, 5207: codes.NotAcceptable, 6010: codes.BadRequest,
}

// serveCoAP answers every request by a separate response (RFC 7252 section 5.2.2).
func (c *CSE) serveCoAP(w mux.ResponseWriter, r *mux.Message, drop func()) {
	q := cseMap{}
	path, err := r.Path()
	if err != nil {
		return
	}
	q["to"] = cseTo(path)
	for name, option := range map[string]message.OptionID{"fr": 279, "rqi": 283, "rvi": 271, "rqet": 291} {
		if v, err := r.Options().GetString(option); err == nil {
			q[name] = v
		}
	}
	q["op"] = map[codes.Code]int{codes.POST: 5, codes.GET: 2, codes.PUT: 3, codes.DELETE: 4}[r.Code()]
	if ty, err := r.GetOptionUint32(267); err == nil {
		q["op"], q["ty"] = 1, int(ty)
	}
	query := map[string][]string{}
	if list, err := r.Queries(); err == nil {
		for _, one := range list {
			name, value, _ := strings.Cut(one, "=")
			query[name] = append(query[name], value)
		}
	}
	targets, _ := r.Options().GetString(263)
	if query["rt"] != nil && r.Code() != codes.POST { // TS-0008: whatever it asks for, it is a POST
		delete(q, "op")
	}
	cseQuery(q, query, targets)
	if format, err := r.ContentFormat(); err == nil && format == message.AppJSON {
		if body, err := r.ReadBody(); err == nil {
			if m, ok := decodeCSE(body); ok {
				q["pc"] = m
			}
		}
	}
	conn, token := w.Conn(), bytes.Clone(r.Token())
	if c.ctx.Err() != nil {
		return
	}
	c.tasks.Go(func() {
		answer, cut := c.handle(conn.Context(), q, caller{badge: badgeOf(conn)})
		if cut {
			drop()
			return
		}
		m := conn.AcquireMessage(conn.Context())
		defer conn.ReleaseMessage(m)
		rsc := cseInt(answer["rsc"])
		if raw, ok := answer["rsc"].(json.RawMessage); ok {
			rsc, _ = strconv.Atoi(strings.TrimSuffix(string(raw), ".0"))
		}
		m.SetToken(token)
		m.SetType(message.NonConfirmable)
		m.SetCode(cseCodes[rsc])
		m.SetOptionUint32(307, uint32(rsc))
		if id, ok := answer["rqi"].(string); ok {
			m.SetOptionString(283, id)
		}
		if pc, ok := answer["pc"].(cseMap); ok {
			m.SetContentFormat(message.AppJSON)
			m.SetBody(bytes.NewReader(cseJSON(pc)))
		}
		conn.WriteMessage(m)
	})
}
