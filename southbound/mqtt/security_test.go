package mqtt

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func TestSilentConnectionIsClosed(t *testing.T) {
	for name, d := range map[string]southtest.Driver{
		"before the TLS handshake": func() southtest.Driver {
			d := driver5
			d.Configure = func(s *southtest.Site, cfg any, listen string) {
				configure(s, cfg, listen)
				cfg.(*Config).ConnectTimeout = config.Duration(time.Second)
			}
			return d
		}(),
		"before CONNECT": plain(func(c *Config) { c.ConnectTimeout = config.Duration(time.Second) }),
	} {
		t.Run(name, func(t *testing.T) {
			b := southtest.Start(t, d)
			began := time.Now()
			open(t, b).closed(0)
			if d := time.Since(began); d < 900*time.Millisecond {
				t.Errorf("closed after %v", d)
			}
		})
	}
}

func TestFloodCostsTheFlooder(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxHalfOpen = 5 }))
	first := open(t, b)
	for range 5 {
		open(t, b)
	}
	first.closed(0) // the oldest of the flood makes room
	_, ack := connect5(t, b, "device", nil)
	if ack.ReasonCode != 0 {
		t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
	}
}

func TestConnectRate(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxConnectRate = 3 }))
	open := 0
	began := time.Now()
	for range 6 {
		if _, err := open5(t, b).read(patience); err == nil {
			open++
		}
	}
	if d := time.Since(began); open < 3 || float64(open) > 3+3*d.Seconds() {
		t.Errorf("%d of 6 connections in a row were let in within %v, want 3 and those of the time it took", open, d)
	}
}

// open5 connects and sends CONNECT, whatever comes of it.
func open5(t *testing.T, b *southtest.Bench) *wire {
	w := open(t, b)
	_ = write(w.nc, &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, CleanStart: true, Properties: &packets5.Properties{}})
	return w
}

func TestLargeConnectIsNotRead(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	w := open(t, b)
	w.raw("\x10\x80\x80\x02\x00\x04MQTT") // says 32 KiB and a little
	w.closed(0)
}

func TestClientIDs(t *testing.T) {
	creds := func(device string) func(*packets5.Connect) {
		return func(c *packets5.Connect) {
			durable(c)
			c.UsernameFlag, c.Username = true, device
			c.PasswordFlag, c.Password = true, []byte("southtest-secret-of-"+device)
		}
	}
	password := func(change func(*Config)) southtest.Driver {
		return plain(func(c *Config) {
			c.Auth = []string{"password"}
			if change != nil {
				change(c)
			}
		})
	}
	t.Run("bound: equal ids of two devices are two sessions", func(t *testing.T) {
		b := southtest.Start(t, password(nil))
		one, _ := connect5(t, b, "same", creds("th-1"))
		_, ack := connect5(t, b, "same", creds("th-2"))
		if ack.SessionPresent {
			t.Error("a device was given the session of another")
		}
		one.publish("still/here", "", 1, 1, nil)
	})
	t.Run("free: the id changes hands, what was stored for it does not", func(t *testing.T) {
		b := southtest.Start(t, password(func(c *Config) { c.ClientID = "free" }))
		one, _ := connect5(t, b, "same", creds("th-1"))
		one.subscribe("secret", 1)
		_, ack := connect5(t, b, "same", creds("th-2"))
		if ack.SessionPresent {
			t.Error("a device was given the session of another")
		}
		one.closed(0x8e)
	})
	t.Run("refuse: the first connection stays", func(t *testing.T) {
		b := southtest.Start(t, password(func(c *Config) { c.Takeover = "refuse" }))
		one, _ := connect5(t, b, "same", creds("th-1"))
		_, ack := connect5(t, b, "same", creds("th-1"))
		if ack.ReasonCode != 0x85 {
			t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
		}
		one.publish("still/here", "", 1, 1, nil)
	})
}

