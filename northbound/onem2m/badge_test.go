package onem2m_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

func TestTheCertificateProfileOfTheStandard(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const ours = "//plant7.example/id-in/Cgw1"
	for name, test := range map[string]struct {
		uri     string
		server  string // name of the CSE's certificate; empty: its CSE-ID's domain
		curve   elliptic.Curve
		aeID    string
		problem string // empty: none
	}{
		"an AE-ID certificate and a CSE-ID certificate": {uri: ours},
		"an AE-ID with a scheme":                        {uri: "m2m:" + ours},
		"an AE-ID that the CSE chooses":                 {uri: ours, aeID: "C"},
		"no AE-ID":                                      {problem: `names no AE-ID: its subjectAltName needs the URI "//plant7.example/id-in/Cgw1"`},
		"the AE-ID of another":                          {uri: "//plant7.example/id-in/Cgw2", problem: `names the AE-ID "//plant7.example/id-in/Cgw2", and the AE is "//plant7.example/id-in/Cgw1"`},
		"the AE-ID at another provider":                 {uri: "//other.example/id-in/Cgw1", problem: `names the AE-ID`},
		"an AE-ID of the service provider":              {uri: "//plant7.example/Sgw1", aeID: "Sgw1"},
		"a key on another curve":                        {uri: ours, curve: elliptic.P384(), problem: `TS-0003 asks for one on P-256`},
		"the CSE under another name":                    {uri: ours, server: "localhost", problem: `id-in.plant7.example`},
		"the CSE under a wildcard":                      {uri: ours, server: "*.plant7.example", problem: `has a wildcard, which TS-0003 does not allow`},
	} {
		for _, binding := range []string{"HTTP", "CoAP", "MQTT"} {
			t.Run(name+", "+binding, func(t *testing.T) {
				t.Parallel()
				c := northtest.NewCSE(t)
				c.Hosts = []string{"id-in.plant7.example"}
				if test.server != "" {
					c.Hosts = []string{test.server}
				}
				at := bindings[binding].serve(c)
				conn, _ := connector(t, c, at, func(e *northbound.Env, cfg *onem2m.Config) {
					key := p256
					if test.curve != nil {
						key = p384
					}
					subject := broker.Subject{Name: "gw1"}
					if test.uri != "" {
						u, err := url.Parse(test.uri)
						if err != nil {
							t.Fatal(err)
						}
						subject.URIs = []*url.URL{u}
					}
					der, err := c.CA.Sign(key.Public(), subject)
					if err != nil {
						t.Fatal(err)
					}
					e.Keys.(*northtest.Keys).Certificates["identity"] = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
					cfg.SP, cfg.AEID = "plant7.example", test.aeID
				})
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				s, err := conn.Dial(ctx, &northtest.Downlink{})
				switch {
				case err == nil && test.problem != "":
					s.Close()
					t.Fatal("dialled")
				case err == nil:
					s.Close()
				case test.problem == "" || !strings.Contains(err.Error(), test.problem):
					t.Errorf("error %v\nwant %q", err, test.problem)
				case !msg.IsPermanent(err):
					t.Errorf("a person has to mend it: %v", err)
				}
			})
		}
	}
}

func TestEachDeviceShowsItsOwnCredential(t *testing.T) {
	for name, test := range map[string]struct {
		serve  func(c *northtest.CSE) string
		change func(testing.TB, *onem2m.Config)
		badge  string // of th-17
	}{
		"HTTP, a certificate": {(*northtest.CSE).ServeHTTP, func(t testing.TB, cfg *onem2m.Config) {
			byHTTP(t, cfg)
			cfg.DeviceKey = "ae-{device}"
		}, "th-17"},
		"MQTT, a certificate": {(*northtest.CSE).ServeMQTT, func(_ testing.TB, cfg *onem2m.Config) { cfg.DeviceKey = "ae-{device}" }, "th-17"},
		"CoAP, a certificate": {func(c *northtest.CSE) string { return c.ServeCoAP(nil) }, func(_ testing.TB, cfg *onem2m.Config) {
			cfg.DeviceKey = "ae-{device}"
		}, "th-17"},
		"CoAP, a pre-shared key": {func(c *northtest.CSE) string {
			return c.ServeCoAP(func(id string) []byte {
				return map[string][]byte{"gw1@plant7.example": []byte("0123456789abcdef"), "th-17@plant7.example": []byte("the key of th-17"), "th-18@plant7.example": []byte("the key of th-18")}[id]
			})
		}, func(_ testing.TB, cfg *onem2m.Config) {
			cfg.Key, cfg.PSK, cfg.PSKID = "", "file:kpsa", "gw1@plant7.example"
			cfg.DevicePSK, cfg.DevicePSKID = "file:{device}.psk", "{device}@plant7.example"
		}, "th-17@plant7.example"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			conn, _ := connector(t, c, test.serve(c), func(e *northbound.Env, cfg *onem2m.Config) {
				cfg.PerDev, cfg.Allow = true, []string{"Coperator"}
				test.change(t, cfg)
				ring := e.Keys.(*northtest.Keys)
				for _, device := range []string{"th-17", "th-18"} {
					ring.Certificates["ae-"+device] = c.CA.Certificate(t, broker.Subject{Name: device})
					ring.Secrets["file:"+device+".psk"] = "the key of " + device
				}
			})
			batch := publications("a", 3)
			batch[1].Device, batch[2].Device = "th-18", "th-19" // the last has no credential
			for range 2 {                                       // the second time they are known
				s := northtest.Dial(t, conn, &northtest.Downlink{})
				errs, ended := outcome(t, s, batch)
				if ended != nil || errs[0] != nil || errs[1] != nil || errs[2] == nil {
					t.Fatalf("ended %v, errors %v", ended, errs)
				}
				s.Close()
			}
			if got := c.Badges("Cth-17"); !slices.Equal(got, []string{test.badge}) {
				t.Errorf("the AE of th-17 has shown %q", got)
			}
			if a := c.Attributes("cse-in/th-17/dt"); a == nil || len(a["acpi"].([]any)) != 1 || a["acpi"].([]any)[0] != "/id-in/cse-in/th-17/drawbridge" {
				t.Errorf("container: %v", a)
			}
			if !c.Has("cse-in/th-18/drawbridge") || c.Has("cse-in/th-19") {
				t.Error("a policy is missing, or a device without credential has an AE")
			}
		})
	}
}
