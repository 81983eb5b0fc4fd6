package health

import (
	"context"
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
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// certify makes a certificate of a name, signed by ca or by itself.
func certify(t *testing.T, name string, from, to time.Time, ca *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to,
		IsCA: ca == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
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

// shake makes the client's error of a real handshake.
func shake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if server == nil {
			fmt.Fprint(conn, "220 not TLS\r\n")
			io.Copy(io.Discard, conn)
			return
		}
		s := tls.Server(conn, server)
		if s.Handshake() == nil {
			io.Copy(io.Discard, s)
		}
	}()
	defer func() { <-ended }()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		return err
	}
	defer conn.Close()
	// In TLS 1.3 the server's opinion of the client's certificate comes after the handshake.
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	return fmt.Errorf("log-in: %w", err)
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
	for name, c := range map[string]struct {
		server, client *tls.Config
		what, hint     string
	}{
		"expired": {server(today.Add(-year), today.Add(-73*time.Hour)), client("broker", roots),
			`the peer's certificate "CN=broker" expired on 2026-11-18, 3 days ago`, "this clock, which says 2026-11-21"},
		"not yet": {server(today.Add(5*time.Hour), today.Add(year)), client("broker", roots),
			`the peer's certificate "CN=broker" begins on 2026-11-21; by this clock that is in 5 hours`, "set it (timedatectl)"},
		"another name":  {good, client("cloud", roots), "the peer's certificate is for broker, not for cloud", "right peer"},
		"another CA":    {good, client("broker", others), `the peer's certificate "CN=broker" is signed by "CN=Plant 7 CA", who is not trusted here`, `ca = "FILE"`},
		"no TLS":        {nil, client("broker", roots), "the peer does not speak TLS on this port", "8883"},
		"no client key": {asks, client("broker", roots), "the peer wants a certificate of this gateway, and was shown none", `key = "NAME"`},
		"client of another CA": {asks, client("broker", roots, certify(t, "gw", today.Add(-year), today.Add(year), &other)),
			"the peer does not trust the CA of this gateway's certificate", "register"},
		"client expired": {asks, client("broker", roots, certify(t, "gw", today.Add(-year), today.Add(-time.Hour), &ca)),
			"the peer says that this gateway's certificate has expired", "enroll"},
	} {
		t.Run(name, func(t *testing.T) {
			err := shake(t, c.server, c.client)
			e, ok := Explain(fmt.Errorf("connector plant: %w", err), today)
			if !ok || e.What != c.what || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("%v: %+v", err, e)
			}
		})
	}
}

func TestErrorsOfConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, inUse := net.Listen("tcp", l.Addr().String())
	address := l.Addr().String()
	l.Close()
	_, refused := net.Dial("tcp", address)
	_, elsewhere := net.Listen("tcp", "192.0.2.1:0")
	for _, c := range []struct {
		err  error
		want string
	}{
		{refused, "nothing listens at the peer's port"},
		{inUse, "another program has this address already"},
		{elsewhere, "this machine has no such address"},
		{&net.DNSError{Name: "brokr.example", IsNotFound: true}, `there is no host "brokr.example"`},
		{&net.DNSError{Name: "broker.example", IsTimeout: true}, `no DNS server answers for "broker.example"`},
		{fmt.Errorf("read: %w", io.EOF), "the peer closed the connection without a word"},
		{context.DeadlineExceeded, "the peer did not answer in time"},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, "the disk is full"},
	} {
		if e, ok := Explain(c.err, today); !ok || e.What != c.want || e.Hint == "" {
			t.Errorf("%v: %+v", c.err, e)
		}
	}
	if e, ok := Explain(errors.New("quota exceeded"), today); ok {
		t.Errorf("explained: %+v", e)
	}
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