func TestTokens(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.Auth = []string{"jwt"} }))
	// The site takes a device's secret for its token, and needs its name as user name.
	b.AddDevice("th-1", southtest.Account{Secret: []byte("token-1"), Expires: time.Now().Add(3 * time.Second)})
	with := func(token string) func(*packets5.Connect) {
		return func(c *packets5.Connect) {
			c.UsernameFlag, c.Username = true, "th-1"
			c.Properties.AuthMethod, c.Properties.AuthData = "OAUTHBEARER", []byte("n,,\x01auth=Bearer "+token+"\x01\x01")
		}
	}
	if _, ack := connect5(t, b, "x", with("wrong")); ack.ReasonCode != 0x86 {
		t.Errorf("CONNACK 0x%02x for a wrong token", ack.ReasonCode)
	}
	stale, _ := connect5(t, b, "stale", with("token-1"))
	fresh, ack := connect5(t, b, "fresh", with("token-1"))
	if ack.ReasonCode != 0 || ack.Properties.AuthMethod != "OAUTHBEARER" {
		t.Fatalf("CONNACK %+v", ack)
	}
	b.AddDevice("th-1", southtest.Account{Secret: []byte("token-2"), Expires: time.Now().Add(time.Hour)})
	renew := func(w *wire, token string) {
		w.send(&packets5.Auth{ReasonCode: 0x19, Properties: &packets5.Properties{AuthMethod: "OAUTHBEARER", AuthData: []byte("n,,\x01auth=Bearer " + token + "\x01\x01")}})
	}
	renew(fresh, "token-2")
	if a := expect[*packets5.Auth](fresh); a.ReasonCode != 0 {
		t.Errorf("AUTH 0x%02x", a.ReasonCode)
	}
	stale.closed(0xa0) // its token has run out
	fresh.publish("sensors/temp", "", 1, 1, nil)
	renew(fresh, "token-3")
	fresh.closed(0x87)
}

func TestRevokedCertificate(t *testing.T) {
	site := southtest.NewSite(t)
	good, bad := site.Issue(t, "th-1"), site.Issue(t, "th-2")
	leaf, err := x509.ParseCertificate(bad.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	crl := filepath.Join(site.Dir, "devices.crl")
	if err := os.WriteFile(crl, site.Revoke(t, leaf.SerialNumber), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := defaults()
	configure(site, cfg, "127.0.0.1:0")
	cfg.DeviceCRL = config.Path(crl)
	bound := make(chan net.Addr, 1)
	env := site.Env(t, "field")
	env.Bound = func(a net.Addr) { bound <- a }
	l, err := NewKind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx, southtest.NewUplink()) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	addr := <-bound
	for name, c := range map[string]struct {
		cert tls.Certificate
		ok   bool
	}{"good": {good, true}, "revoked": {bad, false}} {
		conf := clientTLS(site)
		conf.Certificates = []tls.Certificate{c.cert}
		nc, err := tls.Dial("tcp", addr.String(), conf)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w := &wire{t: t, nc: nc}
		// With TLS 1.3 a client learns only now what the server thinks of its certificate.
		var heard packets5.Packet
		err = write(nc, &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, CleanStart: true, Properties: &packets5.Properties{}})
		if err == nil {
			heard, err = w.read(patience)
		}
		if (err == nil) != c.ok {
			t.Errorf("%s: heard %v, %v", name, heard, err)
		}
		nc.Close()
	}
	// A list that another CA has signed is not taken.
	if err := os.WriteFile(crl, southtest.NewSite(t).Revoke(t, big.NewInt(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = NewKind().Open(env, cfg); err == nil {
		err = l.Serve(t.Context(), southtest.NewUplink())
	}
	if err == nil {
		t.Error("a foreign revocation list was taken")
	}
}

func TestReloadRemovesADevice(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.Auth = []string{"password"} }))
	w, _ := connect5(t, b, "x", func(c *packets5.Connect) {
		c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = true, "th-1", true, b.Secret("th-1")
	})
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	w.publish("sensors/temp", "", 1, 1, nil)
	b.RemoveDevice("th-1")
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	w.closed(0x87)
}

