package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
)

// The kinds of these tests have the keys that the example shows.

type coapListener struct {
	Listen       string      `toml:"listen"`
	Security     []string    `toml:"security"`
	Key          string      `toml:"key"`
	DeviceCA     config.Path `toml:"device_ca"`
	ConnectionID bool        `toml:"connection_id"`
}

func (l *coapListener) Check(s *config.Scope) {
	if l.Listen == "" {
		s.Errorf("listen", "listener %q has no listen", s.Name())
	} else {
		s.Address("listen", l.Listen)
	}
	for _, sec := range l.Security {
		if s.OneOf("security", sec, "psk", "x509", "none") && sec == "none" {
			s.Loopback("security", l.Listen, `"none"`)
		}
	}
}

type mqttListener struct {
	Listen   string      `toml:"listen"`
	Security []string    `toml:"security"`
	Auth     []string    `toml:"auth"`
	Key      string      `toml:"key"`
	DeviceCA config.Path `toml:"device_ca"`
}

type tlsOptions struct {
	Key string      `toml:"key"`
	CA  config.Path `toml:"ca"`
}

type mqttConnector struct {
	tlsOptions
	URL      string           `toml:"url"`
	Version  int              `toml:"version"`
	Password config.SecretRef `toml:"password"`
	Timeout  config.Duration  `toml:"timeout"`
	Limits   *struct {
		Payload config.Size `toml:"payload"`
		Rate    float64     `toml:"rate"`
		Window  uint16      `toml:"window"`
	} `toml:"limits"`
	Headers map[string]string `toml:"headers"`
}

func (c *mqttConnector) Check(s *config.Scope) {
	s.URL("url", c.URL, "mqtt", "mqtts", "wss")
	if c.Version != 4 && c.Version != 5 {
		s.Errorf("version", "version: %d is neither 4 (MQTT 3.1.1) nor 5", c.Version)
	}
}

type awsConnector struct {
	Endpoint string `toml:"endpoint"`
	Key      string `toml:"key"`
}

var kinds = config.Kinds{
	Listeners: map[string]func() any{
		"coap": func() any { return &coapListener{ConnectionID: true} },
		"mqtt": func() any { return &mqttListener{Auth: []string{"x509", "password"}} },
	},
	Connectors: map[string]func() any{
		"aws":  func() any { return &awsConnector{} },
		"mqtt": func() any { return &mqttConnector{Version: 5} },
	},
}

// site makes a directory with the files that the example names.
func site(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "devices-ca.pem", renewedCA(t), 0o644)
	write(t, dir, "th-17.psk", "sealed", 0o644)
	write(t, dir, "press-3.password", "open sesame\n", 0o600)
	write(t, dir, "pin", "1234\n", 0o600)
	return dir
}

// renewedCA makes a CA certificate, another at each call.
func renewedCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, dir, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// example gives the file that is shipped as one.
func example(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exampleIn gives the example with its one absolute path moved into dir.
func exampleIn(t *testing.T, dir string) string {
	t.Helper()
	return strings.Replace(example(t), "file:/etc/drawbridge/pin", "file:"+dir+"/pin", 1)
}

func TestExampleIsValid(t *testing.T) {
	dir := site(t)
	c, err := config.Parse(filepath.Join(dir, "drawbridge.toml"), []byte(exampleIn(t, dir)), kinds)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Connectors["plant"].Own.(*mqttConnector); got.Key != "identity" || got.Version != 5 || got.CA != "" {
		t.Errorf("connector plant: %+v", got)
	}
	if got := c.Listeners["field"].Own.(*coapListener); !got.ConnectionID || string(got.DeviceCA) != filepath.Join(dir, "devices-ca.pem") {
		t.Errorf("listener field: %+v", got)
	}
	if d := c.Devices["th-17"]; d.PSKIdentity != "th-17" || string(d.PSK) != "sealed:"+dir+"/th-17.psk" {
		t.Errorf("device th-17: %+v", d)
	}
	if uri := c.Keys["dev"].URI; uri != "file:"+dir+"/dev.key" {
		t.Errorf("a file: URI stays relative: %q", uri)
	}
}

// shownDefaults uncomments the lines that show defaults, but not in the tables of listeners and connectors, whose keys are those of their types.
func shownDefaults(text string) (out string, n int) {
	line, own := regexp.MustCompile(`^#([a-z_]+ *=)`), false
	var b strings.Builder
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "[") {
			own = strings.HasPrefix(l, "[listener.") || strings.HasPrefix(l, "[connector.")
		}
		if !own && line.MatchString(l) {
			l = l[1:]
			n++
		}
		b.WriteString(l)
	}
	return b.String(), n
}

// Every line "#key = value" shows the value that holds without it. What listeners and connectors show is compared where those are built in.
func TestExampleShowsDefaults(t *testing.T) {
	dir := site(t)
	path := filepath.Join(dir, "drawbridge.toml")
	text := exampleIn(t, dir)
	plain, err := config.Parse(path, []byte(text), kinds)
	if err != nil {
		t.Fatal(err)
	}
	uncommented, n := shownDefaults(text)
	if n < 20 {
		t.Fatalf("the example shows %d defaults", n)
	}
	shown, err := config.Parse(path, []byte(uncommented), kinds)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "config", reflect.ValueOf(*plain), reflect.ValueOf(*shown))
}

// compare reports differences of exported fields; an empty list is as good as none.
func compare(t *testing.T, where string, a, b reflect.Value) {
	t.Helper()
	switch a.Kind() {
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() != b.IsNil() {
			t.Errorf("%s: %v and %v", where, a, b)
		} else if !a.IsNil() {
			compare(t, where, a.Elem(), b.Elem())
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if f := a.Type().Field(i); f.IsExported() && f.Name != "Pos" {
				compare(t, where+"."+f.Name, a.Field(i), b.Field(i))
			}
		}
	case reflect.Map:
		for _, k := range a.MapKeys() {
			if !b.MapIndex(k).IsValid() {
				t.Errorf("%s[%v] is in one alone", where, k)
				continue
			}
			compare(t, where+"."+k.String(), a.MapIndex(k), b.MapIndex(k))
		}
	case reflect.Slice:
		if a.Len() != b.Len() {
			t.Errorf("%s: %v and %v", where, a, b)
			return
		}
		for i := range a.Len() {
			compare(t, where, a.Index(i), b.Index(i))
		}
	default:
		if !a.Equal(b) {
			t.Errorf("%s: %v and %v", where, a, b)
		}
	}
}

// The example has every key that the file may have, and no other.
func TestExampleHasEveryKey(t *testing.T) {
	text := example(t)
	for header, v := range map[string]any{
		"[gateway]": config.Gateway{}, "[log]": config.Log{}, "[status]": config.Status{}, "[spool]": config.Spool{},
		"[key.": config.Key{}, "[issuer.": config.Issuer{}, "[device.": config.Device{}, "[group.": config.Group{}, "[token.": config.Token{}, "[authenticator]": config.Authenticator{},
		"[[allow]]": config.Allow{}, "[[uplink]]": config.Uplink{}, "[[downlink]]": config.Downlink{},
	} {
		sections := strings.Split("\n"+text, "\n"+header)[1:]
		for i, s := range sections {
			sections[i], _, _ = strings.Cut(s, "\n[")
		}
		all := strings.Join(sections, "\n")
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if key := f.Tag.Get("toml"); !f.Anonymous && key != "-" && !regexp.MustCompile(`(?m)^#?`+key+` *=`).MatchString(all) {
				t.Errorf("the example does not show %q under %s", key, header)
			}
		}
	}
}
