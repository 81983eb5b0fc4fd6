package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// mute is a device's socket that says no more after its second datagram, which answers the cookie.
type mute struct {
	*net.UDPConn
	said atomic.Int32
}

func (m *mute) WriteTo(p []byte, _ net.Addr) (int, error) {
	if m.said.Add(1) > 2 {
		return len(p), nil
	}
	return m.Write(p)
}

// halfway begins a handshake and leaves it.
func (h *house) halfway(address string) {
	h.Helper()
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		h.Error(err)
		return
	}
	c, err := net.DialUDP("udp", nil, to)
	if err != nil {
		h.Error(err)
		return
	}
	defer c.Close()
	d, err := dtls.ClientWithOptions(&mute{UDPConn: c}, to, dtls.WithPSK(func([]byte) ([]byte, error) { return []byte("0123456789abcdef"), nil }),
		dtls.WithPSKIdentityHint([]byte("th-1")), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_GCM_SHA256))
	if err != nil {
		h.Error(err)
		return
	}
	ctx, cancel := context.WithTimeout(h.Context(), time.Second)
	defer cancel()
	if d.HandshakeContext(ctx) == nil {
		h.Error("the handshake has succeeded")
	}
	d.Close()
}

func (h *house) coapFails() {
	ca := northtest.NewCA(h)
	section := h.identity(ca)
	h.write("th-1.psk", []byte("0123456789abcdef"))
	field := func(more string) string {
		return "[listener.field]\ntype = \"coap\"\nlisten = \"127.0.0.1:0\"\nsecurity = [\"psk\"]\nmax_handshakes = 2\nhandshake_timeout = \"2s\"\n" + more + "\n"
	}
	line := fmt.Sprintf("[listener.line]\ntype = \"coap\"\ntransport = \"tcp\"\nlisten = \"127.0.0.1:0\"\nsecurity = [\"x509\"]\nkey = \"identity\"\ndevice_ca = %q\n", ca.File(h))
	device := "[device.th-1]\npsk = \"file:th-1.psk\"\n[device.meter-1]\ngroups = [\"meter\"]\n"
	h.configure(section, device, field(""), line)
	h.start()

	h.brings("coap-associations-not-kept", "listener field", func() {}, func() { h.reload(section, device, field("state_key = \"identity\""), line) })

	// Devices that begin and never finish, again and again: what a slow machine makes of one of them does not matter.
	address := h.at("field")
	calm := h.meanwhile(func() {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { h.halfway(address) })
		}
		wg.Wait()
	})
	full := h.appears("coap-handshakes-full", "listener field")
	calm()
	h.goes(full)

	h.brings("coap-credentials-refused", "listener field", func() {
		ctx, cancel := context.WithTimeout(h.Context(), 10*time.Second)
		defer cancel()
		if c, err := dialCoAP(ctx, h.at("field"), "th-1", []byte("another key here")); err == nil {
			c.Close()
			h.Fatal("a wrong PSK was let in")
		}
	}, func() { h.reload(section, device, field("state_key = \"identity\"\nmax_devices = 10"), line) })

	meter := ca.Certificate(h, broker.Subject{Name: "meter-1"})
	connect := func() error {
		c, err := tls.Dial("tcp", h.at("line"), &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", NextProtos: []string{"coap"}, Certificates: []tls.Certificate{meter}})
		if err == nil {
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err = c.Read(make([]byte, 1))
		}
		return err
	}
	good, err := os.ReadFile(h.path("identity.crt"))
	if err != nil {
		h.Fatal(err)
	}
	h.brings("coap-key-unavailable", "listener line", func() {
		h.write("identity.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate(h, broker.Subject{Name: "another"}).Certificate[0]}))
		eventually(h, "the handshake to fail", func() bool { return connect() != nil })
	}, func() {
		h.write("identity.crt", good)
		eventually(h, "the handshake to succeed", func() bool { return connect() == nil })
	})
}

func (h *house) vouchersAway() {
	ca := northtest.NewCA(h)
	s := h.tokenServer(ca)
	var down atomic.Bool
	asked := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		http.Error(w, "no", http.StatusForbidden)
	}))
	asked.TLS = ca.Server(h)
	asked.TLS.ClientAuth = tls.NoClientCert
	asked.StartTLS()
	h.Cleanup(asked.Close)
	file := ca.File(h)
	h.configure(strings.Replace(shop, "anonymous", "jwt", 1), strings.NewReplacer("listener.shop", "listener.yard", "anonymous", "http").Replace(shop[:strings.Index(shop, "[[allow]]")]),
		fmt.Sprintf("[issuer.plant]\nurl = %q\naudience = \"gw1\"\nca = %q\n[authenticator]\nurl = \"%s/device\"\nca = %q\n", s.URL, file, asked.URL, file))
	h.start()
	login := func(listener, password string) {
		if c, err := dialMQTT(h.Context(), h.at(listener), nil, wireOptions{clientID: "th-1", user: "th-1", password: password}); err == nil {
			c.Close()
			h.Error("an unknown device was let in")
		}
	}
	part := base64.RawURLEncoding.EncodeToString
	token := part([]byte(`{"alg":"ES256","kid":"a"}`)) + "." + part([]byte(fmt.Sprintf(`{"iss":%q,"sub":"th-1"}`, s.URL))) + "." + part(make([]byte, 64))
	s.down.Store(true)
	h.brings("issuer-unreachable", "issuer plant", func() {
		login("shop", token)
		h.pass(11 * time.Second)
	}, func() {
		s.down.Store(false)
		h.pass(time.Minute)
		login("shop", token)
	})
	down.Store(true)
	h.brings("authenticator-unreachable", "authenticator", func() {
		login("yard", "x")
		h.pass(11 * time.Second)
	}, func() {
		down.Store(false)
		login("yard", "x")
	})
}

