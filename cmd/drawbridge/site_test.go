package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// TestMain lets the test binary be `drawbridge` for scripts and for tests that start the gateway as a process.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"drawbridge": main, "drawbridge-planted": runPlanted})
}

// process is a program that a test has started. It is killed when the test ends.
type process struct {
	*exec.Cmd
	t     testing.TB
	ended chan struct{}

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu; standard output and error
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func start(t testing.TB, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(needs.Program(t, name), args...), t: t, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	p.launch()
	return p
}

func (p *process) launch() {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.Wait()
		close(p.ended)
	}()
	p.t.Cleanup(func() {
		p.kill()
		if p.t.Failed() {
			p.t.Logf("%s printed:\n%s", filepath.Base(p.Path), p.output())
		}
	})
}

func (p *process) kill() {
	p.Process.Kill()
	<-p.ended
}

// stop ends the process as systemd would.
func (p *process) stop() {
	p.t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		p.t.Errorf("%s did not stop", p.Path)
		p.kill()
	}
}

// eventually waits until ok, and fails the test where that takes longer than two minutes. What is not so soon it asks less and less often: many
// tests that wait at once would keep the machine from what they wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	pause := 10 * time.Millisecond
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("waited two minutes for: %s", what)
		}
		pause = min(pause*5/4, 200*time.Millisecond)
	}
}

// run runs a command to its end and gives what it printed.
func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, needs.Program(t, name), args...).CombinedOutput()
	return string(out), err
}

func mustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// site is a plant of the tests: a CA, a real mosquitto as the cloud, a gateway as a process of its own.
type site struct {
	t       testing.TB
	dir     string
	ca      *demoCA
	binary  string // of the gateway; empty: this test binary
	env     []string
	coap    string // addresses
	mqtt    string
	cloud   string
	plain   string // a listener of the cloud without TLS, where there is one
	page    string
	keyURI  string // of [key.identity]
	module  string
	extra   string // more of the file
	gateway *process
	broker  *process
}

func newSite(t testing.TB) *site {
	t.Helper()
	ca, err := newDemoCA()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), ca: ca, keyURI: "file:identity.key",
		coap: vacant(t), mqtt: vacant(t), cloud: vacant(t), page: vacant(t)}
	s.write("ca.crt", string(ca.pem()))
	for _, name := range []string{"localhost", "person", "meter-1"} {
		s.issue(name)
	}
	s.write("th-1.psk", "0123456789abcdef\n")
	s.write("press-1.password", "correct horse\n")
	return s
}

// lastPort is the port that was given out last. They go up from one at random: other programs may run the same tests.
var lastPort = sync.OnceValue(func() *atomic.Int32 {
	var p atomic.Int32
	p.Store(10_000 + rand.Int32N(10_000))
	return &p
})

// vacant gives an address on loopback for a program that is yet to start, or to be killed and started again. The kernel gives ports from 32768 on
// to whoever does not care, which would be the devices that knock meanwhile; this is none of those, and nobody is given it twice.
func vacant(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+lastPort().Add(1)%20_000)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		l.Close()
		if p, err := net.ListenPacket("udp", address); err == nil {
			p.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// issue writes NAME.crt and NAME.key for a peer of the gateway.
func (s *site) issue(name string) tls.Certificate {
	s.t.Helper()
	cert, err := s.ca.issue(name)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
	s.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	return cert
}

func (s *site) clientTLS(cert ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(s.ca.cert)
	return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: cert}
}

// configure writes the gateway's file.
func (s *site) configure() {
	s.t.Helper()
	module := ""
	if s.module != "" {
		module = fmt.Sprintf("module = %q\n", s.module)
	}
	s.write("drawbridge.toml", fmt.Sprintf(`
[gateway]
id = "gw"
state = "state"

[status]
listen = %q
socket = "drawbridge.sock"

[key.identity]
uri = %q
cert = "identity.crt"
%s
[listener.field]
type = "coap"
listen = %q
security = ["psk", "x509"]
key = "identity"
device_ca = "ca.crt"

[listener.shop]
type = "mqtt"
listen = %q
security = ["tls"]
key = "identity"
device_ca = "ca.crt"
auth = ["x509", "password"]

[device.th-1]
groups = ["thermostat"]
psk = "file:th-1.psk"

[device.press-1]
groups = ["press"]
password = "file:press-1.password"

[group.meter]
san = "meter-*"

[[allow]]
groups = ["thermostat", "press", "meter"]
op = "report"
resources = ["/sensors/{rest...}"]

[[allow]]
connectors = ["cloud"]
groups = ["thermostat", "press", "meter"]
op = "command"
resources = ["/actuators/setpoint"]

[[uplink]]
name = "sensors"
resource = "/sensors/{kind}"
to = ["cloud"]
topic = "dt/{gateway}/{device}/{kind}"

[[downlink]]
name = "setpoint"
from = "cloud"
topic = "cmd/{gateway}/{device}/setpoint"
resource = "/actuators/setpoint"
reply = "cmd/{gateway}/{device}/setpoint/reply"

[connector.cloud]
type = "mqtt"
url = "mqtts://%s"
key = "identity"
ca = "ca.crt"
%s`, s.page, s.keyURI, module, s.coap, s.mqtt, strings.Replace(s.cloud, "127.0.0.1", "localhost", 1), s.extra))
}

