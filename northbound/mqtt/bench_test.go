package mqtt_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

const (
	benchMessages = 100_000 // of a round
	benchRounds   = 5
	benchWindow   = 1000 // in flight
)

// BenchmarkBesideBareClient publishes QoS 1 over TLS to mosquitto, 100 octets each: through a session, and as the bare codec of paho.golang does it in
// a loop, without window, order or bounds.
func BenchmarkBesideBareClient(b *testing.B) {
	m := northtest.NewMosquitto(b, "max_inflight_messages 0", "max_queued_messages 0")
	var bare []float64
	sides := map[string][]float64{}
	names := []string{"MQTT 5", "MQTT 3.1.1"}
	for range benchRounds {
		bare = append(bare, benchMessages/benchBare(b, m).Seconds())
		for i, version := range []int{5, 4} {
			sides[names[i]] = append(sides[names[i]], benchMessages/benchSession(b, m, version).Seconds())
		}
	}
	line := func(name string, v []float64) {
		sorted := slices.Sorted(slices.Values(v))
		fmt.Printf("bench: publish QoS 1/TLS to mosquitto: %-22s %7.0f/s (min %.0f, max %.0f)\n", name, sorted[len(v)/2], sorted[0], sorted[len(v)-1])
	}
	line("bare codec MQTT 5", bare)
	for _, name := range names {
		line("drawbridge "+name, sides[name])
		var ratios []float64
		for i, r := range sides[name] {
			ratios = append(ratios, r/bare[i])
		}
		slices.Sort(ratios)
		fmt.Printf("bench: publish QoS 1/TLS to mosquitto: drawbridge %s / bare codec = %.2f (min %.2f, max %.2f of %d rounds)\n",
			name, ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1], benchRounds)
		b.ReportMetric(ratios[len(ratios)/2], strings.ReplaceAll(name, " ", "-")+"-ratio")
	}
	b.ReportMetric(0, "ns/op")
}

func benchSession(b *testing.B, m *northtest.Mosquitto, version int) time.Duration {
	c := connector(b, m.CA, m.Addr, func(c *mqtt.Config) { c.Version, c.Window = version, benchWindow })
	s, err := c.Dial(b.Context(), &northtest.Downlink{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	batch := make([]msg.Publication, 200)
	for i := range batch {
		batch[i] = msg.Publication{Topic: "dt/gw1/bench", QoS: 1, Payload: make([]byte, 100)}
	}
	var all sync.WaitGroup
	all.Add(benchMessages)
	done := func(_ int, err error) {
		if err != nil {
			b.Error(err)
		}
		all.Done()
	}
	began := time.Now()
	for range benchMessages / len(batch) {
		if err := s.Send(b.Context(), batch, done); err != nil {
			b.Fatal(err)
		}
	}
	all.Wait()
	return time.Since(began)
}

func benchBare(b *testing.B, m *northtest.Mosquitto) time.Duration {
	conn, err := tls.Dial("tcp", m.Addr, &tls.Config{
		RootCAs: m.CA.Pool(), Certificates: []tls.Certificate{m.CA.Certificate(b, broker.Subject{Name: "bare"})},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	connect := &packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "bare", CleanStart: true}
	if _, err := connect.WriteTo(conn); err != nil {
		b.Fatal(err)
	}
	r := bufio.NewReader(conn)
	if _, err := packets.ReadPacket(r); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 100)
	window := make(chan struct{}, benchWindow)
	ctx, cancel := context.WithCancelCause(b.Context())
	var reader sync.WaitGroup
	began := time.Now()
	reader.Go(func() {
		for range benchMessages {
			if _, err := packets.ReadPacket(r); err != nil {
				cancel(err)
				return
			}
			<-window
		}
		cancel(io.EOF)
	})
	var out bytes.Buffer
	flush := func() {
		if _, err := conn.Write(out.Bytes()); err != nil {
			b.Fatal(err)
		}
		out.Reset()
	}
	for i := range benchMessages {
		select {
		case window <- struct{}{}:
		default:
			flush()
			select {
			case window <- struct{}{}:
			case <-ctx.Done():
				b.Fatal(context.Cause(ctx))
			}
		}
		p := &packets.Publish{PacketID: uint16(i%65535 + 1), Topic: "dt/gw1/bench", QoS: 1, Payload: payload}
		if _, err := p.WriteTo(&out); err != nil {
			b.Fatal(err)
		}
		if out.Len() > 16<<10 {
			flush()
		}
	}
	flush()
	reader.Wait()
	return time.Since(began)
}
