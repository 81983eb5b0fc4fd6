package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// TestProveNoKeyInMemory looks through all the memory of a gateway at work, and, to prove it, through a core dump, for keys whose values the test knows: they
// were brought into the chip from outside for this. Devices are connected by pre-shared keys and by certificates, and shared access signatures
// are made.
//
// A TPM has a process of its own: nothing of its keys may be found. SoftHSM2 is a library in the gateway's process: nothing may be found
// in what Go manages, which is all that is ours; what the library itself holds is told.
func TestProveNoKeyInMemory(t *testing.T) {
	t.Run("with keys in a TPM", func(t *testing.T) {
		w := newWatched(t)
		chip := keytest.SWTPM(t)
		w.uri = func(name string) string {
			if name == "identity" {
				return "uri = \"tpm:handle=0x81010009;device=" + chip.Device() + "\""
			}
			return "uri = \"" + chip.URI(name) + "\""
		}
		w.bringIn = func(key string) {
			tool := func(name string, args ...string) {
				mustRun(t, name, append([]string{"-T", "swtpm:path=" + chip.Socket}, args...)...)
			}
			pub, priv, loaded := w.path("pub"), w.path("priv"), w.path("loaded")
			tool("tpm2_import", "-C", "0x81000001", "-G", "ecc", "-i", key, "-u", pub, "-r", priv, "-a", "userwithauth|sign|noda")
			tool("tpm2_load", "-C", "0x81000001", "-u", pub, "-r", priv, "-c", loaded)
			tool("tpm2_evictcontrol", "-C", "o", "-c", loaded, "0x81010009")
			tool("tpm2_flushcontext", "-t")
		}
		found := w.work()
		for _, what := range []string{"the private key", "the HMAC key", "a pre-shared key in the chip"} {
			if n := found[what]; n.any() {
				t.Errorf("%s was found: %v", what, n)
			}
		}
		t.Logf("prove: with keys in a TPM, %d octets of memory and a core dump of %d hold neither the private key nor a chip-held HMAC or pre-shared key while %d devices are connected; of %d sealed pre-shared keys %d were found",
			w.scanned, w.dumped, 2*w.each+1, len(w.psks), w.foundPSKs(found))
	})
	t.Run("with keys in SoftHSM2", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skip("what is Go's and what C's is told apart on amd64 alone")
		}
		w := newWatched(t)
		token := keytest.SoftHSM(t)
		w.write("pin", token.PIN)
		w.uri = func(name string) string {
			return "uri = \"pkcs11:token=" + token.Label + ";object=" + name + "?pin-source=file:pin\"\nmodule = \"" + token.Module + "\""
		}
		w.bringIn = func(key string) {
			c := exec.Command(needs.Program(t, "softhsm2-util"), "--import", key, "--token", token.Label, "--label", "identity", "--id", "01", "--pin", token.PIN)
			c.Env = append(os.Environ(), "SOFTHSM2_CONF="+token.Conf)
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("softhsm2-util: %v\n%s", err, out)
			}
		}
		found := w.work()
		inModule := 0
		for _, what := range []string{"the private key", "the HMAC key", "a pre-shared key in the chip"} {
			n := found[what]
			if n.goHeap > 0 {
				t.Errorf("%s was found in Go's memory: %v", what, n)
			}
			inModule += n.elsewhere
		}
		t.Logf("prove: with keys in SoftHSM2, %d octets of memory hold no chip-held key where Go manages it, and %d copies of such keys in the library's own; of %d sealed pre-shared keys %d were found",
			w.scanned, inModule, len(w.psks), w.foundPSKs(found))
	})
}

// watched is a site whose keys' values are known.
type watched struct {
	*site
	uri     func(name string) string // lines of [key.NAME]
	bringIn func(pemFile string)     // a private key as [key.identity]
	each    int                      // devices of each kind
	psks    [][]byte
	values  map[string][]byte
	scanned int
	dumped  int
}

// sightings are how often a value was found.
type sightings struct{ goHeap, elsewhere, dump int }

func (p sightings) any() bool { return p != sightings{} }

func newWatched(t *testing.T) *watched {
	w := &watched{site: newSite(t), each: 8, values: map[string][]byte{}}
	w.binary = released(t) // the race detector maps terabytes
	if prove() {
		w.each = 100
	}
	return w
}

func (w *watched) random(what string, n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	b[n-1] |= 0x80 // no newline, which would be cut
	w.values[what] = b
	return b
}

func (w *watched) foundPSKs(found map[string]sightings) (n int) {
	for i := range w.psks {
		if found[fmt.Sprintf("sealed psk %d", i)].any() {
			n++
		}
	}
	return n
}

