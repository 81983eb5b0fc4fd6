package coap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
)

// prove tells whether the heavy form of a proof is asked for.
func prove() bool { return os.Getenv("DRAWBRIDGE_PROVE") != "" }

// claim prints what a proof has found, for `make prove`.
func claim(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf("prove: "+format, args...)
}

// lightDevice is a device on the tests' own DTLS client, which sees every record.
type lightDevice struct {
	name string
	c    net.Conn
	conn *dtls.Conn
	buf  []byte
	mid  uint16
	said int

	echo    []byte // for the next report
	doubted int    // reports that were answered by a challenge

	seen   map[uint64]struct{} // epoch and sequence number of what the server has sent under protection
	keep   bool                // what is sent is kept, to be replayed
	mu     sync.Mutex
	past   [][]byte // guarded by mu
	yes    []string // payloads that were answered 2.04
	misses int      // requests without an answer
}

func dialLight(ctx context.Context, addr, name string, o dtlstest.Options) (*lightDevice, error) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return nil, err
	}
	o.Identity, o.PSK = name, []byte("southtest-secret-of-"+name)
	conn, err := dtlstest.Handshake(ctx, c, o)
	if err != nil {
		c.Close()
		return nil, err
	}
	return &lightDevice{name: name, c: c, conn: conn, buf: make([]byte, 2048), seen: map[uint64]struct{}{}}, nil
}

// errTwice is that the server has used a sequence number before.
var errTwice = errors.New("a sequence number was used twice")

// report sends one confirmable report, once, and waits for its answer. No two payloads are alike.
func (d *lightDevice) report(wait time.Duration) (ok bool, err error) {
	d.mid++
	d.said++
	payload := fmt.Sprintf("%s.%d", d.name, d.said)
	text := binary.BigEndian.AppendUint16([]byte{0x40, 2}, d.mid)
	text = append(append(text, 0xb7), "sensors"...)
	if d.echo != nil {
		text = append(append(text, 0xd0|byte(len(d.echo)), byte(echo)-11-13), d.echo...)
		d.echo = nil
	}
	b, err := d.conn.Seal(nil, dtls.TypeApplication, append(append(text, 0xff), payload...))
	if err != nil {
		return false, err
	}
	if d.keep {
		d.mu.Lock()
		d.past = append(d.past, b)
		d.mu.Unlock()
	}
	_, _ = d.c.Write(b) // a gateway that is away says so at the next one
	d.c.SetReadDeadline(time.Now().Add(wait))
	for {
		n, err := d.c.Read(d.buf)
		if err != nil {
			d.misses++
			return false, nil
		}
		r, _, ok := dtls.NextRecord(d.buf[:n])
		if !ok || r.Epoch == 0 {
			continue
		}
		if d.keep {
			at := uint64(r.Epoch)<<48 | r.Seq
			if _, twice := d.seen[at]; twice {
				return false, fmt.Errorf("%s: %w: %x", d.name, errTwice, at)
			}
			d.seen[at] = struct{}{}
		}
		typ, data, _, err := d.conn.Open(r)
		if err != nil || typ != dtls.TypeApplication || len(data) < 4 || binary.BigEndian.Uint16(data[2:]) != d.mid {
			continue
		}
		if data[1] == 0x81 { // 4.01: it is to prove that it is fresh (RFC 9175)
			var p packet
			if err := p.parse(data); err != nil {
				return false, err
			}
			v, _ := p.option(echo)
			d.echo, d.doubted = append([]byte{}, v...), d.doubted+1
			return false, nil
		}
		if data[1] != 0x44 {
			return false, fmt.Errorf("%s: answered %d.%02d", d.name, data[1]>>5, data[1]&31)
		}
		if d.keep {
			d.yes = append(d.yes, payload)
		}
		return true, nil
	}
}

// replay sends old records again: the latest ones and some of all.
func (d *lightDevice) replay() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range 20 {
		at := len(d.past) - 1 - i
		if at < 0 {
			break
		}
		d.c.Write(d.past[at])
		d.c.Write(d.past[rand.IntN(len(d.past))])
		n += 2
	}
	return n
}

