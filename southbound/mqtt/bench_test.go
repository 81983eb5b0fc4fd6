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
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
func opponents(t *testing.T, withTLS bool) []*opponent {
	t.Helper()
	broker := program(t, "mosquitto")
	cmd, g := child(t, orders{Dir: t.TempDir(), TLS: withTLS})
	ours := &opponent{name: "ours", addr: g.Addr, pid: cmd.Process.Pid}
	site := southtest.NewSite(t)
	crt, key := site.IssueFiles(t, "localhost")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\nlog_type none\nuser root\n", port)
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
		ours.conf = &tls.Config{RootCAs: site.Roots, ServerName: "localhost"}
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

// bench skips where nobody wants to measure.
func bench(t *testing.T) {
	t.Helper()
	if os.Getenv("DRAWBRIDGE_BENCH") == "" {
		t.Skip("set DRAWBRIDGE_BENCH=1 to measure")
	}
}

// TestBenchIdle measures connects and what an idle TLS connection weighs, beside mosquitto in the same run.
func TestBenchIdle(t *testing.T) {
	bench(t)
	idle, err := strconv.Atoi(os.Getenv("DRAWBRIDGE_BENCH_CONNECTIONS"))
	if err != nil {
		idle = 2000
	}
	for _, o := range opponents(t, true) {
		before, used := rss(t, o.pid), cpu(t, o.pid)
		began := time.Now()
		var failed atomic.Int64
		conns := make([]net.Conn, idle)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; i < idle; i += 8 {
					nc, err := o.dial(fmt.Sprintf("idle-%d", i))
					if err != nil {
						failed.Add(1)
						continue
					}
					conns[i] = nc
				}
			})
		}
		wg.Wait()
		took := time.Since(began)
		spent := cpu(t, o.pid) - used
		time.Sleep(8 * time.Second) // buffers and stacks of the handshake are given back
		t.Logf("%-9s %d idle TLS connections (%d failed): %.0f connects/s, %.2f ms CPU each, %.1f KiB RSS each",
			o.name, idle, failed.Load(), float64(idle)/took.Seconds(), spent.Seconds()*1000/float64(idle), float64(rss(t, o.pid)-before)/1024/float64(idle))
		for _, nc := range conns {
			if nc != nil {
				nc.Close()
			}
		}
	}
}

// TestBenchIngest measures publishes from devices, beside mosquitto in the same run.
func TestBenchIngest(t *testing.T) {
	bench(t)
	for _, withTLS := range []bool{false, true} {
		for _, qos := range []byte{1, 2, 0} {
			for _, load := range [][2]int{{1, 50}, {50, 50}, {500, 10}} {
				figures := map[string]float64{}
				for _, o := range opponents(t, withTLS) {
					rate, spent := o.ingest(t, qos, load[0], load[1], 3*time.Second)
					figures[o.name] = rate
					t.Logf("%-9s tls=%v QoS %d, %3d publishers x %d: %8.0f msg/s, %.1f µs CPU each", o.name, withTLS, qos, load[0], load[1], rate, spent)
				}
				t.Logf("ratio     tls=%v QoS %d, %3d publishers: %.2f", withTLS, qos, load[0], figures["ours"]/figures["mosquitto"])
			}
		}
	}
}

// ingest publishes 64 octets from n clients with window messages each in flight, for a while.
func (o *opponent) ingest(t *testing.T, qos byte, n, window int, d time.Duration) (perSecond, micros float64) {
	t.Helper()
	var count atomic.Int64
	var wg sync.WaitGroup
	stop := time.Now().Add(d)
	used, began := cpu(t, o.pid), time.Now()
	for i := range n {
		nc, err := o.dial(fmt.Sprintf("pub-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer nc.Close()
			nc.SetDeadline(stop.Add(10 * time.Second))
			count.Add(publishFor(nc, qos, window, stop))
		})
	}
	wg.Wait()
	took := time.Since(began)
	total := float64(count.Load())
	return total / took.Seconds(), (cpu(t, o.pid) - used).Seconds() * 1e6 / total
}

// publishFor keeps window publishes in flight until stop and tells how many were acknowledged. With QoS 0 a PINGREQ
// closes each window: its answer shows that what came before has been read.
func publishFor(nc net.Conn, qos byte, window int, stop time.Time) (n int64) {
	r := bufio.NewReader(nc)
	p := packet.PublishPacket{QoS: qos, Payload: make([]byte, 64)}
	var out []byte
	id := uint16(0)
	add := func() {
		if id++; id == 0 {
			id = 1
		}
		p.ID = id
		out = packet.AppendPublish(out, packet.V311, &p, "bench/topic")
	}
	for range window {
		add()
	}
	if qos == 0 {
		out = append(out, 0xc0, 0)
	}
	for time.Now().Before(stop) {
		if _, err := nc.Write(out); err != nil {
			return n
		}
		out = out[:0]
		for {
			var h [4]byte
			if _, err := io.ReadFull(r, h[:2]); err != nil {
				return n
			}
			if h[0] == 0xd0 {
				n += int64(window)
				for range window {
					add()
				}
				out = append(out, 0xc0, 0)
				break
			}
			if _, err := io.ReadFull(r, h[2:]); err != nil {
				return n
			}
			if h[0] == 0x50 {
				out = packet.AppendAck(out, packet.V311, packet.Pubrel, binary.BigEndian.Uint16(h[2:]), 0, "")
			} else {
				n++
				add()
			}
			if r.Buffered() == 0 {
				break
			}
		}
	}
	return n
}
