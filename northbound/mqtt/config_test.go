package mqtt_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const gateway = "[gateway]\nid = \"gw1\"\n[key.identity]\nuri = \"file:identity.key\"\n"

func parse(t *testing.T, lines string) (*mqtt.Config, error) {
	t.Helper()
	kinds := config.Kinds{Connectors: map[string]func() any{"mqtt": mqtt.Kind().Config}}
	c, err := config.Parse(filepath.Join(t.TempDir(), "drawbridge.toml"), []byte(gateway+lines), kinds)
	if err != nil {
		return nil, err
	}
	return c.Connectors["plant"].Own.(*mqtt.Config), nil
}

func TestExampleIsRight(t *testing.T) {
	c, err := parse(t, mqtt.Kind().Example)
	if err != nil {
		t.Fatal(err)
	}
	if c.Version != 5 || time.Duration(c.KeepAlive) != time.Minute || time.Duration(c.SessionExpiry) != 24*time.Hour || c.Window != 4096 {
		t.Fatalf("defaults: %+v", c)
	}
	// Every default that the example shows is the default.
	shown := strings.NewReplacer("#ca  = \"\"", "ca = \"\"", "\n# ", "\n# ", "\n#", "\n").Replace(mqtt.Kind().Example)
	d, err := parse(t, shown)
	if err != nil {
		t.Fatal(err)
	}
	d.CA, d.Password = "", ""
	if *c != *d {
		t.Fatalf("shown %+v\n  are %+v", *d, *c)
	}
}

func TestMistakesInTheFile(t *testing.T) {
	for lines, want := range map[string]string{
		`url = "mqtt://broker.example"`:                             `:7:7: url: mqtt:// is only allowed on loopback, and "broker.example" is not`,
		`url = "ws://10.0.0.1/mqtt"`:                                `url: ws:// is only allowed on loopback`,
		`url = "https://broker.example"`:                            `does not begin with mqtts://`,
		`url = "mqtts://broker.example/x"`:                          `url: mqtts:// has no path`,
		`url = "mqtts://u:p@broker.example"`:                        `no user name or password stands in a URL`,
		`url = ""`:                                                  `url`,
		"url = \"mqtts://b\"\nkey = \"identty\"":                    `"identty"`,
		"url = \"mqtts://b\"\nversion = 3":                          `version: 3 is not one of 5 and 4 (MQTT 3.1.1)`,
		"url = \"mqtts://b\"\nversion = 4\npassword = \"file:/pw\"": `password: MQTT 3.1.1 has none without a username`,
		"url = \"mqtts://b\"\nkeep_alive = \"100ms\"":               `keep_alive: from "1s" to "65535s"`,
		"url = \"mqtts://b\"\nwindow = 70000":                       `window: from 1 to 65535`,
		"url = \"mqtts://b\"\nsession_expiry = \"10ms\"":            `session_expiry: at least "1s"`,
		"url = \"mqtts://b\"\nclientid = \"x\"":                     `client_id`,
		"url = \"mqtts://b\"\ntoken = \"bound\"\n[token.bound]\nissuer = \"https://id.example\"\nclient_id = \"gw\"\nkey = \"identity\"\ndpop = true": `token: token "bound" is bound to its key by dpop, which only a request over HTTP can prove`,
	} {
		t.Run(lines, func(t *testing.T) {
			_, err := parse(t, "[connector.plant]\ntype = \"mqtt\"\n"+lines+"\n")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant %s", err, want)
			}
		})
	}
	for _, url := range []string{"mqtt://localhost:1883", "mqtt://127.0.0.1", "mqtt://[::1]:1883", "ws://localhost/mqtt", "wss://broker.example/mqtt"} {
		if _, err := parse(t, "[connector.plant]\ntype = \"mqtt\"\nurl = \""+url+"\"\n"); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}
