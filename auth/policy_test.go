package auth

import (
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

func TestResourcePatterns(t *testing.T) {
	for name, c := range map[string]struct {
		pattern, resource string
		want              bool
	}{
		"literals match themselves":                      {"/a/b", "/a/b", true},
		"a literal is not a prefix":                      {"/a/b", "/a/b/c", false},
		"a pattern that is longer does not match":        {"/a/b/c", "/a/b", false},
		"a capture takes one segment":                    {"/a/{x}", "/a/b", true},
		"a capture does not take two":                    {"/a/{x}", "/a/b/c", false},
		"a capture takes no empty segment":               {"/a/{x}", "/a/", false},
		"the rest takes one segment":                     {"/a/{x...}", "/a/b", true},
		"the rest takes three":                           {"/a/{x...}", "/a/b/c/d", true},
		"the rest takes not nothing":                     {"/a/{x...}", "/a", false},
		"the rest takes no empty segment":                {"/a/{x...}", "/a/b//c", false},
		"the rest takes no empty segment at the end":     {"/a/{x...}", "/a/b/", false},
		"the rest takes no empty segment at the start":   {"/a/{x...}", "/a//b", false},
		"{device} is the device's own name":              {"/{device}/a", "/d1/a", true},
		"{device} is no other device's name":             {"/{device}/a", "/d2/a", false},
		"a resource begins with a slash":                 {"/a", "a", false},
		"no resource matches nothing":                    {"/{x...}", "", false},
		"case matters":                                   {"/A", "/a", false},
		"a wildcard of MQTT is nothing special":          {"/a/b", "/a/+", false},
		"a resource may not climb out of its pattern":    {"/a/{x}", "/a/../b", false},
		"a trailing slash is another resource":           {"/a", "/a/", false},
		"the root is matched by no capture":              {"/{x}", "/", false},
		"a capture in the middle takes no empty segment": {"/a/{x}/b", "/a//b", false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := config.ParsePattern(c.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if got := matches(p, "d1", c.resource); got != c.want {
				t.Errorf("%q, %q: %v", c.pattern, c.resource, got)
			}
		})
	}
}

var filterCases = []struct {
	rule, filter string
	want         bool
}{
	{"#", "a", true}, {"#", "a/b/c", true}, {"#", "#", true}, {"#", "+/+", true}, {"#", "+/a/#", true}, {"#", "/", true},
	{"#", "$SYS/x", false}, {"#", "$SYS/#", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true}, {"$SYS/#", "#", false},
	{"a/#", "a", true}, {"a/#", "a/b", true}, {"a/#", "a/#", true}, {"a/#", "a/+", true}, {"a/#", "a/+/#", true}, {"a/#", "+", false},
	{"a/#", "#", false}, {"a/#", "+/#", false}, {"a/#", "ab", false}, {"a/#", "b", false},
	{"+", "a", true}, {"+", "+", true}, {"+", "#", false}, {"+", "a/b", false}, {"+", "a/", false},
	{"+/+", "a/b", true}, {"+/+", "a/#", false}, {"+/+", "a", false}, {"+/+", "/", true}, {"+/+", "+/b", true},
	{"a/+/c", "a/b/c", true}, {"a/+/c", "a/+/c", true}, {"a/+/c", "a/#", false}, {"a/+/c", "a/b/+", false}, {"a/+/c", "a//c", true},
	{"a/+/#", "a", false}, {"a/+/#", "a/b", true}, {"a/+/#", "a/+", true}, {"a/+/#", "a/#", false}, {"a/+/#", "a/b/c/#", true},
	{"a/b", "a/b", true}, {"a/b", "a/+", false}, {"a/b", "+/b", false}, {"a/b", "a/b/#", false}, {"a/b", "a/b/", false},
	{"s/{device}/#", "s/d1", true}, {"s/{device}/#", "s/d1/#", true}, {"s/{device}/#", "s/d2/x", false}, {"s/{device}/#", "s/+/x", false},
	{"/a", "/a", true}, {"/a", "a", false}, {"+/a", "/a", true}, {"/#", "/", true}, {"/#", "", false},
}

func TestFilterCoversFilter(t *testing.T) {
	for _, c := range filterCases {
		if got := covers(strings.Split(c.rule, "/"), "d1", c.filter); got != c.want {
			t.Errorf("%q covers %q: %v", c.rule, c.filter, got)
		}
	}
}

// A filter is covered exactly if the rule matches every topic that the filter does: held against the definition on all short topics.
func TestFilterCoversFilterByDefinition(t *testing.T) {
	levels := []string{"a", "b", "", "$s"}
	var topics []string
	var grow func(prefix []string)
	grow = func(prefix []string) {
		if len(prefix) > 0 {
			topics = append(topics, strings.Join(prefix, "/"))
		}
		if len(prefix) < 4 {
			for _, l := range levels {
				grow(append(append([]string{}, prefix...), l))
			}
		}
	}
	grow(nil)
	filters := []string{"#", "+", "a", "a/#", "+/#", "a/+", "+/a", "+/+", "a/b", "a/+/#", "+/+/#", "a/b/#", "+/b", "$s/#", "$s/+", "/+", "a/+/b", "+/a/+", "a/a/b/#"}
	for _, rule := range filters {
		for _, filter := range filters {
			want := true
			for _, topic := range topics {
				if topic != "" && topicMatches(filter, topic) && !topicMatches(rule, topic) {
					want = false
					break
				}
			}
			got := covers(strings.Split(rule, "/"), "d1", filter)
			if got && !want {
				t.Errorf("%q is said to cover %q, which matches more", rule, filter)
			}
			if want && !got && !(rule == "+/#" && filter == "#") { // the one that is refused though it is the same
				t.Errorf("%q is said not to cover %q", rule, filter)
			}
		}
	}
}

// topicMatches is the definition of MQTT 5 section 4.7, written for plainness.
func topicMatches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '#' || filter[0] == '+') {
		return false
	}
	f, p := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(p) {
			return false
		}
		if level != "+" && level != p[i] {
			return false
		}
		if i == len(p)-1 && i == len(f)-2 && f[i+1] == "#" {
			return true
		}
	}
	return len(f) == len(p)
}

