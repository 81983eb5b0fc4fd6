package onem2m_test

import (
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

func TestKeysDerivedFromAnEnrolmentKey(t *testing.T) {
	ke := make(northtest.HMAC, 32)
	for i := range ke {
		ke[i] = byte(i)
	}
	kpsa, err := onem2m.Kpsa(t.Context(), ke, "/cse-1")
	if err != nil || hex.EncodeToString(kpsa) != "030876ab3ccd5f5b0f6f4ba6438eec1736cd01e58842eca4b86caff5f6c2318b" {
		t.Errorf("Kpsa %x, %v", kpsa, err)
	}
	if id := "AB01@mef.example.com"; !onem2m.ValidKeyID(id) {
		t.Errorf("%q is not taken for a key's identifier", id)
	}
	for _, id := range []string{"", "a", "@b.example", "a@", "a b@c.example", "a@-b", "a@b@c", strings.Repeat("a", 128) + "@b"} {
		if onem2m.ValidKeyID(id) {
			t.Errorf("%q is taken for a key's identifier", id)
		}
	}
}

func TestAddresses(t *testing.T) {
	base, err := url.Parse("https://cse.example:8443/")
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string][2]string{
		"cse-in/ae":                 {"https://cse.example:8443/cse-in/ae", "/cse-in/ae"},
		"/id-in/cse-in/ae":          {"https://cse.example:8443/~/id-in/cse-in/ae", "/~/id-in/cse-in/ae"},
		"//sp.example/id-in/cse-in": {"https://cse.example:8443/_/sp.example/id-in/cse-in", "/_/sp.example/id-in/cse-in"},
	} {
		if got := onem2m.Target(base, &onem2m.Primitive{To: to}).String(); got != want[0] {
			t.Errorf("HTTP %s: %s", to, got)
		}
		if got := onem2m.Path(to); got != want[1] {
			t.Errorf("CoAP %s: %s", to, got)
		}
	}
	four := 4
	q := &onem2m.Primitive{To: "cse-in", Result: &four, Names: 1, Filter: &onem2m.Conditions{Use: 1, Types: []int{3, 4}, After: "20260102T030405"}}
	if got := onem2m.Target(base, q).RawQuery; got != "cra=20260102T030405&drt=1&fu=1&rcn=4&ty=3&ty=4" {
		t.Errorf("query %s", got)
	}
	for id, want := range map[string]string{"Cae1": "id-in:Cae1", "/id-in": "id-in", "/cse-in/Cae1": "cse-in:Cae1", "Sae2": "Sae2"} {
		if got := onem2m.InTopic(id); got != want {
			t.Errorf("%s in a topic: %s", id, got)
		}
	}
}

func TestPrimitivesOfTheStandard(t *testing.T) {
	q := onem2m.Primitive{Op: 1, To: "/cse-in", From: "C", ID: "1", Type: 2, Release: "3", Content: json.RawMessage(`{"m2m:ae":{}}`)}
	data, err := json.Marshal(q)
	if want := `{"op":1,"to":"/cse-in","fr":"C","rqi":"1","rvi":"3","ty":2,"pc":{"m2m:ae":{}}}`; err != nil || string(data) != want {
		t.Errorf("got %s", data)
	}
	for text, want := range map[string]int{
		`{"rsc":2001,"rqi":"1","pc":{"m2m:ae":{}},"to":"C","fr":"/cse-in"}`: 2001,
		`{"rsc":2001.0,"rqi":"1"}`:                2001,
		`{"rsc":"4105","rqi":"1"}`:                4105,
		`{"m2m:rsp":{"rsc":2004,"rqi":"1"}}`:      2004,
		`{"op":5,"to":"C","rqi":"1","fr":"/cse"}`: 0,
	} {
		q, r, err := onem2m.ParsePrimitive([]byte(text))
		switch {
		case err != nil:
			t.Errorf("%s: %v", text, err)
		case want == 0 && (q == nil || q.Op != 5 || r != nil), want != 0 && (r == nil || int(r.RSC) != want || r.ID != "1"):
			t.Errorf("%s: %+v, %+v", text, q, r)
		}
	}
	for _, text := range []string{``, `[]`, `{"rsc":2001.5}`, `{"rsc":1e99}`, `{"op":"x"}`} {
		if _, _, err := onem2m.ParsePrimitive([]byte(text)); err == nil {
			t.Errorf("%s: taken", text)
		}
	}
}

