package lwm2m

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/senml"
)

var now = time.Unix(1_700_000_000, 0)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// brief gives a pack without its times.
func brief(t testing.TB, p senml.Pack, err error) string {
	t.Helper()
	if err != nil {
		return err.Error()
	}
	r, err := p.Resolve(now)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(r.JSON()), `,"t":1700000000`, "")
}

// The example of TS 1.0.2 section 6.4.3.2: the Device object as a client answers a read of it.
const deviceTLV = "C8 00 14 4F 70 65 6E 20 4D 6F 62 69 6C 65 20 41 6C 6C 69 61 6E 63 65" +
	"C8 01 16 4C 69 67 68 74 77 65 69 67 68 74 20 4D 32 4D 20 43 6C 69 65 6E 74" +
	"C8 02 09 33 34 35 30 30 30 31 32 33 C3 03 31 2E 30 86 06 41 00 01 41 01 05" +
	"88 07 08 42 00 0E D8 42 01 13 88 87 08 41 00 7D 42 01 03 84 C1 09 64 C1 0A 0F 83 0B 41 00 00" +
	"C4 0D 51 82 42 8F C6 0E 2B 30 32 3A 30 30 C1 10 55"

const deviceJSON = `[{"n":"/3/0/0","vs":"Open Mobile Alliance"},{"n":"/3/0/1","vs":"Lightweight M2M Client"},{"n":"/3/0/2","vs":"345000123"},` +
	`{"n":"/3/0/3","vs":"1.0"},{"n":"/3/0/6/0","v":1},{"n":"/3/0/6/1","v":5},{"n":"/3/0/7/0","v":3800},{"n":"/3/0/7/1","v":5000},` +
	`{"n":"/3/0/8/0","v":125},{"n":"/3/0/8/1","v":900},{"n":"/3/0/9","v":100},{"n":"/3/0/10","v":15},{"n":"/3/0/11/0","v":0},` +
	`{"n":"/3/0/13","v":1367491215},{"n":"/3/0/14","vs":"+02:00"},{"n":"/3/0/16","vs":"U"}]`

