package coap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// sealingKeys seal with a key of the test.
type sealingKeys struct{ southbound.Keys }

func (sealingKeys) Sealer(context.Context, string) (hwcrypto.Sealer, error) {
	b, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCMWithRandomNonce(b)
	return testSealer{a}, err
}

type testSealer struct{ aead cipher.AEAD }

func (s testSealer) Seal(_ context.Context, plain, aad []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, aad), nil
}

func (s testSealer) Unseal(_ context.Context, sealed, aad []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, aad)
}

// sealing makes a driver's listener keep its associations.
func sealing(d southtest.Driver) southtest.Driver {
	d.Kind = func() southbound.Kind {
		k := Kind()
		open := k.Open
		k.Open = func(env southbound.Env, cfg any) (southbound.Listener, error) {
			env.Keys = sealingKeys{env.Keys}
			return open(env, cfg)
		}
		return k
	}
	return d
}

func TestListenerThatKeepsAssociationsKeepsTheContract(t *testing.T) {
	southtest.Run(t, sealing(driver()))
}

func figures(b *southtest.Bench) map[string]int64 { return b.Listener.(southbound.Counters).Counters() }

func TestAssociationsSurviveARestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b := southtest.Start(t, sealing(driver()))
	dev := b.Device(ctx, t, "th-1")
	if err := dev.Expose(ctx, "/actuators/setpoint", func(p []byte) []byte { return append([]byte("got "), p...) }); err != nil {
		t.Fatal(err)
	}
	for restart := range 4 {
		for i := range 3 {
			if code, err := dev.Report(ctx, "/sensors/temp", "", []byte{byte('0' + i)}); err != nil || code != "2.04" {
				t.Fatalf("restart %d: %s, %v", restart, code, err)
			}
		}
		r, err := b.Listener.Deliver(ctx, msg.Message{Device: "th-1", Method: "PUT", Resource: "/actuators/setpoint", Payload: []byte("21")})
		if err != nil || string(r.Payload) != "got 21" {
			t.Fatalf("restart %d: command: %+v, %v", restart, r, err)
		}
		if f := figures(b); restart > 0 && (f["handshakes_ok"] != 0 || f["restored"] != 1) {
			t.Fatalf("restart %d: %d handshakes, %d restored", restart, f["handshakes_ok"], f["restored"])
		}
		if err := b.Stop(); err != nil {
			t.Fatal(err)
		}
		b.Serve(t, b.Addr.String())
	}
	// A device that the configuration no longer has does not come back.
	b.RemoveDevice("th-1")
	b.Stop()
	b.Serve(t, b.Addr.String())
	if f := figures(b); f["sessions"] != 0 {
		t.Errorf("%d sessions", f["sessions"])
	}
}

// TestServeForAnother is a gateway in a process of its own, for TestAssociationsSurviveKill to kill.
func TestServeForAnother(t *testing.T) {
	dir := os.Getenv("DRAWBRIDGE_TEST_SERVE")
	if dir == "" {
		t.Skip("it serves another test")
	}
	weight := make([]byte, 24<<20) // as the gateway has it, so that a small heap is not collected all the time
	defer runtime.KeepAlive(weight)
	site := southtest.NewSite(t)
	for i := range 32 {
		name := fmt.Sprintf("dev-%d", i)
		site.AddDevice(name, southtest.Account{Secret: []byte("southtest-secret-of-" + name)})
	}
	if dir := os.Getenv("DRAWBRIDGE_TEST_ISSUE"); dir != "" {
		issueInto(t, site, dir)
	}
	env := site.Env(t, "field")
	env.State = dir
	env.Keys = sealingKeys{env.Keys}
	env.Bound = func(a net.Addr) { fmt.Printf("\nbound %s\n", a) }
	cfg := Kind().Config().(*Config)
	cfg.Listen, cfg.Key, cfg.DeviceCA = os.Getenv("DRAWBRIDGE_TEST_LISTEN"), "identity", config.Path(site.CAFile)
	if resource := os.Getenv("DRAWBRIDGE_TEST_OBSERVE"); resource != "" {
		cfg.Observe = []string{resource}
	}
	l, err := open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("DRAWBRIDGE_TEST_SILENT") != "" {
		l.env.Awake = nil // the site would note each
		l.Serve(t.Context(), yes{})
		return
	}
	up := southtest.NewUplink()
	up.Decide(func(m *msg.Message) error {
		f := l.Counters()
		fmt.Printf("\ntook %s\nrebound %d %d\n", m.Payload, f["rebound"], f["handshakes_ok"])
		return nil
	})
	l.Serve(t.Context(), up)
}

// issueInto puts the site's CA and a certificate of each dev-N into dir, unless another site has done so.
func issueInto(t *testing.T, site *southtest.Site, dir string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "ca.pem")); err == nil {
		return
	}
	for i := range 32 {
		cert, key := site.IssueFiles(t, fmt.Sprintf("dev-%d", i))
		for _, file := range []string{cert, key} {
			if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
				t.Fatal(err)
			}
		}
	}
	ca, err := os.ReadFile(site.CAFile)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// gateway runs TestServeForAnother, again and again.
