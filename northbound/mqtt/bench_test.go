package mqtt_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"sync"
	"testing"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// BenchmarkPublish publishes QoS 1 over TLS to mosquitto, 1000 in flight, 100 octets each: through a session, and
// as the bare codec of paho.golang does it in a loop, without window, order or bounds.
func BenchmarkPublish(b *testing.B) {
	m := northtest.NewMosquitto(b, "max_inflight_messages 0", "max_queued_messages 0")
	payload := make([]byte, 100)
	rate := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s") }

	for name, version := range map[string]int{"session MQTT 5": 5, "session MQTT 3.1.1": 4} {
		b.Run(name, func(b *testing.B) {
			c := connector(b, m.CA, m.Addr, func(c *mqtt.Config) { c.Version, c.Window = version, 1000 })
			s, err := c.Dial(b.Context(), &northtest.Downlink{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			batch := make([]msg.Publication, 200)
			for i := range batch {
				batch[i] = msg.Publication{Topic: "dt/gw1/bench", QoS: 1, Payload: payload}
			}
			var all sync.WaitGroup
			all.Add(b.N)
			done := func(_ int, err error) {
				if err != nil {
					b.Error(err)
				}
				all.Done()
			}
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; left -= len(batch) {
				if err := s.Send(b.Context(), batch[:min(len(batch), left)], done); err != nil {
					b.Fatal(err)
				}
			}
			all.Wait()
			rate(b)
		})
	}
	b.Run("bare codec MQTT 5", func(b *testing.B) {
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
		b.ReportAllocs()
		b.ResetTimer()
		window := make(chan struct{}, 1000)
		ctx, cancel := context.WithCancelCause(b.Context())
		var reader sync.WaitGroup
		reader.Go(func() {
			for range b.N {
				if _, err := packets.ReadPacket(r); err != nil {
					cancel(err)
					return
				}
				<-window
			}
			cancel(io.EOF)
		})
		var out bytes.Buffer
		for i := range b.N {
			select {
			case window <- struct{}{}:
			default:
				if _, err := conn.Write(out.Bytes()); err != nil {
					b.Fatal(err)
				}
				out.Reset()
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
				if _, err := conn.Write(out.Bytes()); err != nil {
					b.Fatal(err)
				}
				out.Reset()
			}
		}
		if _, err := conn.Write(out.Bytes()); err != nil {
			b.Fatal(err)
		}
		reader.Wait()
		rate(b)
	})
}
