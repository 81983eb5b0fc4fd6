package northtest

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// The tables of TS-0004 in short names: what a CSE that is strict holds requests against.

// A flexContainer has the root of its specialisation.
var cseRoots = map[int]string{
	1: "m2m:acp", 2: "m2m:ae", 3: "m2m:cnt", 4: "m2m:cin", 5: "m2m:cb", 9: "m2m:grp", 15: "m2m:pch", 17: "m2m:req", 23: "m2m:sub",
}

// cseParents says in what a type may be made.
var cseParents = map[int][]int{1: {2, 5}, 2: {5}, 3: {2, 3, 5}, 4: {3}, 9: {2, 5}, 15: {2}, 23: {2, 3, 5, 9, 28}, 28: {2, 3, 5, 28}}

// cseAttribute is an attribute that a request may give: its type, and whether CREATE needs it and UPDATE may change it.
type cseAttribute struct {
	kind           string // "string", "strings", "int", "bool", "object", "any", "time"
	needed, update bool
}

var cseAttributes = map[int]map[string]cseAttribute{
	1: {"pv": {"object", true, true}, "pvs": {"object", true, true}},
	2: {
		"api": {"string", true, false}, "rr": {"bool", true, true}, "srv": {"strings", true, true}, "poa": {"strings", false, true},
		"apn": {"string", false, true}, "csz": {"strings", false, true},
	},
	3: {"mni": {"int", false, true}, "mbs": {"int", false, true}, "mia": {"int", false, true}},
	4: {"con": {"any", true, false}, "cnf": {"string", false, false}},
	9: {
		"mt": {"int", false, false}, "mnm": {"int", true, true}, "mid": {"members", true, true}, "macp": {"strings", false, true},
		"gn": {"string", false, true}, "csy": {"int", false, false},
	},
	15: {"rqag": {"bool", false, true}},
	23: {"nu": {"strings", true, true}, "nct": {"int", false, true}, "enc": {"object", false, true}},
	28: {"cnd": {"string", true, false}},
}

// cseReadOnly are attributes that no request gives.
var cseReadOnly = []string{"ri", "pi", "ty", "ct", "lt", "st", "cs", "cni", "cbs", "cr", "aei", "cnm", "mtv", "rs", "ors"}

// cseCommon may be given for each resource.
var cseCommon = map[string]cseAttribute{
	"rn": {"string", false, false}, "et": {"time", false, true}, "lbl": {"strings", false, true}, "acpi": {"strings", false, true},
}

// cseCheck gives the root and the attributes of a representation, or says what is wrong with it. update is the root of the resource that an
// UPDATE is for.
func cseCheck(pc any, ty int, update string) (root string, a cseMap, wrong string) {
	all, _ := pc.(cseMap)
	for name, value := range all {
		root = name
		a, _ = value.(cseMap)
	}
	want := cseRoots[ty]
	if update != "" {
		want = update
	} else if prefix, name, ok := strings.Cut(root, ":"); ty == 28 && ok && prefix != "" && prefix != "m2m" && name != "" {
		want = root
	}
	if len(all) != 1 || a == nil || root != want {
		return "", nil, fmt.Sprintf("no %q alone in the content", want)
	}
	for name, value := range a {
		rule, known := cseAttributes[ty][name]
		if common, ok := cseCommon[name]; ok && (name == "rn" || name == "et" || name == "lbl" || ty != 4 && ty != 1) {
			rule, known = common, true
		}
		if ty == 28 && !known && !slices.Contains(cseReadOnly, name) {
			rule, known = cseAttribute{"any", false, true}, true
		}
		switch {
		case !known:
			return "", nil, fmt.Sprintf("%s: %q is no attribute of it", root, name)
		case update != "" && !rule.update:
			return "", nil, fmt.Sprintf("%s: %q cannot change", root, name)
		case !cseKind(rule.kind, value):
			return "", nil, fmt.Sprintf("%s: %q is no %s", root, name, rule.kind)
		}
	}
	for name, rule := range cseAttributes[ty] {
		if _, there := a[name]; rule.needed && update == "" && !there {
			return "", nil, fmt.Sprintf("%s: %q is missing", root, name)
		}
	}
	return root, a, cseInner(ty, a)
}

