package mqtt_test

import (
	"crypto/tls"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// connector opens one against a broker with the key "identity", whose certificate ca has signed.
func connector(t testing.TB, ca northtest.CA, addr string, change func(*mqtt.Config)) northbound.Connector {
	t.Helper()
	keys := &northtest.Keys{Certificates: map[string]tls.Certificate{"identity": ca.Certificate(t, broker.Subject{Name: "gw1"})}}
	env, _ := northtest.Env(t, keys)
	c := mqtt.Kind().Config().(*mqtt.Config)
	c.URL, c.Key, c.CA = "mqtts://"+addr, "identity", pathOf(ca.File(t))
	if change != nil {
		change(c)
	}
	conn, err := mqtt.Kind().Open(env, c)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestConnectorMQTT5(t *testing.T) {
	northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
		b := northtest.NewBroker(t, broker.Options{})
		b.Announce(broker.Limits{ReceiveMaximum: 100, MaximumPacketSize: 10_000})
		return northtest.Setup{
			Connector: connector(t, b.CA, b.Addr, nil), Cloud: northtest.MQTT(b, "cmd/gw1/x", "gw1"),
			Topic: "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 10_000,
		}
	})
}

func TestConnectorMQTT311(t *testing.T) {
	northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
		b := northtest.NewBroker(t, broker.Options{})
		return northtest.Setup{
			Connector: connector(t, b.CA, b.Addr, func(c *mqtt.Config) { c.Version = 4 }), Cloud: northtest.MQTT(b, "cmd/gw1/x", "gw1"),
			Topic: "dt/gw1/x", Filter: "cmd/gw1/#", NoRefusals: true,
		}
	})
}

func TestConnectorWebSocket(t *testing.T) {
	northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
		b := northtest.NewBroker(t, broker.Options{Web: func(r *http.Request) int {
			if r.URL.Path != "/mqtt" {
				return http.StatusNotFound
			}
			return 0
		}})
		b.Announce(broker.Limits{ReceiveMaximum: 100, MaximumPacketSize: 10_000})
		b.ListenWeb(t, b.CA.Server(t))
		return northtest.Setup{
			Connector: connector(t, b.CA, b.Addr, func(c *mqtt.Config) { c.URL = "wss://" + b.Addr + "/mqtt" }),
			Cloud:     northtest.MQTT(b, "cmd/gw1/x", "gw1"),
			Topic:     "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 10_000,
		}
	})
}

func TestConnectorMosquitto(t *testing.T) {
	for name, version := range map[string]int{"MQTT 5": 5, "MQTT 3.1.1": 4} {
		t.Run(name, func(t *testing.T) {
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
				m := northtest.NewMosquitto(t)
				wire := northtest.NewWire(t, m.Addr)
				return northtest.Setup{
					Connector: connector(t, m.CA, wire.Addr, func(c *mqtt.Config) { c.Version = version }),
					Cloud:     m.Cloud(t, wire, "dt/#", "cmd/gw1/x"),
					Topic:     "dt/gw1/x", Filter: "cmd/gw1/#",
				}
			})
		})
	}
}

func pathOf(s string) config.Path { return config.Path(s) }

func TestSubscriptionsOfAnEarlierConfigurationEnd(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{})
	c := connector(t, b.CA, b.Addr, nil)
	dial := func(filters ...string) (*northtest.Downlink, func()) {
		t.Helper()
		d := &northtest.Downlink{Filters: filters}
		s, err := c.Dial(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		return d, func() { s.Close() }
	}
	_, hangUp := dial("old/#", "kept")
	hangUp()
	d, hangUp := dial("kept", "new")
	defer hangUp()
	for _, topic := range []string{"old/x", "kept", "new"} {
		b.Publish(broker.Message{Topic: topic, QoS: 1, Payload: []byte(topic)})
	}
	northtest.Await(t, "what is subscribed to", func() bool { return len(d.Got()) >= 2 })
	for _, p := range d.Got() {
		if p.Topic == "old/x" {
			t.Fatal("the old subscription is still there")
		}
	}
}

func TestPublicationOfQoS2IsNotTakenForOneOfTheSessionBefore(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{})
	var arrived atomic.Int64
	defer b.Watch("dt/#", func(broker.Message) { arrived.Add(1) })()
	c := connector(t, b.CA, b.Addr, nil)
	s, err := c.Dial(t.Context(), &northtest.Downlink{})
	if err != nil {
		t.Fatal(err)
	}
	b.Fate("first", broker.Verdict{Mute: true}) // takes it under packet id 1 and does not say so
	if err := s.Send(t.Context(), []msg.Publication{{Topic: "dt/x", QoS: 2, Payload: []byte("first")}}, func(int, error) {}); err != nil {
		t.Fatal(err)
	}
	northtest.Await(t, "the first", func() bool { return arrived.Load() == 1 })
	b.Drop("")
	<-s.Context().Done()

	s, err = c.Dial(t.Context(), &northtest.Downlink{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.(*mqtt.Session).Publish(t.Context(), msg.Publication{Topic: "dt/x", QoS: 2, Payload: []byte("second")}); err != nil {
		t.Fatal(err)
	}
	if n := arrived.Load(); n != 2 {
		t.Fatalf("%d publications arrived", n)
	}
}
