package keytest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// TPM is an swtpm process.
type TPM struct {
	Socket string
	State  string // of the TPM
	Dir    string // for key blobs

	t   testing.TB
	mu  sync.Mutex
	cmd *exec.Cmd // guarded by mu; nil while it does not run
}

// Device is the URI's device.
func (p *TPM) Device() string { return "unix:" + p.Socket }

// URI names a key of the TPM.
func (p *TPM) URI(name string) string { return "tpm:name=" + name + ";device=" + p.Device() }

// SWTPM makes a TPM with an endorsement certificate and starts it.
func SWTPM(t testing.TB) *TPM {
	t.Helper()
	setup := needs.Program(t, "swtpm_setup")
	needs.Program(t, "swtpm")
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir may be longer than a socket's address
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &TPM{t: t, Socket: filepath.Join(dir, "s"), State: filepath.Join(dir, "state"), Dir: filepath.Join(dir, "keys")}
	check(t, os.Mkdir(p.State, 0o700))
	cmd := exec.Command(setup, "--tpm2", "--tpmstate", p.State, "--create-ek-cert", "--ecc", "--overwrite", "--logfile", filepath.Join(dir, "setup.log"))
	if out, err := cmd.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "setup.log"))
		t.Fatalf("swtpm_setup: %v\n%s\n%s", err, out, log)
	}
	p.Start()
	t.Cleanup(p.Kill)
	return p
}

// Start starts the process after Kill.
func (p *TPM) Start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return
	}
	os.Remove(p.Socket)
	p.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+p.State, "--server", "type=unixio,path="+p.Socket,
		"--ctrl", "type=unixio,path="+p.Socket+".ctrl", "--flags", "not-need-init,startup-clear")
	check(p.t, p.cmd.Start())
	for range 500 {
		if c, err := net.Dial("unix", p.Socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatal("swtpm does not listen")
}

// Kill ends the process as a power cut would.
func (p *TPM) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// Freeze has the process stand still: what it is asked waits for Thaw.
func (p *TPM) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw has it go on.
func (p *TPM) Thaw() { p.signal(syscall.SIGCONT) }

func (p *TPM) signal(s syscall.Signal) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	check(p.t, p.cmd.Process.Signal(s))
}
