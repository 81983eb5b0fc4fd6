package bridge

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

// The matcher is held against one that follows the words of Compile's documentation and nothing else: try every route, keep
// those that match, and of two keep the one that is more specific in the first segment in which they differ in kind.

func slowMatch(pattern, path []string, device string) bool {
	switch {
	case len(pattern) == 0:
		return len(path) == 0
	case len(path) == 0:
		return false
	case strings.HasSuffix(pattern[0], "...}"):
		for _, s := range path {
			if s == "" {
				return false
			}
		}
		return true
	case pattern[0] == "{device}":
		return path[0] == device && slowMatch(pattern[1:], path[1:], device)
	case strings.HasPrefix(pattern[0], "{"):
		return path[0] != "" && slowMatch(pattern[1:], path[1:], device)
	}
	return pattern[0] == path[0] && slowMatch(pattern[1:], path[1:], device)
}

func slowKind(segment string) int {
	switch {
	case strings.HasSuffix(segment, "...}"):
		return 2
	case strings.HasPrefix(segment, "{"):
		return 1
	}
	return 0
}

// slowRestriction is 0 for a route that names the device, 1 for one that names a group of it, 2 for one for all, -1 for none of these.
func slowRestriction(u *config.Uplink, device string, groups []string) int {
	for _, d := range u.Devices {
		if d == device {
			return 0
		}
	}
	for _, g := range u.Groups {
		for _, own := range groups {
			if g == own {
				return 1
			}
		}
	}
	if len(u.Devices) == 0 && len(u.Groups) == 0 {
		return 2
	}
	return -1
}

// slowBest gives the names of the routes that are at least as specific as any other that matches.
func slowBest(routes []*config.Uplink, device string, groups []string, resource string) (best []string) {
	path := strings.Split(resource[1:], "/")
	var matching []*config.Uplink
	for _, u := range routes {
		if slowMatch(strings.Split(u.Resource[1:], "/"), path, device) && slowRestriction(u, device, groups) >= 0 {
			matching = append(matching, u)
		}
	}
	beats := func(a, b *config.Uplink) bool {
		as, bs := strings.Split(a.Resource[1:], "/"), strings.Split(b.Resource[1:], "/")
		for i := range min(len(as), len(bs)) {
			if x, y := slowKind(as[i]), slowKind(bs[i]); x != y {
				return x < y
			}
		}
		return slowRestriction(a, device, groups) < slowRestriction(b, device, groups)
	}
	for _, a := range matching {
		if !slices.ContainsFunc(matching, func(b *config.Uplink) bool { return beats(b, a) }) {
			best = append(best, a.Name)
		}
	}
	return best
}

func randomPattern(r *rand.Rand) string {
	var b strings.Builder
	n := 1 + r.IntN(4)
	for i := range n {
		switch k := r.IntN(10); {
		case k == 0 && i == n-1:
			b.WriteString("/{rest...}")
		case k == 1:
			b.WriteString("/{device}")
			return b.String()
		case k < 5:
			fmt.Fprintf(&b, "/{c%d}", i)
		default:
			b.WriteString("/" + string(rune('a'+r.IntN(2))))
		}
	}
	return b.String()
}

func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(4) {
		b.WriteString("/" + [...]string{"a", "b", "d1", "d2", "", "x"}[r.IntN(6)])
	}
	return b.String()
}

func TestTheMatcherAgreesWithABruteForceOne(t *testing.T) {
	devices := map[string][]string{"d1": {"g1"}, "d2": {"g2"}, "d3": {"g1", "g2"}, "d4": nil}
	compiled, refused := 0, 0
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := &config.Config{Devices: map[string]*config.Device{}}
		for name, groups := range devices {
			cfg.Devices[name] = &config.Device{Groups: groups}
		}
		for i := range 1 + r.IntN(6) {
			u := &config.Uplink{Name: fmt.Sprint("r", i), Resource: randomPattern(r), Topic: "t", To: []string{"c"}}
			if r.IntN(3) == 0 {
				u.Devices = []string{[...]string{"d1", "d2", "d3"}[r.IntN(3)]}
			}
			if r.IntN(3) == 0 {
				u.Groups = []string{[...]string{"g1", "g2"}[r.IntN(2)]}
			}
			cfg.Uplinks = append(cfg.Uplinks, u)
		}
		table, err := Compile(cfg)
		if err != nil {
			refused++
			continue
		}
		compiled++
		for range 60 {
			device := [...]string{"d1", "d2", "d3", "d4"}[r.IntN(4)]
			path := randomPath(r)
			want := slowBest(cfg.Uplinks, device, devices[device], path)
			got, _ := table.uplink(device, devices[device], path)
			if got == nil && len(want) == 0 {
				continue
			}
			// A table that compiles has no two best routes: the device's groups are all configured.
			if got == nil || len(want) != 1 || want[0] != got.name {
				t.Fatalf("seed %d: %s of %s: got %v, want %v\n%s", seed, path, device, got, want, describe(cfg.Uplinks))
			}
		}
	}
	if compiled < 500 || refused < 100 {
		t.Errorf("%d tables compiled, %d refused: too few to say anything", compiled, refused)
	}
}

