package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The benchmarks measure two programs in turn, several rounds in one run, with the same devices and the same cloud, and
// report the ratio. They time nothing that decides whether a test passes.

const benchRounds = 3

// run is what one round has found for one program.
type benchRun struct {
	rate      float64 // messages per second, from the first sent to the last received
	p50, p99  time.Duration
	rss, peak int64
	cpu       time.Duration // per message
}

// report prints the two sides and their ratio.
func reportRatio(b *testing.B, what string, ours, theirs []benchRun, peer string) {
	b.Helper()
	column := func(runs []benchRun, f func(benchRun) float64) spread {
		var v []float64
		for _, r := range runs {
			v = append(v, f(r))
		}
		return spreadOf(v)
	}
	line := func(name string, runs []benchRun) {
		rate := column(runs, func(r benchRun) float64 { return r.rate })
		fmt.Printf("bench: %s: %-18s %7.0f/s (min %.0f, max %.0f)  p50 %.2f ms  p99 %.2f ms  cpu %.1f µs each  rss peak %.1f MB\n", what, name,
			rate.median, rate.min, rate.max,
			column(runs, func(r benchRun) float64 { return float64(r.p50.Microseconds()) / 1000 }).median,
			column(runs, func(r benchRun) float64 { return float64(r.p99.Microseconds()) / 1000 }).median,
			column(runs, func(r benchRun) float64 { return float64(r.cpu.Nanoseconds()) / 1000 }).median,
			column(runs, func(r benchRun) float64 { return float64(r.peak) / 1e6 }).max)
	}
	line("drawbridge", ours)
	line(peer, theirs)
	var ratios []float64
	for i := range ours {
		ratios = append(ratios, ours[i].rate/theirs[i].rate)
	}
	r := spreadOf(ratios)
	fmt.Printf("bench: %s: drawbridge / %s = %.2f (min %.2f, max %.2f of %d rounds)\n", what, peer, r.median, r.min, r.max, len(ratios))
	b.ReportMetric(r.median, "ratio")
	b.ReportMetric(0, "ns/op")
}

// benchCloud starts mosquitto so that it holds nobody back, with a plain listener for whoever watches what arrives, so that watching
// costs little.
func (s *site) benchCloud() {
	s.plain = vacant(s.t)
	_, port, _ := net.SplitHostPort(s.plain)
	s.startCloud("max_queued_messages 0", "max_inflight_messages 2000", "set_tcp_nodelay true", "listener "+port+" 127.0.0.1", "allow_anonymous true")
}

// BenchmarkBesideMosquittoBridge sends QoS 1 over TLS from devices through the gateway to a broker, and the same through a mosquitto bridge. The gateway
// syncs every message to disk before it acknowledges; mosquitto does not store any.
func BenchmarkBesideMosquittoBridge(b *testing.B) {
	for _, load := range []struct{ publishers, window, messages int }{{50, 50, 200_000}, {1, 50, 50_000}} {
		b.Run(fmt.Sprintf("publishers=%d", load.publishers), func(b *testing.B) {
			var ours, theirs []benchRun
			for range benchRounds {
				theirs = append(theirs, benchMQTT(b, load.publishers, load.window, load.messages, (*site).startBridge))
				ours = append(ours, benchMQTT(b, load.publishers, load.window, load.messages, (*site).startGateway))
			}
			reportRatio(b, fmt.Sprintf("MQTT QoS 1/TLS device → broker, %d publishers", load.publishers), ours, theirs, "mosquitto bridge")
		})
	}
}

// startBridge starts a mosquitto that does what the gateway would: TLS and passwords for devices, a bridge with certificates to the cloud.
func (s *site) startBridge() { s.startBridgeWith(benchDevices, "persistence false") }

func (s *site) startBridgeWith(devices int, persistence string) {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.mqtt)
	passwords := s.path("passwords")
	s.write("passwords", "")
	for i := range devices {
		mustRun(s.t, "mosquitto_passwd", "-H", "sha512", "-I", "1", "-b", passwords, fmt.Sprintf("m-%d", i), fmt.Sprintf("secret-of-m-%d", i))
	}
	s.write("bridge.conf", fmt.Sprintf(`listener %s 127.0.0.1
certfile %s
keyfile %s
password_file %s
allow_anonymous false
%s
user root
max_queued_messages 0
max_inflight_messages 2000
set_tcp_nodelay true
connection north
address %s
bridge_cafile %s
bridge_certfile %s
bridge_keyfile %s
bridge_protocol_version mqttv50
topic sensors/# out 1
`, port, s.path("localhost.crt"), s.path("localhost.key"), passwords, persistence,
		strings.Replace(s.cloud, "127.0.0.1", "localhost", 1), s.path("ca.crt"), s.path("person.crt"), s.path("person.key")))
	s.gateway = start(s.t, "mosquitto", "-c", s.path("bridge.conf"))
	s.listening(s.mqtt)
}

