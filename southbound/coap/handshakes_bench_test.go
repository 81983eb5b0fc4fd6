package coap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
)

// terminator is a server that handshakes are made with.
type terminator struct {
	name    string
	workers int // clients at a time; more than one where the server takes them
	start   func(b *testing.B, dir, security string) (addr string, pid int, stop func())
}

const benchSecret = "southtest-secret-of-dev-0"

// terminators gives the servers; g is the gateway, whose CA the certificates in dir are of.
func terminators(g *gateway) []terminator {
	libcoap := func(program string) func(*testing.B, string, string) (string, int, func()) {
		return func(b *testing.B, dir, security string) (string, int, func()) {
			port := freePort(b)
			args := []string{"-A", "127.0.0.1", "-p", strconv.Itoa(port - 1), "-v", "0"}
			if security == "psk" {
				args = append(args, "-k", benchSecret)
			} else {
				args = append(args, "-c", filepath.Join(dir, "dev-31.crt"), "-j", filepath.Join(dir, "dev-31.key"), "-C", filepath.Join(dir, "ca.pem"))
			}
			return startTerminator(b, port, program, args...)
		}
	}
	return []terminator{
		{"drawbridge", 4, func(*testing.B, string, string) (string, int, func()) { return g.listen, g.cmd.Process.Pid, func() {} }},
		{"coap-server-openssl", 4, libcoap("coap-server-openssl")},
		{"coap-server-gnutls", 4, libcoap("coap-server-gnutls")},
		{"openssl s_server", 1, func(b *testing.B, dir, security string) (string, int, func()) {
			port := freePort(b)
			args := []string{"s_server", "-dtls1_2", "-accept", "127.0.0.1:" + strconv.Itoa(port), "-quiet", "-cipher", "ALL:@SECLEVEL=0"}
			if security == "psk" {
				args = append(args, "-nocert", "-psk", hex.EncodeToString([]byte(benchSecret)), "-psk_identity", "dev-0")
			} else {
				args = append(args, "-cert", filepath.Join(dir, "dev-31.crt"), "-key", filepath.Join(dir, "dev-31.key"), "-CAfile", filepath.Join(dir, "ca.pem"), "-Verify", "1")
			}
			return startTerminator(b, port, "openssl", args...)
		}},
	}
}

// freePort gives a port of UDP that is free together with the one below it.
func freePort(b *testing.B) int {
	b.Helper()
	for range 100 {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		port := c.LocalAddr().(*net.UDPAddr).Port
		below, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port-1))
		c.Close()
		if err == nil {
			below.Close()
			return port
		}
	}
	b.Fatal("no two ports are free")
	return 0
}

func startTerminator(b *testing.B, port int, program string, args ...string) (string, int, func()) {
	b.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		b.Skip(err)
	}
	cmd := exec.Command(path, args...)
	in, err := cmd.StdinPipe() // s_server ends with its input
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port), cmd.Process.Pid, func() { cmd.Process.Kill(); in.Close(); cmd.Wait() }
}

// processorTime is what a process has used, user and system.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
}

// BenchmarkBesideHandshakes makes handshakes with the listener, which keeps each association on disk, with libcoap's servers and with openssl's, in turn. The
// client runs on the same processors, so what is compared is handshakes per second of the server's processor time.
func BenchmarkBesideHandshakes(b *testing.B) {
	dir := b.TempDir()
	b.Setenv("DRAWBRIDGE_TEST_ISSUE", dir)
	g := &gateway{dir: b.TempDir(), listen: "127.0.0.1:0", took: map[string]int{}}
	g.start(b)
	defer g.kill()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "dev-0.crt"), filepath.Join(dir, "dev-0.key"))
	if err != nil {
		b.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, kind := range []struct {
		security string
		count    int
		o        dtlstest.Options
	}{
		{"psk", 6000, dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_GCM_SHA256", Identity: "dev-0", PSK: []byte(benchSecret)}},
		{"x509", 2000, dtlstest.Options{Suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Certificate: &cert, Roots: roots}},
	} {
		b.Run(kind.security, func(b *testing.B) {
			rates := map[string][]float64{}
			const rounds = 3
			for range rounds {
				for _, s := range terminators(g) {
					addr, pid, stop := s.start(b, dir, kind.security)
					handshakes(b, addr, s.workers, 100, kind.o) // warm
					before, began := processorTime(b, pid), time.Now()
					handshakes(b, addr, s.workers, kind.count, kind.o)
					used, took := processorTime(b, pid)-before, time.Since(began)
					stop()
					rates[s.name] = append(rates[s.name], float64(kind.count)/used.Seconds())
					fmt.Printf("bench: handshakes %s: %-20s %6.0f per second of processor time, %6.0f/s by the clock\n", kind.security, s.name,
						float64(kind.count)/used.Seconds(), float64(kind.count)/took.Seconds())
				}
			}
			for _, s := range terminators(g)[1:] {
				var ratios []float64
				for i := range rounds {
					ratios = append(ratios, rates["drawbridge"][i]/rates[s.name][i])
				}
				slices.Sort(ratios)
				fmt.Printf("bench: handshakes %s: drawbridge / %s = %.2f (min %.2f, max %.2f of %d rounds)\n", kind.security, s.name, ratios[1], ratios[0], ratios[2], rounds)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// handshakes makes count handshakes by some clients at a time. Each ends its association as soon as it has it.
func handshakes(b *testing.B, addr string, workers, count int, o dtlstest.Options) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	o.Retransmit = 100 * time.Millisecond
	var left atomic.Int64
	left.Store(int64(count))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				for ctx.Err() == nil {
					err := handshakeOnce(ctx, addr, o)
					if err == nil {
						break
					}
					time.Sleep(time.Millisecond) // the server is not there yet
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		b.Fatal(ctx.Err())
	}
}

func handshakeOnce(ctx context.Context, addr string, o dtlstest.Options) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	conn, err := dtlstest.Handshake(ctx, c, o)
	if err != nil {
		return err
	}
	bye, err := conn.SealAlert(nil, dtls.CloseNotify)
	if err == nil {
		_, err = c.Write(bye)
	}
	return err
}
