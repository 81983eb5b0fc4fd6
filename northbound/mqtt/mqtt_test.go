package mqtt_test

import (
	"testing"

	"crypto/tls"

	"github.com/drawbridge/drawbridge/config"
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
