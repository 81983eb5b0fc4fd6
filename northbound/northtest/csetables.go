package northtest

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// The tables of TS-0004 in short names: what a CSE that is strict holds requests against.

var cseRoots = map[int]string{1: "m2m:acp", 2: "m2m:ae", 3: "m2m:cnt", 4: "m2m:cin", 5: "m2m:cb", 15: "m2m:pch", 23: "m2m:sub"}

// cseParents says in what a type may be made.
var cseParents = map[int][]int{1: {2, 5}, 2: {5}, 3: {2, 3, 5}, 4: {3}, 15: {2}, 23: {2, 3, 5}}

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
	3:  {"mni": {"int", false, true}, "mbs": {"int", false, true}, "mia": {"int", false, true}},
	4:  {"con": {"any", true, false}, "cnf": {"string", false, false}},
	15: {"rqag": {"bool", false, true}},
	23: {"nu": {"strings", true, true}, "nct": {"int", false, true}, "enc": {"object", false, true}},
}

// cseCommon may be given for each resource.
var cseCommon = map[string]cseAttribute{
	"rn": {"string", false, false}, "et": {"time", false, true}, "lbl": {"strings", false, true}, "acpi": {"strings", false, true},
}

// cseCheck gives the attributes of a representation, or says what is wrong with it.
func cseCheck(pc any, ty int, update bool) (cseMap, string) {
	root, _ := pc.(cseMap)
	a, ok := root[cseRoots[ty]].(cseMap)
	if !ok || len(root) != 1 {
		return nil, fmt.Sprintf("no %s alone in the content", cseRoots[ty])
	}
	for name, value := range a {
		rule, known := cseAttributes[ty][name]
		if common, ok := cseCommon[name]; ok && (name == "rn" || name == "et" || name == "lbl" || ty != 4 && ty != 1) {
			rule, known = common, true
		}
		switch {
		case !known:
			return nil, fmt.Sprintf("%s: %q is no attribute of it", cseRoots[ty], name)
		case update && !rule.update:
			return nil, fmt.Sprintf("%s: %q cannot change", cseRoots[ty], name)
		case !cseKind(rule.kind, value):
			return nil, fmt.Sprintf("%s: %q is no %s", cseRoots[ty], name, rule.kind)
		}
	}
	for name, rule := range cseAttributes[ty] {
		if _, there := a[name]; rule.needed && !update && !there {
			return nil, fmt.Sprintf("%s: %q is missing", cseRoots[ty], name)
		}
	}
	if api, ok := a["api"].(string); ok && !strings.HasPrefix(api, "N") && !strings.HasPrefix(api, "R") {
		return nil, "api begins neither with N nor with R"
	}
	return a, ""
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
		if !slices.Contains([]string{"op", "to", "fr", "rqi", "rvi", "ty", "pc", "rcn", "fc", "drt", "rqet", "tkns"}, name) {
			return fmt.Sprintf("%q is not in a request primitive", name)
		}
	}
	op := cseInt(q["op"])
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
