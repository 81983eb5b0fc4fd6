package mqtt

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// opponent is a broker under load: ours, or mosquitto beside it.
type opponent struct {
	name string
	addr string
	pid  int
	conf *tls.Config // nil: no TLS
}

// opponents starts both. They serve the same certificate type to the same clients; ours says yes after fdatasync, mosquitto without.
func opponents(t testing.TB, withTLS bool) []*opponent {
	t.Helper()
	broker := needs.Program(t, "mosquitto")
	cmd, g := child(t, orders{Dir: t.TempDir(), TLS: withTLS})
	ours := &opponent{name: "drawbridge", addr: g.Addr, pid: cmd.Process.Pid}
	site := southtest.NewSite(t)
	crt, key := site.IssueFiles(t, "localhost")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\nlog_type none\nuser root\n", port)
	if withTLS {
		conf += fmt.Sprintf("certfile %s\nkeyfile %s\n", crt, key)
		pemCA, err := os.ReadFile(g.CA)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(pemCA)
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		site.Roots.AddCert(ca)
		// Both shake hands with the same curve: mosquitto's TLS library may not have the one that Go likes best.
		ours.conf = &tls.Config{RootCAs: site.Roots, ServerName: "localhost", CurvePreferences: []tls.CurveID{tls.X25519}}
	}
	file := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	theirs := exec.Command(broker, "-c", file)
	o := &opponent{name: "mosquitto", addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), conf: ours.conf}
	if !serves(t, theirs, o.addr) {
		t.Fatal("mosquitto does not listen")
	}
	o.pid = theirs.Process.Pid
	return []*opponent{ours, o}
}

// dial connects a client with a clean session of 3.1.1.
func (o *opponent) dial(id string) (net.Conn, error) {
	nc, err := net.Dial("tcp", o.addr)
	if err == nil && o.conf != nil {
		nc = tls.Client(nc, o.conf)
	}
	if err != nil {
		return nil, err
	}
	hello := "\x10" + string(rune(12+len(id))) + "\x00\x04MQTT\x04\x02\x00\x00\x00" + string(rune(len(id))) + id
	if _, err := io.WriteString(nc, hello); err != nil {
		return nil, err
	}
	var ack [4]byte
	if _, err := io.ReadFull(nc, ack[:]); err != nil || ack[3] != 0 {
		return nil, fmt.Errorf("CONNACK %x: %v", ack, err)
	}
	return nc, nil
}

// spread is the lowest, the middle and the highest of what was measured.
func spread(v []float64) string {
	v = slices.Sorted(slices.Values(v))
	return fmt.Sprintf("%.2f (min %.2f, max %.2f of %d rounds)", v[len(v)/2], v[0], v[len(v)-1], len(v))
}

// BenchmarkBesideMosquittoIdle measures what TLS connections with ECDSA P-256 cost to make and to keep, beside mosquitto in the same run.
func BenchmarkBesideMosquittoIdle(b *testing.B) {
	const idle = 10000
	var perSecond, weight []float64
	for _, o := range opponents(b, true) {
		before, used := rss(b, o.pid), cpu(b, o.pid)
		began := time.Now()
		conns := o.dialAll(b, idle)
		took := time.Since(began)
		spent := cpu(b, o.pid) - used
		time.Sleep(6 * time.Second) // buffers and stacks of the handshake are given back
		perSecond = append(perSecond, idle/took.Seconds())
		weight = append(weight, float64(rss(b, o.pid)-before)/1024/idle)
		fmt.Printf("bench: %d idle TLS connections (ECDSA P-256, both sides on %d processors): %-10s %5.0f connects/s, %.2f ms CPU each, %.1f KiB RSS each\n",
			idle, runtime.NumCPU(), o.name, perSecond[len(perSecond)-1], spent.Seconds()*1000/idle, weight[len(weight)-1])
		for _, nc := range conns {
			nc.Close()
		}
	}
	fmt.Printf("bench: %d idle TLS connections: drawbridge / mosquitto = %.2f connects/s, %.2f RSS each\n", idle, perSecond[0]/perSecond[1], weight[0]/weight[1])
	b.ReportMetric(0, "ns/op")
}

