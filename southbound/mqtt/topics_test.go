package mqtt

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestFiltersMatchTopics(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"#", "a", true}, {"#", "a/b/c", true}, {"#", "/", true}, {"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true}, {"$SYS/+", "$SYS/x", true},
		{"a", "a", true}, {"a", "a/b", false}, {"a/b", "a", false}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false}, {"a/+", "a", false},
		{"a/+", "a/", true}, {"a/+/c", "a/b/c", true}, {"a/+/c", "a/b/d", false}, {"+", "/a", false}, {"+/+", "/a", true}, {"/+", "/a", true},
		{"a/+/#", "a/b", true}, {"a/+/#", "a", false}, {"a//b", "a//b", true}, {"a/+/b", "a//b", true},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.filter, c.topic, got)
		}
		var tree topics
		s := &session{number: 1}
		sub := &subscription{session: s, filter: c.filter}
		tree.subscribe(sub)
		if got := len(tree.match(nil, c.topic, nil)) == 1; got != c.want {
			t.Errorf("the tree matches %q with %q: %v", c.filter, c.topic, got)
		}
		tree.unsubscribe(sub)
		if !tree.root.empty() {
			t.Errorf("%q leaves something behind", c.filter)
		}
		tree.keep(&message{topic: c.topic}, math.MaxInt, math.MaxInt64, unheard)
		n := 0
		tree.kept(c.filter, func(*message) { n++ })
		if (n == 1) != c.want {
			t.Errorf("retained on %q, %q finds %d", c.topic, c.filter, n)
		}
		tree.clear(c.topic, unheard)
		if !tree.root.empty() || tree.retained != 0 || tree.octets != 0 {
			t.Errorf("%q leaves something behind", c.topic)
		}
	}
}

// TestTreeAgreesWithMatches compares the tree with the plain function on filters and topics at random.
// unheard is for who need not know what was retained before.
func unheard(*message) {}

func TestTreeAgreesWithMatches(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(levels ...string) string {
		parts := make([]string, 1+r.IntN(4))
		for i := range parts {
			parts[i] = levels[r.IntN(len(levels))]
		}
		return strings.Join(parts, "/")
	}
	var tree topics
	filters := map[string]bool{}
	for i := range 200 {
		f := word("a", "b", "+", "", "$x")
		if r.IntN(3) == 0 {
			f += "/#"
		}
		if !filters[f] {
			filters[f] = true
			tree.subscribe(&subscription{session: &session{number: uint64(i)}, filter: f})
		}
	}
	for range 2000 {
		topic := word("a", "b", "c", "", "$x")
		want := 0
		for f := range filters {
			if matches(f, topic) {
				want++
			}
		}
		if got := len(tree.match(nil, topic, nil)); got != want {
			t.Fatalf("%q: the tree finds %d, want %d", topic, got, want)
		}
	}
}

func TestOverlappingSubscriptionsAreMerged(t *testing.T) {
	var tree topics
	one, two := &session{number: 1}, &session{number: 2}
	for _, s := range []*subscription{
		{session: one, filter: "a/+", qos: 0, id: 1}, {session: two, filter: "#", qos: 1}, {session: one, filter: "a/b", qos: 2, id: 2, retainAsPublished: true},
		{session: one, filter: "a/#", qos: 1, noLocal: true, id: 3},
	} {
		tree.subscribe(s)
	}
	got := tree.match(nil, "a/b", one)
	if len(got) != 2 || got[0].session != one || got[0].qos != 2 || !got[0].retain || got[1].session != two {
		t.Fatalf("%+v", got)
	}
	if slices.Sort(got[0].ids); !slices.Equal(got[0].ids, []uint32{1, 2}) {
		t.Errorf("identifiers %v", got[0].ids)
	}
}

func TestRetainedMessagesAreBounded(t *testing.T) {
	var tree topics
	keep := func(topic, payload string) bool {
		return tree.keep(&message{topic: topic, payload: []byte(payload)}, 2, 1000, unheard)
	}
	if !keep("a", "1") || !keep("b", "2") || keep("c/d", "3") || !keep("a", "4") || keep("b", strings.Repeat("x", 1000)) {
		t.Errorf("%d messages of %d octets", tree.retained, tree.octets)
	}
	levels, cleared := len(tree.root.next), ""
	tree.clear("b", func(old *message) { cleared = string(old.payload) })
	if levels != 2 || cleared != "2" || !keep("c/d", "5") {
		t.Errorf("%d messages of %d octets", tree.retained, tree.octets)
	}
}