const benchDevices = 50

func benchMQTT(b *testing.B, publishers, window, messages int, start func(*site)) (r benchRun) {
	b.Helper()
	s := newSite(b)
	s.binary = released(b)
	var extra strings.Builder
	for i := range benchDevices {
		s.write(fmt.Sprintf("m-%d.password", i), fmt.Sprintf("secret-of-m-%d", i))
		fmt.Fprintf(&extra, "[device.m-%d]\ngroups = [\"press\"]\npassword = \"file:m-%d.password\"\n", i, i)
	}
	s.extra = extra.String()
	s.configure()
	s.certify()
	s.benchCloud()
	start(s)
	defer s.broker.kill()
	defer s.gateway.kill()

	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	watcher, err := dialMQTT(ctx, s.plain, nil, wireOptions{clientID: "watcher"})
	if err != nil {
		b.Fatal(err)
	}
	defer watcher.Close()
	var received atomic.Int64
	var latencies []time.Duration // written by the subscription's goroutine alone until all has been received
	var timing atomic.Bool
	base := time.Now()
	if err := watcher.subscribe("#", 0, func(topic string, payload []byte) {
		if strings.HasSuffix(topic, "warm") {
			received.Add(1)
			return
		}
		if timing.Load() {
			latencies = append(latencies, time.Since(base)-time.Duration(binary.BigEndian.Uint64(payload)))
		}
		received.Add(1)
	}); err != nil {
		b.Fatal(err)
	}
	conns := make([]*wireConn, publishers)
	for i := range conns {
		name := fmt.Sprintf("m-%d", i)
		if conns[i], err = dialMQTT(ctx, s.mqtt, s.clientTLS(), wireOptions{clientID: name, user: name, password: "secret-of-" + name}); err != nil {
			b.Fatal(err)
		}
		defer conns[i].Close()
	}
	// One message through, so that the way is open before the clock starts.
	if err := conns[0].publishAll("sensors/warm", 1, 1, 0, func(int) []byte { return make([]byte, 100) }); err != nil {
		b.Fatal(err)
	}
	eventually(b, "the first message", func() bool { return received.Load() == 1 })

	publish := func(count int, gap time.Duration) {
		var wg sync.WaitGroup
		for _, c := range conns {
			wg.Go(func() {
				payload := make([]byte, 100)
				err := c.publishAll("sensors/count", count, window, gap, func(int) []byte {
					binary.BigEndian.PutUint64(payload, uint64(time.Since(base)))
					return payload
				})
				if err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	runtime.GC()
	received.Store(0)
	before := usageOf(b, s.gateway.Process.Pid)
	began := time.Now()
	each := messages / publishers
	publish(each, 0)
	eventually(b, "every message to arrive", func() bool { return received.Load() == int64(each*publishers) })
	took := time.Since(began)
	after := usageOf(b, s.gateway.Process.Pid)
	r.rate = float64(each*publishers) / took.Seconds()
	r.cpu = (after.cpu - before.cpu) / time.Duration(each*publishers)
	r.rss, r.peak = after.rss, after.peak

	// Latency at a pace that both sides bear: 5,000 messages per second.
	received.Store(0)
	timing.Store(true)
	each = 10_000 / publishers
	publish(each, time.Duration(publishers)*time.Second/5000)
	eventually(b, "every paced message to arrive", func() bool { return received.Load() == int64(each*publishers) })
	slices.Sort(latencies)
	r.p50, r.p99 = latencies[len(latencies)/2], latencies[len(latencies)*99/100]
	return r
}

// BenchmarkBesideLibcoap sends confirmable PUTs over DTLS with PSK from many devices to the gateway, which syncs each to disk before it answers,
// and to libcoap's server, which answers without storing.
func BenchmarkBesideLibcoap(b *testing.B) {
	for _, devices := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) {
			var ours, theirs []benchRun
			for range benchRounds {
				theirs = append(theirs, benchCoAP(b, devices, (*site).startLibcoap))
				ours = append(ours, benchCoAP(b, devices, (*site).startGateway))
			}
			reportRatio(b, fmt.Sprintf("CoAP/DTLS PSK confirmable PUT, %d devices", devices), ours, theirs, "libcoap's server")
		})
	}
}

func (s *site) startLibcoap() {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.coap)
	var n int
	fmt.Sscan(port, &n)
	// It takes a port for CoAP and uses the next one for DTLS.
	s.gateway = start(s.t, "coap-server-openssl", "-A", "127.0.0.1", "-p", fmt.Sprint(n-1), "-k", "0123456789abcdef", "-d", "10")
}

