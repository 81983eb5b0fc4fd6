package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// A connector may log in with a token beside the certificate that is to be proven.
func TestACertificateIsProvenWhereATokenIsShownToo(t *testing.T) {
	ca := keytest.NewEST(t, "gw", "once")
	dir := t.TempDir()
	file := filepath.Join(dir, "drawbridge.toml")
	for name, text := range map[string]string{
		"est-ca.crt": string(ca.CA.PEM),
		"otp":        "once",
		"drawbridge.toml": fmt.Sprintf(`
[gateway]
id    = "gw1"
state = "state"
[status]
socket = "socket"
[key.identity]
uri          = "file:identity.key"
cert         = "identity.crt"
est          = %q
est_ca       = "est-ca.crt"
est_user     = "gw"
est_password = "file:otp"
[token.plant]
token_url = "https://127.0.0.1:1/token"
client_id = "gw1"
key       = "identity"
[connector.cloud]
type  = "mqtt"
url   = "mqtts://127.0.0.1:1"
key   = "identity"
token = "plant"
`, ca.URL),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	enroll := func() (int, string) {
		var out bytes.Buffer
		code := execute(t.Context(), []string{"--config", file, "enroll", "identity"}, streams{strings.NewReader(""), &out, &out})
		return code, out.String()
	}
	if code, out := enroll(); code != exitYes {
		t.Fatalf("the first: %d %s", code, out)
	}
	if code, out := enroll(); code != exitFailed || !strings.Contains(out, `so the old one stays: connector cloud: log-in: nothing listens at the peer's port (token plant: `) {
		t.Errorf("the second: %d %s", code, out)
	}
}

// A platform's certificate takes the place of one that works only when the platform lets it in, by whatever client id its policy names.
func TestACertificateOfAWSIsProvenBeforeItReplacesAnother(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	claimCert, claimKey := northtest.Files(t, a.CA.Certificate(t, broker.Subject{Name: "claim"}))
	dir := t.TempDir()
	file := filepath.Join(dir, "drawbridge.toml")
	err := os.WriteFile(file, fmt.Appendf(nil, `
[gateway]
id    = "gw1"
state = "state"
[status]
socket = "socket"
[key.claim]
uri  = "file:%s"
cert = %q
[key.identity]
uri  = "file:identity.key"
cert = "identity.crt"
[connector.cloud]
type       = "aws"
endpoint   = %q
ca         = %q
key        = "identity"
claim_key  = "claim"
template   = "plant"
parameters = { serial = "77" }
`, claimKey, claimCert, strings.Replace(a.Addr, "127.0.0.1", "localhost", 1), a.CA.File(t)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	enroll := func() (code int, out, cert string) {
		var b bytes.Buffer
		code = execute(t.Context(), []string{"--config", file, "enroll", "cloud"}, streams{strings.NewReader(""), &b, &b})
		pem, err := os.ReadFile(filepath.Join(dir, "identity.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return code, b.String(), string(pem)
	}
	code, out, first := enroll()
	if code != exitYes || out != "identity: certified; thing plant7-77\n" {
		t.Fatalf("the first: %d %s", code, out)
	}
	a.Policy = func(l *broker.Login) bool { return l.TLS.PeerCertificates[0].Subject.CommonName == "claim" }
	if code, out, cert := enroll(); code != exitFailed || !strings.Contains(out, "so the old one stays: connector cloud: log-in: ") || cert != first {
		t.Errorf("one that is not let in: %d %s", code, out)
	}
	a.Policy = func(l *broker.Login) bool { return l.ClientID == "gw1" }
	if code, out, cert := enroll(); code != exitYes || cert == first {
		t.Errorf("one that is: %d %s", code, out)
	}
}