func describe(routes []*config.Uplink) string {
	var b strings.Builder
	for _, u := range routes {
		fmt.Fprintln(&b, u.Name, u.Resource, u.Devices, u.Groups)
	}
	return b.String()
}

func TestAConflictIsReportedExactlyWhereSomeReportHasTwoBestRoutes(t *testing.T) {
	segments := []string{"a", "b", "{x}", "{y...}"}
	var all []string
	for _, s := range segments {
		all = append(all, "/"+s)
		if s == "{y...}" {
			continue
		}
		for _, s2 := range segments {
			all = append(all, "/"+s+"/"+strings.ReplaceAll(s2, "{x}", "{z}"))
		}
	}
	var paths []string
	for _, a := range []string{"a", "b", "c"} {
		paths = append(paths, "/"+a)
		for _, b := range []string{"a", "b", "c"} {
			paths = append(paths, "/"+a+"/"+b, "/"+a+"/"+b+"/c")
		}
	}
	for _, p := range all {
		for _, q := range all {
			cfg := &config.Config{Uplinks: []*config.Uplink{
				{Name: "p", Resource: p, Topic: "t", To: []string{"c"}}, {Name: "q", Resource: q, Topic: "t", To: []string{"c"}}}}
			_, err := Compile(cfg)
			ambiguous := slices.ContainsFunc(paths, func(path string) bool { return len(slowBest(cfg.Uplinks, "d", nil, path)) > 1 })
			if (err != nil) != ambiguous {
				t.Errorf("%s and %s: error %v, ambiguous %v", p, q, err, ambiguous)
			}
		}
	}
}

func TestFiltersCoverWhatTheirPatternsMatch(t *testing.T) {
	matches := func(filter, topic string) bool { // MQTT 5 section 4.7
		fs, ts := strings.Split(filter, "/"), strings.Split(topic, "/")
		for i, f := range fs {
			if f == "#" {
				return true
			}
			if i >= len(ts) || f != "+" && f != ts[i] {
				return false
			}
		}
		return len(fs) == len(ts)
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range 20000 {
		p, err := parsePattern(randomPattern(r))
		if err != nil {
			continue
		}
		q, err := parsePattern(randomPattern(r))
		if err != nil {
			continue
		}
		topic := randomPath(r)[1:]
		if p.match(strings.Split(topic, "/"), "") && !matches(p.filter(), topic) {
			t.Fatalf("%v matches %q but its filter %q does not", p, topic, p.filter())
		}
		if covers(p.filter(), q.filter()) && matches(q.filter(), topic) && !matches(p.filter(), topic) {
			t.Fatalf("%q is said to cover %q, but not %q", p.filter(), q.filter(), topic)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("dt/{gateway}/{device}/{kind}", "temp", "a/b")
	f.Add("{kind}", "$SYS", "x")
	f.Add("x/{rest}", "v", "../../etc")
	f.Fuzz(func(t *testing.T, text, value, tail string) {
		tpl, err := parseTemplate(text, map[string]bool{"kind": false, "device": false, "gateway": false, "rest": true})
		if err != nil {
			return
		}
		topic, err := tpl.fill(func(name string) (string, bool) {
			if name == "rest" {
				return tail, true
			}
			return value, true
		})
		if err != nil {
			return
		}
		if strings.ContainsAny(topic, "+#\x00") {
			t.Fatalf("%q became %q", text, topic)
		}
		if strings.HasPrefix(topic, "$") && !strings.HasPrefix(text, "$") {
			t.Fatalf("%q became %q", text, topic)
		}
		levels := strings.Count(text, "/")
		if !strings.Contains(text, "{rest") && strings.Count(topic, "/") != levels {
			t.Fatalf("%q became %q", text, topic)
		}
		for level := range strings.SplitSeq(topic, "/") {
			if level == "" {
				t.Fatalf("%q became %q", text, topic)
			}
		}
	})
}
