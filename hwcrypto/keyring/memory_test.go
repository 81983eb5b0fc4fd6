package keyring

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
)

// workerDir names, in the environment of the process that is scanned, where its keys are. Its presence makes the test that process.
const workerDir = "DRAWBRIDGE_MEMORY_TEST"

// TestNoKeyInMemory has another process work with keys in a TPM and looks through all of its memory for them. The keys have known
// values: a private key that was brought into the TPM from outside for this, and an HMAC key that was imported.
func TestNoKeyInMemory(t *testing.T) {
	if dir := os.Getenv(workerDir); dir != "" {
		work(t, dir)
		return
	}
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := tpm2.New(t.Context(), tpm2.Options{Dir: filepath.Join(chip.Dir, "keys")})
	defer p.Close()
	parse := func(name string) hwcrypto.URI {
		u, err := hwcrypto.ParseURI(chip.URI(name), "/")
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	if _, err := p.Import(t.Context(), parse("sas"), secret); err != nil {
		t.Fatal(err)
	}
	private := bringIn(t, chip)

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestNoKeyInMemory$", "-test.v")
	cmd.Env = append(os.Environ(), workerDir+"="+chip.Dir, "DRAWBRIDGE_MEMORY_TPM="+chip.Device())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	ready := false
	var said []string
	for !ready && lines.Scan() {
		said = append(said, lines.Text())
		ready = lines.Text() == "at work"
	}
	if !ready {
		_ = cmd.Wait()
		t.Fatalf("the process has not come to work:\n%s", strings.Join(said, "\n"))
	}
	found, scanned := scan(t, cmd.Process.Pid, map[string][]byte{"private key": private, "HMAC key": secret, "marker": []byte(marker())})
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !found["marker"] {
		t.Errorf("what is certainly in memory was not found in %d octets: the scan proves nothing", scanned)
	}
	if found["private key"] || found["HMAC key"] {
		t.Errorf("found in memory: %v", found)
	}
}

// marker is put together at run time, so that it is in the memory of the process and not only in its file.
func marker() string { return strings.Repeat("mark", 8) + fmt.Sprint(7*6) }

// bringIn makes a key outside, has tpm2-tools import it, and certifies it. It gives the private scalar.
func bringIn(t *testing.T, chip *keytest.TPM) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("k.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"tpm2_import", "-C", "0x81000001", "-G", "ecc", "-i", path("k.pem"), "-u", path("pub"), "-r", path("priv"), "-a", "userwithauth|sign|noda"},
		{"tpm2_load", "-C", "0x81000001", "-u", path("pub"), "-r", path("priv"), "-c", path("ctx")},
		{"tpm2_evictcontrol", "-C", "o", "-c", path("ctx"), "0x81010009"},
		{"tpm2_flushcontext", "-t"},
	} {
		name, err := exec.LookPath(args[0])
		if err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		if out, err := exec.CommandContext(t.Context(), name, append([]string{"-T", "swtpm:path=" + chip.Socket}, args[1:]...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	ca := keytest.NewCA(t)
	if err := errors.Join(os.WriteFile(filepath.Join(chip.Dir, "identity.crt"), ca.Issue(t, k.Public(), "gw", time.Hour), 0o600),
		os.WriteFile(filepath.Join(chip.Dir, "ca.pem"), ca.PEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	scalar, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return scalar
}

// work is the process that is scanned: it connects and signs for a while, then waits.
func work(t *testing.T, dir string) {
	device := os.Getenv("DRAWBRIDGE_MEMORY_TPM")
	r, err := New(t.Context(), Options{State: dir, BaseDir: dir, Keys: map[string]*config.Key{
		"identity": {URI: "tpm:handle=0x81010009;device=" + device, Cert: "identity.crt"}, "sas": {URI: "tpm:name=sas;device=" + device}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Certificate(t.Context(), "identity")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ca := &keytest.CA{Pool: x509.NewCertPool()}
	ca.Pool.AppendCertsFromPEM(b)
	m, err := r.MAC(t.Context(), "sas")
	if err != nil {
		t.Fatal(err)
	}
	for range 25 {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if err := ca.Handshake(v, *c, *c); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.MAC(context.WithoutCancel(t.Context()), []byte("sr=hub.example&se=1")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.CSR(t.Context(), "identity", pkix.Name{CommonName: "gw"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	mark := []byte(marker())
	fmt.Println("\nat work")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if len(mark) == 0 {
		t.Fatal("unreachable, but the marker lives until here")
	}
}

// scan looks for the values in every readable mapping of a process.
func scan(t *testing.T, pid int, values map[string][]byte) (found map[string]bool, scanned int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found = map[string]bool{}
	const chunk, overlap = 1 << 20, 64
	buf := make([]byte, chunk+overlap)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue
		}
		for at := from; at < to; at += chunk {
			n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at) // pages that were never touched or are the kernel's cannot be read
			scanned += n
			for what, v := range values {
				found[what] = found[what] || bytes.Contains(buf[:n], v)
			}
		}
	}
	return found, scanned
}