// work brings the keys in, runs the gateway with devices, and gives what was found of the values.
func (w *watched) work() map[string]sightings {
	t := w.t
	t.Helper()
	// A second door of the cloud, for who shows no certificate: the hub of the shared access signatures.
	hub := vacant(t)
	_, hubPort, _ := net.SplitHostPort(hub)
	secret := w.random("the HMAC key", 32)
	chipPSK := w.random("a pre-shared key in the chip", 16)
	const marker = "a-name-that-is-certainly-in-memory"
	var b strings.Builder
	fmt.Fprintf(&b, "\n[key.hub]\n%s\n\n[key.chip-psk]\n%s\n\n[device.chip-psk]\ngroups = [\"thermostat\"]\npsk = \"key:chip-psk\"\n\n[device.%s]\ngroups = [\"press\"]\n", w.uri("hub"), w.uri("chip-psk"), marker)
	fmt.Fprintf(&b, "\n[[uplink]]\nname = \"hub\"\nresource = \"/hub/{kind}\"\nto = [\"hub\"]\ntopic = \"hub/{kind}\"\n\n[connector.hub]\ntype = \"azure\"\nendpoint = \"localhost:%s\"\nauth = \"sas\"\ndevice_id = \"gw-hub\"\nkey = \"hub\"\nca = \"ca.crt\"\n", hubPort)
	for i := range w.each {
		fmt.Fprintf(&b, "\n[device.d-%d]\ngroups = [\"thermostat\"]\npsk = \"sealed:d-%d.psk\"\n", i, i)
		w.write(fmt.Sprintf("d-%d.psk", i), "not sealed yet") // the file's check wants it there
	}
	w.extra = b.String()
	w.configure()
	w.replaceKey(w.uri("identity"))
	w.write("secret", "hex:"+hex.EncodeToString(secret))
	w.write("chip.psk", "hex:"+hex.EncodeToString(chipPSK))
	for _, args := range [][]string{{"keys", "import", "hub", w.path("secret")}, {"keys", "import", "chip-psk", w.path("chip.psk")}} {
		if out, err := w.drawbridge(args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	w.certifyKnown() // a TPM has its storage key now
	w.sealPSKs()
	w.startCloud("listener "+hubPort+" 127.0.0.1", "cafile "+w.path("ca.crt"), "certfile "+w.path("localhost.crt"), "keyfile "+w.path("localhost.key"))
	w.startGateway()
	done := w.devices(chipPSK)
	defer done()

	pid := w.gateway.Process.Pid
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 bytes") {
		t.Errorf("the gateway's limit of core dumps (%v):\n%s", err, limits)
	}
	w.values["marker"] = []byte(marker)
	found := w.scan(pid)
	if prove() {
		w.dump(pid, found)
	}
	if n := found["marker"]; runtime.GOARCH == "amd64" && n.goHeap == 0 || prove() && n.dump == 0 {
		t.Errorf("what is certainly in memory was found %+v times in %d octets: the scan proves nothing", n, w.scanned)
	}
	return found
}

// replaceKey puts other lines in the place of those of [key.identity].
func (w *watched) replaceKey(lines string) {
	w.t.Helper()
	b, err := os.ReadFile(w.path("drawbridge.toml"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("drawbridge.toml", strings.Replace(string(b), fmt.Sprintf("uri = %q", w.keyURI), lines, 1))
}

// certifyKnown makes a private key outside, brings it into the chip and certifies it.
func (w *watched) certifyKnown() {
	t := w.t
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if w.values["the private key"], err = k.Bytes(); err != nil {
		t.Fatal(err)
	}
	w.write("known.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	w.bringIn(w.path("known.pem"))
	crt, err := w.ca.sign("gw", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	w.write("identity.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: crt})))
}

// sealPSKs seals the devices' pre-shared keys by the chip, as `drawbridge keys seal` does.
func (w *watched) sealPSKs() {
	t := w.t
	t.Helper()
	cfg, _, err := load(w.path("drawbridge.toml"), kinds())
	if err != nil {
		t.Fatal(err)
	}
	ring, err := openKeys(t.Context(), cfg, slog.New(slog.DiscardHandler), nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	for i := range w.each {
		psk := w.random(fmt.Sprintf("sealed psk %d", i), 16)
		w.psks = append(w.psks, psk)
		sealed, err := ring.Seal(t.Context(), "identity", psk)
		if err != nil {
			t.Fatal(err)
		}
		w.write(fmt.Sprintf("d-%d.psk", i), string(sealed))
	}
}

// devices connects them, half of those with certificates by DTLS and half by MQTT, and has each report.
func (w *watched) devices(chipPSK []byte) (done func()) {
	t := w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	meter, err := tls.LoadX509KeyPair(w.path("meter-1.crt"), w.path("meter-1.key"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []io.Closer
	jobs := make(chan func() (io.Closer, error))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for job := range jobs {
				c, err := job()
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
			}
		})
	}
	report := func(name string, d *coapDevice, err error) (io.Closer, error) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		code, err := d.request(2, "/sensors/temp", []byte("21"), 5*time.Second, 6)
		if err == nil && code != 0x44 {
			err = fmt.Errorf("a report was answered %d.%02d", code>>5, code&31)
		}
		return d, err
	}
	psk := func(name string, key []byte) (io.Closer, error) {
		d, err := dialCoAP(ctx, w.coap, name, key)
		return report(name, d, err)
	}
	for i := range w.each {
		jobs <- func() (io.Closer, error) { return psk(fmt.Sprintf("d-%d", i), w.psks[i]) }
		jobs <- func() (io.Closer, error) {
			if i%2 == 0 {
				d, err := w.dialCertified(ctx, meter)
				return report("meter-1", d, err)
			}
			return dialMQTT(ctx, w.mqtt, w.clientTLS(meter), wireOptions{clientID: fmt.Sprintf("meter-1-%d", i)})
		}
	}
	jobs <- func() (io.Closer, error) { return psk("chip-psk", chipPSK) }
	close(jobs)
	wg.Wait()
	eventually(t, "the hub to be connected by a shared access signature", func() bool {
		return strings.Contains(w.broker.output(), "as gw-hub (") && strings.Contains(w.broker.output(), "u'localhost/gw-hub/")
	})
	return func() {
		for _, c := range open {
			c.Close()
		}
		cancel()
	}
}

// dialCertified is dialCoAP with a certificate.
func (w *watched) dialCertified(ctx context.Context, cert tls.Certificate) (*coapDevice, error) {
	raddr, err := net.ResolveUDPAddr("udp", w.coap)
	if err != nil {
		return nil, err
	}
	uc, err := net.DialUDP("udp", nil, raddr)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.cert)
	dc, err := dtls.ClientWithOptions(&connected{UDPConn: uc}, raddr, dtls.WithCertificates(cert), dtls.WithRootCAs(roots), dtls.WithServerName("localhost"))
	if err == nil {
		err = dc.HandshakeContext(ctx)
	}
	if err != nil {
		uc.Close()
		return nil, err
	}
	return &coapDevice{Conn: dc, mid: uint16(time.Now().UnixNano()), buf: make([]byte, 2048)}, nil
}

// patterns are how a value may lie in memory: as it is, and with its octets reversed, as libraries for large numbers have them.
func (w *watched) patterns() map[string][][]byte {
	all := map[string][][]byte{}
	for what, v := range w.values {
		back := slices.Clone(v)
		slices.Reverse(back)
		all[what] = [][]byte{v, back}
	}
	return all
}

// scan looks for the values in every mapping of a process that can be read.
func (w *watched) scan(pid int) map[string]sightings {
	t := w.t
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
	found, patterns := map[string]sightings{}, w.patterns()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		fields := strings.Fields(line) // addresses, mode, offset, device, inode and perhaps a name
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil || fields[1][0] != 'r' {
			continue
		}
		// C has the heap that bears the name, and what the kernel maps near the top of the address space.
		ours := len(fields) < 6 && from < 0x7000_0000_0000
		w.scanned += eachChunk(io.NewSectionReader(mem, int64(from), int64(to-from)), int64(to-from), func(b []byte) {
			for what, list := range patterns {
				n := found[what]
				for _, p := range list {
					if ours {
						n.goHeap += bytes.Count(b, p)
					} else {
						n.elsewhere += bytes.Count(b, p)
					}
				}
				found[what] = n
			}
		})
	}
	return found
}

// eachChunk gives what can be read in overlapping parts, and how much that was. Pages that are the kernel's cannot be read.
func eachChunk(r io.ReaderAt, size int64, f func([]byte)) (total int) {
	const chunk, overlap, page = 1 << 20, 31, 4096
	buf := make([]byte, chunk+overlap)
	for at := int64(0); at < size; {
		n, _ := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		f(buf[:n])
		step := min(n, chunk)
		total += step
		if n < len(buf) && at+int64(n) < size { // something behind it cannot be read
			step = n/page*page + page
		}
		at += int64(max(step, 1))
	}
	return total
}

// dump has gdb write a core dump of the process, and looks for the values in it.
func (w *watched) dump(pid int, found map[string]sightings) {
	t := w.t
	t.Helper()
	path := filepath.Join(t.TempDir(), "core")
	out := mustRun(t, "gdb", "--batch", "--nx", "-p", fmt.Sprint(pid), "-ex", "generate-core-file "+path, "-ex", "detach")
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	patterns := w.patterns()
	w.dumped = eachChunk(f, info.Size(), func(b []byte) {
		for what, list := range patterns {
			n := found[what]
			for _, p := range list {
				n.dump += bytes.Count(b, p)
			}
			found[what] = n
		}
	})
}
