package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func TestWhatLooksLikeASecretIsBlanked(t *testing.T) {
	const p = "planted"
	for _, line := range []string{
		`password = "planted"`, `password = 'planted'`, `  est_password="planted"`, "password = \"\"\"\nplan\nplanted\"\"\"", "psk = '''planted\n'''",
		`psk = planted`, `client_secret = "planted`, `params = { resource = "x", client_secret = "planted" }`, `"api-key" = "planted"`,
		`headers = { "X-Api-Key" = "planted", authorization = 'Bearer planted' }`, `tokens = ["planted", "planted"]`, `pin = 123planted`,
		`uri = "pkcs11:token=t;object=k?pin-value=planted&module=x"`, `url = "mqtts://user:planted@host:8883"`, `url = "https://h/ingest?api_key=planted&x=1"`,
		`x = "HostName=h;SharedAccessKey=planted="`, `u = "https://h/?sv=1&sig=planted"`, `password = "quo\"planted"`,
		"key = \"\"\"-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----\"\"\"", "-----BEGIN EC PRIVATE KEY-----\nplanted",
		"-----BEGIN SECRET KEY-----\nplanted\n-----END SECRET KEY-----",
	} {
		text := "[a]\nx = 1\n" + line + "\ny = \"kept\"\n"
		got := string(redact([]byte(text)))
		if strings.Contains(got, p) || !strings.HasPrefix(got, "[a]\nx = 1\n") {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
	for _, line := range []string{`password = "file:p"`, `psk = "sealed:/p"`, `secret = 'credential:p'`, `keep_alive = "5m"`, `key = "identity"`, `[token.access]`, `url = "https://h/token"`} {
		if got := string(redact([]byte(line + "\n"))); got != line+"\n" {
			t.Errorf("%s became %s", line, got)
		}
	}
}

// A bundle of a gateway that runs, with secrets of every kind in use, holds none of them.
func TestTheBundleOfARunningGatewayHoldsNoSecret(t *testing.T) {
	h := newHouse(t)
	secrets := h.withSecrets()
	if out, code := h.verb("support", "-o", h.path("bundle.tar.gz")); code != exitYes {
		t.Fatal(out)
	}
	f, err := os.Open(h.path("bundle.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[head.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"drawbridge.toml", "status.json", "doctor.json", "version.txt"} {
		if len(files["drawbridge-support/"+name]) == 0 {
			t.Errorf("the bundle lacks %s: %v", name, len(files))
		}
	}
	files["the log"] = []byte(h.log.text())
	for _, path := range []string{"/", "/devices", "/routes", "/clouds", "/keys", "/dead", "/log", "/status.json", "/metrics", "/healthz", "/v1/devices"} {
		files[path] = []byte(h.get(path))
	}
	for kind, secret := range secrets {
		for name, data := range files {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s holds the %s", name, kind)
			}
		}
	}
}

// withSecrets starts a gateway that uses secrets of every kind, and gives them.
func (h *house) withSecrets() map[string]string {
	h.Helper()
	hook := northtest.NewWebhook(h)
	s := h.tokenServer(hook.CA)
	ca := hook.CA.File(h)
	secrets := map[string]string{"PSK": "psk-6b1f0a7c2d94", "password": "password-88ab61e0f3", "client secret": "client-secret-19fe77", "access token": "access-token"}
	h.write("secret", []byte(secrets["client secret"]))
	h.write("th-1.psk", []byte(secrets["PSK"]))
	h.write("press-1.password", []byte(secrets["password"]))
	h.configure(h.key("hook", hook.CA, broker.Subject{Name: "gw1", Hosts: northtest.Loopback}), toHook(hook, ca), fmt.Sprintf(`
[listener.shop]
type = "mqtt"
listen = "127.0.0.1:0"
security = ["none"]
auth = ["password"]
[listener.field]
type = "coap"
listen = "127.0.0.1:0"
security = ["psk"]
state_key = "hook"
[[allow]]
op = "report"
resources = ["/{rest...}"]
[device.th-1]
psk = "file:th-1.psk"
[device.press-1]
password = "file:press-1.password"
[token.access]
token_url = "%s/token"
client_id = "gw1"
client_auth = "client_secret_post"
client_secret = "file:secret"
ca = %q
`, s.URL, ca))
	h.start()
	key, err := os.ReadFile(h.path("hook.key"))
	if err != nil {
		h.Fatal(err)
	}
	secrets["private key"] = strings.Split(string(key), "\n")[1]
	c, err := dialMQTT(h.Context(), h.at("shop"), nil, wireOptions{clientID: "press-1", user: "press-1", password: secrets["password"], v5: true})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	if code, err := c.publish5("hook/x", []byte("1")); code != 0 || err != nil {
		h.Fatal(code, err)
	}
	d, err := dialCoAP(h.Context(), h.at("field"), "th-1", []byte(secrets["PSK"]))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { d.Close() })
	if bad, err := dialMQTT(h.Context(), h.at("shop"), nil, wireOptions{clientID: "press-1", user: "press-1", password: "wrong-" + secrets["password"]}); err == nil {
		bad.Close()
		h.Error("a wrong password was let in")
	}
	eventually(h, "the report to arrive with a token", func() bool { return len(hook.Received()) > 0 })
	return secrets
}