const benchCoAPFor = 5 * time.Second

func benchCoAP(b *testing.B, devices int, start func(*site)) (r benchRun) {
	b.Helper()
	s := newSite(b)
	s.binary = released(b)
	var extra strings.Builder
	for i := range devices {
		fmt.Fprintf(&extra, "[device.c-%d]\ngroups = [\"thermostat\"]\npsk = \"file:th-1.psk\"\n", i)
	}
	s.extra = extra.String()
	s.configure()
	s.certify()
	s.benchCloud()
	start(s)
	defer s.broker.kill()
	defer s.gateway.kill()

	conns := make([]*coapDevice, devices)
	for i := range conns {
		eventually(b, fmt.Sprintf("device %d to be let in", i), func() bool {
			ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
			defer cancel()
			var err error
			conns[i], err = dialCoAP(ctx, s.coap, fmt.Sprintf("c-%d", i), []byte("0123456789abcdef"))
			return err == nil
		})
		defer conns[i].Close()
	}
	if code, err := conns[0].request(3, "/sensors/count", []byte("warm"), 5*time.Second, 2); err != nil || code>>5 != 2 {
		b.Fatalf("the first request: %d.%02d, %v\n%s", code>>5, code&31, err, s.gateway.output())
	}
	before := usageOf(b, s.gateway.Process.Pid)
	took := make([][]time.Duration, devices)
	end := time.Now().Add(benchCoAPFor)
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			payload := make([]byte, 32)
			for {
				began := time.Now()
				if began.After(end) {
					return
				}
				code, err := c.request(3, "/sensors/count", payload, 5*time.Second, 3)
				if err != nil || code>>5 != 2 {
					b.Errorf("device %d: %d.%02d, %v", i, code>>5, code&31, err)
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	after := usageOf(b, s.gateway.Process.Pid)
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	if len(all) == 0 {
		b.Fatal("no request was answered")
	}
	r.rate = float64(len(all)) / benchCoAPFor.Seconds()
	r.p50, r.p99 = all[len(all)/2], all[len(all)*99/100]
	r.cpu = (after.cpu - before.cpu) / time.Duration(len(all))
	r.rss, r.peak = after.rss, after.peak
	return r
}

// BenchmarkFootprint tells how long a gateway with a file key takes from start to ready, what memory it holds when idle, and how large
// the program is as it is shipped. Aims: 300 ms, 40 MB, 40 MB.
func BenchmarkFootprint(b *testing.B) {
	s := newSite(b)
	s.binary = released(b)
	s.configure()
	s.certify()
	s.startCloud()
	defer s.broker.kill()
	var ready, rss []float64
	for range 5 {
		began := time.Now()
		s.startGateway()
		ready = append(ready, float64(time.Since(began).Microseconds())/1000)
		time.Sleep(2 * time.Second) // until it is idle
		rss = append(rss, float64(usageOf(b, s.gateway.Process.Pid).rss)/1e6)
		s.gateway.stop()
	}
	info, err := os.Stat(s.binary)
	if err != nil {
		b.Fatal(err)
	}
	r, m := spreadOf(ready), spreadOf(rss)
	fmt.Printf("bench: footprint: ready after %.0f ms (min %.0f, max %.0f), idle resident memory %.1f MB (min %.1f, max %.1f), program %.1f MB\n",
		r.median, r.min, r.max, m.median, m.min, m.max, float64(info.Size())/1e6)
	b.ReportMetric(r.median, "ms-to-ready")
	b.ReportMetric(m.median, "MB-idle")
}
