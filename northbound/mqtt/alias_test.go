package mqtt_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// Every publication arrives on its own topic, whatever stands for it on the wire, and what repeats itself costs its topic once.
func TestTopicAliases(t *testing.T) {
	for name, test := range map[string]struct {
		most    uint16
		topics  int
		saves   bool
		tooLong bool
	}{
		"the broker takes none":      {0, 3, false, false},
		"few topics":                 {8, 3, true, false},
		"more topics than aliases":   {8, 200, false, false},
		"packets that are too large": {8, 3, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b, got := announce(broker.Limits{TopicAliasMaximum: test.most, MaximumPacketSize: 4096})
			var sent atomic.Int64
			s := pipe(t, b, mqtt.Options{Sent: &sent})
			var batch []msg.Publication
			payload := 0
			for i := range 600 {
				topic := fmt.Sprintf("dt/plant7-gateway-1/a-device-with-a-long-name/%d", i%test.topics)
				if i > 400 { // others take over
					topic = fmt.Sprintf("dt/plant7-gateway-1/a-device-that-came-later/%d", i%test.topics)
				}
				p := msg.Publication{Topic: topic, QoS: 1, Payload: []byte(topic)}
				if test.tooLong && i%50 == 0 { // the first of its topic among them: its alias does not count
					p.Payload = []byte(strings.Repeat("x", 5000))
				} else {
					payload += len(topic)
				}
				batch = append(batch, p)
			}
			o := northtest.NewOutcome(len(batch))
			if err := s.Send(t.Context(), batch, o.Done); err != nil {
				t.Fatal(err)
			}
			o.Await(t)
			arrived := 0
			for i := range batch {
				if _, err := o.Err(i); (err != nil) != (len(batch[i].Payload) == 5000) {
					t.Fatalf("publication %d: %v", i, err)
				} else if err == nil {
					arrived++
				}
			}
			list := got()
			if len(list) != arrived {
				t.Fatalf("%d of %d arrived", len(list), arrived)
			}
			for _, m := range list {
				if m.Topic != string(m.Payload) {
					t.Fatalf("%q arrived on %q", m.Payload, m.Topic)
				}
			}
			// Beside payloads a packet has 2 octets in front, 2 of the topic's length, 2 of its id, 1 to 4 of properties.
			if topics := sent.Load() - int64(payload) - 10*int64(arrived); test.saves != (topics < 3000) {
				t.Errorf("%d octets went for topics", topics)
			}
		})
	}
}
