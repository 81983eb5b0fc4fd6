package keytest

import (
	"fmt"
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
	args := []string{"--tpm2", "--tpmstate", p.State, "--create-ek-cert", "--ecc", "--overwrite", "--logfile", filepath.Join(dir, "setup.log")}
	if os.Geteuid() != 0 { // the CA of the system is not for everybody
		args = append(args, "--config", ownCA(t, dir))
	}
	if out, err := exec.Command(setup, args...).CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "setup.log"))
		t.Fatalf("swtpm_setup: %v\n%s\n%s", err, out, log)
	}
	p.Start()
	t.Cleanup(p.Kill)
	return p
}

// ownCA gives the configuration of swtpm_setup with which a CA that it makes in dir signs the endorsement certificate.
func ownCA(t testing.TB, dir string) string {
	t.Helper()
	ca := filepath.Join(dir, "ca")
	check(t, os.Mkdir(ca, 0o700))
	conf, tool := filepath.Join(dir, "setup.conf"), filepath.Join(dir, "localca.conf")
	check(t, os.WriteFile(tool, fmt.Appendf(nil, "statedir = %s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/cert.pem\ncertserial = %[1]s/serial\n", ca), 0o600))
	check(t, os.WriteFile(conf, fmt.Appendf(nil, "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = %s\n"+
		"create_certs_tool_options = /etc/swtpm-localca.options\nactive_pcr_banks = sha256\n", tool), 0o600))
	return conf
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
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", p.Socket); err == nil {
			c.Close()
			return
		}
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
