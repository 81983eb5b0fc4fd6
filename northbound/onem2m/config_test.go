package onem2m_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

const gateway = "[gateway]\nid = \"gw1\"\n[key.identity]\nuri = \"file:identity.key\"\n[token.plant]\nissuer = \"https://id.example\"\nclient_id = \"gw1\"\nkey = \"identity\"\n"

func parse(t *testing.T, lines string) (*onem2m.Config, error) {
	t.Helper()
	kinds := config.Kinds{Connectors: map[string]func() any{"onem2m": onem2m.Kind().Config}}
	c, err := config.Parse(filepath.Join(t.TempDir(), "drawbridge.toml"), []byte(gateway+lines), kinds)
	if err != nil {
		return nil, err
	}
	return c.Connectors["m2m"].Own.(*onem2m.Config), nil
}

func TestExampleIsRight(t *testing.T) {
	if _, err := parse(t, onem2m.Kind().Example); err != nil {
		t.Fatal(err)
	}
}

func TestAFileWithEverything(t *testing.T) {
	c, err := parse(t, `[connector.m2m]
type = "onem2m"
url = "coaps://cse.example"
cse = "/id-in/cse-in"
key = "identity"
sp = "plant7.example"
ae_per_device = true
device_psk = "sealed:ae/{device}.psk"
device_psk_id = "{device}@plant7.example"
groups = ["meter"]
mni = 10
mbs = "64KiB"
mia = "24h"
response = "synch"
notify = "http"
listen = ":8443"
poa = "https://gw.plant7.example:8443"
[[connector.m2m.flex]]
topic = "dt/+/light"
type = "cod:color"
cnd = "org.onem2m.common.moduleclass.colour"
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Flex) != 1 || c.Flex[0].Type != "cod:color" || c.MBS != 64<<10 || c.Response != "synch" {
		t.Errorf("%+v", c)
	}
}

func TestMistakesInTheFile(t *testing.T) {
	const url = "url = \"https://cse.example\"\n"
	const good = url + "cse = \"/id-in/cse-in\"\nkey = \"identity\"\n"
	const per = good + "ae_per_device = true\n"
	const psk = "device_psk = \"file:{device}\"\ndevice_psk_id = \"{device}@b.example\""
	const flex = "[[connector.m2m.flex]]\n"
	const coap = "url = \"coaps://cse.example\"\ncse = \"/id-in\"\n"
	for lines, want := range map[string]string{
		"url = \"http://cse.example\"\ncse = \"/id-in\"":           `url: http:// is only allowed on loopback`,
		"url = \"mqtts://cse.example/x\"\ncse = \"/id-in\"":        `url: mqtts:// has no path`,
		"url = \"coap://cse.example\"\ncse = \"/id-in\"":           `does not begin with https://`,
		url + "cse = \"id-in\"":                                    `cse: "id-in" is not the CSE-ID`,
		url + "cse = \"/id-in/a/b\"":                               `cse: "/id-in/a/b" is not the CSE-ID`,
		good + "token = \"plnt\"":                                  `"plnt"`,
		"url = \"mqtts://b\"\ncse = \"/id-in\"\ntoken = \"plant\"": `token_as: only HTTP has a place for a bearer token`,
		good + "psk = \"file:/k\"\npsk_id = \"a@b.example\"":       `psk_id: only coaps:// knows pre-shared keys`,
		coap: `coaps:// needs a key with a certificate, or psk and psk_id`,
		coap + "psk = \"file:/k\"\npsk_id = \"gw1\"":                             `psk_id: "gw1" is not a KpsaID`,
		coap + "psk_id = \"gw1@b.example\"":                                      `is not a KpsaID`,
		coap + "psk = \"file:/k\"\npsk_id = \"a@b.example\"\nkey = \"identity\"": `key: either a certificate or a pre-shared key`,
		good + "ae = \"a/b\"":                                                    `ae: "a/b" is not the name of a resource`,
		good + "ae_id = \"gw1\"":                                                 `ae_id: "gw1" is not an AE-ID`,
		good + "ae_id = \"C\"\nae_per_device = true":                             `ae_id: with ae_per_device each device has its own`,
		good + "app_id = \"x\"":                                                  `app_id: "x" begins neither with N nor with R`,
		good + "release = \"1\"":                                                 `release: "1" is not one of`,
		good + "notify = \"mqtt\"":                                               `notify: "mqtt" goes with mqtts://`,
		good + "notify = \"pol\"":                                                `did you mean "poll"?`,
		good + "listen = \":8443\"":                                              `listen, poa: they go with notify = "http"`,
		good + "notify = \"http\"\nlisten = \":8443\"":                           `poa: "" is not the URL`,
		good + "notify = \"http\"\nlisten = \":8443\"\npoa = \"http://gw\"":      `http:// is only allowed on loopback`,
		good + "lifetime = \"10s\"":                                              `lifetime: at least "1m"`,
		good + "mni = -1":                                                        `mni: it cannot be negative`,
		good + "mia = \"10ms\"":                                                  `mia: at least "1s"`,
		good + "sp = \"a/b\"":                                                    `sp: "a/b" is not an M2M-SP-ID`,
		good + "device_key = \"ae-{device}\"":                                    `device_key: it goes with ae_per_device = true`,
		good + "groups = [\"meter\"]":                                            `groups: it goes with ae_per_device = true`,
		per + "device_key = \"identity\"":                                        `device_key: "identity" is the same for each device`,
		per + "groups = [\"a b\"]":                                               `groups: "a b" cannot be the name of a resource`,
		per + "device_psk_id = \"{device}@b.example\"":                           `device_psk, device_psk_id: they go together`,
		"url = \"coaps://cse.example\"\ncse = \"/id-in\"\nkey = \"identity\"\nae_per_device = true\ndevice_psk = \"{device}\"\ndevice_psk_id = \"{device}@b.example\"": `device_psk: it does not name a secret`,
		per + psk: `device_psk_id: only coaps:// knows pre-shared keys`,
		coap + "key = \"identity\"\nae_per_device = true\n" + psk + "\ndevice_key = \"a-{device}\"": `device_key: either a certificate or a pre-shared key`,
		per + "notify = \"http\"\nlisten = \":8443\"\npoa = \"https://gw\"\nresponse = \"now\"":     `response: "now" is not one of`,
		good + flex + "topic = \"a b\"\ntype = \"cod:x\"\ncnd = \"x\"":                              `flex: topic: "a b" is not a filter`,
		good + flex + "topic = \"a\"\ntype = \"m2m:cnt\"\ncnd = \"x\"":                              `flex: type: "m2m:cnt" is not the short name of a specialisation`,
		good + flex + "topic = \"a\"\ntype = \"cod:x\"":                                             `flex: cnd: the containerDefinition is missing`,
		good + "parallel = 0": `parallel: from 1 to 4096`,
	} {
		t.Run(lines, func(t *testing.T) {
			_, err := parse(t, "[connector.m2m]\ntype = \"onem2m\"\n"+lines+"\n")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant %s", err, want)
			}
		})
	}
}
