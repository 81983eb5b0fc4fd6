package mqtt

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// journal is an uplink that writes what it is given to a file and says yes after fdatasync, many at a time. The file is zero-filled
// and written round and round, so that a commit costs one flush, as in the real spool.
type journal struct {
	file *os.File
	wake chan struct{}

	mu   sync.Mutex
	buf  []byte        // guarded by mu
	done []func(error) // guarded by mu
}

const journalSize = 32 << 20

func newJournal(file string) (*journal, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(make([]byte, journalSize)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	j := &journal{file: f, wake: make(chan struct{}, 1)}
	go j.run() // for as long as the process lives
	return j, nil
}

func (j *journal) Submit(m *msg.Message, done func(error)) {
	j.mu.Lock()
	j.buf = append(append(append(append(j.buf, m.Resource...), ' '), m.Payload...), '\n')
	j.done = append(j.done, done)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

func (j *journal) run() {
	var buf []byte
	var done []func(error)
	var at int64
	for range j.wake {
		j.mu.Lock()
		buf, j.buf = j.buf, buf[:0]
		done, j.done = j.done, done[:0]
		j.mu.Unlock()
		if at+int64(len(buf)) > journalSize {
			at = 0
		}
		_, err := j.file.WriteAt(buf, at)
		if err == nil {
			err = unix.Fdatasync(int(j.file.Fd()))
		}
		at += int64(len(buf))
		for _, d := range done {
			d(err)
		}
	}
}

// orders tells a child what to serve.
type orders struct {
	Dir   string // state and journal, and where the child says what a client needs
	TLS   bool
	Port  int
	Local bool // devices hear each other; else everything only goes to the journal
}

// greeting is what the child says of itself.
type greeting struct {
	Addr, CA, Secret string
}

const ordersVariable = "DRAWBRIDGE_MQTT_TEST_CHILD"

// TestChild is no test: it is the process that others here start and kill.
func TestChild(t *testing.T) {
	var o orders
	if os.Getenv(ordersVariable) == "" {
		t.Skip("for other tests to start")
	}
	if err := json.Unmarshal([]byte(os.Getenv(ordersVariable)), &o); err != nil {
		t.Fatal(err)
	}
	j, err := newJournal(filepath.Join(o.Dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	kind := NewKind()
	cfg := defaults()
	cfg.MaxConnections, cfg.MaxHalfOpen, cfg.MaxQueued, cfg.MaxQueuedBytes, cfg.MaxQueuedTotal = 1<<20, 1<<20, 50000, 1<<28, 1<<30
	site := southtest.NewSite(t)
	site.State = filepath.Join(o.Dir, "state")
	cfg.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port))
	if o.TLS {
		cfg.Key = "identity"
	} else {
		cfg.Security = []string{"none"}
	}
	cfg.Auth = []string{"anonymous"}
	if !o.Local {
		site.Allow(onlyReports)
	}
	env := site.Env(t, "child")
	env.Bound = func(a net.Addr) {
		b, err := json.Marshal(greeting{a.String(), site.CAFile, string(site.Secret("th-1"))})
		if err != nil {
			t.Error(err)
		}
		fmt.Printf("\nchild %s\n", b)
	}
	l, err := kind.Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Serve(t.Context(), j); err != nil {
		t.Fatal(err)
	}
}

// child starts a process that serves.
func child(t testing.TB, o orders) (*exec.Cmd, greeting) {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=1h")
	cmd.Env = append(os.Environ(), ordersVariable+"="+string(b), "TMPDIR="+o.Dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if said, ok := strings.CutPrefix(lines.Text(), "child "); ok {
			var g greeting
			if err := json.Unmarshal([]byte(said), &g); err != nil {
				t.Fatal(err)
			}
			go func() { // a child that is not read from would block
				for lines.Scan() {
				}
			}()
			return cmd, g
		}
		t.Logf("child: %s", lines.Text())
	}
	t.Fatal("the child did not serve")
	return nil, greeting{}
}

// kill ends a child without asking.
func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// rss gives the resident memory of a process in octets.
func rss(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// cpu gives the processor time that a process has used.
func cpu(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}
