package config_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
)

func TestReloadTellsWhatChanged(t *testing.T) {
	dir := site(t)
	path := filepath.Join(dir, "drawbridge.toml")
	parse := func(change ...string) *config.Config {
		t.Helper()
		c, err := config.Parse(path, []byte(strings.NewReplacer(change...).Replace(exampleIn(t, dir))), kinds)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := parse()
	for name, c := range map[string]struct {
		change                []string
		before                func()
		listeners, connectors string
	}{
		"nothing":                       {change: []string{"", ""}},
		"a comment and another order":   {change: []string{"# CoAP", "# coap", "key           = \"identity\"\ndevice_ca     = \"devices-ca.pem\"", "device_ca = \"devices-ca.pem\"\nkey = \"identity\""}},
		"a route":                       {change: []string{"dt/{gateway}", "telemetry/{gateway}"}},
		"a listener's own key":          {change: []string{":8883\"\nsecurity", ":8884\"\nsecurity"}, listeners: "shop"},
		"a default that is spelled out": {change: []string{"#connection_id = true", "connection_id = true"}},
		"a default that is changed":     {change: []string{"#connection_id = true", "connection_id = false"}, listeners: "field"},
		"a key that several use":        {change: []string{"object=identity", "object=other"}, listeners: "field shop", connectors: "cloud plant"},
		"a key that nobody uses":        {change: []string{"tpm:name=hub", "tpm:name=hub2"}},
		"a connector's type":            {change: []string{"type     = \"aws\"\nendpoint = \"a1b2-ats.iot.eu-central-1.amazonaws.com\"", "type = \"mqtt\"\nurl = \"mqtts://x.example\""}, connectors: "cloud"},
		"another name":                  {change: []string{"[listener.shop]", "[listener.store]"}, listeners: "store"},
		"the content of a file that two name": {before: func() {
			write(t, dir, "devices-ca.pem", renewedCA(t), 0o644)
		}, listeners: "field shop"},
	} {
		t.Run(name, func(t *testing.T) {
			base := old
			if c.before != nil {
				base = parse()
				c.before()
			}
			now := parse(c.change...)
			if got := changed(base.Listeners, now.Listeners); got != c.listeners {
				t.Errorf("listeners %q, want %q", got, c.listeners)
			}
			if got := changed(base.Connectors, now.Connectors); got != c.connectors {
				t.Errorf("connectors %q, want %q", got, c.connectors)
			}
			if c.before != nil {
				old = now
			}
		})
	}
}

// changed names what is not as it was.
func changed(old, fresh map[string]*config.Component) string {
	var names []string
	for name, c := range fresh {
		if !c.Equal(old[name]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestContractFileIsValid(t *testing.T) {
	dir := site(t)
	text := strings.Replace(readFile(t, "testdata/good/plant7.toml"), "file:/etc/drawbridge/pin", "file:pin", 1)
	c, err := config.Parse(filepath.Join(dir, "drawbridge.toml"), []byte(text), kinds)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Uplinks) != 1 || c.Uplinks[0].QoS != 1 || c.Uplinks[0].Ack != "disk" || c.Uplinks[0].Priority != "normal" || len(c.Uplinks[0].To) != 2 {
		t.Errorf("%+v", c.Uplinks[0])
	}
	if d := c.Downlinks[0]; d.Method != "PUT" || d.TTL.Std() != 10*time.Minute {
		t.Errorf("%+v", d)
	}
	if !strings.HasSuffix(c.Keys["identity"].URI, "?pin-source=file:"+dir+"/pin") {
		t.Errorf("pin-source: %s", c.Keys["identity"].URI)
	}
	u := c.Uplinks[0]
	if at := c.At(u, "topic"); at.Line != u.Pos.Line+4 || at.Col != 13 {
		t.Errorf("the topic stands at %+v, its route at %+v", at, u.Pos)
	}
	if at := c.At(u, "ttl"); at != u.Pos {
		t.Errorf("a key that is not given stands at %+v", at)
	}
	if e := c.Errorf(c.At(c.Connectors["plant"], "url"), "no %s", "good"); !strings.HasSuffix(e.Error(), "drawbridge.toml:99:8: no good") {
		t.Errorf("%v", e)
	}
}

func TestWindowsLinesAndByteOrderMark(t *testing.T) {
	text := "\xef\xbb\xbf[gateway]\r\nid = \"gw\"\r\nsate = \"ä\" # ä\r\n\r\n[log]\r\nlevel = \"ä\"; x\r\n"
	_, err := config.Parse("f.toml", []byte(text), kinds)
	want := "f.toml:3:1: unknown key \"sate\" in [gateway] (did you mean \"state\"?)\nf.toml:6:12: there is something more on the line after its end (one key = value on a line)"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// A file that is all one line is read in a time that grows with its length alone.
func TestLongLine(t *testing.T) {
	text := "[gateway]\nid = \"gw\"\n[device.a]\ngroups = [" + strings.Repeat("1,", 200_000) + "]\n"
	_, err := config.Parse("f.toml", []byte(text), kinds)
	list, ok := errors.AsType[config.Errors](err)
	if !ok || len(list) != 200_000 || list[199_999].Pos != (config.Pos{Line: 4, Col: 400_009}) {
		t.Errorf("%d mistakes, the last at %+v", len(list), list[len(list)-1].Pos)
	}
}

func TestJoin(t *testing.T) {
	a := config.Errors{{Path: "f", Pos: config.Pos{Line: 9, Col: 1}, Msg: "nine"}, {Path: "f", Pos: config.Pos{Line: 3, Col: 1}, Msg: "three"}}
	b := config.Errors{{Path: "f", Pos: config.Pos{Line: 9, Col: 5}, Msg: "what follows"}, {Path: "f", Pos: config.Pos{Line: 5, Col: 1}, Msg: "five"}, {Path: "f", Pos: config.Pos{Line: 5, Col: 7}, Msg: "seven"}}
	if got := config.Join(a, nil, b); got == nil || got.Error() != "f:3:1: three\nf:5:1: five\nf:5:7: seven\nf:9:1: nine" {
		t.Errorf("%v", got)
	}
	if err := config.Join(nil, nil); err != nil {
		t.Error(err)
	}
	other := errors.New("other")
	if err := config.Join(a, other); err != other {
		t.Error(err)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "A", true}, {"a", "b", false}, {"a", "ab", false}, {"", "", true},
		{"*.x", "a.x", true}, {"*.x", "a.b.x", false}, {"*.x", ".x", false}, {"*.x", "x", false},
		{"a-*", "a-1", true}, {"a-*", "a-", false}, {"a-*", "a-b/c", false}, {"*", "a", true}, {"*", "", false},
		{"a*b*c", "a1b2c", true}, {"a*b*c", "abc", false}, {"*.*.x", "a.b.x", true}, {"*é", "éé", true},
	} {
		if got := config.Glob(c.pattern, c.name); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.name, got)
		}
	}
}

func TestPSKForms(t *testing.T) {
	for text, want := range map[string]string{"sesame": "sesame", "hex:00FF": "\x00\xff", "base64:AP8=": "\x00\xff", "base64:AP8": "\x00\xff", "hex": "hex", "a b": "a b"} {
		if got, err := config.DecodePSK([]byte(text)); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "hex:", "hex:0", "hex:zz", "base64:", "base64:!!!", "base64:AP9", strings.Repeat("x", 65)} {
		if got, err := config.DecodePSK([]byte(text)); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Whatever the file holds, reading it ends, every mistake has a place in it, and what is taken is taken again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.toml", "testdata/good/*.toml", "example.toml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal(pattern, err)
		}
		for _, file := range files {
			f.Add([]byte(readFile(f, file)))
		}
	}
	f.Add([]byte("[gateway]\nid = 'x'\n[a.b]\nc.d = {e = [1, {f = '''\n'''}]}\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse(filepath.Join(dir, "f.toml"), data, kinds)
		if err == nil {
			if c == nil || c.Gateway.ID == "" {
				t.Fatalf("taken without an id: %+v", c)
			}
			return
		}
		list, ok := errors.AsType[config.Errors](err)
		if !ok || len(list) == 0 {
			t.Fatalf("%T: %v", err, err)
		}
		lines := strings.Count(string(data), "\n") + 1
		for i, e := range list {
			if e.Pos.Line < 1 || e.Pos.Line > lines || e.Pos.Col < 1 || e.Msg == "" || strings.ContainsRune(e.Error(), '\n') && !strings.Contains(dir, "\n") {
				t.Errorf("%q at %+v of %d lines", e.Error(), e.Pos, lines)
			}
			if i > 0 && (list[i-1].Pos.Line > e.Pos.Line) {
				t.Errorf("not sorted: %v", err)
			}
		}
	})
}