func TestTLV(t *testing.T) {
	for name, c := range map[string]struct{ from, in, want string }{
		"a single object instance":          {"/3/0", deviceTLV, deviceJSON},
		"the object, its instance left out": {"/3", deviceTLV, deviceJSON},
		"the object with its instance":      {"/3", "08 00 79" + deviceTLV, deviceJSON},
		"a sensor of single precision":      {"/3303/0", "E4 16 44 41 AC 00 00", `[{"n":"/3303/0/5700","v":21.5}]`},
		"a resource alone":                  {"/3303/0/5700", "E4 16 44 3D CC CC CD", `[{"n":"/3303/0/5700","v":0.1}]`},
		"a sensor of double precision":      {"/3303/0", "E8 16 44 08 40 35 80 00 00 00 00 00", `[{"n":"/3303/0/5700","v":21.5}]`},
		"a switch":                          {"/3342/1", "E1 15 7C 01", `[{"n":"/3342/1/5500","vb":true}]`},
		"two instances":                     {"/3303", "07 00 E4 16 44 41 AC 00 00 07 01 E4 16 44 C1 AC 00 00", `[{"n":"/3303/0/5700","v":21.5},{"n":"/3303/1/5700","v":-21.5}]`},
		"a resource that is not known":      {"/9999/0", "C2 01 FB FF", `[{"n":"/9999/0/1","vd":"-_8"}]`},
		"an object link":                    {"/3/0", "88 16 06 44 00 00 42 00 00", `[{"n":"/3/0/22/0","vlo":"66:0"}]`},
		"cut off in a length":               {"/3/0", "C8 00", "ends within a TLV"},
		"cut off in a value":                {"/3/0", "C8 00 14 4F", "ends within a TLV"},
		"an integer of three octets":        {"/3/0", "C3 09 01 02 03", "/3/0/9: the value has not the length of its type"},
		"an instance within an instance":    {"/3/0", "00 00", "stands where its kind cannot"},
		"a resource instance on its own":    {"/3/0", "41 00 01", "stands where its kind cannot"},
		"not a path":                        {"/sensors", "C1 09 64", "not a LwM2M path"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParseTLV(c.from, unhex(t, c.in))
			if got := brief(t, p, err); got != c.want && (strings.HasPrefix(c.want, "[") || !strings.Contains(got, c.want)) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	for name, c := range map[string]struct{ from, in, want string }{
		"an object instance": {"/3/0", `{"bn":"/3/0/","e":[{"n":"0","sv":"Open Mobile Alliance"},{"n":"9","v":95},{"n":"22/1","ov":"66:0"},{"n":"5","bv":true}]}`,
			`[{"n":"/3/0/0","vs":"Open Mobile Alliance"},{"n":"/3/0/9","v":95},{"n":"/3/0/22/1","vlo":"66:0"},{"n":"/3/0/5","vb":true}]`},
		"without a base name": {"/3303/0", `{"e":[{"n":"5700","v":21.5}]}`, `[{"n":"/3303/0/5700","v":21.5}]`},
		"a resource alone":    {"/3303/0/5700", `{"e":[{"n":"","v":21.5}]}`, `[{"n":"/3303/0/5700","v":21.5}]`},
		"values over time": {"/", `{"bn":"/3303/0/5700","bt":1500000000,"e":[{"v":1,"t":-5},{"v":2}]}`,
			`[{"n":"/3303/0/5700","v":1,"t":1499999995},{"n":"/3303/0/5700","v":2,"t":1500000000}]`},
		"no elements": {"/3/0", `{"bn":"/3/0/"}`, "not LwM2M JSON"},
		"a name":      {"/3/0", `{"e":[{"n":"temp","v":1}]}`, "not the path of a resource"},
		"two values":  {"/3/0", `{"e":[{"n":"9","v":1,"sv":"x"}]}`, "more than one value"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParseJSON(c.from, []byte(c.in))
			if got := brief(t, p, err); got != c.want && (strings.HasPrefix(c.want, "[") || !strings.Contains(got, c.want)) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestCBOR(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nested maps":   {"A1 19 0CE7 A1 00 A2 19 1644 F9 4D60 19 1645 63 43656C", `[{"n":"/3303/0/5700","v":21.5},{"n":"/3303/0/5701","vs":"Cel"}]`},
		"paths as keys": {"A2 83 03 00 09 18 5F 82 03 00 A1 0D C1 1A 5182428F", `[{"n":"/3/0/13","v":1367491215},{"n":"/3/0/9","v":95}]`},
		"octets":        {"A1 83 05 00 00 42 FBFF", `[{"n":"/5/0/0","vd":"-_8"}]`},
		"too short":     {"A1 03 01", "not LwM2M CBOR"},
		"too long":      {"A1 85 01 02 03 04 05 01", "not LwM2M CBOR"},
		"no map":        {"01", "not LwM2M CBOR"},
		"null":          {"A1 83 05 00 00 F6", "no type of LwM2M"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParseCBOR(unhex(t, c.in))
			if got := brief(t, p, err); got != c.want && (strings.HasPrefix(c.want, "[") || !strings.Contains(got, c.want)) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func check(t *testing.T, p senml.Pack, err error) {
	if err != nil {
		return
	}
	if len(p) > senml.MaxRecords {
		t.Fatalf("%d values", len(p))
	}
	for _, r := range p {
		if got, err := parsePath(r.Name); err != nil || len(got) < 3 || got.String() != r.Name {
			t.Fatalf("%q is not the path of a resource", r.Name)
		}
	}
}

func FuzzTLV(f *testing.F) {
	f.Add("/3/0", unhex(f, deviceTLV))
	f.Add("/3303", unhex(f, "07 00 E4 16 44 41 AC 00 00"))
	f.Fuzz(func(t *testing.T, from string, data []byte) {
		p, err := ParseTLV(from, data)
		check(t, p, err)
	})
}

func FuzzJSON(f *testing.F) {
	f.Add("/3/0", []byte(`{"bn":"/3/0/","bt":1,"e":[{"n":"0","sv":"x","t":1},{"n":"9","v":95},{"n":"22","ov":"66:0"},{"n":"5","bv":true}]}`))
	f.Fuzz(func(t *testing.T, from string, data []byte) {
		p, err := ParseJSON(from, data)
		check(t, p, err)
	})
}

func FuzzCBOR(f *testing.F) {
	f.Add(unhex(f, "A1 19 0CE7 A1 00 A2 19 1644 F9 4D60 19 1645 63 43656C"))
	f.Add(unhex(f, "A2 83 03 00 09 18 5F 82 03 00 A1 0D C1 1A 5182428F"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseCBOR(data)
		check(t, p, err)
	})
}
