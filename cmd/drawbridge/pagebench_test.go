package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"
)

// BenchmarkBesidePage has 10,000 devices connected and 50 of them report 5,000 times a second together, with nobody at the page and with its
// overview and its list of devices open, by turns. What the page costs is the gateway's processor time: the share of the processors that it
// takes is the share of the throughput that is gone where the gateway is at its limit.
func BenchmarkBesidePage(b *testing.B) {
	const devices, reporters, each, rounds = 10_000, 50, 100, 5
	const length = 5 * time.Second
	s := newSite(b)
	s.binary = released(b)
	fleet := freePort("tcp", "0")
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
	// round gives the gateway's processor time for each second of traffic.
	round := func() float64 {
		before, began := usageOf(b, s.gateway.Process.Pid), time.Now()
		for _, c := range conns[:reporters] {
			wg.Go(func() {
				if err := c.publishAll("sensors/temp", each*int(length.Seconds()), 100, time.Second/each, func(int) []byte { return []byte(`{"t":21.5}`) }); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		took := time.Since(began)
		if rate := reporters * each * length.Seconds() / took.Seconds(); rate < reporters*each*0.9 {
			fmt.Printf("bench: page: only %.0f messages a second went through\n", rate)
		}
		return (usageOf(b, s.gateway.Process.Pid).cpu - before.cpu).Seconds() / length.Seconds()
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
				io.Copy(io.Discard, resp.Body) // ends with ctx
			})
		}
		return func() {
			cancel()
			readers.Wait()
		}
	}
	round() // until caches and heap have their size
	round()
	var alone, beside, cost []float64
	idle := usageOf(b, s.gateway.Process.Pid).peak
	for range rounds {
		a := round()
		leave := open()
		w := round()
		leave()
		alone, beside, cost = append(alone, a), append(beside, w), append(cost, 100*(w-a)/float64(runtime.NumCPU()))
	}
	more := float64(usageOf(b, s.gateway.Process.Pid).peak-idle) / 1e6
	c := spreadOf(cost)
	fmt.Printf("bench: page: %d devices, %d messages/s: the gateway uses %.3f s/s alone, %.3f s/s with the page open: %+.1f %% of %d processors (min %+.1f, max %+.1f of %d rounds), %.1f MB more at its peak\n",
		devices, reporters*each, spreadOf(alone).median, spreadOf(beside).median, c.median, runtime.NumCPU(), c.min, c.max, rounds, more)
	b.ReportMetric(c.median, "%")
	b.ReportMetric(more, "MB")
	b.ReportMetric(0, "ns/op")
}