func TestRateOfADevice(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxRate = 3 }))
	w, _ := connect5(t, b, "x", nil)
	taken := 0
	began := time.Now()
	for i := range 6 {
		if code := w.publish("sensors/temp", "", 1, uint16(i+1), nil); code != 0x96 {
			taken++
		}
	}
	if d := time.Since(began); taken < 3 || float64(taken) > 3+3*d.Seconds() {
		t.Errorf("%d of 6 taken within %v, want 3 and those of the time it took", taken, d)
	}
}

func TestSlowConsumerIsBounded(t *testing.T) {
	for full, want := range map[string]string{"drop-new": "000", "drop-old": "005"} {
		t.Run(full, func(t *testing.T) {
			b := southtest.Start(t, plain(func(c *Config) { c.MaxQueued, c.QueueFull = 5, full }))
			sub, _ := connect5(t, b, "sub", durable)
			sub.subscribe("a", 1)
			sub.goodbye()
			pub, _ := connect5(t, b, "pub", nil)
			for i := range 10 {
				pub.publish("a", numbered(i), 1, uint16(i+1), nil)
			}
			sub, _ = connect5(t, b, "sub", durable)
			sub.hears("a", want)
			for range 4 {
				sub.take()
			}
			sub.silence()
			if n := b.Listener.(southbound.Counters).Counters()["messages_dropped"]; n != 5 {
				t.Errorf("%d counted as dropped, want 5", n)
			}
		})
	}
}

// hanging is a key whose chip does not answer as long as it is held.
type hanging struct {
	southbound.Keys
	crypto.Signer
	mu      sync.Mutex
	held    chan struct{} // guarded by mu; nil: it answers
	patient atomic.Int32  // signatures that were asked for in place
}

func (h *hanging) hold() (let func()) {
	held := make(chan struct{})
	h.mu.Lock()
	h.held = held
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		h.held = nil
		h.mu.Unlock()
		close(held)
	}
}

func (h *hanging) Certificate(ctx context.Context, name string) (*tls.Certificate, error) {
	c, err := h.Keys.Certificate(ctx, name)
	if err != nil {
		return nil, err
	}
	own := *c
	h.Signer, own.PrivateKey = c.PrivateKey.(crypto.Signer), h
	return &own, nil
}

func (h *hanging) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if hwcrypto.Patience(ctx) != nil {
		h.patient.Add(1)
	}
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if held != nil {
		<-held
	}
	return h.Sign(rand.Reader, digest, opts)
}

func TestHandshakeThatHangsWithTheChipIsLeftBehind(t *testing.T) {
	h := &hanging{}
	d := driver5
	d.Kind = func() southbound.Kind {
		k := NewKind()
		listen := k.Open
		k.Open = func(env southbound.Env, cfg any) (southbound.Listener, error) {
			h.Keys = env.Keys
			env.Keys = h
			return listen(env, cfg)
		}
		return k
	}
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		configure(s, cfg, listen)
		cfg.(*Config).ConnectTimeout = config.Duration(time.Second)
	}
	b := southtest.Start(t, d)
	b.AddDevice("device", southtest.Account{Secret: []byte("secret")})
	let := h.hold()
	if _, err := d.Dial(t.Context(), b.Site, b.Addr, "device", []byte("secret")); err == nil {
		t.Error("connected while the chip hangs")
	}
	if h.patient.Load() != 1 {
		t.Error("the signature was not asked for in place")
	}
	let()
	b.Device(t.Context(), t, "device")
	let = h.hold()
	defer let()
	if _, err := d.Dial(t.Context(), b.Site, b.Addr, "device", []byte("secret")); err == nil {
		t.Error("connected while the chip hangs")
	}
	if err := b.Stop(); err != nil {
		t.Errorf("while a handshake hangs: %v", err)
	}
}
