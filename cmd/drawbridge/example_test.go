package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

// exampleSite gives a directory with every file that the example names, and the example itself.
func exampleSite(t *testing.T) (dir, text string) {
	t.Helper()
	s := newSite(t)
	s.write("devices-ca.pem", string(s.ca.pem()))
	s.write("th-17.psk", "sealed")
	s.write("press-3.password", "open sesame\n")
	s.write("pin", "1234\n")
	example, err := os.ReadFile("../../config/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	return s.dir, strings.Replace(string(example), "file:/etc/drawbridge/pin", "file:pin", 1)
}

func parseExample(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	path := filepath.Join(dir, "drawbridge.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := load(path, kinds())
	if err != nil {
		t.Fatalf("the example is not valid:\n%v", err)
	}
	return cfg
}

// The example that is shipped is valid for the listeners and connectors that are built in, and its lines "#key = value" show what holds
// without them.
func TestExampleShowsTheDefaultsOfWhatIsBuiltIn(t *testing.T) {
	dir, text := exampleSite(t)
	plain := parseExample(t, dir, text)
	shown := parseExample(t, dir, regexp.MustCompile(`(?m)^#([a-z_]+ *=)`).ReplaceAllString(text, "$1"))
	for _, side := range []struct{ a, b map[string]*config.Component }{{plain.Listeners, shown.Listeners}, {plain.Connectors, shown.Connectors}} {
		for name, c := range side.a {
			compareOwn(t, name, reflect.ValueOf(c.Own).Elem(), reflect.ValueOf(side.b[name].Own).Elem())
		}
	}
}

// compareOwn compares two config structs; an empty list or table is as good as none.
func compareOwn(t *testing.T, where string, a, b reflect.Value) {
	t.Helper()
	for i := range a.NumField() {
		f := a.Type().Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if !f.IsExported() || key == "-" {
			continue
		}
		x, y := a.Field(i), b.Field(i)
		if (x.Kind() == reflect.Slice || x.Kind() == reflect.Map) && x.Len()+y.Len() == 0 || reflect.DeepEqual(x.Interface(), y.Interface()) {
			continue
		}
		t.Errorf("%s: %s is %v by default, but the example shows %v", where, key, x, y)
	}
}

// The example shows every key of the types that it has.
func TestExampleHasEveryKeyOfItsTypes(t *testing.T) {
	_, text := exampleSite(t)
	for section := range strings.SplitSeq(text, "\n[") {
		header, body, _ := strings.Cut(section, "]\n")
		if !strings.HasPrefix(header, "listener.") && !strings.HasPrefix(header, "connector.") || strings.HasSuffix(header, ".budget") {
			continue
		}
		m := regexp.MustCompile(`(?m)^type *= *"(\w+)"`).FindStringSubmatch(body)
		if m == nil {
			t.Errorf("[%s] has no type", header)
			continue
		}
		own := kinds().config().Listeners[m[1]]
		if strings.HasPrefix(header, "connector.") {
			own = kinds().config().Connectors[m[1]]
		}
		typ := reflect.TypeOf(own()).Elem()
		for i := range typ.NumField() {
			key, _, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ",")
			if key != "-" && key != "" && !regexp.MustCompile(`(?m)^#?`+key+` *=`).MatchString(body) {
				t.Errorf("[%s] does not show %s", header, key)
			}
		}
	}
}
