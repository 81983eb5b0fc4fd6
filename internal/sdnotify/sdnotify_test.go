package sdnotify

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func env(pairs map[string]string) func(string) string {
	return func(key string) string { return pairs[key] }
}

// systemd listens as the service manager does.
func systemd(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func read(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestWhatIsSaid(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@drawbridge-test-%d", os.Getpid())} {
		manager := systemd(t, path)
		n := New(env(map[string]string{"NOTIFY_SOCKET": path}))
		for want, say := range map[string]func() error{
			"READY=1\nSTATUS=2 listeners, 1 cloud":        func() error { return n.Ready("2 listeners, 1 cloud") },
			"STOPPING=1":                                  n.Stopping,
			"WATCHDOG=1":                                  n.Alive,
			"STATUS=no second line MAINPID=1":             func() error { return n.Status("no second line\nMAINPID=1") },
			"READY=1\nSTATUS=" + strings.Repeat("가", 100): func() error { return n.Ready(strings.Repeat("가", 100)) },
		} {
			if err := say(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, manager); got != want {
				t.Errorf("said %q, want %q", got, want)
			}
		}
		if err := n.Reloading(); err != nil {
			t.Fatal(err)
		}
		var us int64
		if got := read(t, manager); !strings.HasPrefix(got, "RELOADING=1\n") {
			t.Errorf("said %q", got)
		} else if _, err := fmt.Sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%d", &us); err != nil || us <= 0 {
			t.Errorf("said %q: %v", got, err)
		}
	}
}

func TestWithoutSystemdNothingHappens(t *testing.T) {
	n := New(env(map[string]string{"WATCHDOG_USEC": "1000000"}))
	if err := n.Ready("up"); err != nil {
		t.Error(err)
	}
	if n.Interval() != 0 {
		t.Error("a watchdog without a socket")
	}
	if f := Files(env(nil)); f != nil {
		t.Errorf("files %v", f)
	}
}

func TestAManagerThatIsGoneIsAnError(t *testing.T) {
	n := New(env(map[string]string{"NOTIFY_SOCKET": filepath.Join(t.TempDir(), "gone")}))
	if err := n.Alive(); err == nil {
		t.Error("no error")
	}
}

func TestInterval(t *testing.T) {
	pid := fmt.Sprint(os.Getpid())
	for name, c := range map[string]struct {
		usec, pid string
		want      time.Duration
	}{
		"half of what is allowed": {"60000000", pid, 30 * time.Second},
		"meant for whoever reads": {"3000000", "", 1500 * time.Millisecond},
		"meant for another":       {"60000000", "1", 0},
		"no watchdog":             {"", "", 0},
		"nonsense":                {"soon", "", 0},
		"negative":                {"-5", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := New(env(map[string]string{"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": c.usec, "WATCHDOG_PID": c.pid}))
			if got := n.Interval(); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestFilesAreForThisProcessAlone(t *testing.T) {
	for name, vars := range map[string]map[string]string{
		"another process": {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
		"no number":       {"LISTEN_PID": fmt.Sprint(os.Getpid()), "LISTEN_FDS": "x"},
		"a mad number":    {"LISTEN_PID": fmt.Sprint(os.Getpid()), "LISTEN_FDS": "99999999"},
	} {
		t.Run(name, func(t *testing.T) {
			if f := Files(env(vars)); f != nil {
				t.Errorf("files %v", f)
			}
		})
	}
}

// TestHandedOverSockets runs this test again as a child that has sockets handed over, as systemd does it.
func TestHandedOverSockets(t *testing.T) {
	if os.Getenv("HANDED_OVER") != "" {
		vars := map[string]string{"LISTEN_PID": fmt.Sprint(os.Getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "field:shop:"}
		files := Files(env(vars))
		if len(files["field"]) != 1 || len(files["shop"]) != 1 || len(files["unknown"]) != 1 {
			t.Fatalf("%v", files)
		}
		pc, err := net.FilePacketConn(files["field"][0])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("field %s\n", pc.LocalAddr())
		l, err := net.FileListener(files["shop"][0])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("shop %s\n", l.Addr())
		return
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHandedOverSockets$", "-test.v")
	cmd.Env = append(os.Environ(), "HANDED_OVER=1")
	for _, c := range []interface{ File() (*os.File, error) }{udp, tcp, udp} {
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"field " + udp.LocalAddr().String(), "shop " + tcp.Addr().String()} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the child lacks %q:\n%s", want, out)
		}
	}
}
