package azure_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// ring makes the gateway's keys, in memory where chip is nil: "identity" with a certificate, "hmac", and "client", which proves the
// gateway to issuers.
func ring(t *testing.T, chip *northtest.Chip, ca northtest.CA) *northtest.Keys {
	t.Helper()
	if chip != nil {
		return &northtest.Keys{
			Certificates: map[string]tls.Certificate{"identity": chip.Certificate(t, ca, broker.Subject{Name: "gw1"})},
			MACs:         map[string]hwcrypto.MACer{"hmac": chip.MAC(t, "hmac", key)},
			Signers:      map[string]crypto.Signer{"client": chip.Key(t, hwcrypto.ECDSAP256)},
		}
	}
	client, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &northtest.Keys{
		Certificates: map[string]tls.Certificate{"identity": ca.Certificate(t, broker.Subject{Name: "gw1"})},
		MACs:         map[string]hwcrypto.MACer{"hmac": key},
		Signers:      map[string]crypto.Signer{"client": client},
	}
}

// wire makes the connector of a setup, and the one after a reload on the same state.
func wire(t *testing.T, s *northtest.Setup, env northbound.Env, b *northtest.Broker, change func(c *azure.Config)) {
	t.Helper()
	c := azure.Kind().Config().(*azure.Config)
	c.Endpoint, c.CA, c.Key = local(b.Addr), config.Path(b.CA.File(t)), "identity"
	change(c)
	if c.Identities == "device" {
		knows(t, env, "gw1")
	}
	s.Reload = func(t *testing.T) northbound.Connector { return open(t, env, c) }
	s.Connector = s.Reload(t)
}

// hubMode is a way of logging in to a hub.
type hubMode struct {
	key    northtest.HMAC // nil: it shows a certificate
	mends  bool
	change func(h *northtest.Hub, c *azure.Config)
}

var hubModes = map[string]hubMode{
	"X.509":                   {change: func(*northtest.Hub, *azure.Config) {}},
	"shared access signature": {key: key, change: func(_ *northtest.Hub, c *azure.Config) { bySAS(c) }},
	"through the provisioning service, by certificate": {change: func(h *northtest.Hub, c *azure.Config) { provisioned(h, c) }},
	"through the provisioning service, by a symmetric key": {key: key, change: func(h *northtest.Hub, c *azure.Config) {
		bySAS(c)
		provisioned(h, c)
	}},
	"through the provisioning service, by a key derived from a group's": {key: key, change: func(h *northtest.Hub, c *azure.Config) {
		bySAS(c)
		provisioned(h, c)
		h.Group, c.Group = true, true
	}},
	"a connection for each device, by keys derived from a group's": {key: key, mends: true, change: func(h *northtest.Hub, c *azure.Config) {
		bySAS(c)
		h.Group, c.Group, c.Identities, c.ConnectRate = true, true, "device", 1000
	}},
	"a connection for each device, by their certificates": {mends: true, change: func(_ *northtest.Hub, c *azure.Config) {
		c.DeviceKey, c.Identities, c.ConnectRate = "hub-{device}", "device", 1000
	}},
}

func provisioned(h *northtest.Hub, c *azure.Config) {
	c.Endpoint, c.IDScope, c.Provisioning = "", "0ne00000A0A", local(h.Addr)
}

func (m hubMode) setup(t *testing.T, chip *northtest.Chip) northtest.Setup {
	h := northtest.NewHub(t, m.key)
	env, _ := northtest.Env(t, ring(t, chip, h.CA))
	s := northtest.Setup{
		Mends: m.mends, Cloud: h.Cloud("cmd/gw1/x"), Topic: "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 256 << 10, NoRefusals: true,
	}
	wire(t, &s, env, h.Broker, func(c *azure.Config) { m.change(h, c) })
	return s
}

// gridMode is a way of logging in to a namespace.
type gridMode struct {
	method string // empty: by certificate
	change func(c *azure.Config)
}

var gridModes = map[string]gridMode{
	"X.509":              {"", func(c *azure.Config) { c.Name = "plant7" }},
	"Entra token":        {"OAUTH2-JWT", func(c *azure.Config) { c.Auth, c.Token, c.Key = "oauth", "id", "" }},
	"token of an issuer": {"CUSTOM-JWT", func(c *azure.Config) { c.Auth, c.Token, c.Key = "jwt", "id", "" }},
}

func (m gridMode) setup(t *testing.T, chip *northtest.Chip) northtest.Setup {
	s := northtest.Setup{Topic: "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 512 << 10}
	ca := northtest.NewCA(t)
	keys := ring(t, chip, ca)
	var b *northtest.Broker
	env, _ := northtest.Env(t, keys)
	if m.method == "" {
		b = northtest.NewGrid(t, "", nil)
		keys.Certificates = ring(t, chip, b.CA).Certificates
	} else {
		s.Issuer = northtest.NewIssuer(t, ca, keys.Signers["client"].Public())
		s.Issuer.Listen(t)
		env.Tokens, env.Now = s.Issuer.Tokens(t, keys, nil), s.Issuer.Now
		b = northtest.NewGrid(t, m.method, s.Issuer.Good)
	}
	s.Cloud = northtest.MQTT(b, "cmd/gw1/x", "gw1")
	wire(t, &s, env, b, func(c *azure.Config) {
		c.Service = "eventgrid"
		m.change(c)
	})
	return s
}

func TestConnectorIoTHub(t *testing.T) {
	for name, m := range hubModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, nil) })
		})
	}
}

func TestConnectorEventGrid(t *testing.T) {
	for name, m := range gridModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, nil) })
		})
	}
}

func TestConnectorWithKeysInAChip(t *testing.T) {
	northtest.Chips(t, func(t *testing.T, chip *northtest.Chip) {
		for name, m := range hubModes {
			if strings.Contains(name, "provisioning") && !strings.Contains(name, "group") {
				continue // the same keys as without it
			}
			t.Run("IoT Hub, "+name, func(t *testing.T) {
				northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, chip) })
			})
		}
		for name, m := range gridModes {
			if m.method != "CUSTOM-JWT" { // Entra's differs in the method's name alone
				t.Run("Event Grid, "+name, func(t *testing.T) {
					northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, chip) })
				})
			}
		}
	})
}
