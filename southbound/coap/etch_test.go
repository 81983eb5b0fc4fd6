package coap

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/internal/senml"
)

const (
	thermostat = `[{"bn":"2001:db8::2/3306/0/","bt":1276020076,"n":"5850","vb":true},{"n":"5851","v":42,"u":"%"},{"n":"5750","t":-60,"vs":"Ceiling light"}]`
	resolved   = `{"n":"2001:db8::2/3306/0/5850","vb":true,"t":1276020076},{"n":"2001:db8::2/3306/0/5851","u":"%","v":42,"t":1276020076}`
	ceiling    = `{"n":"2001:db8::2/3306/0/5750","vs":"Ceiling light","t":1276020016}`
)

// holding makes a listener that holds a last value.
func holding(t *testing.T, format uint32, content string) *wire {
	t.Helper()
	w := newWire(t, nil)
	if p := w.one(w.feed(w.request(con, codes.PUT, 1, "t", "/a", []byte(content), uintOption(message.ContentFormat, format)))); p.code != codes.Changed {
		t.Fatal(codeText(p.code))
	}
	return w
}

func TestFETCHSelectsRecords(t *testing.T) {
	for name, c := range map[string]struct {
		ask  string
		want string
	}{
		"by name":               {`[{"bn":"2001:db8::2/3306/0/","n":"5850"},{"n":"5851"}]`, "[" + resolved + "]"},
		"by base name alone":    {`[{"bn":"2001:db8::2/3306/0/5750"}]`, "[" + ceiling + "]"},
		"by name and time":      {`[{"n":"2001:db8::2/3306/0/5750","bt":1276020000,"t":16}]`, "[" + ceiling + "]"},
		"by another time":       {`[{"n":"2001:db8::2/3306/0/5750","t":1}]`, "[]"},
		"by unit":               {`[{"n":"2001:db8::2/3306/0/5850","u":"%"}]`, "[]"},
		"none that is there":    {`[{"n":"nothing"}]`, "[]"},
		"twice is given once":   {`[{"n":"2001:db8::2/3306/0/5750"},{"n":"2001:db8::2/3306/0/5750"}]`, "[" + ceiling + "]"},
		"of an order of no use": {`[{"bn":"2001:db8::2/3306/0/","n":"5851"},{"n":"5850"}]`, "[" + resolved + "]"},
	} {
		t.Run(name, func(t *testing.T) {
			w := holding(t, formatSenML, thermostat)
			p := w.one(w.feed(w.request(con, fetch, 2, "t", "/a", []byte(c.ask), uintOption(message.ContentFormat, formatEtch))))
			if f, _ := p.number(message.ContentFormat); p.code != codes.Content || f != formatSenML || string(p.payload) != c.want {
				t.Errorf("answered %s %s\nwant %s", codeText(p.code), p.payload, c.want)
			}
			if n := len(w.up.Messages()); n != 1 {
				t.Errorf("%d submitted", n)
			}
		})
	}
}

func TestFETCHInCBOR(t *testing.T) {
	pack, err := hex.DecodeString("82a20061610201a20061620202")
	if err != nil {
		t.Fatal(err)
	}
	w := holding(t, formatSenMLCBOR, string(pack))
	p := w.one(w.feed(w.request(con, fetch, 2, "t", "/a", []byte("\x81\xa1\x00\x61b"), uintOption(message.ContentFormat, formatEtchCBOR))))
	got, err := senml.ParseCBOR(p.payload)
	if err != nil || p.code != codes.Content || string(got.JSON()) != `[{"n":"b","v":2}]` {
		t.Errorf("answered %s %x, %v", codeText(p.code), p.payload, err)
	}
	w.feed(w.request(con, ipatch, 3, "t", "/a", []byte("\x82\xa2\x00\x61b\x02\xf6\xa2\x00\x61c\x04\xf5"), uintOption(message.ContentFormat, formatEtchCBOR)))
	p = w.one(w.feed(w.request(con, codes.GET, 4, "t", "/a", nil)))
	if got, err = senml.ParseCBOR(p.payload); err != nil || string(got.JSON()) != `[{"n":"a","v":1},{"n":"c","vb":true}]` {
		t.Errorf("after an iPATCH: %x, %v", p.payload, err)
	}
}

