package northtest

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// ServeMQTT adds the MQTT binding (TS-0010) with a broker of its own, over TLS with client certificates, and gives its URL.
func (c *CSE) ServeMQTT() (url string) {
	c.t.Helper()
	var mu sync.Mutex
	asked := map[string]chan cseMap{} // notifications by request id
	badges := map[string]string{}     // common names by client id
	b := NewBroker(c.t, broker.Options{
		Admit: func(l *broker.Login) broker.Answer {
			guest := strings.HasSuffix(l.ClientID, "-doctor") // for a look: no session is to remain
			if l.Version != 4 || l.Clean != guest || !strings.HasPrefix(l.ClientID, "A::") {
				return broker.Answer{Code: 0x87}
			}
			mu.Lock()
			defer mu.Unlock()
			badges[l.ClientID] = l.TLS.PeerCertificates[0].Subject.CommonName
			return broker.Answer{}
		},
		Published: func(_ string, m broker.Message) broker.Verdict {
			if m.QoS > 1 || m.Retain {
				return broker.Verdict{Drop: true}
			}
			return broker.Verdict{}
		},
	})
	c.CA = b.CA
	b.Listen(c.t, c.server())
	drop := func() { b.Broker.Drop("") }
	c.drop = append(c.drop, drop)
	for _, kind := range []string{"req", "reg_req"} {
		stop := b.Watch("/oneM2M/"+kind+"/+/id-in/#", func(m broker.Message) {
			if m.From != "" && c.ctx.Err() == nil {
				mu.Lock()
				from := caller{badge: badges[m.From]}
				mu.Unlock()
				c.tasks.Go(func() { c.serveMQTT(b, m, kind, from, drop) })
			}
		})
		c.t.Cleanup(stop)
	}
	c.t.Cleanup(b.Watch("/oneM2M/resp/id-in/+/json", func(m broker.Message) {
		r, _ := decodeCSE(m.Payload)
		mu.Lock()
		defer mu.Unlock()
		if answer := asked[fmt.Sprint(r["rqi"])]; answer != nil {
			select {
			case answer <- r:
			default:
			}
		}
	}))
	c.reach["mqtt"] = func(ctx context.Context, _, ae string, q cseMap) (cseMap, error) {
		answer := make(chan cseMap, 1)
		mu.Lock()
		asked[q["rqi"].(string)] = answer
		mu.Unlock()
		b.Publish(broker.Message{Topic: "/oneM2M/req/id-in/id-in:" + ae + "/json", Payload: cseJSON(q), QoS: 1})
		select {
		case r := <-answer:
			return r, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	_, port, _ := strings.Cut(b.Addr, ":")
	return "mqtts://localhost:" + port
}

// serveMQTT answers one request.
func (c *CSE) serveMQTT(b *Broker, m broker.Message, kind string, badge caller, drop func()) {
	levels := strings.Split(m.Topic, "/")
	q, ok := decodeCSE(m.Payload)
	from, _ := q["fr"].(string)
	want := "id-in:" + from
	if kind == "reg_req" {
		want = from
	}
	var r cseMap
	cut := false
	switch {
	case !ok || len(levels) != 6 || levels[5] != "json":
		return
	case levels[3] != want, (kind == "reg_req") != (cseInt(q["ty"]) == 2):
		r = cseFail(4000, "originator in the topic %q", levels[3])
		r["rqi"] = q["rqi"]
	default:
		r, cut = c.handle(c.ctx, q, badge)
	}
	if cut {
		drop()
		return
	}
	r["to"], r["fr"] = from, cseID
	b.Publish(broker.Message{Topic: "/oneM2M/" + strings.Replace(kind, "req", "resp", 1) + "/" + levels[3] + "/id-in/json", Payload: cseJSON(r), QoS: 1})
}

// cseJSON writes a primitive; what the tests put into one can be written.
func cseJSON(m cseMap) []byte {
	data, err := json.Marshal(m)
	if err != nil {
		return []byte(strconv.Quote(err.Error()))
	}
	return data
}
