package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// fleetOf lets devices m-0 ... m-(n-1) in, with passwords.
func (s *site) fleetOf(n int) {
	var extra strings.Builder
	for i := range n {
		name := fmt.Sprintf("m-%d", i)
		s.write(name+".password", "secret-of-"+name)
		fmt.Fprintf(&extra, "[device.%s]\ngroups = [\"press\"]\npassword = \"file:%s.password\"\n", name, name)
	}
	s.extra += extra.String()
}

func (s *site) mqttDevice(name string) *wireConn {
	s.t.Helper()
	c, err := dialMQTT(s.t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: name, user: name, password: "secret-of-" + name})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// TestProveAway lets the cloud be away for many messages and come back.
func TestProveAway(t *testing.T) {
	messages, devices := 10_000, 10
	if prove() {
		messages = 100_000
	}
	s := newSite(t)
	s.binary = released(t)
	s.fleetOf(devices)
	s.configure()
	s.certify()
	s.startGateway()
	cloud := newRecorder(s)
	defer cloud.down()

	each := messages / devices
	var wg sync.WaitGroup
	for i := range devices {
		c := s.mqttDevice(fmt.Sprintf("m-%d", i))
		wg.Go(func() {
			err := c.publishAll("sensors/count", each, 100, 0, func(n int) []byte {
				return append(strconv.AppendInt(nil, int64(n+1), 10), " and some more octets, as a reading in JSON would have them"...)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	away := usageOf(t, s.gateway.Process.Pid)
	cloud.up()
	began := time.Now()
	eventually(t, "everything to arrive", func() bool {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		return cloud.received >= each*devices
	})
	took := time.Since(began)
	back := usageOf(t, s.gateway.Process.Pid)
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	for device, arrived := range cloud.arrived {
		if again, err := inOrder(arrived); err != nil || again > 0 {
			t.Errorf("device %s: %d came twice, %v", device, again, err)
		}
		if n := missing(arrived, each); n > 0 {
			t.Errorf("device %s: %d messages are missing", device, n)
		}
	}
	if limit := int64(100 << 20); back.peak > limit {
		t.Errorf("resident memory rose to %d MB, over %d", back.peak>>20, limit>>20)
	}
	claim(t, "cloud away for %d messages: all delivered in order within %.1f s of its return; resident memory %.1f MB while away, %.1f MB at most",
		each*devices, took.Seconds(), float64(away.rss)/1e6, float64(back.peak)/1e6)
}

// mountSmall puts a disk of 24 MiB under the directory until the test ends.
func mountSmall(t testing.TB, dir string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m,mode=700"); err != nil {
		needs.Missing(t, "the right to mount a file system is missing:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// TestProveDiskFull fills the disk under the state directory: devices hear so, nothing accepted is lost, and service resumes by itself.
func TestProveDiskFull(t *testing.T) {
	s := newSite(t)
	s.binary = released(t)
	s.fleetOf(1)
	s.configure()
	s.certify()
	state := s.path("state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	mountSmall(t, state)
	s.certify() // the mount hides what was made before
	s.startGateway()
	cloud := newRecorder(s)
	defer cloud.down()

	m, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "m-0", user: "m-0", password: "secret-of-m-0", v5: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c, err := dialCoAP(t.Context(), s.coap, "th-1", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// report sends number n and tells whether it was accepted, or refused because there is no room.
	report := map[string]func(n int) bool{
		"m-0": func(n int) bool {
			code, err := m.publish5("sensors/count", fmt.Appendf(nil, "%d %04000d", n, 0))
			if err != nil || code != 0 && code != 0x97 {
				t.Fatalf("PUBACK of message %d: 0x%02x, %v", n, code, err)
			}
			return code == 0
		},
		"th-1": func(n int) bool {
			code, err := c.request(2, "/sensors/count", fmt.Appendf(nil, "%d %0900d", n, 0), 5*time.Second, 4)
			if err != nil || code != 0x44 && code != 0xa3 {
				t.Fatalf("the answer to message %d: %d.%02d, %v", n, code>>5, code&31, err)
			}
			return code == 0x44
		},
	}
	accepted := map[string]int{}
	for _, device := range []string{"m-0", "th-1"} {
		for n := 1; report[device](n); n++ {
			accepted[device] = n
			if n > 30_000 {
				t.Fatalf("%s was told yes %d times on a disk of 24 MiB", device, n)
			}
		}
	}
	filled := accepted["m-0"] + accepted["th-1"]
	cloud.up()
	for device := range report {
		n := accepted[device] + 1
		eventually(t, device+" to be heard again", func() bool { return report[device](n) })
		accepted[device] = n
	}
	eventually(t, "everything accepted to arrive", func() bool {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		return missing(cloud.arrived["m-0"], accepted["m-0"])+missing(cloud.arrived["th-1"], accepted["th-1"]) == 0
	})
	claim(t, "disk full after %d messages: devices heard 0x97 and 5.03, nothing accepted was lost, service resumed by itself", filled)
}

// TestProveGarbage throws random and mutated packets at both listeners: they go on serving.
func TestProveGarbage(t *testing.T) {
	s := newSite(t)
	s.binary = released(t)
	s.fleetOf(1)
	cloud := s.serve()
	defer cloud.down()

	const each = 1000
	rng := rand.New(rand.NewPCG(1, 2))
	udp, err := net.Dial("udp", s.coap)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	hello := captureClientHello(t)
	publish := append(mqttPacket(0x10, append(append(mqttString(nil, "MQTT"), 5, 2, 0, 60, 0), mqttString(nil, "m-0")...)), publishPacket("sensors/count", 1, []byte("1"))...)
	for range each {
		udp.Write(randomOctets(rng, 1+rng.IntN(1200)))
		udp.Write(mutate(rng, hello))
		s.throw(randomOctets(rng, 1+rng.IntN(600)))
		s.throw(mutate(rng, publish))
	}
	// Both protocols still take reports.
	if err := s.mqttDevice("m-0").publishAll("sensors/count", 1, 1, 0, func(int) []byte { return []byte("1") }); err != nil {
		t.Error(err)
	}
	c, err := dialCoAP(t.Context(), s.coap, "th-1", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if code, err := c.request(2, "/sensors/count", []byte("1"), 5*time.Second, 3); err != nil || code != 0x44 {
		t.Errorf("after the garbage a report was answered %d.%02d, %v", code>>5, code&31, err)
	}
	select {
	case <-s.gateway.ended:
		t.Errorf("the gateway ended:\n%s", s.gateway.output())
	default:
	}
	claim(t, "garbage: %d random and %d mutated datagrams and as many MQTT packets, and it serves on", each, each)
}

// throw opens a TLS connection to the MQTT listener, writes b and goes away.
func (s *site) throw(b []byte) {
	c, err := tls.Dial("tcp", s.mqtt, s.clientTLS())
	if err != nil {
		s.t.Errorf("the MQTT listener takes no connection any more: %v", err)
		return
	}
	c.Write(b)
	c.Close()
}

func randomOctets(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// mutate changes a few octets, cuts, or repeats a part.
func mutate(rng *rand.Rand, b []byte) []byte {
	m := bytes.Clone(b)
	for range 1 + rng.IntN(4) {
		switch rng.IntN(3) {
		case 0:
			m[rng.IntN(len(m))] = byte(rng.Uint32())
		case 1:
			m = m[:1+rng.IntN(len(m))]
		case 2:
			at := rng.IntN(len(m))
			m = append(m[:at:at], append(bytes.Clone(m[at:]), m[at:]...)...)
		}
	}
	return m[:min(len(m), 2000)]
}

// captureClientHello gives the first datagram of a DTLS client.
func captureClientHello(t *testing.T) []byte {
	t.Helper()
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	ended := make(chan struct{})
	go func() {
		dialCoAP(ctx, server.LocalAddr().String(), "th-1", []byte("0123456789abcdef"))
		close(ended)
	}()
	b := make([]byte, 2048)
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := server.Read(b)
	cancel()
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}
