package northtest

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// SDK is a running program on a platform's own SDK, see testdata/sdks.
type SDK struct {
	mu    sync.Mutex
	lines []map[string]any // guarded by mu
}

// NewSDK runs a script of testdata/sdks with node until the test ends. ca is the PEM file of the authority that it trusts.
func NewSDK(t testing.TB, script, ca string, args ...string) *SDK {
	t.Helper()
	node := needs.Program(t, "node")
	_, here, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(here), "testdata", "sdks")
	install(t, dir)
	program := exec.Command(node, append([]string{script}, args...)...)
	program.Dir = dir
	program.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca, "NODE_NO_WARNINGS=1")
	program.Stderr = t.Output()
	out, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &SDK{}
	if _, err = program.StdinPipe(); err != nil { // scripts end with it
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var line map[string]any
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				line = map[string]any{"text": lines.Text()}
			}
			s.mu.Lock()
			s.lines = append(s.lines, line)
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		program.Process.Kill()
		read.Wait()
		program.Wait()
	})
	return s
}

// install puts the packages in place, once for all tests that want them.
func install(t testing.TB, dir string) {
	t.Helper()
	lock, err := os.Open(filepath.Join(dir, "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err == nil {
		return
	}
	npm := exec.Command(needs.Program(t, "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
}

// Said waits for a line with the key, and gives its value.
func (s *SDK) Said(t testing.TB, key string) any {
	t.Helper()
	var value any
	Await(t, "the SDK to say "+key, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, line := range s.lines {
			if v, ok := line[key]; ok {
				value = v
				s.lines = append(s.lines[:i:i], s.lines[i+1:]...)
				return true
			}
			if e, ok := line["error"]; ok {
				t.Fatalf("the SDK says: %v", e)
			}
		}
		return false
	})
	return value
}
