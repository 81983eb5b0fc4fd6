package dtls

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"

	"github.com/drawbridge/drawbridge/internal/health"
)

// TestFailedHandshakesAreExplained has devices make each mistake that a person can mend, and holds what the listener says of it.
func TestFailedHandshakesAreExplained(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	late := testConfig(p)
	late.Now = func() time.Time { return time.Now().Add(74 * time.Hour) }
	unknown := testConfig(p)
	unknown.Peer = func(context.Context, []*x509.Certificate) (any, error) { return nil, errors.New("no such device") }
	psk := func(identity, key string) []piondtls.ClientOption {
		return []piondtls.ClientOption{piondtls.WithPSK(func([]byte) ([]byte, error) { return []byte(key), nil }), piondtls.WithPSKIdentityHint([]byte(identity)),
			piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8)}
	}
	cert := func(more ...piondtls.ClientOption) []piondtls.ClientOption {
		return append(more, piondtls.WithRootCAs(p.pool), piondtls.WithServerName("localhost"))
	}
	for name, c := range map[string]struct {
		config     *Config
		device     []piondtls.ClientOption
		what, hint string
	}{
		"a wrong key":                 {testConfig(p), psk("dev1", "wrong"), "a device's pre-shared key is not the one in the file (wrong-psk", "`hex:` or `base64:`"},
		"an unknown identity":         {testConfig(p), psk("nobody", string(testPSK)), "a device named a PSK identity that is not in the file (unknown-psk", "`psk_identity`"},
		"no certificate":              {testConfig(p), cert(), "the device showed no certificate, and must (no-client-certificate", "`device_ca`"},
		"a certificate of another CA": {testConfig(p), cert(piondtls.WithCertificates(other.client)), `the peer's certificate "CN=meter-1" is signed by "CN=test CA", who is not trusted here (client-certificate`, "`device_ca`"},
		"a certificate that ended":    {late, cert(piondtls.WithCertificates(p.client)), `the peer's certificate "CN=meter-1" expired on `, "timedatectl"},
		"a certificate of nobody":     {unknown, cert(piondtls.WithCertificates(p.client)), "the device's certificate is good, and names no device of the file (unknown-device", "[group.NAME]"},
		"a device that trusts other CAs": {testConfig(p), []piondtls.ClientOption{piondtls.WithRootCAs(other.pool), piondtls.WithServerName("localhost"), piondtls.WithCertificates(p.client)},
			"", ""},
		"no suite in common": {testConfig(p, Suites()[:1]...), nil, "the device offers no cipher suite that this listener has (no-common-suite", "`security`"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.device == nil { // whatever the listener has, the device has another
				c.device = cert(piondtls.WithCertificates(p.client))
				if !Suites()[0].UsesPSK() {
					c.device = psk("dev1", string(testPSK))
				}
			}
			s, addr := serve(t, c.config, nil)
			if err := pionEcho(t, addr, c.device...); err == nil {
				t.Fatal("it was let in")
			}
			err := <-s.errs
			now := time.Now()
			if c.config == late {
				now = late.Now()
			}
			text, hint := health.Words(err, now)
			if c.what == "" {
				if f, ok := errors.AsType[*Failure](err); !ok || f.Reason != "client-alert" || hint == "" {
					t.Errorf("%s; %s", text, hint)
				}
				return
			}
			if !strings.HasPrefix(text, c.what) || !strings.Contains(hint, c.hint) {
				t.Errorf("%s\nhint %s", text, hint)
			}
		})
	}
}
