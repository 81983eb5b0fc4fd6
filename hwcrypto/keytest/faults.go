package keytest

import (
	"bytes"
	_ "embed"
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
)

//go:embed testdata/shim.c
var shim []byte

// FaultyToken is a token behind a module that does wrong what it is told to.
type FaultyToken struct {
	*Token
	control string
	t       testing.TB
}

// Faulty puts a module with knobs in front of a token's. It is compiled, so the test needs gcc.
func Faulty(t testing.TB) *FaultyToken {
	t.Helper()
	gcc := needs.Program(t, "gcc")
	k := SoftHSM(t)
	dir := filepath.Dir(k.Module)
	f := &FaultyToken{Token: k, control: filepath.Join(dir, "control"), t: t}
	check(t, os.Mkdir(f.control, 0o700))
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	check(t, err)
	source, module := filepath.Join(dir, "shim.c"), filepath.Join(dir, "shim.so")
	write(t, source, shim, 0o600)
	out, err := exec.Command(gcc, "-shared", "-fPIC", "-o", module, source, "-I", strings.TrimSpace(string(headers)),
		"-DREAL="+fmt.Sprintf("%q", k.Module), "-DCONTROL="+fmt.Sprintf("%q", f.control), "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	k.Module = module
	return f
}

// Set turns a knob: see testdata/shim.c. An empty value turns it back.
func (f *FaultyToken) Set(knob, value string) {
	f.t.Helper()
	path := filepath.Join(f.control, knob)
	if value == "" {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			f.t.Fatal(err)
		}
		return
	}
	check(f.t, os.WriteFile(path+".new", []byte(value), 0o600))
	check(f.t, os.Rename(path+".new", path))
}

// Logins is how often the module was asked to log in.
func (f *FaultyToken) Logins() int {
	b, err := os.ReadFile(filepath.Join(f.control, "logins"))
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// Proxy stands between a TPM's user and the TPM.
type Proxy struct {
	Socket string

	mu      sync.Mutex
	delay   time.Duration // before a response is passed on; guarded by mu
	silent  bool          // no response at all; guarded by mu
	answers [][]byte      // given in place of the TPM's, one per command; guarded by mu
}

// Behind starts a proxy for the TPM.
func Behind(t testing.TB, p *TPM) *Proxy {
	t.Helper()
	x := &Proxy{Socket: p.Socket + ".proxy"}
	l, err := net.Listen("unix", x.Socket)
	check(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := make(chan struct{})
			wg.Go(func() { defer close(stop); x.serve(c, p.Socket) })
			wg.Go(func() {
				select {
				case <-t.Context().Done(): // before the cleanups
					c.Close()
				case <-stop:
				}
			})
		}
	})
	return x
}

// Device is the URI's device.
func (x *Proxy) Device() string { return "unix:" + x.Socket }

// Delay has every response wait.
func (x *Proxy) Delay(d time.Duration) { x.mu.Lock(); x.delay = d; x.mu.Unlock() }

// Silence has no response come through.
func (x *Proxy) Silence(on bool) { x.mu.Lock(); x.silent = on; x.mu.Unlock() }

// Answer has the next commands answered with response codes, one each.
func (x *Proxy) Answer(codes ...uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range codes {
		x.answers = append(x.answers, []byte{0x80, 0x01, 0, 0, 0, 10, byte(c >> 24), byte(c >> 16), byte(c >> 8), byte(c)})
	}
}

func (x *Proxy) serve(c net.Conn, to string) {
	defer c.Close()
	tpm, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer tpm.Close()
	for {
		cmd, err := packet(c)
		if err != nil {
			return
		}
		x.mu.Lock()
		delay, silent := x.delay, x.silent
		var answer []byte
		if len(x.answers) > 0 {
			answer, x.answers = x.answers[0], x.answers[1:]
		}
		x.mu.Unlock()
		if silent {
			_, _ = io.Copy(io.Discard, c) // until the user gives up
			return
		}
		if answer == nil {
			if _, err = tpm.Write(cmd); err == nil {
				answer, err = packet(tpm)
			}
		}
		time.Sleep(delay)
		if err == nil {
			_, err = c.Write(answer)
		}
		if err != nil {
			return
		}
	}
}

// packet reads one command or response: tag, size, and the rest.
func packet(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	n := int(b[2])<<24 | int(b[3])<<16 | int(b[4])<<8 | int(b[5])
	if n < 10 || n > 1<<16 {
		return nil, fmt.Errorf("packet of %d octets", n)
	}
	b = append(b, make([]byte, n-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}