func TestCommandsWithinFilter(t *testing.T) {
	for _, c := range []struct {
		pattern, filter string
		want            bool
	}{
		{"/act/set", "act/set", true}, {"/act/set", "act/+", true}, {"/act/set", "#", true}, {"/act/set", "act/#", true}, {"/act/set", "+/set", true},
		{"/act/set", "act", false}, {"/act/set", "act/set/#", true}, {"/act/set", "act/set/x", false}, {"/act/set", "/act/set", false},
		{"/act/{x}", "act/set", true}, {"/act/{x}", "act/+/y", false}, {"/act/{x...}", "act/+/y", true}, {"/act/{x...}", "act/a/b/#", true},
		{"/act/{x...}", "act", false}, {"/act/{x...}", "act//y", false}, {"/{device}/x", "d1/x", true}, {"/{device}/x", "d2/x", false}, {"/{device}/x", "+/x", true},
	} {
		p, err := config.ParsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := meets(p, "d1", c.filter); got != c.want {
			t.Errorf("%q meets %q: %v", c.pattern, c.filter, got)
		}
	}
}

func rulesOf(t testing.TB, allow ...*config.Allow) *rules {
	t.Helper()
	r, err := compile(allow)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRules(t *testing.T) {
	r := rulesOf(t,
		&config.Allow{Pos: config.Pos{Line: 1}, Groups: []string{"g1"}, Op: "report", Resources: []string{"/s/{rest...}"}},
		&config.Allow{Pos: config.Pos{Line: 2}, Devices: []string{"d2"}, Op: "report", Resources: []string{"/x", "/y"}},
		&config.Allow{Pos: config.Pos{Line: 3}, Op: "subscribe", Resources: []string{"pub/{device}/#"}},
		&config.Allow{Pos: config.Pos{Line: 4}, Groups: []string{"g1"}, Op: "publish", Resources: []string{"pub/+/in"}},
		&config.Allow{Pos: config.Pos{Line: 5}, Connectors: []string{"c1"}, Devices: []string{"d2"}, Groups: []string{"g1"}, Op: "command", Resources: []string{"/act/{x}"}},
	)
	d1, d2, none := &Identity{Device: "d1", Groups: []string{"g0", "g1"}}, &Identity{Device: "d2"}, &Identity{}
	for name, c := range map[string]struct {
		id   *Identity
		op   Op
		what string
		line int
	}{
		"a group's rule is for its devices":                     {d1, Report, "/s/t", 1},
		"a group's rule is not for others":                      {d2, Report, "/s/t", 0},
		"a device's rule is for it":                             {d2, Report, "/y", 2},
		"a device's rule is not for others":                     {d1, Report, "/y", 0},
		"a rule for all is for all":                             {d2, Subscribe, "pub/d2/a", 3},
		"a rule for all is not for those without a name":        {none, Subscribe, "pub//a", 0},
		"a shared subscription is judged by its filter":         {d2, Subscribe, "$share/x/pub/d2/#", 3},
		"a shared subscription to more is refused":              {d2, Subscribe, "$share/x/pub/#", 0},
		"a shared subscription without a filter is refused":     {d2, Subscribe, "$share/x", 0},
		"one may publish where a rule says so":                  {d1, Publish, "pub/zz/in", 4},
		"one may not publish to a wildcard":                     {d1, Publish, "pub/+/in", 0},
		"to publish is not to report":                           {d1, Report, "/pub/zz/in", 0},
		"an operation that is not there is refused":             {d1, Op("rule"), "/s/t", 0},
		"to be commanded is no right of the device":             {d1, Command, "/act/x", 0},
		"to subscribe to nothing is refused":                    {d1, Subscribe, "", 0},
		"a subscription to all devices' topics is more than {}": {d1, Subscribe, "pub/+/a", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := r.allow(c.id, c.op, c.what)
			if got := line(a); got != c.line {
				t.Errorf("rule on line %d, want %d", got, c.line)
			}
		})
	}
	if line(r.commandable("c1", "d2", nil, "/act/a")) != 5 || line(r.commandable("c1", "dx", []string{"g1"}, "/act/a")) != 5 {
		t.Error("the connector may not command whom it may")
	}
	if r.commandable("c2", "d2", nil, "/act/a") != nil || r.commandable("c1", "d1", nil, "/act/a") != nil || r.commandable("c1", "d2", nil, "/act") != nil {
		t.Error("commanded although no rule allows it")
	}
}

