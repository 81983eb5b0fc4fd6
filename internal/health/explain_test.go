package health

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// certify makes a certificate of a name, signed by ca or by itself.
func certify(t *testing.T, name string, from, to time.Time, ca *tls.Certificate, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to,
		IsCA: ca == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	for _, f := range change {
		f(c)
	}
	parent, signer := c, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// shake makes the errors of both ends of a real handshake.
func shake(t *testing.T, server, client *tls.Config) (ofServer, ofClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer conn.Close()
		if server == nil {
			fmt.Fprint(conn, "220 not TLS\r\n")
			io.Copy(io.Discard, conn)
			ended <- nil
			return
		}
		s := tls.Server(conn, server)
		err = s.Handshake()
		if err == nil { // in TLS 1.3 the client's opinion may come after it
			_, err = s.Read(make([]byte, 1))
		}
		ended <- err
	}()
	ofClient = dial(t, l.Addr().String(), client)
	return <-ended, ofClient
}

// dial gives the client's error. In TLS 1.3 the server's opinion of the client's certificate comes after the handshake.
func dial(t *testing.T, address string, client *tls.Config) error {
	t.Helper()
	if client == nil {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprint(conn, "\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c") // a CONNECT in plain text
		_, err = io.Copy(io.Discard, conn)
		return err
	}
	conn, err := tls.Dial("tcp", address, client)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	return fmt.Errorf("log-in: %w", err)
}

// means holds the plain words of an error against what they must say.
func means(t *testing.T, err error, what, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	e, ok := Explain(fmt.Errorf("connector plant: %w", err), today)
	if !ok {
		t.Fatalf("%v: not explained", err)
	}
	if w, h := e.Words(); w != what || hint == "" || !strings.Contains(h, hint) {
		t.Errorf("%v:\ngot  %s\nhint %s\nwant %s\nhint %s", err, w, h, what, hint)
	}
}

