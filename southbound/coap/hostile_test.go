package coap

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// mutate changes a datagram a little.
func mutate(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(3) {
		switch i := r.IntN(len(b)); r.IntN(4) {
		case 0:
			b[i] ^= 1 << r.IntN(8)
		case 1:
			b[i] = byte(r.Uint32())
		case 2:
			b = b[:i+1]
		case 3:
			b = append(b, b[i:]...)
		}
	}
	return b
}

// TestMutatedDatagramsLeaveItServing sends with each datagram of two devices, handshakes included, mutated copies of it from the same
// address, and mutated and random ones from elsewhere.
func TestMutatedDatagramsLeaveItServing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := southtest.Start(t, driver())
	r := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	sent := 0
	elsewhere, err := net.DialUDP("udp", nil, b.Addr.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	watch := newWatcher(t, b.Addr.(*net.UDPAddr), func(watch *watcher, d []byte) {
		mu.Lock()
		defer mu.Unlock()
		for range 20 {
			// An unauthenticated hello or handshake message of the right address can spoil a handshake that is under way; nothing spoils
			// an association.
			if m := mutate(r, d); d[0] == 25 {
				watch.back.WriteTo(m, watch.server)
			}
			elsewhere.Write(mutate(r, d))
			noise := make([]byte, r.IntN(100))
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			elsewhere.Write(noise)
			sent += 2
		}
	})
	dev, err := dialGoCoAP(ctx, b.Site, watch.addr(), "th-1", b.Secret("th-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for i := range 60 {
		if code, err := dev.Report(ctx, "/sensors/temp", "", fmt.Append(nil, i)); err != nil || code != "2.04" {
			t.Fatalf("report %d: %s, %v", i, code, err)
		}
	}
	if code, err := b.Device(ctx, t, "th-2").Report(ctx, "/sensors/temp", "", nil); err != nil || code != "2.04" {
		t.Fatalf("another device: %s, %v", code, err)
	}
	for i, m := range b.Up.Messages()[:60] {
		if string(m.Payload) != fmt.Sprint(i) {
			t.Errorf("message %d is %q", i, m.Payload)
		}
	}
	mu.Lock()
	if sent < 2000 {
		t.Errorf("only %d datagrams were sent", sent)
	}
	mu.Unlock()
	// The unauthenticated datagrams that once ended associations elsewhere: application data and unknown types of epoch 0.
	for typ := range 256 {
		elsewhere.Write([]byte{byte(typ), 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0})
		watch.back.WriteTo([]byte{byte(typ), 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 2, 0}, watch.server)
	}
	if code, err := dev.Report(ctx, "/sensors/temp", "", nil); err != nil || code != "2.04" {
		t.Errorf("after noise of epoch 0: %s, %v", code, err)
	}
}

// TestFloodOfHellosLeavesDevicesTheirRate prints a device's rate with and without a flood of ClientHellos. What it holds them to is that the
// device is served and nothing is kept: the flood itself takes a core of the same machine.
func TestFloodOfHellosLeavesDevicesTheirRate(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := southtest.Start(t, driver())
	dev := b.Device(ctx, t, "th-1")
	rate := func() (n int) {
		for end := time.Now().Add(time.Second); time.Now().Before(end); n++ {
			if code, err := dev.Report(ctx, "/sensors/temp", "", nil); err != nil || code != "2.04" {
				t.Fatalf("report: %s, %v", code, err)
			}
		}
		return n
	}
	quiet := rate()
	hello, err := hex.DecodeString(helloWithoutCookie)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	flooded := 0
	wg.Go(func() {
		c, err := net.DialUDP("udp", nil, b.Addr.(*net.UDPAddr))
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		pause := time.NewTicker(5 * time.Millisecond)
		defer pause.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pause.C:
			}
			for range 100 { // 20,000 in a second
				c.Write(hello)
				flooded++
			}
		}
	})
	during := rate()
	close(stop)
	wg.Wait()
	f := b.Listener.(southbound.Counters).Counters()
	t.Logf("%d reports in a second, %d during %d hellos; %v", quiet, during, flooded, f["challenges"])
	if f["handshakes_open"] != 0 || f["sessions"] != 1 {
		t.Errorf("%v", f)
	}
	if during == 0 {
		t.Errorf("%d reports in a second became %d", quiet, during)
	}
}

// TestTenThousandAssociationsAreBackAtOnce measures what a restart takes.
func TestTenThousandAssociationsAreBackAtOnce(t *testing.T) {
	const n = 10_000
	site := southtest.NewSite(t)
	cfg := Kind().Config().(*Config)
	cfg.Security, cfg.Key, cfg.Listen = []string{"psk"}, "identity", "127.0.0.1:0"
	env := site.Env(t, "field")
	env.Keys = sealingKeys{env.Keys}
	for i := range n {
		site.AddDevice(fmt.Sprintf("dev-%d", i), southtest.Account{Secret: []byte("x")})
	}
	start := func() (l *listener, took time.Duration, stop func()) {
		bound := make(chan net.Addr, 1)
		env.Bound = func(a net.Addr) { bound <- a }
		l, err := open(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- l.Serve(ctx, yes{}) }()
		<-bound
		took = time.Since(began)
		return l, took, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	l, _, stop := start()
	devices := pairs(t, l, "TLS_PSK_WITH_AES_128_GCM_SHA256", n)
	turn := l.begin(time.Now())
	for _, list := range l.byDevice {
		l.keep(list[0])
	}
	l.end(turn)
	stop()
	l, took, stop := start()
	t.Logf("%d associations were back after %v; %d octets of state each", n, took, 512)
	if got := l.Counters()["restored"]; got != n {
		t.Errorf("%d were restored", got)
	}
	if r, err := l.Deliver(expired(t), msg.Message{Device: "dev-77", Method: "PUT", Resource: "/x"}); err == nil {
		t.Errorf("reply %+v", r)
	}
	if l.Counters()["commands"] != 1 {
		t.Error("the command was not sent")
	}
	stop()
	_ = devices
}

// expired gives a context that ends soon.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}
