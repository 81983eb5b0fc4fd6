package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
	"github.com/drawbridge/drawbridge/status"
)

// meter is a device that makes one handshake and never another.
type meter struct {
	c    net.Conn
	conn *dtls.Conn
	mid  uint16
}

// report sends a confirmable report until it is answered 2.04, again and again with the same message id.
func (m *meter) report(ctx context.Context, payload string, again time.Duration) error {
	m.mid++
	text := binary.BigEndian.AppendUint16([]byte{0x40, 2}, m.mid)
	text = append(append(append(text, 0xb7), "sensors"...), 0x05)
	text = append(append(append(text, "count"...), 0xff), payload...)
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		b, err := m.conn.Seal(nil, dtls.TypeApplication, text)
		if err != nil {
			return err
		}
		_, _ = m.c.Write(b) // while nobody listens the next one says so
		m.c.SetReadDeadline(time.Now().Add(again))
		for {
			n, err := m.c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil { // nobody listens
				time.Sleep(min(again, 5*time.Millisecond))
				break
			}
			r, _, ok := dtls.NextRecord(buf[:n])
			if !ok {
				continue
			}
			typ, data, _, err := m.conn.Open(r)
			if err != nil || typ != dtls.TypeApplication || len(data) < 4 || binary.BigEndian.Uint16(data[2:]) != m.mid {
				continue
			}
			if data[1] != 0x44 {
				return fmt.Errorf("answered %d.%02d", data[1]>>5, data[1]&31)
			}
			return nil
		}
	}
	return context.Cause(ctx)
}

// each calls f for every index, some at a time, and gives the first error.
func each(n, workers int, f func(i int) error) (err error) {
	var wg sync.WaitGroup
	var once sync.Once
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				if e := f(i); e != nil {
					once.Do(func() { err = fmt.Errorf("device %d: %w", i, e) })
					return
				}
			}
		})
	}
	wg.Wait()
	return err
}

// listener gives the figures of a listener.
func (s *site) listener(name string) map[string]int64 {
	s.t.Helper()
	resp, err := http.Get("http://" + s.page + "/status.json")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var snap status.Snapshot
	if err := json.NewDecoder(resp.Body).Decode(&snap); err != nil {
		s.t.Fatal(err)
	}
	for _, l := range snap.Listeners {
		if l.Name == name {
			return l.Counters
		}
	}
	s.t.Fatalf("there is no listener %q", name)
	return nil
}

// TestProveTenThousand has devices with PSKs and with certificates, half of each with a connection id, make a handshake and fall silent. The gateway is
// killed and started again, and once stopped as for an upgrade: all go on without a handshake.
func TestProveTenThousand(t *testing.T) {
	devices := 200
	if prove() {
		devices = 10_000
	}
	s := newSite(t)
	s.binary = released(t)
	s.write("fleet.psk", "psk-of-the-fleet-16")
	var extra strings.Builder
	for i := range devices / 2 {
		fmt.Fprintf(&extra, "[device.c-%d]\ngroups = [\"thermostat\"]\npsk = \"file:fleet.psk\"\n", i)
	}
	s.extra = extra.String()
	cloud := s.serve()
	defer cloud.down()
	empty := usageOf(t, s.gateway.Process.Pid).rss

	roots := x509.NewCertPool()
	roots.AddCert(s.ca.cert)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	meters := make([]meter, devices)
	defer func() {
		for _, m := range meters {
			if m.c != nil {
				m.c.Close()
			}
		}
	}()
	began := time.Now()
	err = each(devices, 16, func(i int) error {
		o := dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_CCM_8", Identity: fmt.Sprintf("c-%d", i), PSK: []byte("psk-of-the-fleet-16"), CID: i%4 < 2, Retransmit: 3 * time.Second}
		if i >= devices/2 {
			der, err := s.ca.sign(fmt.Sprintf("meter-%d", i), []string{fmt.Sprintf("meter-%d", i)}, nil, key.Public())
			if err != nil {
				return err
			}
			o.Suite, o.Certificate, o.Roots = "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8", &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
		}
		c, err := net.Dial("udp", s.coap)
		if err != nil {
			return err
		}
		conn, err := dtlstest.Handshake(ctx, c, o)
		meters[i] = meter{c: c, conn: conn}
		if err != nil {
			return err
		}
		return meters[i].report(ctx, "1", 3*time.Second)
	})
	if err != nil {
		t.Fatalf("%v\n%v", err, s.listener("field"))
	}
	claim(t, "associations: %d devices, half with PSKs, half with certificates, have come in within %.1f s", devices, time.Since(began).Seconds())
	full := usageOf(t, s.gateway.Process.Pid).rss
	file, err := os.Stat(s.path("state/listeners/field/associations"))
	if err != nil {
		t.Fatal(err)
	}

	for _, end := range []struct {
		how string
		do  func()
	}{{"kill -9", func() { s.gateway.kill() }}, {"a stop, as for an upgrade", func() { s.gateway.stop() }}} {
		end.do()
		// The first device knocks while the gateway comes up.
		first := make(chan time.Time, 1)
		failed := make(chan error, 1)
		began := time.Now()
		go func() {
			err := meters[0].report(ctx, "2", 5*time.Millisecond)
			first <- time.Now()
			failed <- err
		}()
		s.startGateway()
		took := (<-first).Sub(began)
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
		restored := usageOf(t, s.gateway.Process.Pid).rss
		if err := each(devices, 16, func(i int) error { return meters[i].report(ctx, "3", 3*time.Second) }); err != nil {
			t.Fatal(err)
		}
		f := s.listener("field")
		if f["handshakes_ok"] != 0 || f["handshakes_failed"] != 0 || f["challenges"] != 0 || f["restored"] != int64(devices) {
			t.Errorf("after %s: %v", end.how, f)
		}
		claim(t, "associations: after %s all %d go on with 0 handshakes; %d ms from start to the first accepted message; %.0f octets resident per idle device restored, %.0f after each has reported",
			end.how, devices, took.Milliseconds(), float64(restored-empty)/float64(devices), float64(usageOf(t, s.gateway.Process.Pid).rss-empty)/float64(devices))
	}
	claim(t, "associations: the file takes %d octets per device; resident memory rose by %.0f octets per device when they came in, garbage of the handshakes included",
		file.Size()/int64(devices), float64(full-empty)/float64(devices))
}

// TestPSKInChip goes through the whole process with a device whose key was imported.
func TestPSKInChip(t *testing.T) {
	s := newSite(t)
	s.write("th-9.secret", "base64:"+base64.StdEncoding.EncodeToString([]byte("a secret of 9 ho"))+"\n")
	s.extra = "[key.th-9-psk]\nuri = \"file:th-9-psk.key\"\n[device.th-9]\ngroups = [\"thermostat\"]\npsk = \"key:th-9-psk\"\n"
	s.configure()
	s.certify()
	if out, err := s.drawbridge("keys", "import", "th-9-psk", s.path("th-9.secret")); err != nil {
		t.Fatalf("keys import: %v\n%s", err, out)
	}
	cloud := newRecorder(s)
	cloud.up()
	defer cloud.down()
	s.startGateway()
	out := mustRun(t, "coap-client-openssl", "-v", "6", "-B", "50", "-u", "th-9", "-k", "a secret of 9 ho", "-m", "post", "-e", "1", "coaps://"+s.coap+"/sensors/count")
	if !strings.Contains(out, "2.04") {
		t.Errorf("%s", out)
	}
	eventually(t, "the report to arrive", func() bool {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		return len(cloud.arrived["th-9"]) == 1
	})
	s.gateway.stop()
}