func TestErrorsOfRealHandshakes(t *testing.T) {
	year := 365 * 24 * time.Hour
	ca := certify(t, "Plant 7 CA", today.Add(-year), today.Add(year), nil)
	other := certify(t, "Other CA", today.Add(-year), today.Add(year), nil)
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	others.AddCert(other.Leaf)
	clock := func() time.Time { return today }
	server := func(from, to time.Time) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certify(t, "broker", from, to, &ca)}, Time: clock}
	}
	good := server(today.Add(-year), today.Add(year))
	asks := good.Clone()
	asks.ClientAuth, asks.ClientCAs = tls.RequireAndVerifyClientCert, roots
	client := func(name string, pool *x509.CertPool, certs ...tls.Certificate) *tls.Config {
		c := &tls.Config{ServerName: name, RootCAs: pool, Time: clock}
		if len(certs) > 0 {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
		}
		return c
	}
	with := func(c *tls.Config, change func(*tls.Config)) *tls.Config {
		c = c.Clone()
		change(c)
		return c
	}
	use := func(usage x509.ExtKeyUsage) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certify(t, "broker", today.Add(-year), today.Add(year), &ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} })}, Time: clock}
	}
	strict := certify(t, "Strict CA", today.Add(-year), today.Add(year), nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	middle := certify(t, "Middle CA", today.Add(-year), today.Add(year), &strict, func(c *x509.Certificate) { c.IsCA = true })
	long := certify(t, "broker", today.Add(-year), today.Add(year), &middle)
	long.Certificate = append(long.Certificate, middle.Certificate...)
	byStrict := x509.NewCertPool()
	byStrict.AddCert(strict.Leaf)
	picky := certify(t, "broker", today.Add(-year), today.Add(year), &ca)
	picky.SupportedSignatureAlgorithms = []tls.SignatureScheme{tls.ECDSAWithP521AndSHA512}
	old := certify(t, "broker", today.Add(-year), today.Add(year), &ca, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })
	for name, c := range map[string]struct {
		server, client *tls.Config
		what, hint     string // at the client
		at, mend       string // at the server; empty: nothing is looked at
	}{
		"expired": {server(today.Add(-year), today.Add(-73*time.Hour)), client("broker", roots),
			`the peer's certificate "CN=broker" expired on 2026-11-18: it was not renewed, or its clock or ours is off by 3 days`, "this clock says 2026-11-21: if that is wrong, set it",
			"the peer refuses this gateway's certificate", "keys list"},
		"not yet": {server(today.Add(5*time.Hour), today.Add(year)), client("broker", roots),
			`the peer's certificate "CN=broker" begins on 2026-11-21: its clock or ours is off by 5 hours`, "set it with `timedatectl`", "", ""},
		"another name": {good, client("cloud", roots), "the peer's certificate is for broker, not for cloud", "right peer", "", ""},
		"another CA":   {good, client("broker", others), `the peer's certificate "CN=broker" is signed by "CN=Plant 7 CA", who is not trusted here`, `ca = "FILE"`, "", ""},
		"another use":  {use(x509.ExtKeyUsageClientAuth), client("broker", roots), `the peer's certificate "CN=broker" is not made for this end of a connection`, "serverAuth", "", ""},
		"a chain that is too long": {&tls.Config{Certificates: []tls.Certificate{long}, Time: clock}, client("broker", byStrict),
			`the chain of the peer's certificate breaks a rule of a CA, at "CN=Strict CA"`, "openssl verify", "", ""},
		"SHA-1": {&tls.Config{Certificates: []tls.Certificate{old}, Time: clock}, client("broker", roots),
			`the certificate "CN=broker" is signed with ECDSA-SHA1, which proves nothing any more`, "SHA-256", "", ""},
		"no TLS":                        {nil, client("broker", roots), "the peer does not speak TLS on this port", "8883", "", ""},
		"plain text on the port of TLS": {good, nil, "", "", "the peer does not speak TLS on this port", "plain text"},
		"no client key": {asks, client("broker", roots), "the peer wants a certificate of this gateway, and was shown none", `key = "NAME"`,
			"the peer showed no certificate, and must", "device_ca"},
		"client of another CA": {asks, client("broker", roots, certify(t, "gw", today.Add(-year), today.Add(year), &other)),
			"the peer does not trust the CA of this gateway's certificate", "register",
			`the peer's certificate "CN=gw" is signed by "CN=Other CA", who is not trusted here`, "device_ca"},
		"client expired": {asks, client("broker", roots, certify(t, "gw", today.Add(-year), today.Add(-time.Hour), &ca)),
			"the peer says that this gateway's certificate has expired", "enroll",
			`the peer's certificate "CN=gw" expired on 2026-11-21: it was not renewed, or its clock or ours is off by 60 minutes`, "renewed at the peer"},
		"client with a server's certificate": {asks, client("broker", roots, certify(t, "gw", today.Add(-year), today.Add(year), &ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
			"the peer refuses this gateway's certificate", "registered", `the peer's certificate "CN=gw" is not made for this end of a connection`, "clientAuth"},
		"an old client": {good, with(client("broker", roots), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }),
			"the peer speaks no version of TLS that is safe", "TLS 1.2", "the peer speaks only old versions of TLS, which are not safe", "TLS 1.2"},
		"no suite in common": {good, with(client("broker", roots), func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		}), "the peer finds no cipher suite or certificate in common", "ECDSA or RSA", "this end and the peer have no cipher suite in common", "AES-GCM"},
		"no signature in common": {&tls.Config{Certificates: []tls.Certificate{picky}, Time: clock}, client("broker", roots),
			"the peer finds no cipher suite or certificate in common", "ECDSA or RSA", "this end and the peer have no cipher suite in common", "AES-GCM"},
		"another protocol": {with(good, func(c *tls.Config) { c.NextProtos = []string{"coap"} }), with(client("broker", roots), func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }),
			"the peer speaks another protocol on this port", "8883", "the peer wants another protocol of this port (ALPN)", "port"},
	} {
		t.Run(name, func(t *testing.T) {
			ofServer, ofClient := shake(t, c.server, c.client)
			if c.what != "" {
				means(t, ofClient, c.what, c.hint)
			}
			if c.at != "" {
				means(t, ofServer, c.at, c.mend)
			}
		})
	}
}

// A server that knows nothing newer than TLS 1.1 answers so; crypto/tls has no such server.
func TestServerOfAnOldVersion(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Read(make([]byte, 4096))
		hello := append([]byte{0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2}, make([]byte, 32)...)
		conn.Write(append(hello, 0, 0xC0, 0x09, 0)) // no session, TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, no compression
		io.Copy(io.Discard, conn)
	}()
	means(t, dial(t, l.Addr().String(), &tls.Config{ServerName: "broker"}), "the peer speaks only old versions of TLS, which are not safe", "TLS 1.2")
}

func TestFailShowsTheExplanation(t *testing.T) {
	d := newDesk()
	r := d.For("connector cloud")
	r.Fail(&unreachable, fmt.Errorf("dial: %w", syscall.ECONNREFUSED))
	p := d.Problems()[0]
	if p.Detail != "nothing listens at the peer's port (dial: connection refused)" || p.Hint != "is the peer running, and is the port right?" {
		t.Errorf("%+v", p)
	}
	r.Fail(&unreachable, errors.New("quota exceeded"))
	if p := d.Problems()[0]; p.Detail != "quota exceeded" || p.Hint != unreachable.Hint {
		t.Errorf("%+v", p)
	}
	var none *Reporter
	none.Fail(&unreachable, io.EOF)
}