// dialAll connects n clients, many at a time: mosquitto takes one connection at each turn of its loop.
func (o *opponent) dialAll(b *testing.B, n int) []net.Conn {
	b.Helper()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	const atOnce = 64
	for w := range atOnce {
		wg.Go(func() {
			for i := w; i < n; i += atOnce {
				nc, err := o.dial(fmt.Sprintf("client-%d", i))
				if err != nil {
					b.Error(err)
					return
				}
				conns[i] = nc
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return conns
}

// BenchmarkBesideMosquittoIngest measures publishes of 64 octets from devices, beside mosquitto in the same run. The gateway says yes after
// fdatasync, mosquitto does not store anything.
func BenchmarkBesideMosquittoIngest(b *testing.B) {
	for how, withTLS := range map[string]bool{"plain": false, "TLS": true} {
		b.Run(how, func(b *testing.B) {
			both := opponents(b, withTLS)
			for _, load := range [][2]int{{1, 50}, {50, 50}, {500, 10}} {
				b.Run(fmt.Sprintf("publishers=%d", load[0]), func(b *testing.B) {
					conns := [][]net.Conn{both[0].dialAll(b, load[0]), both[1].dialAll(b, load[0])}
					for qos := range byte(3) {
						b.Run(fmt.Sprintf("QoS=%d", qos), func(b *testing.B) {
							compareIngest(b, fmt.Sprintf("MQTT ingest, %s, QoS %d, %3d publishers", how, qos, load[0]), both, conns, qos, load[1])
						})
					}
					for _, nc := range slices.Concat(conns...) {
						nc.Close()
					}
				})
			}
		})
	}
}

// compareIngest measures both in turn, several rounds.
func compareIngest(b *testing.B, what string, both []*opponent, conns [][]net.Conn, qos byte, window int) {
	b.Helper()
	const rounds, each = 3, 500 * time.Millisecond
	var rates, costs [2][]float64
	var ratios []float64
	for r := range rounds {
		for i, o := range both {
			rate, micros := o.ingest(b, conns[i], qos, window, each)
			rates[i], costs[i] = append(rates[i], rate), append(costs[i], micros)
		}
		ratios = append(ratios, rates[0][r]/rates[1][r])
	}
	for i, o := range both {
		fmt.Printf("bench: %s: %-10s %7.0f/s, %.1f µs CPU each\n", what, o.name, slices.Max(rates[i]), slices.Min(costs[i]))
	}
	fmt.Printf("bench: %s: drawbridge / mosquitto = %s\n", what, spread(ratios))
	b.ReportMetric(slices.Sorted(slices.Values(ratios))[rounds/2], "ratio")
	b.ReportMetric(0, "ns/op")
}

// ingest publishes over the connections with window messages each in flight, for a while.
func (o *opponent) ingest(b *testing.B, conns []net.Conn, qos byte, window int, d time.Duration) (perSecond, micros float64) {
	b.Helper()
	var count atomic.Int64
	var wg sync.WaitGroup
	used, began := cpu(b, o.pid), time.Now()
	stop := began.Add(d)
	for _, nc := range conns {
		wg.Go(func() {
			nc.SetDeadline(stop.Add(patience))
			n, err := publishFor(nc, qos, window, stop)
			if err != nil {
				b.Errorf("%s: %v", o.name, err)
			}
			count.Add(n)
		})
	}
	wg.Wait()
	took := time.Since(began)
	if b.Failed() {
		b.FailNow()
	}
	total := float64(count.Load())
	return total / took.Seconds(), (cpu(b, o.pid) - used).Seconds() * 1e6 / total
}

// publishFor keeps window publishes in flight until stop, waits for the end of all, and tells how many were acknowledged. With QoS 0 a
// PINGREQ closes each window: its answer shows that what came before has been read.
func publishFor(nc net.Conn, qos byte, window int, stop time.Time) (n int64, err error) {
	r := bufio.NewReader(nc)
	p := packet.PublishPacket{QoS: qos, Payload: make([]byte, 64)}
	var out []byte
	id := uint16(0)
	flying := 0
	add := func() {
		if id++; id == 0 {
			id = 1
		}
		p.ID = id
		out = packet.AppendPublish(out, packet.V311, &p, "bench/topic")
		flying++
	}
	fill := func() {
		if time.Now().After(stop) {
			return
		}
		for flying < window {
			add()
		}
		if qos == 0 {
			out = append(out, 0xc0, 0)
		}
	}
	for fill(); flying > 0; fill() {
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return n, err
			}
			out = out[:0]
		}
		for {
			var h [4]byte
			if _, err := io.ReadFull(r, h[:2]); err != nil {
				return n, err
			}
			if h[0] == 0xd0 {
				n += int64(flying)
				flying = 0
				break
			}
			if _, err := io.ReadFull(r, h[2:]); err != nil {
				return n, err
			}
			if h[0] == 0x50 {
				out = packet.AppendAck(out, packet.V311, packet.Pubrel, binary.BigEndian.Uint16(h[2:]), 0, "")
			} else {
				n++
				flying--
			}
			if r.Buffered() == 0 {
				break
			}
		}
	}
	return n, nil
}