func TestPATCHChangesTheLastValue(t *testing.T) {
	for name, c := range map[string]struct {
		format uint32
		value  string
		patch  uint32
		body   string
		want   codes.Code
		then   string // empty: 2.05 without content, for nothing is known
	}{
		"a record is replaced":               {formatSenML, `[{"n":"a","v":1},{"n":"b","v":2}]`, formatEtch, `[{"n":"a","v":5}]`, codes.Changed, `[{"n":"a","v":5},{"n":"b","v":2}]`},
		"a record is removed":                {formatSenML, `[{"n":"a","v":1},{"n":"b","v":2}]`, formatEtch, `[{"n":"a","v":null}]`, codes.Changed, `[{"n":"b","v":2}]`},
		"a record is added":                  {formatSenML, `[{"n":"a","v":1}]`, formatEtch, `[{"bn":"x/","n":"c","vs":"new"}]`, codes.Changed, `[{"n":"a","v":1},{"n":"x/c","vs":"new"}]`},
		"merge-patch":                        {formatJSON, `{"a":1,"b":{"c":12345678901234567890}}`, formatMerge, `{"a":null,"b":{"d":2}}`, codes.Changed, `{"b":{"c":12345678901234567890,"d":2}}`},
		"in a format that is not known here": {formatJSON, `{"a":1}`, 51, `[{"op":"remove","path":"/a"}]`, codes.Changed, ""},
		"malformed":                          {formatSenML, `[{"n":"a","v":1}]`, formatEtch, `[{"n":"a","v":`, codes.BadRequest, `[{"n":"a","v":1}]`},
		"malformed merge-patch":              {formatJSON, `{"a":1}`, formatMerge, `{"a"`, codes.BadRequest, `{"a":1}`},
		"a record without a value":           {formatSenML, `[{"n":"a","v":1}]`, formatEtch, `[{"n":"a"}]`, unprocessableEntity, `[{"n":"a","v":1}]`},
		"a record without a name":            {formatSenML, `[{"n":"a","v":1}]`, formatEtch, `[{"v":1}]`, unprocessableEntity, `[{"n":"a","v":1}]`},
		"no patch of this format":            {formatJSON, `{"a":1}`, formatEtch, `[{"n":"a","v":1}]`, codes.UnsupportedMediaType, `{"a":1}`},
		"the value is not what it says":      {formatSenML, `[{"n":`, formatEtch, `[{"n":"a","v":1}]`, conflict, `[{"n":`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, code := range []codes.Code{patch, ipatch} {
				w := holding(t, c.format, c.value)
				p := w.one(w.feed(w.request(con, code, 2, "t", "/a", []byte(c.body), uintOption(message.ContentFormat, c.patch))))
				if p.code != c.want {
					t.Errorf("answered %s, want %s", codeText(p.code), codeText(c.want))
				}
				if m := w.up.Messages(); c.want == codes.Changed && (len(m) != 2 || m[1].Method != method(code) || string(m[1].Payload) != c.body) || c.want != codes.Changed && len(m) != 1 {
					t.Errorf("submitted %v", m)
				}
				if p := w.one(w.feed(w.request(con, codes.GET, 3, "t", "/a", nil))); string(p.payload) != c.then {
					t.Errorf("then the value is %s, want %s", p.payload, c.then)
				}
			}
		})
	}
}

func TestPATCHOfWhatIsNotThereIsAReport(t *testing.T) {
	w := newWire(t, nil)
	p := w.one(w.feed(w.request(con, ipatch, 2, "t", "/a", []byte(`[{"n":"a","v":1}]`), uintOption(message.ContentFormat, formatEtch))))
	if p.code != codes.Changed || len(w.up.Messages()) != 1 || w.l.values.get("anonymous", "/a") != nil {
		t.Errorf("answered %s; %d submitted", codeText(p.code), len(w.up.Messages()))
	}
}

// TestPacksThatAreMuchWorkAreRefused: a few octets of a base name stand before every record's, and each record is held against each.
func TestPacksThatAreMuchWorkAreRefused(t *testing.T) {
	pack := func(base string, n int, value string) string {
		var b strings.Builder
		fmt.Fprintf(&b, `[{"bn":%q,"n":"0"%s}`, base, value)
		for i := 1; i < n; i++ {
			fmt.Fprintf(&b, `,{"n":"%d"%s}`, i, value)
		}
		return b.String() + "]"
	}
	for name, c := range map[string]struct{ value, change string }{
		"a long base name of the value": {pack(strings.Repeat("a", 8000), 200, `,"v":1`), pack("b", 1, `,"v":1`)},
		"a long base name of the pack":  {pack("a", 1, `,"v":1`), pack(strings.Repeat("a", 8000), 200, `,"v":1`)},
		"many records":                  {pack("a", 800, `,"v":1`), pack("b", 800, `,"v":1`)},
	} {
		t.Run(name, func(t *testing.T) {
			v := &value{format: formatSenML, payload: []byte(c.value)}
			if _, err := v.patch(formatEtch, []byte(c.change)); !errors.Is(err, errUnprocessable) && !errors.Is(err, errConflict) {
				t.Errorf("PATCH: %v", err)
			}
		})
	}
	w := newWire(t, func(c *Config) { c.MaxPayload = 64 << 10 })
	blocks := func(code codes.Code, mid uint16, format uint32, content string) packet {
		for num := uint32(0); ; num++ {
			part := content[1024*num:]
			more := len(part) > 1024
			p := w.one(w.feed(w.request(con, code, mid+uint16(num), "t", "/a", []byte(part[:min(len(part), 1024)]), uintOption(message.ContentFormat, format),
				block{num: num, more: more, szx: maxBlockSZX}.option(message.Block1))))
			if !more {
				return p
			}
		}
	}
	if p := blocks(codes.PUT, 1, formatSenML, pack("a", 800, `,"v":1`)); p.code != codes.Changed {
		t.Fatal(codeText(p.code))
	}
	if p := blocks(fetch, 1000, formatEtch, pack("b", 800, "")); p.code != unprocessableEntity {
		t.Errorf("FETCH: %s", codeText(p.code))
	}
}

func FuzzEtch(f *testing.F) {
	f.Add(uint16(formatSenML), []byte(thermostat), uint16(formatEtch), []byte(`[{"n":"2001:db8::2/3306/0/5850","vb":null}]`))
	f.Add(uint16(formatSenMLCBOR), []byte("\x82\xa2\x00\x61a\x02\x01\xa2\x00\x61b\x02\x02"), uint16(formatEtchCBOR), []byte("\x81\xa2\x00\x61b\x02\xf6"))
	f.Add(uint16(formatJSON), []byte(`{"a":{"b":1}}`), uint16(formatMerge), []byte(`{"a":{"b":null}}`))
	f.Fuzz(func(t *testing.T, format uint16, content []byte, how uint16, change []byte) {
		v := &value{format: int(format), payload: content}
		changed, err := v.patch(int(how), change)
		if err != nil {
			return
		}
		after := &value{format: int(format), payload: changed}
		if format == formatSenML || format == formatSenMLCBOR {
			if _, err := after.pack(); err != nil && string(changed) != "[]" && string(changed) != "\x80" {
				t.Errorf("%q becomes %q: %v", content, changed, err)
			}
		}
	})
}