type gateway struct {
	dir, listen string
	observe     string   // a resource that it observes
	within      []string // a command to run it by
	cmd         *exec.Cmd
	readers     sync.WaitGroup
	mu          sync.Mutex
	took        map[string]int // guarded by mu: how often each payload was submitted
	rebound     int            // guarded by mu: how often a device had a new address
	handshakes  int            // guarded by mu: of this run
	before      int            // handshakes of the runs before
}

func (g *gateway) start(t testing.TB) {
	t.Helper()
	args := append(append([]string(nil), g.within...), os.Args[0], "-test.run=^TestServeForAnother$")
	g.cmd = exec.Command(args[0], args[1:]...)
	g.cmd.Env = append(os.Environ(), "DRAWBRIDGE_TEST_SERVE="+g.dir, "DRAWBRIDGE_TEST_LISTEN="+g.listen, "DRAWBRIDGE_TEST_OBSERVE="+g.observe, "TMPDIR="+t.TempDir())
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bound := make(chan string, 1)
	g.readers.Go(func() {
		defer close(bound)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if addr, ok := strings.CutPrefix(lines.Text(), "bound "); ok {
				bound <- addr
			}
			if what, ok := strings.CutPrefix(lines.Text(), "took "); ok {
				g.mu.Lock()
				g.took[what]++
				g.mu.Unlock()
			}
			if n, ok := strings.CutPrefix(lines.Text(), "rebound "); ok {
				g.mu.Lock()
				fmt.Sscan(n, &g.rebound, &g.handshakes)
				g.mu.Unlock()
			}
		}
	})
	if g.listen = <-bound; g.listen == "" {
		t.Fatal("the gateway does not serve")
	}
}

func (g *gateway) kill() {
	g.cmd.Process.Kill()
	g.readers.Wait()
	g.cmd.Wait()
	g.before, g.handshakes = g.before+g.handshakes, 0
}

func TestAssociationsSurviveKill(t *testing.T) {
	g := &gateway{dir: t.TempDir(), listen: "127.0.0.1:0", took: map[string]int{}}
	g.start(t)
	defer func() { g.kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	addr, err := net.ResolveUDPAddr("udp", g.listen)
	if err != nil {
		t.Fatal(err)
	}
	watch := newWatcher(t, addr, nil)
	dev, err := dialGoCoAP(ctx, nil, watch.addr(), "th-1", []byte("southtest-secret-of-th-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	sent := 0
	for kill := range 10 {
		var b [1]byte
		rand.Read(b[:])
		for i := range 1 + b[0]%20 {
			if code, err := dev.Report(ctx, "/sensors/temp", "", fmt.Appendf(nil, "%d.%d", kill, i)); err != nil || code != "2.04" {
				t.Fatalf("after %d kills: %s, %v", kill, code, err)
			}
			sent++
		}
		g.kill()
		g.start(t)
		watch.replay()
	}
	g.kill()
	if len(g.took) != sent {
		t.Errorf("%d of %d reports were taken", len(g.took), sent)
	}
	for what, n := range g.took {
		if n > 1 {
			t.Errorf("report %s was taken %d times", what, n)
		}
	}
	select {
	case err := <-watch.twice:
		t.Error(err)
	default:
	}
	if files, _ := filepath.Glob(g.dir + "/*"); len(files) != 3 {
		t.Errorf("files: %q", files)
	}
}

// watcher stands between a device and the gateway. It sees that no sequence number comes twice from the gateway, and it replays.
type watcher struct {
	front, back *net.UDPConn
	server      *net.UDPAddr
	twice       chan error
	mu          sync.Mutex
	past        [][]byte // guarded by mu: what the device has sent under protection
}

// newWatcher makes one. meddle, which may be nil, sees what the device sends before the gateway does.
func newWatcher(t *testing.T, server *net.UDPAddr, meddle func(w *watcher, datagram []byte)) *watcher {
	t.Helper()
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	w := &watcher{front: listen(), back: listen(), server: server, twice: make(chan error, 1)}
	device := make(chan net.Addr, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for first := true; ; first = false {
			n, from, err := w.front.ReadFrom(buf)
			if err != nil {
				return
			}
			if first {
				device <- from
			}
			if buf[0] == 25 {
				w.mu.Lock()
				w.past = append(w.past, bytes.Clone(buf[:n]))
				w.mu.Unlock()
			}
			if meddle != nil {
				meddle(w, buf[:n])
			}
			w.back.WriteTo(buf[:n], server)
		}
	})
	wg.Go(func() {
		buf := make([]byte, 4096)
		seen := map[string]bool{}
		var to net.Addr
		for {
			n, _, err := w.back.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // the gateway is away
			}
			if to == nil {
				to = <-device
			}
			if key := string(buf[3:11]); n > 13 && buf[4] == 1 {
				if seen[key] {
					select {
					case w.twice <- fmt.Errorf("sequence number %x was used twice", key):
					default:
					}
				}
				seen[key] = true
			}
			w.front.WriteTo(buf[:n], to)
		}
	})
	t.Cleanup(func() { w.front.Close(); w.back.Close(); wg.Wait() })
	return w
}

func (w *watcher) addr() net.Addr { return w.front.LocalAddr() }

// replay sends again all that the device has ever sent.
func (w *watcher) replay() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.past {
		w.back.WriteTo(d, w.server)
	}
}

