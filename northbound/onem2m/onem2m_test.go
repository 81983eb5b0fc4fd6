package onem2m_test

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// connector makes one towards a CSE, and gives what it reports its problems to.
func connector(t testing.TB, c *northtest.CSE, url string, change func(*northbound.Env, *onem2m.Config)) (northbound.Connector, *health.Tracker) {
	t.Helper()
	ring := &northtest.Keys{
		Certificates: map[string]tls.Certificate{"identity": c.CA.Certificate(t, broker.Subject{Name: "localhost", Hosts: northtest.Loopback})},
		Secrets:      map[string]string{"file:kpsa": "0123456789abcdef"},
	}
	env, tracker := northtest.Env(t, ring)
	cfg := onem2m.Kind().Config().(*onem2m.Config)
	cfg.URL, cfg.CSE, cfg.CA, cfg.Key = url, "/id-in/cse-in", config.Path(c.CA.File(t)), "identity"
	if change != nil {
		change(&env, cfg)
	}
	conn, err := onem2m.Kind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return conn, tracker
}

// bindings are the ways to a CSE.
var bindings = map[string]struct {
	serve  func(c *northtest.CSE) string
	change func(testing.TB, *onem2m.Config)
	mends  bool
}{
	"HTTP":                   {(*northtest.CSE).ServeHTTP, nil, true},
	"HTTP, notified by HTTP": {(*northtest.CSE).ServeHTTP, byHTTP, true},
	"CoAP":                   {func(c *northtest.CSE) string { return c.ServeCoAP(nil) }, nil, false},
	"CoAP, by a pre-shared key": {func(c *northtest.CSE) string {
		return c.ServeCoAP(func(id string) []byte {
			if id == "gw1@plant7.example" {
				return []byte("0123456789abcdef")
			}
			return nil
		})
	}, func(_ testing.TB, cfg *onem2m.Config) {
		cfg.Key, cfg.PSK, cfg.PSKID = "", "file:kpsa", "gw1@plant7.example"
	}, false},
	"MQTT": {(*northtest.CSE).ServeMQTT, nil, false},
}

// byHTTP has notifications sent to a port that is free now, and that no client of this machine is given by itself.
func byHTTP(t testing.TB, cfg *onem2m.Config) {
	for range 100 {
		cfg.Listen = fmt.Sprintf("127.0.0.1:%d", 10_000+rand.N(20_000))
		l, err := net.Listen("tcp", cfg.Listen)
		if err == nil {
			l.Close()
			cfg.Notify, cfg.POA = "http", "https://"+strings.Replace(cfg.Listen, "127.0.0.1", "localhost", 1)
			return
		}
	}
	t.Fatal("no port is free")
}

// setup is what the suite needs to know of a CSE with containers of 1000 octets.
func setup(c *northtest.CSE, conn northbound.Connector, mends bool) northtest.Setup {
	return northtest.Setup{
		Connector: conn, Cloud: c.Cloud("gw1/cmd/gw1/x"), Topic: "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 1001, Mends: mends, PerDevice: true,
	}
}

func TestConnector(t *testing.T) {
	for name, b := range bindings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
				c := northtest.NewCSE(t)
				conn, _ := connector(t, c, b.serve(c), func(_ *northbound.Env, cfg *onem2m.Config) {
					cfg.MBS = 1000
					if b.change != nil {
						b.change(t, cfg)
					}
				})
				return setup(c, conn, b.mends)
			})
		})
	}
}