func TestResponseStatusCodes(t *testing.T) {
	for want, list := range map[string][]int{
		"done":     {1000, 1001, 1002, 2000, 2001, 2002, 2004},
		"conflict": {4105, 4117, 5106},
		"lost":     {4004},
		"denied":   {4103, 4106, 4107, 403},
		"later":    {4008, 5000, 5103, 5107, 5204, 6003, 429, 500, 502, 503, 504},
		"never":    {4000, 4001, 4005, 4015, 4101, 4102, 4108, 4126, 5001, 5105, 5203, 5206, 5207, 6010, 301, 400, 413},
	} {
		for _, rsc := range list {
			if got := onem2m.Meaning(rsc); got != want {
				t.Errorf("%d: %s, want %s", rsc, got, want)
			}
		}
	}
}

func TestContent(t *testing.T) {
	for name, c := range map[string]struct{ media, payload, want string }{
		"JSON":   {"application/json", `{"a":"<é>"}`, `{"m2m:cin":{"cnf":"application/json:0","con":"{\"a\":\"<é>\"}"}}`},
		"text":   {"", "21.5", `{"m2m:cin":{"cnf":"text/plain:0","con":"21.5"}}`},
		"octets": {"application/cbor", "\xff\x00", `{"m2m:cin":{"cnf":"application/cbor:1","con":"/wA="}}`},
	} {
		data := onem2m.Instance(&msg.Publication{Type: c.media, Payload: []byte(c.payload)})
		if string(data) != c.want {
			t.Errorf("%s: %s", name, data)
			continue
		}
		// A CSE gives it back with attributes of its own.
		list, err := onem2m.Instances([]byte(`{"m2m:cnt":{"rn":"x","m2m:cin":` + strings.TrimSuffix(strings.TrimPrefix(string(data), `{"m2m:cin":`), `}`) + `}}`))
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %v, %v", name, list, err)
			continue
		}
		if _, _, payload := onem2m.Publication(list[0], "t"); string(payload) != c.payload {
			t.Errorf("%s: came back as %q", name, payload)
		}
	}
	list, err := onem2m.Instances([]byte(`{"m2m:cnt":{"m2m:cin":[{"ri":"b","ct":"20260102T000000","con":{"a":1},"st":2.0},{"ri":"a","ct":"20260102T000000","con":3,"st":1}]}}`))
	if err != nil || len(list) != 2 || list[0].ID != "a" {
		t.Fatalf("%v, %v", list, err)
	}
	if _, media, payload := onem2m.Publication(list[1], "t"); media != "application/json" || string(payload) != `{"a":1}` {
		t.Errorf("%s %s", media, payload)
	}
	x, _, _ := onem2m.Publication(list[0], "t")
	y, _, _ := onem2m.Publication(list[0], "t")
	if z, _, _ := onem2m.Publication(list[1], "t"); x != y || x == z {
		t.Error("an instance has no identity of its own")
	}
}

func TestNotificationsOfTheStandardAndOfOthers(t *testing.T) {
	const event = `{"nev":{"rep":{"m2m:cin":{"con":"x"}},"net":3},"sur":"/id-in/s"}`
	for text, want := range map[string]int{
		`{"m2m:sgn":` + event + `}`: 1,
		event:                       1,
		`{"sgn":` + strings.Replace(event, "3}", "3.0}", 1) + `}`: 1,
		`{"m2m:agn":{"m2m:sgn":[` + event + `,` + event + `]}}`:   2,
		`{"m2m:agn":[{"m2m:sgn":` + event + `}]}`:                 1,
		`{"m2m:sgn":{"vrq":true,"sur":"/id-in/s","cr":"C"}}`:      1,
		`{"m2m:sgn":{"sud":true,"sur":"/id-in/s"}}`:               1,
	} {
		list, err := onem2m.ParseNotifications([]byte(text))
		if err != nil || len(list) != want || list[0].Sub != "/id-in/s" || list[0].Verify != strings.Contains(text, "vrq") || list[0].Deleted != strings.Contains(text, "sud") {
			t.Errorf("%s: %+v, %v", text, list, err)
		}
	}
	for _, text := range []string{``, `1`, `"x"`, `{"m2m:sgn":7}`} {
		if list, err := onem2m.ParseNotifications([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, list)
		}
	}
}

func TestResultsOfNonBlockingRequests(t *testing.T) {
	for text, want := range map[string]int{
		`{"m2m:req":{"ri":"r","rs":1,"ors":{"rsc":2001,"rqi":"1","pc":{}}}}`: 2001,
		`{"m2m:req":{"rs":2.0,"ors":{"m2m:rsp":{"rsc":4105.0,"rqi":"1"}}}}`:  4105,
		`{"m2m:req":{"rs":3,"ors":{"rsc":2001,"rqi":"1"}}}`:                  0,
		`{"m2m:req":{"rs":4}}`: 0,
	} {
		r, pending, err := onem2m.ResultOf([]byte(text))
		if err != nil || pending != (want == 0) || want != 0 && int(r.RSC) != want {
			t.Errorf("%s: %+v, pending %v, %v", text, r, pending, err)
		}
	}
	for _, text := range []string{``, `{}`, `{"m2m:req":{}}`, `{"m2m:req":{"rs":1}}`, `{"m2m:req":{"rs":1,"ors":{"op":1}}}`} {
		if r, _, err := onem2m.ResultOf([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, r)
		}
	}
	for text, want := range map[string]bool{
		`{"m2m:rsp":{"rsc":2001,"rqi":"1"}}`: true, `{"m2m:sgn":{"vrq":true}}`: false, `{"m2m:rsp":{"op":1}}`: false, ``: false,
	} {
		if _, ok := onem2m.ResultIn([]byte(text)); ok != want {
			t.Errorf("%s: %v", text, ok)
		}
	}
}

