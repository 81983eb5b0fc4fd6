package coap

import (
	"bytes"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func parseConfig(t *testing.T, listener string) (*Config, error) {
	t.Helper()
	site := southtest.NewSite(t)
	file := "[gateway]\nid = \"gw\"\n[key.identity]\nuri = \"tpm:name=hub\"\n[key.soft]\nuri = \"file:soft.key\"\n[listener.field]\ntype = \"coap\"\n" + strings.ReplaceAll(listener, "CA", site.CAFile)
	kinds := config.Kinds{Listeners: map[string]func() any{"coap": Kind().Config}}
	c, err := config.Parse(site.Dir+"/drawbridge.toml", []byte(file), kinds)
	if err != nil {
		return nil, err
	}
	return c.Listeners["field"].Own.(*Config), nil
}

func TestConfigurationOfAnExample(t *testing.T) {
	c, err := parseConfig(t, `
listen    = ":5684"
security  = ["psk", "x509"]
key       = "identity"
device_ca = "CA"
observe   = ["/sensors/temp", "/sensors/a/b", "/level"]
[[allow]]
op = "report"
resources = ["/sensors/{rest...}", "/{x}"]
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Observe) != 3 {
		t.Errorf("observe %q", c.Observe)
	}
	if !c.ConnectionID || c.MaxPayload != 64<<10 || c.Transport != "udp" {
		t.Errorf("%+v", c)
	}
	suites, err := c.suites()
	if err != nil || len(suites) < 20 {
		t.Errorf("%d suites, %v", len(suites), err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for listener, want := range map[string]string{
		`security = ["psc"]`:  "\"psc\" is not one of",
		`security = []`:       "security: there is none",
		`security = ["none"]`: "security \"none\" is only allowed on loopback",
		"security = [\"none\", \"psk\"]\nlisten=\"127.0.0.1:1\"":         "\"none\" stands alone",
		`security = ["psk", "psk"]`:                                      "\"psk\" is there twice",
		`security = ["x509"]`:                                            "security \"x509\" needs a key",
		"security = [\"x509\"]\nkey = \"identity\"":                      "security \"x509\" needs device_ca",
		"security = [\"psk\"]\nsuites = [\"TLS_PSK_WITH_AES_128_CCM8\"]": "did you mean \"TLS_PSK_WITH_AES_128_CCM",
		"security = [\"psk\"]\ntransport = \"tcp\"":                      "security \"psk\" is only spoken over udp",
		"security = [\"psk\"]\nmax_payload = \"0\"":                      "max_payload: must be more than 0",
		"security = [\"psk\"]\nstate_key = \"other\"":                    "other",
		"security = [\"psk\"]\necdhe = \"tpm\"":                          "\"tpm\" is not one of",
		"security = [\"psk\"]\necdhe = \"chip\"":                         "ecdhe = \"chip\" needs a key",
		"security = [\"psk\"]\nkey = \"soft\"\necdhe = \"chip\"":         "the key \"soft\" lives in a file, not in a chip",
		"security = [\"psk\"]\nlisten = \"5684\"":                        "listen:",
		"security = [\"psk\"]\nobserve = [\"sensors/temp\"]":             "\"sensors/temp\" is not a resource",
		"security = [\"psk\"]\nobserve = [\"/a\", \"/a\"]":               "\"/a\" is there twice",
		"security = [\"psk\"]\nobserve = [\"/b/c\"]\n[[allow]]\nop = \"report\"\nresources = [\"/b\", \"/b/c/{x}\", \"/b/d\"]": "no rule lets a device report on \"/b/c\"",
		"security = [\"psk\"]\nmax_retransmit = 99":                               "max_retransmit: 99 is not from 0 to 20",
		"security = [\"psk\"]\nsuites = [\"TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8\"]": "suites: none goes with the listener's security",
	} {
		_, err := parseConfig(t, listener)
		var text bytes.Buffer
		if err != nil {
			text.WriteString(err.Error())
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("%s\ngives %s\nwant  %s", listener, text.String(), want)
		}
	}
}
