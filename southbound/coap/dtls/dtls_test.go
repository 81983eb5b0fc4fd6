package dtls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// pki is a CA with a server's and a client's certificate.
type pki struct {
	ca             *x509.Certificate
	pool           *x509.CertPool
	server, client tls.Certificate
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caTmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, caTmpl, caTmpl, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	p := &pki{pool: x509.NewCertPool()}
	p.ca, _ = x509.ParseCertificate(der)
	p.pool.AddCert(p.ca)
	issue := func(serial int64, name string) tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, p.ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	p.server, p.client = issue(2, "localhost"), issue(3, "meter-1")
	return p
}

// files writes the certificates as PEM for programs.
func (p *pki) files(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", "CERTIFICATE", p.ca.Raw)
	write("client.pem", "CERTIFICATE", p.client.Certificate[0])
	key, err := x509.MarshalPKCS8PrivateKey(p.client.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("client.key", "PRIVATE KEY", key)
	return dir
}

var testPSK = []byte("an octet string")

func testConfig(p *pki, suites ...*Suite) *Config {
	if suites == nil {
		suites = Suites()
	}
	return &Config{
		Suites: suites,
		PSK: func(_ context.Context, identity string) (PSK, any, error) {
			if identity != "dev1" {
				return PSK{}, nil, ErrUnknownPSK
			}
			return PSK{Key: bytes.Clone(testPSK)}, identity, nil
		},
		Certificate:   func(context.Context) (*tls.Certificate, error) { return &p.server, nil },
		ClientCAs:     p.pool,
		ClientCANames: [][]byte{p.ca.RawSubject},
		Peer: func(_ context.Context, chain []*x509.Certificate) (any, error) {
			return chain[0].Subject.CommonName, nil
		},
		ConnectionID: true, MTU: 1200, Now: time.Now,
	}
}

// server answers every application record by the same data in upper case. It serves one client at a time.
type server struct {
	pc   net.PacketConn
	cfg  *Config
	errs chan error
	conn *Conn
	peer any
	drop func(n int) bool // drop the n-th datagram received
}

func serve(t testing.TB, cfg *Config, drop func(int) bool) (*server, string) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{pc: pc, cfg: cfg, errs: make(chan error, 16), drop: drop}
	done := make(chan struct{})
	go func() { defer close(done); s.run(t) }()
	t.Cleanup(func() { pc.Close(); <-done })
	return s, pc.LocalAddr().String()
}

func (s *server) run(t testing.TB) {
	gate := NewGate(time.Now())
	var hs *Handshake
	var last []byte
	buf := make([]byte, 4096)
	for i := 0; ; i++ {
		n, from, err := s.pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if s.drop != nil && s.drop(i) {
			continue
		}
		send := func(list [][]byte) {
			for _, d := range list {
				s.pc.WriteTo(d, from)
			}
		}
		r, _, ok := NextRecord(buf[:n])
		if !ok {
			continue
		}
		if h, ok := ParseHello(r); ok {
			addr := from.(*net.UDPAddr).AddrPort()
			admitted, challenge := gate.Admit(&h, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), time.Now(), nil)
			switch {
			case !admitted:
				s.pc.WriteTo(challenge, from)
			case hs != nil && bytes.Equal(last, h.Bytes()):
				send(hs.flight)
			default:
				hs, last = NewHandshake(s.cfg, &h, NewCID()), bytes.Clone(h.Bytes())
				out, err := hs.Start(t.Context())
				if err != nil {
					s.errs <- err
					send([][]byte{hs.AlertDatagram(err)})
					continue
				}
				send(out)
			}
			continue
		}
		if hs == nil {
			continue
		}
		conn, peer := hs.Conn()
		if conn == nil {
			out, err := hs.Step(t.Context(), buf[:n])
			if err != nil {
				s.errs <- err
				send([][]byte{hs.AlertDatagram(err)})
				hs = nil
				continue
			}
			send(out)
			continue
		}
		s.conn, s.peer = conn, peer
		for rest := buf[:n]; ; {
			r, next, ok := NextRecord(rest)
			if !ok {
				break
			}
			rest = next
			typ, data, _, err := conn.Open(r)
			if err != nil {
				continue
			}
			if typ == TypeApplication {
				out, err := conn.Seal(nil, TypeApplication, bytes.ToUpper(data))
				if err != nil {
					s.errs <- err
				}
				s.pc.WriteTo(out, from)
			} else if conn.Control(typ, data) == Repeated {
				out, _ := conn.FinalFlight(nil)
				s.pc.WriteTo(out, from)
			}
		}
	}
}

