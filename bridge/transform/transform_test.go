package transform

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

var at = time.UnixMilli(1_700_000_000_500)

func apply(t *testing.T, pipeline, typ, data string) (string, string, error) {
	t.Helper()
	p, err := Parse(pipeline)
	if err != nil {
		t.Fatal(err)
	}
	outType, out, err := p.Apply(Input{Type: typ, Data: []byte(data), Time: at, Device: "th-17", Resource: "/s/temp"})
	return outType, string(out), err
}

func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestPipelines(t *testing.T) {
	for name, c := range map[string]struct{ pipeline, typ, in, wantType, want string }{
		"nothing":                       {"", "x/y", "abc", "x/y", "abc"},
		"senml json by its type":        {"senml-json", "application/senml+json", `[{"n":"a","v":1}]`, typeJSON, `[{"n":"a","v":1,"t":1700000000.5}]`},
		"senml json with a parameter":   {"senml-json", "application/senml+json; charset=utf-8", `[{"n":"a","v":1}]`, typeJSON, `[{"n":"a","v":1,"t":1700000000.5}]`},
		"senml cbor by its type":        {"senml-json", "application/senml+cbor", unhex("81 a2 00 6161 02 01"), typeJSON, `[{"n":"a","v":1,"t":1700000000.5}]`},
		"senml cbor by its first byte":  {"senml-json", "", unhex("81 a2 00 6161 02 01"), typeJSON, `[{"n":"a","v":1,"t":1700000000.5}]`},
		"cbor map":                      {"cbor-json", "", unhex("a2 6162 f97c00 6161 83 01 20 f5"), typeJSON, `{"a":[1,-1,true],"b":null}`},
		"cbor integer keys":             {"cbor-json", "", unhex("a2 01 6161 20 f6"), typeJSON, `{"-1":null,"1":"a"}`},
		"cbor times":                    {"cbor-json", "", unhex("82 c1 1a 514b67b0 c0 74 323031332d30332d32315432303a30343a30305a"), typeJSON, `["2013-03-21T20:04:00Z","2013-03-21T20:04:00Z"]`},
		"lwm2m senml":                   {"lwm2m-json", "application/senml+json", `[{"bn":"/3303/0/","n":"5700","v":1}]`, typeJSON, `[{"n":"/3303/0/5700","v":1,"t":1700000000.5}]`},
		"lwm2m senml by its first byte": {"lwm2m-json", "", unhex("81 a2 00 6161 02 01"), typeJSON, `[{"n":"a","v":1,"t":1700000000.5}]`},
		"lwm2m json":                    {"lwm2m-json", "application/vnd.oma.lwm2m+json", `{"bn":"/3303/0/","e":[{"n":"5700","v":1}]}`, typeJSON, `[{"n":"/3303/0/5700","v":1,"t":1700000000.5}]`},
		"lwm2m json by its first byte":  {"lwm2m-json", "", ` {"bn":"/3303/0/","e":[{"n":"5700","v":1}]}`, typeJSON, `[{"n":"/3303/0/5700","v":1,"t":1700000000.5}]`},
		"lwm2m cbor":                    {"lwm2m-json", "", unhex("a1 83 19 0ce7 00 19 1644 01"), typeJSON, `[{"n":"/3303/0/5700","v":1,"t":1700000000.5}]`},
		"cbor octets":                   {"cbor-json", "", unhex("42 fbff"), typeJSON, `"-_8"`},
		"cbor octets as hex":            {"cbor-json", "", unhex("d7 42 fbff"), typeJSON, `"FBFF"`},
		"cbor bignum":                   {"cbor-json", "", unhex("c2 49 010000000000000000"), typeJSON, `18446744073709551616`},
		"cbor big unsigned":             {"cbor-json", "", unhex("1b ffffffffffffffff"), typeJSON, `18446744073709551615`},
		"cbor half float":               {"cbor-json", "", unhex("f93e00"), typeJSON, `1.5`},
		"cbor text is not escaped":      {"cbor-json", "", unhex("63 3c2626"), typeJSON, `"<&&"`},
		"json to cbor":                  {"json-cbor", "", ` {"b":1.5,"a":[1,-1,true,null]} `, typeCBOR, unhex("a2 6161 84 01 20 f5 f6 6162 f93e00")},
		"text number":                   {"text-json", "text/plain", "21.5", typeJSON, "21.5"},
		"text number with newline":      {"text-json", "text/plain", " 21.5\n", typeJSON, "21.5"},
		"text":                          {"text-json", "text/plain", "on \"off\"", typeJSON, `"on \"off\""`},
		"text that is no number":        {"text-json", "text/plain", "007", typeJSON, `"007"`},
		"text that looks like json":     {"text-json", "text/plain", `{"a":1}`, typeJSON, `"{\"a\":1}"`},
		"no text":                       {"text-json", "text/plain", "", typeJSON, `""`},
		"json string to text":           {"json-text", "", `"a\u00e9"`, typeText, "aé"},
		"json to text":                  {"json-text", "", `{ "a": 1.50 }`, typeText, `{"a":1.50}`},
		"base64":                        {"base64", "", "\xfb\xff", typeText, "+/8="},
		"base64 back":                   {"base64-decode", "", "-_8=\n", typeOctets, "\xfb\xff"},
		"jq":                            {"jq:.a | . + 1", "", `{"a":41}`, typeJSON, "42"},
		"jq with what is known":         {"jq:{d:$device,r:$resource,t:$time,v:.}", "", `1`, typeJSON, `{"d":"th-17","r":"/s/temp","t":1700000000.5,"v":1}`},
		"jq among codecs":               {"cbor-json | jq:.a | .b | json-cbor | base64", "", unhex("a1 6161 a1 6162 07"), typeText, "Bw=="},
		"jq after jq":                   {"jq:.a|jq:.b", "", `{"a":{"b":1}}`, typeJSON, "1"},
		"jq and great integers":         {"jq:.", "", `[9007199254740993,123456789012345678901234567890]`, typeJSON, `[9007199254740993,123456789012345678901234567890]`},
		"jq sees no environment":        {"jq:[env,$ENV]", "", `1`, typeJSON, `[{},{}]`},
	} {
		t.Run(name, func(t *testing.T) {
			typ, got, err := apply(t, c.pipeline, c.typ, c.in)
			if err != nil || typ != c.wantType || got != c.want {
				t.Errorf("got %q (%s), %v\nwant %q (%s)", got, typ, err, c.want, c.wantType)
			}
		})
	}
}

