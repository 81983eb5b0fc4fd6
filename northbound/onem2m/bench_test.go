package onem2m_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

const (
	benchDevices = 200 // report at the same time
	benchEach    = 150 // contentInstances of each device in a round
	benchRounds  = 5
	benchWindow  = 64 // requests in flight
)

// BenchmarkBesideBareClient makes contentInstances of 200 devices over TLS, through a session and by a bare client of the same protocol with as
// many requests in flight and the same bytes, without order or bounds. Session, client and CSE share the process.
func BenchmarkBesideBareClient(b *testing.B) {
	for _, c := range []struct {
		binding string
		bare    func(b *testing.B, c *northtest.CSE, url string) time.Duration
	}{{"HTTP", bareHTTP}, {"MQTT", bareMQTT}} {
		b.Run(c.binding, func(b *testing.B) {
			var ours, theirs, ratios []float64
			rate := func(took time.Duration) float64 { return benchDevices * benchEach / took.Seconds() }
			for range benchRounds {
				theirs = append(theirs, rate(benchRound(b, c.binding, c.bare)))
				ours = append(ours, rate(benchRound(b, c.binding, nil)))
				ratios = append(ratios, ours[len(ours)-1]/theirs[len(theirs)-1])
			}
			for _, v := range [][]float64{ours, theirs, ratios} {
				slices.Sort(v)
			}
			what := fmt.Sprintf("oneM2M contentInstances over %s/TLS, %d devices", c.binding, benchDevices)
			line := func(name string, v []float64) {
				fmt.Printf("bench: %s: %-11s %6.0f/s (min %.0f, max %.0f)\n", what, name, v[len(v)/2], v[0], v[len(v)-1])
			}
			line("drawbridge", ours)
			line("bare client", theirs)
			fmt.Printf("bench: %s: drawbridge / bare client = %.2f (min %.2f, max %.2f of %d rounds)\n", what, ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1], benchRounds)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// benchRound gives the time of one round, by bare or, where it is nil, by a session.
func benchRound(b *testing.B, binding string, bare func(*testing.B, *northtest.CSE, string) time.Duration) time.Duration {
	c := northtest.NewCSE(b)
	url := bindings[binding].serve(c)
	conn, _ := connector(b, c, url, func(_ *northbound.Env, cfg *onem2m.Config) { cfg.Parallel = benchWindow })
	s, err := conn.Dial(b.Context(), &northtest.Downlink{}) // registers
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	batches := make([][]msg.Publication, benchEach)
	for i := range batches {
		for d := range benchDevices {
			batches[i] = append(batches[i], msg.Publication{
				ID: msg.NewID(time.Now()), Device: fmt.Sprint(d), Topic: fmt.Sprintf("dt/%d", d), Payload: []byte(strings.Repeat("x", 100)),
			})
		}
	}
	// Each device once, so that its container is there.
	warm := slices.Clone(batches[0])
	for i := range warm {
		warm[i].ID = msg.NewID(time.Now())
	}
	benchSend(b, s, [][]msg.Publication{warm})
	if bare != nil {
		s.Close()
		return bare(b, c, url)
	}
	began := time.Now()
	benchSend(b, s, batches)
	return time.Since(began)
}

func benchSend(b *testing.B, s northbound.Session, batches [][]msg.Publication) {
	var all sync.WaitGroup
	for _, batch := range batches {
		all.Add(len(batch))
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
}

// bareBody is the contentInstance that a session makes.
func bareBody() json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"m2m:cin":{"cnf":"text/plain:0","con":"%s","rn":"m-%s"}}`, strings.Repeat("x", 100), msg.NewID(time.Now())))
}

func bareTLS(b *testing.B, c *northtest.CSE) *tls.Config {
	return &tls.Config{RootCAs: c.CA.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{c.CA.Certificate(b, broker.Subject{Name: "bare"})}}
}

func bareHTTP(b *testing.B, c *northtest.CSE, url string) time.Duration {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchWindow, MaxConnsPerHost: benchWindow, TLSClientConfig: bareTLS(b, c)}}
	defer client.CloseIdleConnections()
	work := make(chan int)
	var all sync.WaitGroup
	began := time.Now()
	for range benchWindow {
		all.Go(func() {
			for i := range work {
				to := fmt.Sprintf("%s/~/id-in/cse-in/gw1/dt/%d?rcn=0", url, i%benchDevices)
				r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, to, bytes.NewReader(bareBody()))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header = http.Header{
					"X-M2M-Origin": {"Cgw1"}, "X-M2M-RI": {fmt.Sprint(i)}, "X-M2M-RVI": {"3"}, "Accept": {"application/json"}, "Content-Type": {"application/json;ty=4"},
				}
				got, err := client.Do(r)
				if err != nil {
					b.Error(err)
					continue
				}
				io.Copy(io.Discard, got.Body)
				got.Body.Close()
				if got.StatusCode != http.StatusCreated {
					b.Error(got.Status)
				}
			}
		})
	}
	for i := range benchDevices * benchEach {
		work <- i
	}
	close(work)
	all.Wait()
	return time.Since(began)
}

// bareMQTT writes requests with the codec of paho.mqtt.golang in a loop, as many as fit into a write at once.
func bareMQTT(b *testing.B, c *northtest.CSE, url string) time.Duration {
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "mqtts://"), bareTLS(b, c))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.ClientIdentifier = "MQTT", 4, "A::bare"
	subscribe := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 1, []string{"/oneM2M/resp/id-in:Cgw1/id-in/#"}, []byte{1}
	for _, p := range []packets.ControlPacket{connect, subscribe} {
		if err := p.Write(conn); err != nil {
			b.Fatal(err)
		}
		if _, err := packets.ReadPacket(r); err != nil {
			b.Fatal(err)
		}
	}
	total := benchDevices * benchEach
	room := make(chan struct{}, benchWindow)
	ctx, cancel := context.WithCancelCause(b.Context())
	var mu sync.Mutex
	var out bytes.Buffer // guarded by mu
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		if _, err := conn.Write(out.Bytes()); err != nil {
			cancel(err)
		}
		out.Reset()
	}
	var reader sync.WaitGroup
	began := time.Now()
	reader.Go(func() {
		for answered := 0; answered < total; {
			p, err := packets.ReadPacket(r)
			if err != nil {
				cancel(err)
				return
			}
			got, ok := p.(*packets.PublishPacket)
			if !ok {
				continue // an acknowledgement of ours
			}
			var answer struct {
				RSC int `json:"rsc"`
			}
			if json.Unmarshal(got.Payload, &answer) != nil || answer.RSC != 2001 {
				cancel(fmt.Errorf("%s", got.Payload))
				return
			}
			ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			ack.MessageID = got.MessageID
			mu.Lock()
			ack.Write(&out)
			mu.Unlock()
			if r.Buffered() == 0 {
				flush()
			}
			answered++
			<-room
		}
	})
	for i := range total {
		select {
		case room <- struct{}{}:
		default:
			flush()
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				b.Fatal(context.Cause(ctx))
			}
		}
		data, err := json.Marshal(map[string]any{
			"op": 1, "to": fmt.Sprintf("/id-in/cse-in/gw1/dt/%d", i%benchDevices), "fr": "Cgw1", "rqi": fmt.Sprint(i), "rvi": "3", "ty": 4, "rcn": 0, "pc": bareBody(),
		})
		if err != nil {
			b.Fatal(err)
		}
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.TopicName, p.Qos, p.MessageID, p.Payload = "/oneM2M/req/id-in:Cgw1/id-in/json", 1, uint16(i%65535+1), data
		mu.Lock()
		p.Write(&out)
		mu.Unlock()
	}
	flush()
	reader.Wait()
	if err := context.Cause(ctx); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
