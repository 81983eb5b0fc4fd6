// Package coap is the listener for CoAP devices (RFC 7252), over DTLS 1.2, over TLS (RFC 8323) or, on loopback, in the clear.
//
// A report is a POST, PUT, PATCH or iPATCH on a resource; it is answered 2.04 only after the uplink has said yes. GET gives the last value, and FETCH
// parts of it where it is in SenML (RFC 8790); of other formats it is not known what a part is. A command
// goes to the device as a notification where the device observes the resource, else as a confirmable request. Resources that the
// configuration names are observed on devices, and what they notify is a report, too.
//
// Promises: who a device is comes from its credential. Nothing is kept for an address that has not answered a cookie, everything else is
// bounded, and over UDP there is no goroutine per device. A confirmable request is carried out once, however often it arrives within
// EXCHANGE_LIFETIME, as far as the last 128 of a device go. With a connection id everything about a device follows it to a new address;
// what it is sent there stays within three times of what has come from there until it has proved that it hears.
//
// What outlives the process, a kill -9 included, over DTLS where associations are kept: associations; devices' observations; for
// EXCHANGE_LIFETIME the message ids of a device's last eight confirmable requests and notifications with their answers, so that a repetition is not carried out
// again, unless the kill fell between the uplink's yes and its note, some microseconds later. What begins anew by the protocol: a payload of which
// blocks were to come (4.08, and the device sends it from the start); the gateway's observations (their tokens stay good, and they are renewed when
// the device is heard); commands (the bridge delivers them again); over TCP and without DTLS everything but last values, with the connection.
// Last values are written once a second, on any transport. After a power cut message ids may be lost, too: then a report whose answer was lost is
// taken twice.
//
// Over TLS devices show certificates: pre-shared keys, which RFC 8323 section 9 has too, are only spoken in DTLS, for Go's TLS does not have them.
//
// It is not a proxy, does no multicast, and knows no topic.
package coap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/slots"
)

// tick is the grain of timers.
const tick = 100 * time.Millisecond

// handshakers is how many handshakes with certificates may wait for a chip's signature at a time, and how many others are worked on beside them: those
// with pre-shared keys do not wait for a chip that is slow to sign. Established devices never wait for either.
const handshakers = 16

type listener struct {
	env           southbound.Env
	cfg           *Config
	dtls          *dtls.Config   // nil: security "none", or TCP
	dtlsInChip    *dtls.Config   // the same, with what chips can do with a PSK before what they cannot
	clientCAs     *x509.CertPool // nil: devices do not show certificates
	clientCANames [][]byte
	epoch         time.Time // what exchanges count their seconds from
	count         counters
	turns         sync.Pool  // of *turn
	pendings      sync.Pool  // of *pending
	jobs          chan *half // handshakes with something to do, by clients that offer PSKs
	signs         chan *half // the others
	wake          chan struct{}
	syncs         chan struct{} // sequence numbers wait to be reserved

	doneMu sync.Mutex
	done   []*pending // guarded by doneMu: outcomes of the uplink

	mu         sync.Mutex // guards all below, every session and every half but its hs
	serving    bool
	ctx        context.Context // of Serve, for PolicyChanged
	rules      uint64          // counts the calls of PolicyChanged
	up         southbound.Uplink
	sock       socket
	sources    map[netip.Addr][]byte // see from
	gate       *dtls.Gate
	byCID      map[dtls.CID]*session
	byAddr     map[netip.AddrPort]*session // those without a connection id
	byDevice   map[string][]*session       // the one heard of last stands last
	halves     map[netip.AddrPort]*half
	halfCID    map[dtls.CID]*half
	unclosed   []*half // dead, and the chip holds something for them
	waiting    pendingList
	timers     transmissions
	file       *slots.File // nil: associations are not kept
	reserves   []*session  // that wait for a sync
	assembling int         // octets of payloads that are not whole
	sweepAt    time.Time
	values     values
	limits     limiter
	refusedAt  time.Time // when a credential was refused last; zero: not lately
}