func TestLwM2MTLVTakesItsPathFromTheResource(t *testing.T) {
	p, err := Parse("lwm2m-json")
	if err != nil {
		t.Fatal(err)
	}
	typ, got, err := p.Apply(Input{Type: "application/vnd.oma.lwm2m+tlv", Resource: "/3303/0", Data: []byte(unhex("e4 16 44 41 ac 00 00")), Time: at})
	if want := `[{"n":"/3303/0/5700","v":21.5,"t":1700000000.5}]`; err != nil || typ != typeJSON || string(got) != want {
		t.Errorf("got %s (%s), %v", got, typ, err)
	}
}

func TestPayloadsThatAreRefused(t *testing.T) {
	const secret = "hunter2"
	for name, c := range map[string]struct{ pipeline, in, want string }{
		"cbor that is cut off":         {"cbor-json", unhex("82 01"), "cbor-json: unexpected EOF"},
		"cbor that goes on":            {"cbor-json", unhex("01 01"), "extraneous"},
		"cbor with a key twice":        {"cbor-json", unhex("a2 01 01 01 02"), "duplicate"},
		"cbor key as text and integer": {"cbor-json", unhex("a2 01 01 6131 02"), "occurs as text and as an integer"},
		"cbor key of another kind":     {"cbor-json", unhex("a1 f5 01"), "neither text nor an integer"},
		"cbor nested too deep":         {"cbor-json", strings.Repeat("\x81", 40) + "\x01", "nested level"},
		"json nested too deep":         {"json-cbor", strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested deeper than 32"},
		"json that is cut off":         {"json-cbor", `{"a":`, "ends too early"},
		"json that goes on":            {"json-cbor", `1 2`, "goes on"},
		"json that is none":            {"jq:.", secret, "the payload is not JSON: octet 1"},
		"text that is not UTF-8":       {"text-json", "\xff", "not UTF-8"},
		"json that is not UTF-8":       {"jq:.", "\"\xff\"", "not UTF-8"},
		"base64 that is none":          {"base64-decode", "hunter2!", "not base64"},
		"jq type error":                {"jq:.a", `"` + secret + `"`, "jq:.a: expected an object but got"},
		"jq error of its own":          {"jq:error(.)", `"` + secret + `"`, "the expression raised an error"},
		"jq endless":                   {"jq:def f: f; f", `1`, "the expression takes too long"},
		"jq endless array":             {"jq:[repeat(1)]", `1`, "the expression takes too long"},
		"jq huge":                      {"jq:reduce range(40) as $i (.; [.,.])", `1`, "the result has more than"},
		"jq huge string":               {"jq:. * 1000000000", `"abc"`, "repeat string result too large"},
		"jq several":                   {"jq:.[]", `[1,2]`, "more than one result"},
		"jq further inputs":            {"jq:input", `1`, "input(s)/0 is not allowed"},
		"too large":                    {"base64", strings.Repeat("x", MaxSize+1), "payload of more than"},
		"too large after":              {"base64", strings.Repeat("x", MaxSize), "the result has more than"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse(c.pipeline)
			if err == nil {
				_, _, err = p.Apply(Input{Data: []byte(c.in), Time: at})
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error quotes the payload: %v", err)
			}
		})
	}
	if _, _, err := apply(t, "jq:empty", "", "1"); !errors.Is(err, ErrNothing) {
		t.Errorf("got %v, want ErrNothing", err)
	}
}