// cseInner says what is wrong inside attributes.
func cseInner(ty int, a cseMap) string {
	if api, ok := a["api"].(string); ok && !strings.HasPrefix(api, "N") && !strings.HasPrefix(api, "R") {
		return "api begins neither with N nor with R"
	}
	if enc, ok := a["enc"].(cseMap); ok && ty == 23 {
		net, ok := enc["net"].([]any)
		if !ok || len(net) == 0 || slices.ContainsFunc(net, func(x any) bool { return cseInt(x) < 1 || cseInt(x) > 8 }) {
			return "enc: net is no list of notificationEventTypes"
		}
	}
	if nct := cseInt(a["nct"]); ty == 23 && nct > 5 {
		return "nct"
	}
	if cnf, ok := a["cnf"].(string); ok {
		media, rest, _ := strings.Cut(cnf, ":")
		if !strings.Contains(media, "/") || !slices.Contains([]string{"0", "1", "2"}, strings.SplitN(rest, ":", 2)[0]) {
			return fmt.Sprintf("cnf: %q is no contentInfo", cnf)
		}
	}
	for _, name := range []string{"pv", "pvs"} {
		set, ok := a[name].(cseMap)
		if !ok {
			continue
		}
		rules, _ := set["acr"].([]any)
		if name == "pvs" && len(rules) == 0 {
			return "pvs: without a rule nobody could change it"
		}
		for _, x := range rules {
			rule, _ := x.(cseMap)
			if op := cseInt(rule["acop"]); !cseKind("strings", rule["acor"]) || op < 1 || op > 63 {
				return name + ": a rule needs acor and acop"
			}
		}
	}
	return ""
}

func cseKind(kind string, v any) bool {
	switch kind {
	case "string":
		_, ok := v.(string)
		return ok
	case "time":
		s, _ := v.(string)
		return len(s) == len(cseTime)
	case "bool":
		_, ok := v.(bool)
		return ok
	case "int":
		f, ok := v.(float64)
		return ok && f == math.Trunc(f) && f >= 0
	case "strings":
		list, ok := v.([]any)
		return ok && len(list) > 0 && !slices.ContainsFunc(list, func(x any) bool { _, ok := x.(string); return !ok })
	case "members":
		list, ok := v.([]any)
		return ok && !slices.ContainsFunc(list, func(x any) bool { s, _ := x.(string); return s == "" })
	case "object":
		_, ok := v.(cseMap)
		return ok
	}
	return v != nil
}

// csePrimitiveWrong says what is wrong with a request primitive.
func csePrimitiveWrong(q cseMap) string {
	for _, name := range []string{"to", "fr", "rqi", "rvi"} {
		if s, _ := q[name].(string); s == "" {
			return name + " is missing"
		}
	}
	if !slices.Contains([]string{"2a", "3", "4", "5"}, q["rvi"].(string)) {
		return "rvi"
	}
	for name := range q {
		if !slices.Contains([]string{"op", "to", "fr", "rqi", "rvi", "ty", "pc", "rcn", "fc", "drt", "rqet", "tkns", "rt"}, name) {
			return fmt.Sprintf("%q is not in a request primitive", name)
		}
	}
	if rt, asked := q["rt"]; asked {
		m, _ := rt.(cseMap)
		if v := cseInt(m["rtv"]); v < 1 || v > 5 {
			return "rt has no responseTypeValue"
		}
	}
	op := cseInt(q["op"])
	if q["rcn"] != nil && op == 5 {
		return "rcn does not go with NOTIFY"
	}
	_, content := q["pc"].(cseMap)
	switch {
	case (op == 1) != (q["ty"] != nil):
		return "ty goes with CREATE and nothing else"
	case (op == 1 || op == 3 || op == 5) != content:
		return "content"
	}
	return ""
}

func cseInt(v any) int {
	switch v := v.(type) {
	case float64:
		return int(v)
	case int:
		return v
	}
	return 0
}

func cseInts(v any) (list []int) {
	all, _ := v.([]any)
	for _, x := range all {
		list = append(list, cseInt(x))
	}
	return list
}

func cseStrings(v any) (list []string) {
	switch v := v.(type) {
	case []string:
		return v
	case []any:
		for _, x := range v {
			s, _ := x.(string)
			list = append(list, s)
		}
	}
	return list
}

// cseFloat writes every integer like 2.0, as some CSEs do.
func cseFloat(v any) any {
	switch v := v.(type) {
	case cseMap:
		m := cseMap{}
		for k, x := range v {
			m[k] = cseFloat(x)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, x := range v {
			list[i] = cseFloat(x)
		}
		return list
	case int:
		return json.RawMessage(fmt.Sprintf("%d.0", v))
	case float64:
		return json.RawMessage(fmt.Sprintf("%.1f", v))
	}
	return v
}
