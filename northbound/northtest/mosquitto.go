package northtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// Mosquitto is a running mosquitto with TLS that wants client certificates of its CA.
type Mosquitto struct {
	CA   CA
	Addr string // host:port

	cert, key, ca string // of mosquitto_sub and mosquitto_pub
	dir           string
	port          string
	program       *exec.Cmd
}

// NewMosquitto starts mosquitto for the time of the test. The lines are added to its configuration.
func NewMosquitto(t testing.TB, lines ...string) *Mosquitto {
	t.Helper()
	m := &Mosquitto{CA: NewCA(t), dir: t.TempDir()}
	m.ca = m.CA.File(t)
	server := m.CA.Certificate(t, broker.Subject{Name: "localhost", Hosts: Loopback})
	cert, key := Files(t, server)
	m.cert, m.key = Files(t, m.CA.Certificate(t, broker.Subject{Name: "mosquitto-clients"}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.Addr = l.Addr().String()
	_, m.port, _ = net.SplitHostPort(m.Addr)
	l.Close()
	conf := append([]string{
		"listener " + m.port + " 127.0.0.1",
		"cafile " + m.ca, "certfile " + cert, "keyfile " + key, "require_certificate true",
		"user root", // else it drops to a user who cannot read the files of a test that runs as root
		"log_dest stderr",
	}, lines...)
	if !strings.Contains(strings.Join(lines, "\n"), "allow_anonymous") {
		conf = append(conf, "allow_anonymous true")
	}
	if err := os.WriteFile(filepath.Join(m.dir, "mosquitto.conf"), []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Start(t)
	t.Cleanup(func() { m.Kill() })
	return m
}

// Start starts it again after Kill, on the same port.
func (m *Mosquitto) Start(t testing.TB) {
	t.Helper()
	m.program = exec.Command(needs.Program(t, "mosquitto"), "-c", filepath.Join(m.dir, "mosquitto.conf"))
	var log bytes.Buffer
	m.program.Stderr = &log
	if err := m.program.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", m.Addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			m.Kill()
			t.Fatalf("mosquitto does not listen: %s", log.Bytes())
		}
	}
}

// Kill ends it without a word.
func (m *Mosquitto) Kill() {
	m.program.Process.Kill()
	m.program.Wait()
}

// Pub publishes with mosquitto_pub, QoS 1.
func (m *Mosquitto) Pub(topic, payload string, args ...string) error {
	out, err := exec.Command("mosquitto_pub", m.client(append(args, "-t", topic, "-m", payload, "-q", "1")...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mosquitto_pub: %w: %s", err, out)
	}
	return nil
}

func (m *Mosquitto) client(args ...string) []string {
	return append([]string{"-h", "localhost", "-p", m.port, "--cafile", m.ca, "--cert", m.cert, "--key", m.key}, args...)
}

// Sub is a running mosquitto_sub.
type Sub struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

// Lines gives what it has printed.
func (s *Sub) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

const probe = "northtest/probe"

// Sub starts mosquitto_sub on filter and returns once it is subscribed. It prints in the given format, see its manual.
func (m *Mosquitto) Sub(t testing.TB, filter, format string) *Sub {
	t.Helper()
	program := exec.Command(needs.Program(t, "mosquitto_sub"), m.client("-t", filter, "-t", probe, "-q", "1", "-V", "mqttv5", "-F", format)...)
	out, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Sub{}
	var wg sync.WaitGroup
	ready := make(chan struct{}, 1)
	wg.Go(func() { s.gather(out, ready) })
	t.Cleanup(func() {
		program.Process.Kill()
		wg.Wait()
		program.Wait()
	})
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := m.Pub(probe, probe); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ready:
			return s
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatal("mosquitto_sub hears nothing")
	return nil
}

func (s *Sub) gather(out io.Reader, ready chan<- struct{}) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), probe) {
			select {
			case ready <- struct{}{}:
			default:
			}
			continue
		}
		s.mu.Lock()
		s.lines = append(s.lines, lines.Text())
		s.mu.Unlock()
	}
}

// Wire is a TCP relay that can be cut.
type Wire struct {
	Addr string // host:port to dial

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

// NewWire relays to addr for the time of the test.
func NewWire(t testing.TB, addr string) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				near.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, near, far)
			w.mu.Unlock()
			wg.Go(func() { io.Copy(far, near); far.Close() })
			wg.Go(func() { io.Copy(near, far); near.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.Cut()
		wg.Wait()
	})
	return w
}

// Cut breaks every connection that there is.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// Cloud makes a Cloud of mosquitto: what is published on filter is received, and commands go to topic. The connector dials wire.
func (m *Mosquitto) Cloud(t testing.TB, wire *Wire, filter, topic string) Cloud {
	t.Helper()
	return &realMQTT{t: t, m: m, wire: wire, sub: m.Sub(t, filter, "%p"), topic: topic}
}

type realMQTT struct {
	t     testing.TB
	m     *Mosquitto
	wire  *Wire
	sub   *Sub
	topic string
}

func (r *realMQTT) Received() []string { return r.sub.Lines() }
func (r *realMQTT) Drop()              { r.wire.Cut() }
func (r *realMQTT) Command(payload string) {
	if err := r.m.Pub(r.topic, payload); err != nil {
		r.t.Error(err)
	}
}
