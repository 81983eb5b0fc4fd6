package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// NewKind makes the kind "mqtt". All listeners of one NewKind share one topic space and one set of sessions.
func NewKind() southbound.Kind {
	b := newBroker()
	return southbound.Kind{
		Type:   "mqtt",
		Config: func() any { return defaults() },
		Open: func(env southbound.Env, cfg any) (southbound.Listener, error) {
			c, ok := cfg.(*Config)
			if !ok {
				return nil, fmt.Errorf("mqtt: configuration of type %T", cfg)
			}
			return &listener{env: env, cfg: c, broker: b, conns: map[*conn]struct{}{}}, nil
		},
	}
}

type listener struct {
	env     southbound.Env
	cfg     *Config
	broker  *broker
	up      southbound.Uplink // set by Serve
	ctx     context.Context   // of Serve
	tls     *tls.Config
	store   *store // set by Serve
	chunks  chunks
	count   counters
	trouble trouble
	lobby   lobby
	wg      sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{} // guarded by mu
}

// sweepEvery is how exact delayed wills and session expiry are.
const sweepEvery = 250 * time.Millisecond

// Serve implements southbound.Listener.
func (l *listener) Serve(ctx context.Context, up southbound.Uplink) error {
	l.up = up
	l.lobby.limit, l.lobby.rate = l.cfg.MaxHalfOpen, l.cfg.MaxConnectRate
	if l.cfg.tls() {
		t, err := l.tlsConfig(ctx)
		if err != nil {
			return err
		}
		l.tls = t
	}
	ln, err := l.bind()
	if err != nil {
		return fmt.Errorf("listen on %q: %w", l.cfg.Listen, err)
	}
	if l.store, err = openStore(l.env.State, l.env.Health); err != nil {
		return errors.Join(err, ln.Close())
	}
	go l.store.run() // close waits for it
	if err := l.broker.load(l); err != nil {
		return errors.Join(err, ln.Close(), l.store.close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.ctx = ctx
	if l.env.Bound != nil {
		l.env.Bound(ln.Addr())
	}
	l.wg.Go(func() { l.tend(ctx) })
	l.wg.Go(func() {
		<-ctx.Done()
		ln.Close()
		l.lobby.clear()
	})
	l.accept(ctx, ln)
	cancel()
	l.each(func(c *conn) {
		c.stopReading(&ending{code: packet.ServerShuttingDown, text: "the gateway stops"})
	})
	l.wg.Wait()
	l.broker.leave(l)
	return l.store.close()
}

func (l *listener) bind() (net.Listener, error) {
	if l.env.Socket != nil {
		if ln, _ := l.env.Socket(); ln != nil {
			return ln, nil
		}
	}
	return net.Listen("tcp", l.cfg.Listen)
}

func (l *listener) tlsConfig(ctx context.Context) (*tls.Config, error) {
	cert, err := l.env.Keys.Certificate(ctx, l.cfg.Key)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Time: l.env.Now, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return hwcrypto.CertificateFor(h.Context(), cert), nil
	}}
	if l.cfg.DeviceCA == "" {
		return t, nil
	}
	pem, err := os.ReadFile(string(l.cfg.DeviceCA))
	if err != nil {
		return nil, fmt.Errorf("device_ca: %w", err)
	}
	t.ClientCAs = x509.NewCertPool()
	if !t.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("device_ca: %q holds no certificate", l.cfg.DeviceCA)
	}
	t.ClientAuth = tls.VerifyClientCertIfGiven
	if slices.Equal(l.cfg.Auth, []string{"x509"}) {
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if l.cfg.DeviceCRL != "" {
		crl, err := readCRL(string(l.cfg.DeviceCRL), pem)
		if err != nil {
			return nil, fmt.Errorf("device_crl: %w", err)
		}
		t.VerifyConnection = crl.verify
	}
	return t, nil
}

// accept takes connections until ctx ends. Running out of file descriptors only makes it pause.
func (l *listener) accept(ctx context.Context, ln net.Listener) {
	pause := 10 * time.Millisecond
	for {
		nc, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return
		}
		if err != nil {
			l.trouble.note("accept", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 10 * time.Millisecond
		l.count.accepted.Add(1)
		if l.count.sessions.Load() >= int64(l.cfg.MaxConnections) || !l.lobby.within(nc, time.Now()) {
			l.count.connectionsRefused.Add(1)
			nc.Close()
			continue
		}
		g := l.lobby.enter(nc)
		l.wg.Go(func() { l.greet(ctx, nc, g) })
	}
}

// greet brings a connection to the point where it is logged in, then hands it to a goroutine of its own: the stack that the log-in
// has grown is not kept for as long as the connection lasts.
func (l *listener) greet(ctx context.Context, nc net.Conn, g *guest) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(l.cfg.ConnectTimeout))
	defer cancel()
	rules := l.broker.rules.Load()
	c, buf, err := l.login(ctx, nc)
	if !l.lobby.leave(g) && err == nil {
		err = errors.New("closed to make room")
	}
	if err != nil {
		nc.Close()
		if c != nil {
			c.out.kill()
			c.out.finish(nil)
			c.session.detach(c)
		}
		l.count.connectionsFailed.Add(1)
		l.trouble.note("connection", err)
		return
	}
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	l.count.sessions.Add(1)
	if l.ctx.Err() != nil { // Serve may have gone through conns already
		c.stopReading(&ending{code: packet.ServerShuttingDown, text: "the gateway stops"})
	}
	l.wg.Go(func() {
		hears := c.hears()
		if l.broker.rules.Load() != rules { // since before the log-in, and PolicyChanged may have gone through conns already
			hears = l.review(c)
		}
		if hears {
			c.awake()
		}
		c.serve(l.ctx, buf)
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
		l.count.sessions.Add(-1)
	})
}

