package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pattern is a resource pattern of a rule, such as "/sensors/{kind}" or "/sensors/{rest...}", cut at the slashes.
type Pattern []Segment

// Segment is one part of a pattern between slashes: literal text, or a capture of one segment, or of all the rest.
type Segment struct {
	Text string // of a literal
	Name string // of a capture; empty for a literal
	Rest bool   // "{name...}": one or more segments; only at the end
}

// ParsePattern reads a resource pattern: absolute, without empty segments, each segment either literal or wholly a capture.
func ParsePattern(s string) (Pattern, error) {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok {
		return nil, errors.New(`a resource begins with "/"`)
	}
	var p Pattern
	var names []string
	parts := strings.Split(rest, "/")
	for i, part := range parts {
		seg, err := parseSegment(part)
		switch {
		case err != nil:
			return nil, err
		case seg.Rest && i < len(parts)-1:
			return nil, fmt.Errorf("%q stands for all the rest, so it is the last", part)
		case seg.Name != "" && slices.Contains(names, seg.Name):
			return nil, fmt.Errorf("{%s} is there twice", seg.Name)
		}
		names = append(names, seg.Name)
		p = append(p, seg)
	}
	return p, nil
}

// covers tells whether the pattern can stand for the resource, whatever device it is of.
func (p Pattern) covers(resource string) bool {
	parts := strings.Split(strings.TrimPrefix(resource, "/"), "/")
	for i, seg := range p {
		switch {
		case i >= len(parts):
			return false
		case seg.Rest:
			return true
		case seg.Name == "" && seg.Text != parts[i]:
			return false
		}
	}
	return len(parts) == len(p)
}

func parseSegment(part string) (Segment, error) {
	name, open := strings.CutPrefix(part, "{")
	name, closed := strings.CutSuffix(name, "}")
	switch {
	case part == "":
		return Segment{}, errors.New(`there is nothing between two "/"`)
	case !open && !closed && !strings.ContainsAny(part, "{}+#\x00"):
		return Segment{Text: part}, nil
	case strings.ContainsAny(part, "+#\x00"):
		return Segment{}, fmt.Errorf(`%q: "+" and "#" do not stand here; {name} is any one part and {name...} all the rest`, part)
	case !open || !closed:
		return Segment{}, fmt.Errorf("%q: a placeholder fills the whole part between two slashes", part)
	}
	name, rest := strings.CutSuffix(name, "...")
	for i, r := range name {
		if !(r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || i > 0 && '0' <= r && r <= '9') {
			return Segment{}, fmt.Errorf("%q: a placeholder's name is made of letters, digits and _", part)
		}
	}
	if name == "" {
		return Segment{}, fmt.Errorf("%q: the placeholder has no name", part)
	}
	return Segment{Name: name, Rest: rest}, nil
}

// CheckFilter tells what is wrong with an MQTT topic filter (MQTT 5 section 4.7.1) that may hold {device}.
func CheckFilter(s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	if len(s) > 65535 || strings.ContainsRune(s, 0) {
		return errors.New("it is no topic filter")
	}
	parts := strings.Split(s, "/")
	for i, part := range parts {
		switch {
		case part == "#" && i < len(parts)-1:
			return errors.New(`"#" is the last level`)
		case part != "#" && strings.Contains(part, "#"), part != "+" && strings.Contains(part, "+"):
			return fmt.Errorf(`%q: "+" and "#" fill a whole level`, part)
		case part != "{device}" && strings.ContainsAny(part, "{}"):
			return fmt.Errorf(`%q: only {device} can stand here, filling a whole level`, part)
		}
	}
	return nil
}
