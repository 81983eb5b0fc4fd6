package http_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	hook "github.com/drawbridge/drawbridge/northbound/http"
)

func parse(t *testing.T, lines string) error {
	t.Helper()
	kinds := config.Kinds{Connectors: map[string]func() any{"http": hook.Kind().Config}}
	_, err := config.Parse(filepath.Join(t.TempDir(), "drawbridge.toml"), []byte("[gateway]\nid = \"gw1\"\n"+lines), kinds)
	return err
}

func TestExampleIsRight(t *testing.T) {
	if err := parse(t, hook.Kind().Example); err != nil {
		t.Fatal(err)
	}
}

func TestMistakesInTheFile(t *testing.T) {
	const url = "url = \"https://hooks.example/in\"\n"
	for lines, want := range map[string]string{
		`url = "http://hooks.example"`:                      `:5:7: url: http:// is only allowed on loopback`,
		`url = "https://hooks.example/?api_key=1"`:          `url: a secret does not stand in a URL`,
		`url = "ftp://hooks.example"`:                       `does not begin with https://`,
		url + `preset = "thingspek"`:                        `did you mean "thingspeak"?`,
		url + `preset = "thingspeak"`:                       `secret: ThingSpeak needs the channel's write key`,
		url + "preset = \"thingspeak\"\nbody = \"payload\"": `body: preset = "thingspeak" says it already`,
		url + `method = "GET"`:                              `method: "GET" is not one of`,
		url + `body = "xml"`:                                `body: "xml" is not one of`,
		url + `batch = 0`:                                   `batch: from 1 to 10000`,
		url + `key = "identity"`:                            `"identity"`,
		url + `token = "plant"`:                             `"plant"`,
		url + `secret_header = "X Key"`:                     `secret_header: "X Key" is not the name of a header`,
		url + `headers = { Authorization = "Basic x" }`:     `headers: Authorization is a secret`,
		url + `headers = { X-A = "a\nb" }`:                  `headers: "X-A" is not a header`,
		url + `timeout = "1ms"`:                             `timeout: from "1s" to "5m"`,
		url + `interval = "2h"`:                             `interval: from "0s" to "1h"`,
		url + `parallel = 0`:                                `parallel: from 1 to 1024`,
	} {
		t.Run(lines, func(t *testing.T) {
			err := parse(t, "[connector.hook]\ntype = \"http\"\n"+lines+"\n")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant %s", err, want)
			}
		})
	}
}
