package northtest

import (
	"strings"
	"testing"
)

// What the peer refuses is what the tests of a connector rely on.
func TestThePeerRefusesWhatTheTablesDoNotHave(t *testing.T) {
	for name, c := range map[string]struct{ primitive, why string }{
		"a right one":                {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"m2m:cnt":{"mni":1,"lbl":["a"],"et":"20260102T030405"}}}`, ""},
		"no originator":              {`{"op":2,"to":"cse-in","rqi":"1","rvi":"3"}`, "fr is missing"},
		"no release":                 {`{"op":2,"to":"cse-in","fr":"C","rqi":"1"}`, "rvi is missing"},
		"a long name":                {`{"op":2,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","requestID":"1"}`, `"requestID" is not in a request primitive`},
		"a type with RETRIEVE":       {`{"op":2,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3}`, "ty goes with CREATE"},
		"CREATE without content":     {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3}`, "content"},
		"a response type of nothing": {`{"op":2,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","rt":{}}`, "rt has no responseTypeValue"},
		"another root":               {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"cnt":{}}}`, `no "m2m:cnt" alone`},
		"an unknown attribute":       {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"m2m:cnt":{"maxNrOfInstances":1}}}`, `no attribute of it`},
		"a read-only attribute":      {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"m2m:cnt":{"cni":1}}}`, `no attribute of it`},
		"a number as a string":       {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"m2m:cnt":{"mni":"1"}}}`, `"mni" is no int`},
		"a time in another format":   {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":3,"pc":{"m2m:cnt":{"et":"2026-01-02T03:04:05Z"}}}`, `"et" is no time`},
		"an AE without an App-ID":    {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":2,"pc":{"m2m:ae":{"rr":true,"srv":["3"]}}}`, `"api" is missing`},
		"an App-ID without its sort": {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":2,"pc":{"m2m:ae":{"api":"x","rr":true,"srv":["3"]}}}`, `api begins neither`},
		"contentInfo without coding": {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":4,"pc":{"m2m:cin":{"con":"1","cnf":"text/plain"}}}`, `no contentInfo`},
		"a rule without operations":  {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":1,"pc":{"m2m:acp":{"pv":{"acr":[{"acor":["C"]}]},"pvs":{"acr":[{"acor":["C"],"acop":63}]}}}}`, `needs acor and acop`},
		"a group without a bound":    {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":9,"pc":{"m2m:grp":{"mid":["a"]}}}`, `"mnm" is missing`},
		"an event of no type":        {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":23,"pc":{"m2m:sub":{"nu":["a"],"enc":{"net":[99]}}}}`, `notificationEventTypes`},
		"a flexContainer of nothing": {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":28,"pc":{"cod:color":{"red":1}}}`, `"cnd" is missing`},
		"a flexContainer as m2m":     {`{"op":1,"to":"cse-in","fr":"C","rqi":"1","rvi":"3","ty":28,"pc":{"m2m:fcnt":{"cnd":"x"}}}`, `alone in the content`},
	} {
		t.Run(name, func(t *testing.T) {
			q, ok := decodeCSE([]byte(c.primitive))
			if !ok {
				t.Fatal("no JSON")
			}
			why := csePrimitiveWrong(q)
			if why == "" {
				_, _, why = cseCheck(q["pc"], cseInt(q["ty"]), "")
			}
			if (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
				t.Errorf("refused for %q, want %q", why, c.why)
			}
		})
	}
	if _, _, why := cseCheck(cseMap{"m2m:ae": cseMap{"api": "Nx"}}, 2, "m2m:ae"); !strings.Contains(why, "cannot change") {
		t.Errorf("an App-ID was changed: %q", why)
	}
}
