package coap

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// dialFrom connects to the listener from an address of loopback's network.
func dialFrom(t *testing.T, from string, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, to.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pskOptions(b *southtest.Bench, device string) dtlstest.Options {
	return dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_CCM_8", Identity: device, PSK: b.Secret(device)}
}

func limited(d southtest.Driver, change func(*Config)) southtest.Driver {
	with := d.Configure
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		with(s, cfg, listen)
		change(cfg.(*Config))
	}
	return d
}

// TestHandshakesThatAreLeftOpenMakeRoom opens many more handshakes than there may be, from one address, and leaves them there. Those of others get through.
func TestHandshakesThatAreLeftOpenMakeRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := southtest.Start(t, limited(driver(), func(c *Config) { c.MaxHandshakes = 8 }))
	slow := dialFrom(t, "127.0.0.3", b.Addr)
	if err := dtlstest.Leave(ctx, slow, pskOptions(b, "th-2")); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := dtlstest.Leave(ctx, dialFrom(t, "127.0.0.2", b.Addr), pskOptions(b, "th-1")); err != nil {
			t.Fatal(err)
		}
	}
	l := b.Listener.(*listener)
	l.mu.Lock()
	if len(l.halves) != 8 {
		t.Errorf("%d handshakes are under way", len(l.halves))
	}
	if l.halves[slow.LocalAddr().(*net.UDPAddr).AddrPort()] == nil {
		t.Error("the only handshake of an address made room for those of another")
	}
	l.mu.Unlock()
	if _, err := dtlstest.Handshake(ctx, dialFrom(t, "127.0.0.4", b.Addr), pskOptions(b, "th-1")); err != nil {
		t.Errorf("a device elsewhere: %v", err)
	}
	if f := figures(b); f["handshakes_refused"] != 33+1 {
		t.Errorf("%v", f)
	}
}

// TestWrongPSKsMakeTheirAddressWait has one address try keys.
func TestWrongPSKsMakeTheirAddressWait(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := southtest.Start(t, driver())
	wrong := pskOptions(b, "th-1")
	wrong.PSK = []byte("a guess")
	tries, began := 0, time.Now()
	for ; figures(b)["handshakes_refused"] == 0 && tries < 3*burstRefusals; tries++ {
		short, stop := context.WithTimeout(ctx, 5*time.Second) // one that is refused hears nothing
		refused := make(chan struct{})
		go func() { // until it is
			defer close(refused)
			for short.Err() == nil && figures(b)["handshakes_refused"] == 0 {
				time.Sleep(time.Millisecond)
			}
			stop()
		}()
		c := dialFrom(t, "127.0.0.2", b.Addr)
		context.AfterFunc(short, func() { c.SetReadDeadline(time.Now()) })
		if _, err := dtlstest.Handshake(short, c, wrong); err == nil {
			t.Fatal("a wrong key is let in")
		}
		stop()
		<-refused
	}
	most := burstRefusals + 2 + int64(time.Since(began)/refusalEvery)
	if f := figures(b); f["handshakes_refused"] == 0 || f["handshakes_failed_psk"] < burstRefusals || f["handshakes_failed_psk"] > most {
		t.Errorf("after %d tries: %v", tries, f)
	}
	if _, err := dtlstest.Handshake(ctx, dialFrom(t, "127.0.0.3", b.Addr), pskOptions(b, "th-1")); err != nil {
		t.Errorf("from another address: %v", err)
	}
}

// stuckKeys have a certificate whose key does not sign before the test lets it.
type stuckKeys struct {
	southbound.Keys
	asked chan struct{}
	let   chan struct{}
}

func (k stuckKeys) Certificate(ctx context.Context, name string) (*tls.Certificate, error) {
	c, err := k.Keys.Certificate(ctx, name)
	if err != nil {
		return nil, err
	}
	slow := *c
	slow.PrivateKey = stuckSigner{c.PrivateKey.(crypto.Signer), k}
	return &slow, nil
}

type stuckSigner struct {
	crypto.Signer
	k stuckKeys
}

func (s stuckSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.k.asked <- struct{}{}
	<-s.k.let
	return nil, errors.New("the chip has hung")
}

// TestAChipThatHangsHoldsUpNobodyElse has every worker wait for a signature. Established devices and those with PSKs are served.
func TestAChipThatHangsHoldsUpNobodyElse(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	keys := stuckKeys{asked: make(chan struct{}, 10*handshakers), let: make(chan struct{})}
	b := southtest.Start(t, inEnv(driver(), func(env *southbound.Env) {
		keys.Keys = env.Keys
		env.Keys = keys
	}))
	dev := b.Device(ctx, t, "th-1")
	for range 2 * handshakers {
		c := dialFrom(t, "127.0.0.2", b.Addr)
		go dtlstest.Leave(ctx, c, dtlstest.Options{Suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Roots: b.Roots})
	}
	for range handshakers {
		select {
		case <-keys.asked:
		case <-ctx.Done():
			t.Fatal("the workers do not wait for the chip")
		}
	}
	for i := range 10 {
		if code, err := dev.Report(ctx, "/sensors/temp", "", fmt.Append(nil, i)); err != nil || code != "2.04" {
			t.Fatalf("an established device: %s, %v", code, err)
		}
	}
	if _, err := dtlstest.Handshake(ctx, dialFrom(t, "127.0.0.3", b.Addr), pskOptions(b, "th-2")); err != nil {
		t.Errorf("a device with a PSK: %v", err)
	}
	close(keys.let)
}

// TestEvictionByLeastValue fills the listener: first go associations that their own device has replaced, then those silent for longest.
func TestEvictionByLeastValue(t *testing.T) {
	l := dtlsListener(t)
	l.cfg.MaxDevices = 4
	now := time.Now()
	add := func(device string, port uint16, silent time.Duration) *session {
		s := &session{
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), port), since: now, seen: now.Add(-silent),
			id: &auth.Identity{Device: device, Method: "psk"}, credit: unlimited, slot: noSlot,
		}
		turn := l.begin(now)
		defer l.end(turn)
		l.add(turn, s)
		return s
	}
	replaced := add("a", 1, time.Minute)
	a := add("a", 2, 2*time.Hour)
	b := add("b", 3, 3*time.Hour)
	c := add("c", 4, time.Hour)
	for i, want := range []*session{replaced, b, a, c} {
		add(fmt.Sprintf("new-%d", i), uint16(100+i), 0)
		var gone []bool
		for _, s := range []*session{replaced, a, b, c} {
			gone = append(gone, s.dead)
		}
		if !want.dead {
			t.Fatalf("the wrong one has gone: %v", gone)
		}
		if n := bytes.Count(fmt.Append(nil, gone), []byte("true")); int64(n) != l.count.evicted.Load() {
			t.Fatalf("%d have gone, %d were evicted", n, l.count.evicted.Load())
		}
	}
}
