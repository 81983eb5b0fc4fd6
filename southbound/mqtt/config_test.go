package mqtt

import (
	"errors"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

func TestConfigMistakes(t *testing.T) {
	kinds := config.Kinds{Listeners: map[string]func() any{"mqtt": NewKind().Config}}
	for text, want := range map[string]string{
		``:                      `needs a key`,
		`security = ["none"]`:   `only allowed on loopback`,
		`security = []`:         `exactly one of "tls" and "none"`,
		`listen = "8883"`:       `is not an address to listen on`,
		`transport = "udp"`:     `transport: "udp" is not one of`,
		`auth = ["anonymous"]`:  `only allowed on loopback`,
		`auth = ["jwt"]`:        `needs an issuer`,
		`auth = ["x509"]`:       `needs device_ca`,
		`auth = ["pasword"]`:    `is not one of`,
		`auth = []`:             `no way to log in is left`,
		`client_id = "any"`:     `is not one of`,
		`takeover = "no"`:       `is not one of`,
		`queue_full = "drop"`:   `is not one of`,
		`max_packet = "1"`:      `max_packet: 1 is not between 1024 and 268435455`,
		`receive_maximum = 0`:   `receive_maximum: 0 is not between 1 and 65535`,
		`max_queued = 70000`:    `max_queued: 70000 is not between 1 and 60000`,
		`connect_timeout = "0"`: `connect_timeout`,
		`device_crl = "x.crl"`:  `device_crl without device_ca`,
		`max_keep_alive = "1s"` + "\n" + `max_sesion_expiry = "1h"`: `max_sesion_expiry`,
	} {
		_, err := config.Parse("/etc/drawbridge.toml", []byte("[gateway]\nid = \"gw\"\n[listener.shop]\ntype = \"mqtt\"\n"+text), kinds)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
		var all config.Errors
		if !errors.As(err, &all) {
			t.Errorf("%s: %T", text, err)
		}
	}
}
