package onem2m_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// benchDevices report at the same time.
const benchDevices = 200

// BenchmarkContentInstances makes contentInstances of 200 devices over TLS: through a session of each binding, and by the bare HTTP client with
// as many requests at once and the same bytes, without order or bounds.
func BenchmarkContentInstances(b *testing.B) {
	rate := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s") }
	for _, name := range []string{"HTTP", "MQTT", "CoAP"} {
		b.Run("session "+name, func(b *testing.B) {
			c := northtest.NewCSE(b)
			conn, _ := connector(b, c, bindings[name].serve(c), nil)
			s, err := conn.Dial(b.Context(), &northtest.Downlink{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var all sync.WaitGroup
			all.Add(b.N)
			b.ResetTimer()
			for left := b.N; left > 0; left -= benchDevices {
				batch := make([]msg.Publication, min(left, benchDevices))
				for i := range batch {
					batch[i] = msg.Publication{Device: fmt.Sprint(i), Topic: "dt/bench", Payload: make([]byte, 100)}
				}
				if err := s.Send(b.Context(), batch, func(_ int, err error) {
					if err != nil {
						b.Error(err)
					}
					all.Done()
				}); err != nil {
					b.Fatal(err)
				}
			}
			all.Wait()
			rate(b)
		})
	}
	b.Run("bare HTTP client", func(b *testing.B) {
		c := northtest.NewCSE(b)
		url := c.ServeHTTP()
		conn, _ := connector(b, c, url, func(_ *northbound.Env, cfg *onem2m.Config) {})
		s, err := conn.Dial(b.Context(), &northtest.Downlink{}) // registers
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		c.Put("gw1/bench", map[string]any{"con": ""})
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64, TLSClientConfig: &tls.Config{
			RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{c.CA.Certificate(b, broker.Subject{Name: "bare"})},
		}}}
		defer client.CloseIdleConnections()
		body := []byte(`{"m2m:cin":{"cnf":"text/plain:0","con":"` + strings.Repeat(`\u0000`, 100) + `"}}`)
		room := make(chan struct{}, 64)
		var all sync.WaitGroup
		b.ResetTimer()
		for i := range b.N {
			room <- struct{}{}
			all.Go(func() {
				defer func() { <-room }()
				r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url+"/~/id-in/cse-in/gw1/bench?rcn=0", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header = http.Header{
					"X-M2M-Origin": {"Cgw1"}, "X-M2M-RI": {fmt.Sprint(i)}, "X-M2M-RVI": {"3"}, "Content-Type": {"application/json;ty=4"},
				}
				got, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, got.Body)
				got.Body.Close()
				if got.StatusCode != http.StatusCreated {
					b.Error(got.Status)
				}
			})
		}
		all.Wait()
		rate(b)
	})
}
