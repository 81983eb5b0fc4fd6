package senml

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"
)

var now = time.Unix(1_700_000_000, 0)

// The examples of RFC 8428 sections 5.1.1 to 5.1.5 with their resolved forms (5.1.4), and what section 4 says in words.
func TestResolve(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"5.1.1 a single data point": {
			`[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]`,
			`[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1,"t":1700000000}]`},
		"5.1.2 multiple data points": {
			`[{"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},{"n":"current","u":"A","v":1.2}]`,
			`[{"n":"urn:dev:ow:10e2073a01080063:voltage","u":"V","v":120.1,"t":1700000000},{"n":"urn:dev:ow:10e2073a01080063:current","u":"A","v":1.2,"t":1700000000}]`},
		"5.1.2 base time and relative times, in the order of time": {
			`[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},` +
				`{"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3}]`,
			`[{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.2,"t":1276020071.001},` +
				`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.3,"t":1276020072.001},` +
				`{"n":"urn:dev:ow:10e2073a0108006:voltage","u":"V","v":120.1,"t":1276020076.001}]`},
		"5.1.5 multiple data types": {
			`[{"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},{"n":"label","vs":"Machine Room"},{"n":"open","vb":false},{"n":"nfv-reader","vd":"aGkgCg"}]`,
			`[{"n":"urn:dev:ow:10e2073a01080063:temp","u":"Cel","v":23.1,"t":1700000000},{"n":"urn:dev:ow:10e2073a01080063:label","vs":"Machine Room","t":1700000000},` +
				`{"n":"urn:dev:ow:10e2073a01080063:open","vb":false,"t":1700000000},{"n":"urn:dev:ow:10e2073a01080063:nfv-reader","vd":"aGkgCg","t":1700000000}]`},
		"4.5.3 relative to now": {
			`[{"n":"a","v":1,"t":-60},{"n":"a","v":2}]`,
			`[{"n":"a","v":1,"t":1699999940},{"n":"a","v":2,"t":1700000000}]`},
		"4.1 base value and base sum": {
			`[{"bv":100,"bs":10,"bn":"m","v":1,"s":2},{"n":"x","v":-1}]`,
			`[{"n":"m","v":101,"s":12,"t":1700000000},{"n":"mx","v":99,"s":10,"t":1700000000}]`},
		"a record of base fields alone": {
			`[{"bn":"m","bu":"W"},{"v":5}]`, `[{"n":"m","u":"W","v":5,"t":1700000000}]`},
		"text that has to be escaped": {`[{"n":"a","vs":"<\"\\\u0001\u00e9\n>"}]`, `[{"n":"a","vs":"<\"\\\u0001é\u000a>","t":1700000000}]`},
		"small and great numbers":     {`[{"n":"a","v":1e-7,"s":1e21,"ut":0}]`, `[{"n":"a","v":1e-07,"s":1e+21,"t":1700000000,"ut":0}]`},
		"a name as LwM2M has it":      {`[{"bn":"/3303/0/","n":"5700","v":1}]`, `[{"n":"/3303/0/5700","v":1,"t":1700000000}]`},
		"an unknown label":            {`[{"n":"a","v":1,"foo":{"x":[1]}}]`, `[{"n":"a","v":1,"t":1700000000}]`},
		"a sum and no value":          {`[{"n":"a","s":3,"ut":60}]`, `[{"n":"a","s":3,"t":1700000000,"ut":60}]`},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParseJSON([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			r, err := p.Resolve(now)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(r.JSON()); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// The pack of RFC 8428 section 6, in CBOR.
func TestCBOR(t *testing.T) {
	data, err := hex.DecodeString("87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067766f6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a3006763757272656e74062302fb3ff4cccccccccccda3006763757272656e74062202fb3ff6666666666666a3006763757272656e74062102f93e00a3006763757272656e74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333333333")
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseCBOR(data)
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Resolve(now)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.2,"t":1276020071.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.3,"t":1276020072.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.4,"t":1276020073.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.5,"t":1276020074.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.6,"t":1276020075.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:voltage","u":"V","v":120.1,"t":1276020076.001},` +
		`{"n":"urn:dev:ow:10e2073a0108006:current","u":"A","v":1.7,"t":1276020076.001}]`
	if got := string(r.JSON()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCBORIsReadAsItWasWritten(t *testing.T) {
	in, err := ParseJSON([]byte(`[{"n":"a","u":"V","v":1.5,"t":1276020076,"ut":60},{"n":"b","vs":""},{"n":"c","vb":false},{"n":"d","vd":""},{"n":"e","vd":"AQI","s":0},{"n":"f","vlo":"3:0"}]`))
	if err != nil {
		t.Fatal(err)
	}
	data, err := in.CBOR()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ParseCBOR(data)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out.JSON()), string(in.JSON()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRefused(t *testing.T) {
	for in, want := range map[string]string{
		``:                                 "not a SenML pack",
		`{}`:                               "not a SenML pack",
		`[]`:                               "no record",
		`[{"n":"a","v":1}`:                 "ends too early",
		`[{"n":"a","v":1}] x`:              "goes on",
		`[{"v":1}]`:                        "no name",
		`[{"n":"a"}]`:                      "neither value nor sum",
		`[{"n":"a","v":1,"vs":"x"}]`:       "more than one value",
		`[{"n":"a","v":"1"}]`:              `field "v" has the wrong type`,
		`[{"n":"a","v":null}]`:             `field "v" has the wrong type`,
		`[{"n":"a","v":1,"x_":1}]`:         `field "x_" has to be understood`,
		`[{"n":"-a","v":1}]`:               "a name with a character",
		`[{"n":"a b","v":1}]`:              "a name with a character",
		`[{"n":"a","v":1,"bver":11}]`:      "version 11",
		`[{"n":"a","v":1e308,"bv":1e308}]`: "not finite",
		`[{"n":"a","vd":"*"}]`:             "not base64url",
		`[null]`:                           "not a JSON object",
		`[{"n":"a","v":1},{"bver":5},{"bver":6}]`:                                                             "version changes",
		`[` + strings.Repeat(`{"n":"a","v":1},`, MaxRecords) + `{"n":"a","v":1}]`:                             "more than",
		`[{"bn":"` + strings.Repeat("a", 1024) + `","v":1}` + strings.Repeat(`,{"v":1}`, 1024) + `]`:          "octets of names and units",
		`[{"bn":"a","bu":"` + strings.Repeat("W", 1024) + `","v":1}` + strings.Repeat(`,{"v":1}`, 1024) + `]`: "octets of names and units",
	} {
		p, err := ParseJSON([]byte(in))
		if err == nil {
			_, err = p.Resolve(now)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v, want %q", in, err, want)
		}
	}
}

func checkResolved(t *testing.T, p Pack) {
	r, err := p.Resolve(now)
	if err != nil {
		return
	}
	last := math.Inf(-1)
	for _, x := range r {
		if x.Name == "" || x.Time == nil || *x.Time < last || x.BaseName != "" || x.BaseTime != nil {
			t.Fatalf("not resolved: %+v", x)
		}
		last = *x.Time
	}
	// What is resolved resolves to itself, where its times are absolute.
	again, err := ParseJSON(r.JSON())
	if err != nil {
		t.Fatalf("%s: %v", r.JSON(), err)
	}
	for _, x := range r {
		if *x.Time < 1<<28 {
			return
		}
	}
	if len(r) == 0 {
		return
	}
	twice, err := again.Resolve(now)
	if err != nil || string(twice.JSON()) != string(r.JSON()) {
		t.Fatalf("%s became %s (%v)", r.JSON(), twice.JSON(), err)
	}
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`[{"bn":"m:","bt":1.276e9,"n":"v","v":1,"u":"V"},{"n":"x","vs":"y","t":-5},{"n":"d","vd":"aGk"}]`))
	f.Add([]byte(`[{"n":"a","vb":true,"s":1,"ut":2,"vlo":"1:2"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParseJSON(data); err == nil {
			checkResolved(t, p)
		}
	})
}

func FuzzCBOR(f *testing.F) {
	f.Add([]byte{0x81, 0xa2, 0x00, 0x61, 'a', 0x02, 0x01})
	f.Add([]byte{0x81, 0xa2, 0x00, 0x61, 'a', 0x08, 0x41, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParseCBOR(data); err == nil {
			checkResolved(t, p)
		}
	})
}
