package aws_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/aws"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// mode is a way of logging in.
type mode struct {
	alpn   string
	tokens bool // of an issuer, for an assertion that the key "client" signs
	rsa    bool // the key "sign" signs tokens
	web    bool
	inChip bool // the suite runs with keys in chips too
	change func(t *testing.T, a *northtest.AWS, c *aws.Config)
}

var modes = map[string]mode{
	"X.509":             {alpn: "x-amzn-mqtt-ca", inChip: true, change: func(*testing.T, *northtest.AWS, *aws.Config) {}},
	"X.509, MQTT 3.1.1": {alpn: "x-amzn-mqtt-ca", change: func(_ *testing.T, _ *northtest.AWS, c *aws.Config) { c.Version = 4 }},
	"custom authorizer with a signed token": {alpn: "mqtt", tokens: true, rsa: true, inChip: true,
		change: func(_ *testing.T, _ *northtest.AWS, c *aws.Config) {
			c.Auth, c.Key, c.Token, c.Authorizer, c.TokenKey, c.SigningKey = "authorizer", "", "id", "plant", "bearer", "sign"
		}},
	"custom authorizer with the token as password, MQTT 3.1.1": {alpn: "mqtt", tokens: true,
		change: func(_ *testing.T, _ *northtest.AWS, c *aws.Config) {
			c.Auth, c.Key, c.Token, c.Authorizer, c.Version = "authorizer", "", "id", "plant", 4
		}},
	"SigV4 with credentials for a token": {alpn: "mqtt", tokens: true, web: true, inChip: true,
		change: func(t *testing.T, a *northtest.AWS, c *aws.Config) {
			c.Auth, c.Key, c.Token, c.Region, c.RoleARN, c.STS = "sigv4", "", "id", "eu-central-1", "arn:aws:iam::1:role/gw", a.STS(t)
		}},
	"SigV4 with credentials for a certificate": {alpn: "mqtt", web: true, inChip: true,
		change: func(t *testing.T, a *northtest.AWS, c *aws.Config) {
			c.Auth, c.Region, c.RoleAlias, c.Credentials, c.Thing = "sigv4", "eu-central-1", "gateway", a.Provider(t), "gw1"
		}},
}

// setup makes a cloud and a connector that logs in so, with keys in memory where chip is nil.
func (m mode) setup(t *testing.T, chip *northtest.Chip, mqtt4 bool) northtest.Setup {
	a := northtest.NewAWS(t, m.alpn)
	ring := &northtest.Keys{Signers: map[string]crypto.Signer{}}
	if chip != nil {
		ring.Certificates = map[string]tls.Certificate{"identity": chip.Certificate(t, a.CA, broker.Subject{Name: "gw1"})}
	}
	if m.rsa {
		ring.Signers["sign"] = rsaKey(t, chip)
		a.SigningKey = ring.Signers["sign"].Public().(*rsa.PublicKey)
	}
	s := northtest.Setup{
		Cloud: northtest.MQTT(a.Broker, "cmd/gw1/x", "gw1"), Topic: "dt/gw1/x", Filter: "cmd/gw1/#", TooLarge: 128<<10 + 1, NoRefusals: mqtt4,
	}
	var source northbound.Tokens
	if m.tokens {
		ring.Signers["client"] = ecKey(t, chip)
		s.Issuer = northtest.NewIssuer(t, a.CA, ring.Signers["client"].Public())
		s.Issuer.Life = 20 * time.Minute
		s.Issuer.Listen(t)
		source = s.Issuer.Tokens(t, ring, nil)
		a.Good, a.Now, a.Lifetime = s.Issuer.Good, s.Issuer.Now, 15*time.Minute
	}
	if m.web {
		a.Web(t)
	}
	if ring.Certificates == nil {
		ring.Certificates = map[string]tls.Certificate{"identity": a.CA.Certificate(t, broker.Subject{Name: "gw1"})}
	}
	env, _ := northtest.Env(t, ring)
	env.Tokens, env.Now = source, a.Now
	c := aws.Kind().Config().(*aws.Config)
	c.Endpoint, c.CA, c.Key, c.Rate = strings.Replace(a.Addr, "127.0.0.1", "localhost", 1), config.Path(a.CA.File(t)), "identity", 1e6
	m.change(t, a, c)
	s.Reload = func(t *testing.T) northbound.Connector { return open(t, env, c) }
	s.Connector = s.Reload(t)
	return s
}

func ecKey(t *testing.T, chip *northtest.Chip) crypto.Signer {
	if chip != nil {
		return chip.Key(t, hwcrypto.ECDSAP256)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t *testing.T, chip *northtest.Chip) crypto.Signer {
	if chip != nil {
		return chip.Key(t, hwcrypto.RSA2048)
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConnector(t *testing.T) {
	for name, m := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, nil, strings.Contains(name, "3.1.1")) })
		})
	}
}

func TestConnectorWithKeysInAChip(t *testing.T) {
	northtest.Chips(t, func(t *testing.T, chip *northtest.Chip) {
		for name, m := range modes {
			if m.inChip {
				t.Run(name, func(t *testing.T) {
					northtest.TestConnector(t, func(t *testing.T) northtest.Setup { return m.setup(t, chip, false) })
				})
			}
		}
	})
}