func open(env southbound.Env, cfg *Config) (*listener, error) {
	l := &listener{
		env: env, cfg: cfg, epoch: time.Now(),
		jobs: make(chan *half, cfg.MaxHandshakes), signs: make(chan *half, cfg.MaxHandshakes), wake: make(chan struct{}, 1), syncs: make(chan struct{}, 1),
		byCID: map[dtls.CID]*session{}, byAddr: map[netip.AddrPort]*session{}, byDevice: map[string][]*session{},
		sources: map[netip.Addr][]byte{}, halves: map[netip.AddrPort]*half{}, halfCID: map[dtls.CID]*half{}, limits: limiter{},
		values: values{limit: int(cfg.LastValues)},
	}
	l.turns.New = func() any { return &turn{l: l} }
	l.pendings.New = l.newPending
	if cfg.uses("x509") {
		var err error
		if l.clientCAs, l.clientCANames, err = readCA(string(cfg.DeviceCA)); err != nil {
			return nil, fmt.Errorf("device_ca: %w", err)
		}
	}
	if cfg.uses("none") || cfg.Transport == "tcp" {
		return l, nil
	}
	suites, err := cfg.suites()
	if err != nil {
		return nil, err
	}
	l.dtls = &dtls.Config{
		Suites: suites, ConnectionID: cfg.ConnectionID, MTU: 1200, Now: env.Now,
		PSK: l.psk, Peer: l.peer, Certificate: l.certificate, ClientCAs: l.clientCAs, ClientCANames: l.clientCANames,
	}
	if cfg.ECDHE == inChip {
		keys, ok := env.Keys.(southbound.EphemeralKeys)
		if !ok {
			return nil, errors.New("ecdhe: the key ring makes no keys for one agreement")
		}
		l.dtls.Ephemeral = func(ctx context.Context) (hwcrypto.Ephemeral, error) { return keys.Ephemeral(ctx, cfg.Key) }
	}
	chip := *l.dtls
	if len(cfg.Suites) == 0 { // an order that somebody has asked for stays
		chip.Suites = slices.Clone(suites)
		slices.SortStableFunc(chip.Suites, func(a, b *dtls.Suite) int { return rank(a) - rank(b) })
	}
	l.dtlsInChip = &chip
	return l, nil
}

// rank orders suites where devices have their PSKs in chips. The server has to choose before it hears which device it is.
func rank(s *dtls.Suite) int {
	switch {
	case s.PSKInChip():
		return 0
	case s.UsesPSK():
		return 1
	}
	return 2
}

func (l *listener) handshakeConfig() *dtls.Config {
	if c, ok := l.env.Auth.(auth.ChipPSKs); ok && c.PSKsInChip() {
		return l.dtlsInChip
	}
	return l.dtls
}

func (l *listener) psk(ctx context.Context, identity string) (dtls.PSK, any, error) {
	if c, ok := l.env.Auth.(auth.ChipPSKs); ok {
		if id, mac, err := c.PSKInChip(ctx, identity); mac != nil || err != nil {
			return dtls.PSK{MAC: mac}, &id, err
		}
	}
	id, key, err := l.env.Auth.PSK(ctx, identity)
	if errors.Is(err, auth.ErrUnknown) {
		return dtls.PSK{}, nil, dtls.ErrUnknownPSK
	}
	return dtls.PSK{Key: key}, &id, err
}

func (l *listener) peer(ctx context.Context, chain []*x509.Certificate) (any, error) {
	id, err := l.env.Auth.Certificate(ctx, l.env.Name, chain)
	return &id, err
}

func (l *listener) certificate(ctx context.Context) (*tls.Certificate, error) {
	return l.env.Keys.Certificate(ctx, l.cfg.Key)
}