func TestPolledRequests(t *testing.T) {
	const one = `{"op":5,"to":"C","fr":"/id-in","rqi":"n1","pc":{"m2m:sgn":{}}}`
	for text, want := range map[string]int{
		`{"m2m:rqp":` + one + `}`:                            1,
		`{"m2m:agrp":{"m2m:rqp":[` + one + `,` + one + `]}}`: 2,
		one: 1, ``: 0, `{"m2m:rqp":{"op":5}}`: 0,
	} {
		if list := onem2m.Polled([]byte(text)); len(list) != want {
			t.Errorf("%s: %d", text, len(list))
		}
	}
}

func TestWhichContainersAreFollowed(t *testing.T) {
	for _, c := range []struct {
		filter, path string
		here, below  bool
	}{
		{"cmd/set", "cmd/set", true, false}, {"cmd/set", "cmd", false, true}, {"cmd/set", "", false, true}, {"cmd/set", "cmd/set/x", false, false},
		{"cmd/+/set", "cmd/a/set", true, false}, {"cmd/+/set", "cmd/a", false, true}, {"cmd/+/set", "cmd/a/b", false, false},
		{"cmd/#", "cmd", true, true}, {"cmd/#", "cmd/a/b", true, true}, {"#", "a", true, true}, {"#", "", true, true}, {"cmd/#", "cmx", false, false},
	} {
		here, below := onem2m.Matches(strings.Split(c.filter, "/"), c.path)
		if here != c.here || below != c.below {
			t.Errorf("%s at %q: %v, %v", c.filter, c.path, here, below)
		}
	}
}

func FuzzPrimitive(f *testing.F) {
	for _, s := range []string{
		`{"op":1,"to":"/cse-in","fr":"C","rqi":"1","ty":2,"rvi":"3","pc":{"m2m:ae":{}}}`, `{"rsc":2001.0,"rqi":"1","pc":{}}`,
		`{"m2m:rsp":{"rsc":"4105"}}`, `{"m2m:req":{"rs":1.0,"ors":{"rsc":2001,"rqi":"1"}}}`, `{"m2m:req":{"rs":3}}`, `{"m2m:agrp":{"m2m:rqp":[{"op":5,"rqi":"1"}]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q, r, err := onem2m.ParsePrimitive(data)
		if err == nil && (q == nil) == (r == nil) {
			t.Fatalf("request %v, response %v", q, r)
		}
		if r, pending, err := onem2m.ResultOf(data); err == nil && (r == nil) != pending {
			t.Fatalf("result %v, pending %v", r, pending)
		}
		if r, ok := onem2m.ResultIn(data); ok && r == nil {
			t.Fatal("a result that is none")
		}
		for _, q := range onem2m.Polled(data) {
			if q.ID == "" {
				t.Fatal("a request without id")
			}
		}
	})
}

func FuzzContent(f *testing.F) {
	for _, s := range []string{
		`{"m2m:cnt":{"m2m:cin":[{"ri":"b","ct":"20260102T000000","con":{"a":1},"st":2.0}]}}`, `{"m2m:cnt":{"m2m:cin":{"con":"/wA=","cnf":"a/b:1"}}}`,
		`{"red":1,"on":true}`, `{"m2m:sgn":{"vrq":true,"sur":"s"}}`, `{"m2m:agn":{"m2m:sgn":[{"nev":{"rep":{"m2m:cin":{}},"net":3.0},"sur":"s"}]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := onem2m.Instances(data)
		if err != nil && len(list) > 0 {
			t.Fatal("both instances and an error")
		}
		for i := range list {
			if i > 0 && list[i].Created < list[i-1].Created {
				t.Fatal("out of order")
			}
			onem2m.Publication(list[i], "t")
		}
		if a, err := onem2m.CustomAttributes(data); err == nil && len(a) == 0 {
			t.Fatal("neither attributes nor an error")
		}
		if list, err := onem2m.ParseNotifications(data); err == nil && list == nil {
			t.Fatal("neither notifications nor an error")
		}
	})
}
