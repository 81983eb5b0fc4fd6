package onem2m_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// dtlsServer runs OpenSSL's DTLS server with a certificate of the CSE's CA, and gives its URL.
func dtlsServer(t *testing.T, ca northtest.CA, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	cert := ca.Certificate(t, broker.Subject{Name: "localhost", Hosts: northtest.Loopback})
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cse.crt": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "cse.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return "coaps://" + needs.OpenSSLServer(t, dir, slices.Concat([]string{"-dtls1_2", "-listen", "-cert", "cse.crt", "-key", "cse.key"}, args)...)
}

// TestHandshakesOverDTLSAreExplained has what a CSE's DTLS refuses, by pion and by OpenSSL.
func TestHandshakesOverDTLSAreExplained(t *testing.T) {
	other := northtest.NewCA(t)
	psk := func(id string) []byte {
		return map[string][]byte{"gw1@plant7.example": []byte("0123456789abcdef")}[id]
	}
	byPSK := func(id string) func(*testing.T, *northbound.Env, *onem2m.Config) {
		return func(_ *testing.T, _ *northbound.Env, c *onem2m.Config) { c.Key, c.PSK, c.PSKID = "", "file:kpsa", id }
	}
	for name, c := range map[string]struct {
		serve      func(*testing.T, *northtest.CSE) string
		change     func(*testing.T, *northbound.Env, *onem2m.Config)
		what, hint string
	}{
		"a CSE of another CA": {func(_ *testing.T, c *northtest.CSE) string { return c.ServeCoAP(nil) }, func(t *testing.T, _ *northbound.Env, c *onem2m.Config) { c.CA = config.Path(other.File(t)) },
			`the peer's certificate "CN=cse" is signed by "CN=northtest CA", who is not trusted here`, "`ca = \"FILE\"`"},
		"a certificate of another CA": {func(_ *testing.T, c *northtest.CSE) string { return c.ServeCoAP(nil) }, func(t *testing.T, env *northbound.Env, _ *onem2m.Config) {
			env.Keys.(*northtest.Keys).Certificates["identity"] = other.Certificate(t, broker.Subject{Name: "gw1"})
		}, "the peer refuses this gateway's certificate", "registered there"},
		"an unknown identity":   {func(_ *testing.T, c *northtest.CSE) string { return c.ServeCoAP(psk) }, byPSK("nobody@plant7.example"), `the CSE does not take the pre-shared key of "nobody@plant7.example"`, "`psk_id`"},
		"a CSE by certificates": {func(_ *testing.T, c *northtest.CSE) string { return c.ServeCoAP(nil) }, byPSK("gw1@plant7.example"), `the CSE does not take the pre-shared key of "gw1@plant7.example"`, "at this port"},
		"nobody":                {func(*testing.T, *northtest.CSE) string { return "coaps://127.0.0.1:9" }, nil, "nothing listens at the peer's port", "is the peer running"},
		"OpenSSL, another CA": {func(t *testing.T, c *northtest.CSE) string {
			return dtlsServer(t, c.CA, "-Verify", "1", "-verify_return_error", "-CAfile", other.File(t))
		}, nil, "the peer does not trust the CA of this gateway's certificate", "register"},
		"OpenSSL, a certificate that ended": {func(t *testing.T, c *northtest.CSE) string {
			return dtlsServer(t, c.CA, "-Verify", "1", "-verify_return_error", "-CAfile", c.CA.File(t))
		}, func(t *testing.T, env *northbound.Env, _ *onem2m.Config) {
			k := env.Keys.(*northtest.Keys)
			k.Certificates["identity"] = k.Certificates["ended"]
		}, "the peer says that this gateway's certificate has expired", "enroll"},
		"OpenSSL, another key": {func(t *testing.T, c *northtest.CSE) string {
			return dtlsServer(t, c.CA, "-psk", "00112233445566778899aabbccddeeff", "-psk_identity", "gw1@plant7.example", "-cipher", "PSK-AES128-CCM8:@SECLEVEL=0")
		}, byPSK("gw1@plant7.example"), `the CSE does not take the pre-shared key of "gw1@plant7.example"`, "`psk`"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cse := northtest.NewCSE(t)
			conn, _ := connector(t, cse, c.serve(t, cse), func(env *northbound.Env, cfg *onem2m.Config) {
				env.Keys.(*northtest.Keys).Certificates["ended"] = cse.CA.Certificate(t, broker.Subject{Name: "gw1", From: time.Now().Add(-3 * time.Hour), Until: time.Now().Add(-time.Hour)})
				if c.change != nil {
					c.change(t, env, cfg)
				}
			})
			patience := 30 * time.Second
			if name == "OpenSSL, another key" {
				patience = 3 * time.Second // it only falls silent
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := conn.Dial(ctx, &northtest.Downlink{})
			if err == nil {
				t.Fatal("dialled")
			}
			text, hint := health.Words(err, time.Now())
			if !strings.HasPrefix(text, c.what+" (") || !strings.Contains(hint, c.hint) {
				t.Errorf("%s\nhint %s", text, hint)
			}
		})
	}
}