// drawbridge runs a verb to its end.
func (s *site) drawbridge(args ...string) (string, error) {
	s.t.Helper()
	c := s.command(args...)
	out, err := c.CombinedOutput()
	return string(out), err
}

func (s *site) command(args ...string) *exec.Cmd {
	s.t.Helper()
	binary := s.binary
	if binary == "" {
		binary = needs.Program(s.t, "drawbridge")
	}
	c := exec.Command(binary, append(args, "--config", s.path("drawbridge.toml"))...)
	c.Env = append(os.Environ(), s.env...)
	return c
}

// certify makes the gateway's key where its URI says and has the CA sign it.
func (s *site) certify() {
	s.t.Helper()
	if out, err := s.drawbridge("keys", "new", "identity"); err != nil {
		s.t.Fatalf("keys new: %v\n%s", err, out)
	}
	out, err := s.drawbridge("keys", "csr", "identity", "--san", "localhost", "--san", "127.0.0.1")
	if err != nil {
		s.t.Fatalf("keys csr: %v\n%s", err, out)
	}
	block, _ := pem.Decode([]byte(out))
	if block == nil {
		s.t.Fatalf("keys csr printed no PEM:\n%s", out)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		s.t.Fatal(err)
	}
	der, err := s.ca.sign("gw", csr.DNSNames, csr.IPAddresses, csr.PublicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("identity.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// startCloud starts mosquitto as the cloud: TLS, certificates on both sides.
func (s *site) startCloud(more ...string) {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.cloud)
	s.write("cloud.conf", fmt.Sprintf(`listener %s 127.0.0.1
cafile %s
certfile %s
keyfile %s
require_certificate true
allow_anonymous true
persistence false
user root
%s
`, port, s.path("ca.crt"), s.path("localhost.crt"), s.path("localhost.key"), strings.Join(more, "\n")))
	s.broker = start(s.t, "mosquitto", "-c", s.path("cloud.conf"))
	s.listening(s.cloud)
}

func (s *site) listening(address string) {
	s.t.Helper()
	eventually(s.t, address+" to listen", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// startGateway starts it and waits until it says that it is ready.
func (s *site) startGateway() {
	s.t.Helper()
	p := &process{Cmd: s.command("run"), t: s.t, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	p.launch()
	s.gateway = p
	s.waitReady()
}

func (s *site) waitReady() {
	s.t.Helper()
	eventually(s.t, "the gateway to be ready", func() bool {
		select {
		case <-s.gateway.ended:
			s.t.Fatalf("the gateway ended:\n%s", s.gateway.output())
		default:
		}
		resp, err := http.Get("http://" + s.page + "/readyz")
		if err != nil {
			return false
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// lines follows what a command prints, line by line.
type lines struct {
	*process
	ch chan string
}

// follow starts a command whose lines are awaited.
func (s *site) follow(name string, args ...string) *lines {
	s.t.Helper()
	p := &process{Cmd: exec.Command(needs.Program(s.t, name), args...), t: s.t, ended: make(chan struct{})}
	r, w := io.Pipe()
	p.Stdout = io.MultiWriter(p, w)
	p.Stderr = p.Stdout
	l := &lines{p, make(chan string, 1024)}
	go func() {
		for sc := bufio.NewScanner(r); sc.Scan(); {
			l.ch <- sc.Text()
		}
	}()
	p.launch()
	s.t.Cleanup(func() { w.Close() })
	return l
}

// expect waits for a line and fails where two minutes pass without it.
func (l *lines) expect(want string) {
	l.t.Helper()
	l.await(want, func(line string) bool { return line == want })
}

// expectContaining waits for a line with the text in it.
func (l *lines) expectContaining(want string) {
	l.t.Helper()
	l.await("..."+want+"...", func(line string) bool { return strings.Contains(line, want) })
}

func (l *lines) await(want string, is func(string) bool) {
	l.t.Helper()
	for after := time.After(2 * time.Minute); ; {
		select {
		case got := <-l.ch:
			if is(got) {
				return
			}
		case <-after:
			l.t.Fatalf("waited two minutes for the line %q", want)
		}
	}
}

// atCloud are the arguments with which a mosquitto client speaks to the cloud.
func (s *site) atCloud(args ...string) []string {
	_, port, _ := net.SplitHostPort(s.cloud)
	return append([]string{"--cafile", s.path("ca.crt"), "--cert", s.path("person.crt"), "--key", s.path("person.key"), "-h", "localhost", "-p", port}, args...)
}

// atGateway are those with which one speaks to the gateway's MQTT listener.
func (s *site) atGateway(args ...string) []string {
	_, port, _ := net.SplitHostPort(s.mqtt)
	return append([]string{"--cafile", s.path("ca.crt"), "-h", "localhost", "-p", port}, args...)
}