// Serve implements southbound.Listener.
func (l *listener) Serve(ctx context.Context, up southbound.Uplink) error {
	if l.cfg.Transport == "tcp" {
		return l.serveStreams(ctx, up)
	}
	conn, err := l.bind(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	sock, err := newSocket(conn)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.up, l.sock, l.serving, l.ctx = up, sock, true, ctx
	l.gate = dtls.NewGate(time.Now())
	l.mu.Unlock()
	l.restore(ctx)
	kept := l.restoreValues()
	if l.env.Bound != nil {
		l.env.Bound(conn.LocalAddr())
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer func() { l.forget(ctx) }()
	defer wg.Wait()
	wg.Go(func() { l.complete(ctx) })
	wg.Go(func() { l.clock(ctx) })
	wg.Go(func() { l.syncKept(ctx) })
	wg.Go(func() { l.keepValues(ctx, kept) })
	if l.dtls != nil {
		for range handshakers {
			wg.Go(func() { l.handshake(ctx, l.jobs) })
			wg.Go(func() { l.handshake(ctx, l.signs) })
		}
	}
	err = l.read()
	if ctx.Err() != nil {
		err = nil
	}
	cancel(err)
	return err
}

func (l *listener) bind(ctx context.Context) (*net.UDPConn, error) {
	if l.env.Socket != nil {
		if _, pc := l.env.Socket(); pc != nil {
			conn, ok := pc.(*net.UDPConn)
			if !ok {
				return nil, fmt.Errorf("listen %s: the socket handed over is a %T", l.cfg.Listen, pc)
			}
			return conn, nil
		}
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", l.cfg.Listen)
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	// Bursts wait in the kernel; what it grants is up to net.core.rmem_max.
	_ = conn.SetReadBuffer(4 << 20)
	_ = conn.SetWriteBuffer(1 << 20)
	return conn, nil
}

// forget lets go of everything when Serve ends: commands hear that the device is not here, outcomes that come later find nobody.
func (l *listener) forget(ctx context.Context) {
	l.letGo(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = false
	for _, list := range l.byDevice {
		for _, s := range list {
			s.dead = true // but kept on disk
			s.slot = noSlot
			l.abandon(s)
		}
	}
	clear(l.byCID)
	clear(l.byAddr)
	clear(l.byDevice)
	clear(l.halves)
	clear(l.halfCID)
	l.waiting = pendingList{}
	l.timers, l.assembling, l.reserves = nil, 0, nil
	l.count.sessions.Store(0)
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			l.env.Log.Error("associations are not kept", "err", err)
		}
		l.file = nil
	}
	l.env.Health.ClearAll()
}

// letGo has the chip forget the handshakes under way, for which it has a second.
func (l *listener) letGo(ctx context.Context) {
	if l.cfg.ECDHE != inChip {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, h := range l.halves {
		h.hs.Close(ctx)
	}
	for _, h := range l.unclosed {
		h.hs.Close(ctx)
	}
	l.unclosed = nil
}

// clock drives everything that waits for time.
func (l *listener) clock(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			l.tick(now)
		}
	}
}

func (l *listener) tick(now time.Time) {
	t := l.begin(now)
	l.expirePending(t)
	l.retransmit(t)
	l.renewHalves(t)
	l.closeHalves()
	if now.After(l.sweepAt) {
		l.sweepAt = now.Add(10 * time.Second)
		l.sweep(t)
	}
	l.end(t)
	if l.env.Alive != nil {
		l.env.Alive()
	}
}

// complete answers what the uplink has decided on.
func (l *listener) complete(ctx context.Context) {
	var spare []*pending
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			spare = l.settle(time.Now(), spare)
		}
	}
}

// settle answers what has been decided. spare is used for what comes next; what it gives is spare the next time.
func (l *listener) settle(now time.Time, spare []*pending) []*pending {
	l.doneMu.Lock()
	list := l.done
	l.done = spare[:0]
	l.doneMu.Unlock()
	t := l.begin(now)
	for _, p := range list {
		if !p.s.dead {
			t.answer(p)
		}
		l.release(p)
	}
	l.end(t)
	clear(list)
	return list
}