func TestAfterAPowerCutTheFirstRequestProvesThatItIsFresh(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	s := w.l.byAddr[deviceAddr]
	s.doubted = true
	req := w.request(con, codes.POST, 1, "t", "/a", []byte("1"))
	p := w.one(w.feed(req))
	challenge, ok := p.option(echo)
	if p.code != codes.Unauthorized || !ok || len(challenge) != 8 {
		t.Fatalf("answered %s, Echo %x", codeText(p.code), challenge)
	}
	if p := w.one(w.feed(w.request(con, codes.POST, 2, "t", "/a", []byte("1"), message.Option{ID: echo, Value: challenge}))); p.code != codes.Changed {
		t.Errorf("with the Echo: %s", codeText(p.code))
	}
	if p := w.one(w.feed(w.request(con, codes.POST, 3, "t", "/a", []byte("1")))); p.code != codes.Changed {
		t.Errorf("then: %s", codeText(p.code))
	}
	s.doubted = true
	for range 10 * echoTries { // who replays them at once does not end it
		w.feed(req)
	}
	if s.dead {
		t.Fatal("replays have ended the association")
	}
	w.pass(echoFor + time.Second)
	w.feed(req)
	if !s.dead || len(w.up.Messages()) != 2 {
		t.Errorf("a device without Echo: dead %v, %d submitted", s.dead, len(w.up.Messages()))
	}
}

func TestAssociationsFollowThePolicy(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b := southtest.Start(t, driver())
	report := func(d southtest.Device, name string) {
		t.Helper()
		if code, err := d.Report(ctx, "/a", "", nil); err != nil || code != "2.04" {
			t.Fatalf("%s: %s, %v", name, code, err)
		}
	}
	one, two := b.Device(ctx, t, "th-1"), b.Device(ctx, t, "th-2")
	report(one, "th-1")
	report(two, "th-2")
	b.AddDevice("th-1", southtest.Account{Secret: b.Secret("th-1"), Groups: []string{"other"}})
	b.RemoveDevice("th-2")
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	report(one, "th-1")
	if m := b.Up.Messages(); len(m) != 3 || len(m[2].Groups) != 1 || m[2].Groups[0] != "other" {
		t.Errorf("groups after the change: %v", m[len(m)-1].Groups)
	}
	if f := figures(b); f["sessions"] != 1 {
		t.Errorf("%d sessions", f["sessions"])
	}
}

// TestAnAssociationThatIsThereTwiceIsOne restores what a kill or a power cut leaves in the middle of writing an association anew.
func TestAnAssociationThatIsThereTwiceIsOne(t *testing.T) {
	site := southtest.NewSite(t)
	site.AddDevice("dev-0", southtest.Account{Secret: []byte("x")})
	env := site.Env(t, "field")
	env.Keys = sealingKeys{env.Keys}
	cfg := Kind().Config().(*Config)
	cfg.Security, cfg.Key = []string{"psk"}, "identity"
	start := func() *listener {
		l, err := open(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		l.up, l.sock, l.serving, l.ctx = yes{}, sink{}, true, t.Context()
		l.restore(t.Context())
		return l
	}
	only := func(l *listener) *session {
		t.Helper()
		if n := l.count.sessions.Load(); n != 1 || len(l.byDevice["dev-0"]) != 1 {
			t.Fatalf("%d sessions, %d of the device", n, len(l.byDevice["dev-0"]))
		}
		return l.byDevice["dev-0"][0]
	}
	for _, older := range []int{0, 1} { // which of the two stands first in the file
		l := start()
		pairs(t, l, "TLS_PSK_WITH_AES_128_GCM_SHA256", 1)
		s := only(l)
		l.keep(s)
		first := s.slot
		s.slot = noSlot // so that it is not freed when the association is written again
		l.keep(s)
		slots := []int{first, s.slot}
		l.file.SetWord(slots[older], wordSent, 5000)
		l.file.SetWord(slots[1-older], wordSent, 9000)
		l.file.SetWord(slots[older], wordReceived, 70)
		l.file.SetWord(slots[1-older], wordReceived, 50)
		l.forget(t.Context())
		l = start()
		s = only(l)
		if s.conn.Sent() != 9000 || s.conn.Received() != 70 || l.file.Word(s.slot, wordSent) < 9000+reserve || l.file.Word(s.slot, wordReceived) != 70 {
			t.Errorf("goes on at %d and %d", s.conn.Sent(), s.conn.Received())
		}
		l.remove(s)
		l.forget(t.Context())
	}
}