func TestTraceShowsEveryStep(t *testing.T) {
	p, err := Parse("cbor-json | jq:.a | json-cbor")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.String(); got != "cbor-json | jq:.a | json-cbor" {
		t.Errorf("got %q", got)
	}
	steps := p.Trace(Input{Data: []byte(unhex("01"))})
	if len(steps) != 2 || string(steps[0].Data) != "1" || steps[1].Err == nil {
		t.Errorf("got %+v", steps)
	}
}

// fuzz holds a pipeline to the promises of the package: bounded, deterministic, never a panic.
func fuzz(f *testing.F, pipeline string, check func(t *testing.T, out []byte)) {
	p, err := Parse(pipeline)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.Clone(data)
		_, out, err := p.Apply(Input{Data: data, Time: at})
		if !bytes.Equal(in, data) {
			t.Fatal("the payload was changed")
		}
		if err != nil {
			return
		}
		if len(out) > MaxSize {
			t.Fatalf("%d octets", len(out))
		}
		if _, again, err := p.Apply(Input{Data: data, Time: at}); err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%q, then %q (%v)", out, again, err)
		}
		check(t, out)
	})
}

func isJSON(t *testing.T, out []byte) {
	if !json.Valid(out) {
		t.Fatalf("%q is not JSON", out)
	}
}

func FuzzCBORJSON(f *testing.F) {
	for _, s := range []string{"a2 6162 f97c00 6161 83 01 20 f5", "c2 49 010000000000000000", "d7 42 fbff", "a1 01 5f 4161 ff", "f7"} {
		f.Add([]byte(unhex(s)))
	}
	fuzz(f, "cbor-json", isJSON)
}

func FuzzJSONCBOR(f *testing.F) {
	f.Add([]byte(`{"a":[1,-1,1.5,"x",null,true,1e400,123456789012345678901234567890]}`))
	fuzz(f, "json-cbor", func(t *testing.T, out []byte) {
		if err := cbor.Wellformed(out); err != nil {
			t.Fatalf("%x: %v", out, err)
		}
	})
}

func FuzzSenMLJSON(f *testing.F) {
	f.Add([]byte(`[{"bn":"m:","n":"v","v":1}]`))
	f.Add([]byte(unhex("81 a2 00 6161 02 01")))
	fuzz(f, "senml-json", isJSON)
}

func FuzzTextJSON(f *testing.F) {
	f.Add([]byte("21.5"))
	f.Add([]byte("on"))
	fuzz(f, "text-json", isJSON)
}

func FuzzJSONText(f *testing.F) {
	f.Add([]byte(`"a"`))
	f.Add([]byte(`{ "a": 1 }`))
	fuzz(f, "json-text", func(*testing.T, []byte) {})
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("-_8="))
	fuzz(f, "base64-decode | base64 | base64-decode", func(*testing.T, []byte) {})
}

func FuzzJQ(f *testing.F) {
	f.Add([]byte(`{"a":[1,2,{"b":"c"}]}`))
	fuzz(f, "jq:[.. | numbers | . * 2, tostring] + [tojson]", isJSON)
}

func FuzzParse(f *testing.F) {
	f.Add("cbor-json | jq:.a | .b | json-cbor")
	f.Add("jq:")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil || p == nil {
			return
		}
		if again, err := Parse(p.String()); err != nil || again.String() != p.String() {
			t.Fatalf("%q became %q (%v)", text, p, err)
		}
	})
}

func BenchmarkSenMLJSON(b *testing.B) {
	bench(b, "senml-json", `[{"bn":"urn:dev:ow:1:","n":"temp","u":"Cel","v":23.1}]`)
}
func BenchmarkJQ(b *testing.B) { bench(b, "jq:{v:.[0].v}", `[{"n":"temp","u":"Cel","v":23.1}]`) }

func bench(b *testing.B, pipeline, in string) {
	p, err := Parse(pipeline)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := p.Apply(Input{Data: []byte(in), Time: at}); err != nil {
			b.Fatal(err)
		}
	}
}