// TestProveKill kills the listener's process at random while devices with PSKs and with certificates, half of each with a connection id, report, and
// replays what they have sent. What was answered 2.04 was taken; no record's sequence number came twice from the listener; nothing that a
// device sent once was taken twice; and nobody made a second handshake.
func TestProveKill(t *testing.T) {
	kills, devices := 5, 16
	if prove() {
		kills = 200
	}
	issued := t.TempDir()
	t.Setenv("DRAWBRIDGE_TEST_ISSUE", issued)
	g := &gateway{dir: t.TempDir(), listen: "127.0.0.1:0", took: map[string]int{}}
	g.start(t)
	defer func() { g.kill() }()
	ca, err := os.ReadFile(filepath.Join(issued, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var all []*lightDevice
	for i := range devices {
		name := fmt.Sprintf("dev-%d", i)
		o := dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_CCM_8", CID: i%4 < 2}
		if i%2 == 0 {
			cert, err := tls.LoadX509KeyPair(filepath.Join(issued, name+".crt"), filepath.Join(issued, name+".key"))
			if err != nil {
				t.Fatal(err)
			}
			o.Suite, o.Certificate, o.Roots = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", &cert, roots
		}
		d, err := dialLight(ctx, g.listen, name, o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.c.Close()
		d.keep = true
		all = append(all, d)
	}

	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, d := range all {
		wg.Go(func() {
			for !stop.Load() && ctx.Err() == nil {
				ok, err := d.report(200 * time.Millisecond)
				if err != nil {
					t.Error(err)
					return
				}
				if !ok {
					time.Sleep(2 * time.Millisecond) // the gateway is away
				}
			}
		})
	}
	replayed := 0
	for kill := range kills {
		time.Sleep(20*time.Millisecond + rand.N(130*time.Millisecond)) // a kill may come at any time
		if kill%50 == 49 {
			time.Sleep(3 * time.Second) // long enough to have more numbers reserved
		}
		g.kill()
		g.start(t)
		for _, d := range all {
			replayed += d.replay()
		}
	}
	// Each has to be heard once more.
	stop.Store(true)
	wg.Wait()
	for _, d := range all {
		for ok := false; !ok; {
			if ok, err = d.report(time.Second); err != nil || ctx.Err() != nil {
				t.Fatalf("%s is not heard any more: %v", d.name, err)
			}
		}
		replayed += d.replay()
	}
	g.kill()

	yes, records := 0, 0
	for _, d := range all {
		yes += len(d.yes)
		records += len(d.seen)
		for _, payload := range d.yes {
			if g.took[payload] == 0 {
				t.Errorf("report %s was answered 2.04 and not taken", payload)
			}
		}
	}
	for payload, n := range g.took {
		if n > 1 {
			t.Errorf("report %s was taken %d times", payload, n)
		}
	}
	if g.before != devices {
		t.Errorf("%d handshakes of %d devices", g.before, devices)
	}
	claim(t, "associations: %d kills under load, %d devices: %d reports answered 2.04, all taken; %d records of the listener, no sequence number twice; %d records replayed, none accepted; no second handshake",
		kills, devices, yes, records, replayed)
}

// TestPowerCut puts back an older image of the associations, as a power cut may leave one: of before the last reports, and of another boot.
func TestPowerCut(t *testing.T) {
	g := &gateway{dir: t.TempDir(), listen: "127.0.0.1:0", took: map[string]int{}}
	g.start(t)
	defer func() { g.kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all []*lightDevice
	for i := range 4 {
		d, err := dialLight(ctx, g.listen, fmt.Sprintf("dev-%d", i), dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_CCM_8", CID: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		defer d.c.Close()
		d.keep = true
		all = append(all, d)
	}
	report := func(n int) {
		t.Helper()
		for _, d := range all {
			for i := 0; i < n; {
				ok, err := d.report(5 * time.Second)
				if err != nil || ctx.Err() != nil {
					t.Fatal(d.name, err)
				}
				if ok {
					i++
				}
			}
		}
	}
	file := filepath.Join(g.dir, keepFile)
	for range 3 {
		report(20)
		image, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		report(20)
		g.kill()
		copy(image[len("drawbridge slots 1\n"):], "of another boot")
		if err := os.WriteFile(file, image, 0o600); err != nil {
			t.Fatal(err)
		}
		g.start(t)
		for _, d := range all {
			d.replay()
		}
		report(1)
	}
	g.kill()
	for _, d := range all {
		if d.doubted != 3 {
			t.Errorf("%s had to prove %d times that it is fresh", d.name, d.doubted)
		}
		for _, payload := range d.yes {
			if g.took[payload] == 0 {
				t.Errorf("report %s was answered 2.04 and not taken", payload)
			}
		}
	}
	for payload, n := range g.took {
		if n > 1 {
			t.Errorf("report %s was taken %d times", payload, n)
		}
	}
	if g.before != len(all) {
		t.Errorf("%d handshakes of %d devices", g.before, len(all))
	}
}