// revoker is an authority that may sign revocation lists too.
func (h *house) revoker() *demoCA {
	h.Helper()
	ca, err := newDemoCA()
	if err != nil {
		h.Fatal(err)
	}
	ca.cert.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, ca.key.Public(), ca.key)
	if err != nil {
		h.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		h.Fatal(err)
	}
	return ca
}

func (h *house) listsRot() {
	ca := h.revoker()
	h.write("ca.crt", ca.pem())
	server, err := ca.issue("localhost")
	if err != nil {
		h.Fatal(err)
	}
	meter, err := ca.issue("meter-1")
	if err != nil {
		h.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		h.Fatal(err)
	}
	h.write("identity.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	h.write("identity.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]}))
	number := int64(0)
	list := func(good time.Duration) {
		h.Helper()
		number++
		now := time.Now().Add(time.Duration(h.ahead.Load()))
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(good)}, ca.cert, ca.key)
		if err != nil {
			h.Fatal(err)
		}
		h.write("crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	list(time.Hour)
	h.configure("[key.identity]\nuri = \"file:identity.key\"\ncert = \"identity.crt\"\n", `
[listener.shop]
type = "mqtt"
listen = "127.0.0.1:0"
security = ["tls"]
key = "identity"
device_ca = "ca.crt"
device_crl = "crl.pem"
auth = ["x509"]
[device.meter-1]
`)
	h.start()
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	// The list is looked at again when a device shows a certificate.
	connect := func() {
		h.pass(11 * time.Second)
		c, err := dialMQTT(h.Context(), h.at("shop"), &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{meter}}, wireOptions{clientID: "meter-1"})
		if err != nil {
			h.Error(err)
			return
		}
		c.Close()
	}
	h.brings("crl-unreadable", "listener shop", func() {
		h.write("crl.pem", []byte("half a list"))
		connect()
	}, func() {
		list(time.Hour)
		connect()
	})
	h.brings("crl-stale", "listener shop", func() {
		h.pass(2 * time.Hour)
		connect()
	}, func() {
		list(time.Hour)
		connect()
	})
}
