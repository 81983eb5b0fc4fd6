package onem2m_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// provider is what both chips do here.
type provider interface {
	hwcrypto.Provider
	hwcrypto.Generator
	hwcrypto.Importer
}

// uri makes one of its text.
func uri(t *testing.T, text string) hwcrypto.URI {
	t.Helper()
	u, err := hwcrypto.ParseURI(text, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestConnectorWithKeysInAChip(t *testing.T) {
	for name, chip := range map[string]func(t *testing.T) (provider, func(string) string){
		"SoftHSM2": func(t *testing.T) (provider, func(string) string) {
			p := pkcs11.New(context.WithoutCancel(t.Context()), pkcs11.Options{})
			t.Cleanup(func() { p.Close() })
			return p, keytest.SoftHSM(t).URI
		},
		"swtpm": func(t *testing.T) (provider, func(string) string) {
			c := keytest.SWTPM(t)
			p := tpm2.New(context.WithoutCancel(t.Context()), tpm2.Options{Dir: c.Dir})
			t.Cleanup(func() { p.Close() })
			return p, c.URI
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, address := chip(t)
			key, err := p.Generate(t.Context(), uri(t, address("identity")), hwcrypto.ECDSAP256)
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			ke, err := p.Import(t.Context(), uri(t, address("enrolment")), []byte("an enrolment key of 32 octets...."))
			if err != nil {
				t.Fatal(err)
			}
			defer ke.Close()
			kpsa, err := onem2m.Kpsa(t.Context(), northtest.HMAC("an enrolment key of 32 octets...."), "/id-in")
			if err != nil {
				t.Fatal(err)
			}
			for binding, serve := range map[string]func(*northtest.CSE) string{
				"HTTP": (*northtest.CSE).ServeHTTP, "MQTT": (*northtest.CSE).ServeMQTT,
				"CoAP": func(c *northtest.CSE) string { return c.ServeCoAP(nil) },
				"CoAP, by the enrolment key": func(c *northtest.CSE) string {
					return c.ServeCoAP(func(string) []byte { return kpsa })
				},
			} {
				t.Run(binding, func(t *testing.T) {
					northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
						c := northtest.NewCSE(t)
						url := serve(c)
						conn, _ := connector(t, c, url, func(e *northbound.Env, cfg *onem2m.Config) {
							e.Keys, cfg.MBS = ringOf(t, c, key, ke), 1000
							if binding == "CoAP, by the enrolment key" {
								cfg.Key, cfg.EnrolmentKey, cfg.PSKID = "", "enrolment", "gw1@plant7.example"
							}
						})
						return setup(c, conn, binding == "HTTP")
					})
				})
			}
		})
	}
}

// ringOf makes a key ring of a chip's keys, certified by the CSE's authority.
func ringOf(t *testing.T, c *northtest.CSE, key crypto.Signer, ke hwcrypto.Key) northbound.Keys {
	t.Helper()
	der, err := c.CA.Sign(key.Public(), broker.Subject{Name: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	return &northtest.Keys{
		Certificates: map[string]tls.Certificate{"identity": {
			Certificate: [][]byte{der}, PrivateKey: key, SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		}},
		MACs: map[string]hwcrypto.MACer{"enrolment": ke.(hwcrypto.MACer)},
	}
}