func pionEcho(t *testing.T, addr string, opts ...piondtls.ClientOption) error {
	t.Helper()
	raddr, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := piondtls.DialWithOptions("udp4", raddr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	buf := make([]byte, 100)
	for range 3 {
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if string(buf[:n]) != "HELLO" {
			t.Fatalf("echo gave %q", buf[:n])
		}
	}
	return nil
}

func TestPionClientsConnect(t *testing.T) {
	p := newPKI(t)
	pskOpts := func(id piondtls.CipherSuiteID) []piondtls.ClientOption {
		return []piondtls.ClientOption{
			piondtls.WithPSK(func([]byte) ([]byte, error) { return testPSK, nil }), piondtls.WithPSKIdentityHint([]byte("dev1")), piondtls.WithCipherSuites(id),
		}
	}
	certOpts := func(id piondtls.CipherSuiteID) []piondtls.ClientOption {
		return []piondtls.ClientOption{
			piondtls.WithRootCAs(p.pool), piondtls.WithServerName("localhost"), piondtls.WithCertificates(p.client), piondtls.WithCipherSuites(id),
		}
	}
	for name, opts := range map[string][]piondtls.ClientOption{
		"psk ccm8":         pskOpts(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		"psk ccm":          pskOpts(piondtls.TLS_PSK_WITH_AES_128_CCM),
		"psk 256 ccm8":     pskOpts(piondtls.TLS_PSK_WITH_AES_256_CCM_8),
		"psk gcm":          pskOpts(piondtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		"psk chacha":       pskOpts(piondtls.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256),
		"ecdhe_psk chacha": pskOpts(piondtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256),
		"ecdsa ccm8":       certOpts(piondtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
		"ecdsa gcm":        certOpts(piondtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
		"ecdsa gcm 256":    certOpts(piondtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
		"ecdsa chacha":     certOpts(piondtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
	} {
		for _, cid := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " with connection id"}[cid], func(t *testing.T) {
				t.Parallel()
				s, addr := serve(t, testConfig(p), nil)
				o := opts
				if cid {
					o = append(o[:len(o):len(o)], piondtls.WithConnectionIDGenerator(piondtls.RandomCIDGenerator(5)))
				}
				if err := pionEcho(t, addr, o...); err != nil {
					select {
					case serr := <-s.errs:
						t.Fatalf("client: %v; server: %v", err, serr)
					default:
						t.Fatal(err)
					}
				}
			})
		}
	}
}

func TestHandshakesSurviveLoss(t *testing.T) {
	p := newPKI(t)
	for n := range 3 {
		s, addr := serve(t, testConfig(p), func(i int) bool { return i == n })
		if err := pionEcho(t, addr, piondtls.WithFlightInterval(50*time.Millisecond), piondtls.WithRootCAs(p.pool), piondtls.WithServerName("localhost"), piondtls.WithCertificates(p.client)); err != nil {
			t.Errorf("datagram %d lost: %v", n, err)
		}
		select {
		case err := <-s.errs:
			t.Errorf("datagram %d lost: server: %v", n, err)
		default:
		}
	}
}

func TestBadCredentialsAreToldApartOnlyByTheServer(t *testing.T) {
	p := newPKI(t)
	for _, c := range []struct {
		identity, key, reason string
	}{{"dev1", "wrong", "wrong-psk"}, {"nobody", string(testPSK), "unknown-psk"}} {
		s, addr := serve(t, testConfig(p), nil)
		err := pionEcho(t, addr, piondtls.WithPSK(func([]byte) ([]byte, error) { return []byte(c.key), nil }), piondtls.WithPSKIdentityHint([]byte(c.identity)),
			piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8))
		if err == nil || !strings.Contains(err.Error(), "DecryptError") {
			t.Errorf("%s: client got %v", c.reason, err)
		}
		if f, ok := (<-s.errs).(*Failure); !ok || f.Reason != c.reason {
			t.Errorf("%s: server says %v", c.reason, f)
		}
	}
}

func TestOpenSSLClientsConnect(t *testing.T) {
	bin := needs.Program(t, "openssl")
	p := newPKI(t)
	dir := p.files(t)
	for _, cipher := range []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-CCM", "ECDHE-ECDSA-AES128-CCM8",
		"ECDHE-ECDSA-AES256-CCM", "ECDHE-ECDSA-AES256-CCM8", "ECDHE-ECDSA-ARIA128-GCM-SHA256", "ECDHE-ECDSA-ARIA256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA256",
		"PSK-AES128-GCM-SHA256", "PSK-AES256-GCM-SHA384", "PSK-CHACHA20-POLY1305", "PSK-AES128-CCM", "PSK-AES128-CCM8", "PSK-AES256-CCM", "PSK-AES256-CCM8",
		"PSK-ARIA128-GCM-SHA256", "PSK-ARIA256-GCM-SHA384", "PSK-AES128-CBC-SHA256", "ECDHE-PSK-CHACHA20-POLY1305", "ECDHE-PSK-AES128-CBC-SHA256",
	} {
		t.Run(cipher, func(t *testing.T) {
			t.Parallel()
			s, addr := serve(t, testConfig(p), nil)
			args := []string{"s_client", "-dtls1_2", "-connect", addr, "-cipher", cipher + "@SECLEVEL=0", "-quiet", "-no_ign_eof"}
			if strings.Contains(cipher, "PSK") {
				args = append(args, "-psk", "616e206f6374657420737472696e67", "-psk_identity", "dev1")
			} else {
				args = append(args, "-CAfile", dir+"/ca.pem", "-verify_return_error", "-cert", dir+"/client.pem", "-key", dir+"/client.key")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, args...)
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			in.Write([]byte("hello\n"))
			buf := make([]byte, 6)
			n, _ := out.Read(buf)
			in.Close()
			cancel()
			cmd.Wait()
			if string(buf[:n]) != "HELLO\n" {
				t.Fatalf("got %q; stderr %s; server %v", buf[:n], stderr.String(), drain(s.errs))
			}
		})
	}
}

func drain(c chan error) (list []error) {
	for {
		select {
		case err := <-c:
			list = append(list, err)
		default:
			return list
		}
	}
}
