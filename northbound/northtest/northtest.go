// Package northtest holds the suite that every connector passes, and clouds to run it against: an in-process broker with a knob per fault, and
// real mosquitto. TLS is always on, with client certificates.
package northtest

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// Loopback are the hosts that test servers are certified for.
var Loopback = []string{"localhost", "127.0.0.1", "::1"}

// CA is a test authority.
type CA struct{ *broker.CA }

// NewCA makes a test authority.
func NewCA(t testing.TB) CA {
	t.Helper()
	ca, err := broker.NewCA("northtest CA")
	if err != nil {
		t.Fatal(err)
	}
	return CA{ca}
}

// Certificate makes a key and a certificate for s.
func (c CA) Certificate(t testing.TB, s broker.Subject) tls.Certificate {
	t.Helper()
	cert, err := c.Issue(s)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Server gives the configuration of a server on loopback that asks every client for a certificate of the same authority.
func (c CA) Server(t testing.TB) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{c.Certificate(t, broker.Subject{Name: "localhost", Hosts: Loopback, Until: time.Now().Add(47 * time.Hour)})},
		ClientCAs:    c.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// File writes the authority's certificate.
func (c CA) File(t testing.TB) string {
	t.Helper()
	return write(t, "ca.pem", c.PEM())
}

// Files writes a certificate and its key as PEM, for programs that are not ours.
func Files(t testing.TB, cert tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Keys is a key ring of software keys and plain secrets.
type Keys struct {
	Certificates map[string]tls.Certificate
	MACs         map[string]hwcrypto.MACer
	Signers      map[string]crypto.Signer
	Secrets      map[string]string
}

// Certificate is northbound.Keys'.
func (k *Keys) Certificate(_ context.Context, name string) (*tls.Certificate, error) {
	if c, ok := k.Certificates[name]; ok {
		return &c, nil
	}
	return nil, fmt.Errorf("key %s: %w", name, hwcrypto.ErrNoKey)
}

// MAC is northbound.Keys'.
func (k *Keys) MAC(_ context.Context, name string) (hwcrypto.MACer, error) {
	if m, ok := k.MACs[name]; ok {
		return m, nil
	}
	return nil, fmt.Errorf("key %s: %w", name, hwcrypto.ErrNoKey)
}

// Signer is northbound.Signers'.
func (k *Keys) Signer(_ context.Context, name string) (crypto.Signer, error) {
	if s, ok := k.Signers[name]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("key %s: %w", name, hwcrypto.ErrNoKey)
}

// Sealer is auth.Keys'. No key of this ring seals.
func (k *Keys) Sealer(_ context.Context, name string) (hwcrypto.Sealer, error) {
	return nil, fmt.Errorf("key %s: it does not seal", name)
}

// Secret is northbound.Keys'.
func (k *Keys) Secret(_ context.Context, ref string) ([]byte, error) {
	if s, ok := k.Secrets[ref]; ok {
		return []byte(s), nil
	}
	return nil, fmt.Errorf("secret %s: there is none", ref)
}

// Env makes what a gateway gives a connector named "cloud". The problems that it reports are in the tracker.
func Env(t testing.TB, keys northbound.Keys) (northbound.Env, *health.Tracker) {
	t.Helper()
	to := slog.New(slog.NewTextHandler(t.Output(), nil))
	tracker := health.New(to, time.Now)
	return northbound.Env{
		Name: "cloud", Gateway: "gw1", Log: to, Health: tracker.For("connector cloud"), Keys: keys, State: t.TempDir(), Now: time.Now,
	}, tracker
}

// Broker is a cloud in this process, over TLS, that misbehaves as it is told.
type Broker struct {
	*broker.Broker
	CA   CA
	Addr string // host:port

	mu       sync.Mutex
	admitted func(*broker.Login) broker.Answer
	judged   func(string, broker.Message) broker.Verdict
	received []broker.Message          // guarded by mu
	delay    time.Duration             // guarded by mu
	fates    map[string]broker.Verdict // guarded by mu; by payload
	once     map[string]bool           // guarded by mu; fates that strike once
	limits   broker.Limits             // guarded by mu
	cut      int                       // guarded by mu; publications until the connection is dropped; 0: never
	away     bool                      // guarded by mu; nobody is let in
}

// NewBroker starts a broker that lives as long as the test. The hooks come before the knobs.
func NewBroker(t testing.TB, hooks broker.Options) *Broker {
	t.Helper()
	b := &Broker{CA: NewCA(t), admitted: hooks.Admit, judged: hooks.Published, fates: map[string]broker.Verdict{}, once: map[string]bool{}}
	hooks.Published, hooks.Admit = b.published, b.admit
	b.Broker = broker.New(hooks)
	b.Listen(t, b.CA.Server(t))
	return b
}

func (b *Broker) bind(t testing.TB) net.Listener {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.Addr = raw.Addr().String()
	return raw
}

// Listen serves with another TLS configuration, on an address of its own that Addr gives from then on.
func (b *Broker) Listen(t testing.TB, c *tls.Config) {
	t.Helper()
	raw := b.bind(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx, tls.NewListener(raw, c)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// ListenWeb serves MQTT over WebSocket, on an address of its own that Addr gives from then on.
func (b *Broker) ListenWeb(t testing.TB, c *tls.Config) {
	t.Helper()
	raw := b.bind(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var clients, served sync.WaitGroup
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			clients.Add(1)
			defer clients.Done()
			b.ServeHTTP(w, r)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(t.Output(), "", 0),
	}
	served.Go(func() { server.Serve(tls.NewListener(raw, c)) })
	t.Cleanup(func() {
		cancel()
		server.Close()
		served.Wait()
		clients.Wait()
	})
}

func (b *Broker) admit(l *broker.Login) broker.Answer {
	var a broker.Answer
	if b.admitted != nil {
		a = b.admitted(l)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return broker.Answer{Drop: true}
	}
	if a.Limits == (broker.Limits{}) {
		a.Limits = b.limits
	}
	return a
}

func (b *Broker) published(client string, m broker.Message) broker.Verdict {
	if b.judged != nil {
		if v := b.judged(client, m); v != (broker.Verdict{}) {
			return v
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.fates[string(m.Payload)]
	if b.once[string(m.Payload)] {
		delete(b.fates, string(m.Payload))
	}
	v.Delay = max(v.Delay, b.delay)
	if b.cut > 0 {
		if b.cut--; b.cut == 0 {
			v.Drop = true
		}
	}
	if !v.Drop && v.Kick == 0 && v.Code < 0x80 {
		b.received = append(b.received, m)
	}
	return v
}

// Delay confirms every publication that late from now on.
func (b *Broker) Delay(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delay = d
}

// Fate says what becomes of publications with that payload.
func (b *Broker) Fate(payload string, v broker.Verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fates[payload] = v
}

// FateOnce says what becomes of the next publication with that payload.
func (b *Broker) FateOnce(payload string, v broker.Verdict) {
	b.Fate(payload, v)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.once[payload] = true
}

// Announce sets the limits of CONNACK from now on.
func (b *Broker) Announce(l broker.Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = l
}

// Away breaks every connection and lets nobody in, until it is called with false.
func (b *Broker) Away(away bool) {
	b.mu.Lock()
	b.away = away
	b.mu.Unlock()
	if away {
		b.Drop("")
	}
}

// CutAfter drops the connection at the nth publication from now.
func (b *Broker) CutAfter(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = n
}

// Messages are the publications that were taken, in order, repeats included.
func (b *Broker) Messages() []broker.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]broker.Message(nil), b.received...)
}