func line(a *config.Allow) int {
	if a == nil {
		return 0
	}
	return a.Pos.Line
}

func BenchmarkAllowed(b *testing.B) {
	var allow []*config.Allow
	for _, g := range []string{"thermostat", "press", "meter", "pump"} {
		allow = append(allow, &config.Allow{Groups: []string{g}, Op: "report", Resources: []string{"/sensors/{rest...}", "/events/{kind}", "/3/0/{r}"}})
	}
	r := rulesOf(b, allow...)
	id := &Identity{Device: "th-17", Groups: []string{"pump"}}
	b.ReportAllocs()
	for b.Loop() {
		if r.allow(id, Report, "/3/0/9") == nil {
			b.Fatal("refused")
		}
	}
}

func FuzzCovers(f *testing.F) {
	for _, c := range filterCases {
		f.Add(c.rule, c.filter, "a/b/c")
	}
	f.Fuzz(func(t *testing.T, rule, filter, topic string) {
		if config.CheckFilter(rule) != nil || config.CheckFilter(filter) != nil || strings.Contains(rule+filter, "{") || topic == "" || strings.ContainsAny(topic, "+#") {
			return
		}
		if covers(strings.Split(rule, "/"), "d1", filter) && topicMatches(filter, topic) && !topicMatches(rule, topic) {
			t.Errorf("%q covers %q, but does not match %q", rule, filter, topic)
		}
	})
}
