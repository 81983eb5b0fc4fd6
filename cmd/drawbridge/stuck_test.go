package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/internal/sdnotify"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// Faults planted in a gateway that is put together as ever: a listener that wedges once a file is there, and a connector whose Send never returns.

type plantedConfig struct {
	Wedge string `toml:"wedge"` // the file
}

type plantedListener struct {
	env   southbound.Env
	wedge string
}

func (l *plantedListener) Serve(ctx context.Context, up southbound.Uplink) error {
	l.env.Bound(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	// Where it is routed somewhere, there is something to send.
	_ = southbound.Accept(ctx, up, &msg.Message{Device: "anonymous", Method: "POST", Resource: "/sensors/temp", Payload: []byte("21.5")})
	var mu sync.Mutex
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		mu.Lock()
		if _, err := os.Stat(l.wedge); err != nil {
			mu.Unlock() // else whoever comes next waits for ever: a deadlock, cut short here
		} else {
			<-ctx.Done()
			return nil
		}
		l.env.Alive()
	}
}

func (l *plantedListener) Deliver(context.Context, msg.Message) (msg.Reply, error) {
	return msg.Reply{}, southbound.ErrNotHere
}

type plantedConnector struct{ free <-chan struct{} }

func (c plantedConnector) Dial(ctx context.Context, _ northbound.Downlink) (northbound.Session, error) {
	return plantedSession{context.WithoutCancel(ctx), c.free}, nil
}

type plantedSession struct {
	ctx  context.Context
	free <-chan struct{}
}

func (s plantedSession) Context() context.Context { return s.ctx }
func (s plantedSession) Close() error             { return nil }

func (s plantedSession) Send(context.Context, []msg.Publication, func(int, error)) error {
	<-s.free
	return nil
}

// planted is what is built in with the faults; what hangs for ever does so until free is closed.
func planted(free <-chan struct{}) builtin {
	b := kinds()
	b.listeners["planted"] = southbound.Kind{Type: "planted", Config: func() any { return &plantedConfig{} },
		Open: func(env southbound.Env, c any) (southbound.Listener, error) {
			return &plantedListener{env, c.(*plantedConfig).Wedge}, nil
		}}
	b.connectors["planted"] = northbound.Kind{Type: "planted", Config: func() any { return &struct{}{} },
		Open: func(northbound.Env, any) (northbound.Connector, error) { return plantedConnector{free}, nil }}
	return b
}

// runPlanted is `drawbridge run --config FILE` with the faults: the test under the real systemd starts it.
func runPlanted() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p := parts{log: slog.New(slog.NewTextHandler(os.Stderr, nil)), notify: sdnotify.New(os.Getenv), kinds: planted(nil)}
	if err := serve(ctx, os.Args[len(os.Args)-1], p, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
}

// A fault like that leaves the watchdog unfed, and the log, systemd's status line and the list of problems name the part that hangs.
func TestTheWatchdogIsNotFedWhileAPartHangs(t *testing.T) {
	for name, fault := range map[string]struct {
		file  string
		after time.Duration // when it has to be known
		task  string
	}{
		"a connector whose Send never returns": {`
[[allow]]
op = "report"
resources = ["/sensors/temp"]
[[uplink]]
name = "sensors"
resource = "/sensors/temp"
to = ["cloud"]
topic = "t"
[connector.cloud]
type = "planted"
`, 6 * time.Minute, "connector cloud"},
		"a wedged listener": {"", time.Minute, "listener field"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "stuck") // t.TempDir is too long for a socket's address
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			file := filepath.Join(dir, "drawbridge.toml")
			text := fmt.Sprintf("[gateway]\nid = \"gw\"\nstate = \"state\"\n[status]\nlisten = \"\"\nsocket = \"drawbridge.toml/none\"\n[listener.field]\ntype = \"planted\"\nwedge = %q\n%s",
				filepath.Join(dir, "wedge"), fault.file)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			// What waits on the net would hold the clock of the test: this socket never waits, and the gateway's own cannot be made.
			systemd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(systemd)
			if err := unix.Bind(systemd, &unix.SockaddrUnix{Name: filepath.Join(dir, "notify")}); err != nil {
				t.Fatal(err)
			}
			// What the runtime keeps for signals must not be of the bubble below.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			synctest.Test(t, func(t *testing.T) {
				var log syncBuffer
				free := make(chan struct{})
				env := map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "notify"), "WATCHDOG_USEC": "60000000"}
				p := parts{log: slog.New(slog.NewTextHandler(&log, nil)), kinds: planted(free), notify: sdnotify.New(func(name string) string { return env[name] })}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				ready := make(chan struct{})
				go func() { ended <- serve(ctx, file, p, func() { close(ready) }) }()
				select {
				case <-ready:
				case err := <-ended:
					t.Fatal(err)
				}
				if told := hear(systemd, time.Minute); !strings.Contains(told, "READY=1") || strings.Count(told, "WATCHDOG=1") < 1 || strings.Contains(log.String(), "no progress") {
					t.Fatalf("before anything hangs systemd is told %q\n%s", told, log.String())
				}
				if fault.file == "" {
					if err := os.WriteFile(filepath.Join(dir, "wedge"), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				hear(systemd, fault.after)
				if told := hear(systemd, 2*time.Minute); strings.Contains(told, "WATCHDOG=1") || !strings.Contains(told, "STATUS=no progress: "+fault.task) {
					t.Errorf("systemd is told %q", told)
				}
				if !strings.Contains(log.String(), `msg="the watchdog is not fed: no progress" tasks="`+fault.task+`"`) || !strings.Contains(log.String(), `problem=task-stuck subject="task `+fault.task+`"`) {
					t.Errorf("the log does not name %s:\n%s", fault.task, log.String())
				}
				close(free)
				cancel()
				<-ended
			})
		})
	}
}

// hear gives what systemd is told for a while. It reads now and then: the kernel keeps ten datagrams for who does not.
func hear(socket int, length time.Duration) (told string) {
	b := make([]byte, 4096)
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(30 * time.Second)
		for {
			n, _, err := unix.Recvfrom(socket, b, 0)
			if err != nil {
				break
			}
			told += string(b[:n]) + "\n"
		}
	}
	return told
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