func (l *listener) login(ctx context.Context, nc net.Conn) (*conn, []byte, error) {
	if err := nc.SetDeadline(time.Now().Add(time.Duration(l.cfg.ConnectTimeout))); err != nil {
		return nil, nil, err
	}
	var chain []*x509.Certificate
	if l.tls != nil {
		t := tls.Server(nc, l.tls)
		nc = t
		var err error
		if chain, err = handshake(ctx, t); err != nil {
			l.count.handshakesFailed.Add(1)
			return nil, nil, fmt.Errorf("TLS handshake: %w", err)
		}
		l.count.handshakes.Add(1)
	}
	if l.cfg.Transport == "websocket" {
		w, err := upgrade(l.ctx, nc)
		if err != nil {
			return nil, nil, err
		}
		if err := nc.SetDeadline(time.Time{}); err != nil {
			return nil, nil, err
		}
		nc = w
		if err := nc.SetDeadline(time.Now().Add(time.Duration(l.cfg.ConnectTimeout))); err != nil {
			return nil, nil, err
		}
	}
	return l.open(ctx, nc, chain)
}

// each calls f for every connection that is logged in.
func (l *listener) each(f func(*conn)) {
	l.mu.Lock()
	all := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}

// tend sees to what time brings about.
func (l *listener) tend(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var storm storm
	for {
		select {
		case <-tick.C:
			storm.watch(l.count.accepted.Load())
			l.broker.sweep(l)
			now := l.env.Now()
			l.trouble.flush(l.env.Log, now)
			l.each(func(c *conn) {
				if id := c.ident.Load(); !id.Expires.IsZero() && !now.Before(id.Expires) {
					c.stopReading(&ending{code: packet.MaximumConnectTime, text: "the credential has expired"})
				}
			})
			if l.env.Alive != nil {
				l.env.Alive()
			}
		case <-ctx.Done():
			return
		}
	}
}

// storm watches for the end of a rush of connections. What its handshakes leave behind is as much as what the connections
// keep, and a process that has gone quiet would not collect it for minutes.
type storm struct {
	seen    int64 // connections at the last look
	tidied  int64 // connections when memory was last given back
	calmFor int   // looks without a new connection
}

const (
	stormSize = 500
	stormCalm = int(2 * time.Second / sweepEvery)
)

func (s *storm) watch(accepted int64) {
	if accepted != s.seen {
		s.seen, s.calmFor = accepted, 0
		return
	}
	if s.calmFor++; s.calmFor == stormCalm && s.seen-s.tidied >= stormSize {
		s.tidied = s.seen
		debug.FreeOSMemory()
	}
}

// Devices implements southbound.Inventory.
func (l *listener) Devices(yield func(southbound.DeviceInfo) bool) {
	for _, s := range l.broker.all() {
		if info, ok := s.describe(l); ok && !yield(info) {
			return
		}
	}
}

// describe tells of a session, if it belongs to l.
func (s *session) describe(l *listener) (info southbound.DeviceInfo, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.home != l || s.gone {
		return info, false
	}
	info = southbound.DeviceInfo{
		Device: s.device.name, Listener: l.env.Name, Since: s.since, LastSeen: s.left, Queued: len(s.queue) + len(s.inflight),
	}
	if c := s.conn; c != nil {
		id := c.ident.Load()
		info.Connected, info.Address, info.LastSeen = true, c.remote, time.Unix(c.lastSeen.Load(), 0)
		info.Groups, info.Auth = id.Groups, id.Method
		info.Protocol = "MQTT 3.1.1"
		if c.version == packet.V5 {
			info.Protocol = "MQTT 5"
		}
	}
	return info, true
}

// Disconnect implements southbound.Inventory. What the sessions have stored goes too.
func (l *listener) Disconnect(name string) (n int) {
	for _, s := range l.broker.all() {
		if s.device.name == name && l.broker.evict(s, l) {
			n++
		}
	}
	return n
}

// PolicyChanged implements southbound.PolicyChanged.
func (l *listener) PolicyChanged() {
	l.broker.rules.Add(1)
	l.each(func(c *conn) { l.review(c) })
	l.broker.rules.Add(1) // what was looked up meanwhile may be for a former identity
}

// review looks up again who the device of a connection is, and what it may hear. It tells whether the session hears anything.
func (l *listener) review(c *conn) bool {
	if refresher, ok := l.env.Auth.(auth.Refresher); ok {
		id, err := refresher.Refresh(l.ctx, *c.ident.Load())
		if err != nil {
			c.disown()
			c.stopReading(&ending{code: packet.NotAuthorized, text: "the device is no longer known"})
			return false
		}
		c.ident.Store(&id)
	}
	return c.reconsider()
}
