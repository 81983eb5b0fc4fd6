package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkBesidePage has 10,000 devices connected, of which 50 report, with nobody at the page and with its overview and its list of devices
// open, by turns. At 5,000 reports a second it tells what the page costs in processor time and memory; with as many reports as go through, what
// it costs in throughput. The same turns with nobody at the page in either tell how much of that is chance.
func BenchmarkBesidePage(b *testing.B) {
	const devices, reporters, each = 10_000, 50, 100
	const length = 2500 * time.Millisecond
	const burst = 2500 // messages of each reporter, where they do not wait
	s := newSite(b)
	s.binary = released(b)
	fleet := vacant(b)
	s.extra = fmt.Sprintf(`
[listener.fleet]
type = "mqtt"
listen = %q
security = ["none"]
auth = ["anonymous"]
max_connect_rate = 0
[[allow]]
op = "report"
resources = ["/sensors/{rest...}"]
`, fleet)
	s.configure()
	s.certify()
	s.benchCloud()
	s.startGateway()
	conns := make([]*wireConn, devices)
	var wg sync.WaitGroup
	for w := range reporters {
		wg.Go(func() {
			for i := w; i < devices; i += reporters {
				c, err := dialMQTT(b.Context(), fleet, nil, wireOptions{clientID: fmt.Sprintf("th-%05d", i)})
				if err != nil {
					b.Error(err)
					return
				}
				conns[i] = c
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		return
	}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	watcher, err := dialMQTT(b.Context(), s.plain, nil, wireOptions{clientID: "watcher"})
	if err != nil {
		b.Fatal(err)
	}
	defer watcher.Close()
	var arrived atomic.Int64
	if err := watcher.subscribe("#", 0, func(string, []byte) { arrived.Add(1) }); err != nil {
		b.Fatal(err)
	}
	// send has every reporter send so many, and gives how many arrived in the cloud in a second.
	send := func(count int, pace time.Duration) float64 {
		began, want := time.Now(), arrived.Load()+int64(reporters*count)
		for _, c := range conns[:reporters] {
			wg.Go(func() {
				if err := c.publishAll("sensors/temp", count, 100, pace, func(int) []byte { return []byte(`{"t":21.5}`) }); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(b, "every report to arrive", func() bool { return arrived.Load() >= want })
		return float64(reporters*count) / time.Since(began).Seconds()
	}
	pid := s.gateway.Process.Pid
	type figures struct {
		cpu  float64 // of the gateway, in percent of all processors
		peak float64 // MB
		rate float64 // messages a second
		each float64 // of the gateway's processor time, in microseconds
	}
	paced := func() figures {
		// VmHWM starts again.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			b.Fatal(err)
		}
		before, began := usageOf(b, pid), time.Now()
		rate := send(int(each*length.Seconds()), time.Second/each)
		took, after := time.Since(began), usageOf(b, pid)
		return figures{cpu: 100 * (after.cpu - before.cpu).Seconds() / took.Seconds() / float64(runtime.NumCPU()), peak: float64(after.peak) / 1e6, rate: rate}
	}
	full := func() figures {
		before := usageOf(b, pid)
		rate := send(burst, 0)
		return figures{rate: rate, each: float64((usageOf(b, pid).cpu - before.cpu).Microseconds()) / (reporters * burst)}
	}
	// open shows the page to somebody until the function that it gives is called.
	open := func() (leave func()) {
		ctx, cancel := context.WithCancel(b.Context())
		var readers sync.WaitGroup
		for _, path := range []string{"/live/overview", "/live/devices"} {
			readers.Go(func() {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.page+path, nil)
				if err != nil {
					b.Error(err)
					return
				}
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.Errorf("%s: %s", path, resp.Status)
				}
				io.Copy(io.Discard, resp.Body) // ends with ctx
			})
		}
		return func() {
			cancel()
			readers.Wait()
		}
	}
	nobody := func() (leave func()) { return func() {} }
	// turns measures with nobody at the page and with somebody, who goes first in every other pair, and gives the pairs.
	turns := func(rounds int, somebody func() (leave func()), measure func() figures) (pairs [][2]figures) {
		for i := range rounds {
			var p [2]figures
			for _, k := range [2]int{i % 2, 1 - i%2} {
				leave := [2]func() func(){nobody, somebody}[k]()
				p[k] = measure()
				leave()
			}
			pairs = append(pairs, p)
		}
		return pairs
	}
	column := func(pairs [][2]figures, f func(nobody, somebody figures) float64) spread {
		var v []float64
		for _, p := range pairs {
			v = append(v, f(p[0], p[1]))
		}
		return spreadOf(v)
	}
	paced() // until caches and heap have their size
	most := paced().peak
	at := func(who string, somebody func() (leave func())) (cpu spread, more float64) {
		pairs := turns(3, somebody, paced)
		cpu = column(pairs, func(n, s figures) float64 { return s.cpu - n.cpu })
		// Memory that the gateway once had it gives back late: what counts is the most of this phase beside the most until then.
		peak := max(most, column(pairs, func(n, s figures) float64 { return max(n.peak, s.peak) }).max)
		more, most = peak-most, peak
		fmt.Printf("bench: page: %d devices, %.0f messages/s, %s: %.1f %% of %d processors, with nobody %.1f %%: %+.1f %% (min %+.1f, max %+.1f of %d pairs); %.1f MB at its peak, %.1f MB more than before\n",
			devices, column(pairs, func(_, s figures) float64 { return s.rate }).median, who, column(pairs, func(_, s figures) float64 { return s.cpu }).median, runtime.NumCPU(),
			column(pairs, func(n, _ figures) float64 { return n.cpu }).median, cpu.median, cpu.min, cpu.max, len(pairs), peak, more)
		return cpu, more
	}
	atMost := func(rounds int, who string, somebody func() (leave func())) spread {
		pairs := turns(rounds, somebody, full)
		lost := column(pairs, func(n, s figures) float64 { return 100 * (1 - s.rate/n.rate) })
		dearer := column(pairs, func(n, s figures) float64 { return 100 * (s.each/n.each - 1) })
		fmt.Printf("bench: page: %d devices, as many messages as go through, %s: %.0f/s, with nobody %.0f/s: %+.1f %% fewer (min %+.1f, max %+.1f of %d pairs); %.1f µs of processor time each, with nobody %.1f: %+.1f %% (min %+.1f, max %+.1f)\n",
			devices, who, column(pairs, func(_, s figures) float64 { return s.rate }).median, column(pairs, func(n, _ figures) float64 { return n.rate }).median,
			lost.median, lost.min, lost.max, rounds, column(pairs, func(_, s figures) float64 { return s.each }).median,
			column(pairs, func(n, _ figures) float64 { return n.each }).median, dearer.median, dearer.min, dearer.max)
		return lost
	}
	at("again nobody at the page", nobody)
	cpu, more := at("the page open", open)
	atMost(3, "again nobody at the page", nobody)
	lost := atMost(5, "the page open", open)
	b.ReportMetric(cpu.median, "%cpu")
	b.ReportMetric(lost.median, "%fewer")
	b.ReportMetric(more, "MB")
	b.ReportMetric(0, "ns/op")
}
