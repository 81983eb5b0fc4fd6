package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/drawbridge/drawbridge/config"
)

// pattern is a resource or topic with captures. In an uplink's resource {device} is the device's own name.
type pattern config.Pattern

// maxSegments bounds resources, topics and patterns alike.
const maxSegments = 64

// parsePattern reads an absolute path such as "/sensors/{kind}" or "/sensors/{all...}".
func parsePattern(text string) (pattern, error) {
	p, err := config.ParsePattern(text)
	if err == nil && len(p) > maxSegments {
		err = fmt.Errorf("it has more than %d segments", maxSegments)
	}
	return pattern(p), err
}

// isName tells whether s may name a capture.
func isName(s string) bool {
	for i, r := range s {
		if !(r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || i > 0 && '0' <= r && r <= '9') {
			return false
		}
	}
	return s != ""
}

// plain tells what keeps s from being part of a topic name: wildcards, controls, bytes that are not UTF-8
// (MQTT 5 sections 1.5.4 and 4.7.1), and the segments "." and ".." that platforms with URLs would resolve.
func plain(s string) error {
	if s == "." || s == ".." {
		return fmt.Errorf("%q does not stand for a name", s)
	}
	if !utf8.ValidString(s) {
		return errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if r == '+' || r == '#' || r < 0x20 || 0x7f <= r && r < 0xa0 {
			return fmt.Errorf("it contains %q", r)
		}
	}
	return nil
}

// captures holds what the captures of a pattern matched.
type captures struct {
	p     pattern
	parts []string
}

// get gives what the capture called name matched.
func (c captures) get(name string) (string, bool) {
	for i, s := range c.p {
		if s.Name == name && name != "" {
			if s.Rest {
				return strings.Join(c.parts[i:], "/"), true
			}
			return c.parts[i], true
		}
	}
	return "", false
}

// match tells whether p matches the segments of a resource or topic. {device} matches self alone, unless that is empty.
func (p pattern) match(parts []string, self string) bool {
	if len(parts) < len(p) || len(parts) > len(p) && !p[len(p)-1].Rest {
		return false
	}
	for i, s := range p {
		switch {
		case s.Rest:
			return !slices.Contains(parts[i:], "")
		case s.Name == "device" && self != "":
			if parts[i] != self {
				return false
			}
		case s.Name != "":
			if parts[i] == "" {
				return false
			}
		case parts[i] != s.Text:
			return false
		}
	}
	return true
}

// rank orders patterns: of two that match the same resource the one with the lesser rank is more specific,
// and equal ranks mean that neither is. Each segment adds a letter, the more specific the earlier in the alphabet.
func (p pattern) rank() string {
	b := make([]byte, len(p))
	for i, s := range p {
		switch {
		case s.Rest:
			b[i] = 'c'
		case s.Name != "":
			b[i] = 'b'
		default:
			b[i] = 'a'
		}
	}
	return string(b)
}

// overlaps tells whether some resource matches both p and q.
func (p pattern) overlaps(q pattern) bool {
	for i := 0; ; i++ {
		pEnd, qEnd := i >= len(p), i >= len(q)
		switch {
		case pEnd || qEnd:
			return pEnd && qEnd
		case p[i].Rest || q[i].Rest:
			return true
		case p[i].Name == "" && q[i].Name == "" && p[i].Text != q[i].Text:
			return false
		}
	}
}

// filter gives the MQTT topic filter that matches what p matches (and, for a tail, the level above it).
func (p pattern) filter() string {
	levels := make([]string, len(p))
	for i, s := range p {
		switch {
		case s.Rest:
			levels[i] = "#"
		case s.Name != "":
			levels[i] = "+"
		default:
			levels[i] = s.Text
		}
	}
	return strings.Join(levels, "/")
}

// covers tells whether every topic that filter b matches is matched by filter a too (MQTT 5 section 4.7).
func covers(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	for i, level := range as {
		if level == "#" {
			return true
		}
		if i >= len(bs) || bs[i] == "#" || level != "+" && level != bs[i] {
			return false
		}
	}
	return len(as) == len(bs)
}

// template is text with captures to be filled in. Its levels are those of the text: no value can add one,
// except the tail of a resource, which is several levels by its nature.
type template []piece

type piece struct {
	text string // what stands there, or the name of what is to be filled in
	fill bool
	tail bool // the value may hold slashes
}

// parseTemplate reads text. kinds gives the names that may be filled in, true for those that hold several segments.
func parseTemplate(text string, kinds map[string]bool) (template, error) {
	var t template
	for _, level := range strings.Split(text, "/") {
		if level == "" {
			return nil, errors.New("has an empty level")
		}
	}
	for text != "" {
		before, after, found := strings.Cut(text, "{")
		if before != "" {
			if err := plain(before); err != nil || strings.Contains(before, "}") {
				return nil, fmt.Errorf("%q cannot be part of it", before)
			}
			t = append(t, piece{text: before})
		}
		if !found {
			break
		}
		inner, after, closed := strings.Cut(after, "}")
		name := strings.TrimSuffix(inner, "...")
		if !closed || !isName(name) {
			return nil, fmt.Errorf("{%s: what is filled in is written {name}", inner)
		}
		tail, known := kinds[name]
		if !known {
			return nil, &unknownCapture{name}
		}
		t = append(t, piece{text: name, fill: true, tail: tail})
		text = after
	}
	return t, nil
}

// unknownCapture is the error of a template that names what nothing captures.
type unknownCapture struct{ name string }

func (e *unknownCapture) Error() string { return fmt.Sprintf("{%s} is captured nowhere", e.name) }

// fill puts values in place. A value that would change the topic's levels or be a wildcard is refused,
// as is one that begins a topic with "$": those topics are the platform's own.
func (t template) fill(value func(name string) (string, bool)) (string, error) {
	var b strings.Builder
	for i, p := range t {
		if !p.fill {
			b.WriteString(p.text)
			continue
		}
		v, ok := value(p.text)
		if !ok {
			return "", fmt.Errorf("{%s} has no value", p.text)
		}
		if err := fillable(v, p.tail); err != nil {
			return "", fmt.Errorf("{%s} is %q: %w", p.text, v, err)
		}
		if i == 0 && strings.HasPrefix(v, "$") {
			return "", fmt.Errorf("{%s} is %q: a topic cannot begin with it", p.text, v)
		}
		b.WriteString(v)
	}
	return b.String(), nil
}

func fillable(v string, tail bool) error {
	parts := []string{v}
	if tail {
		parts = strings.Split(v, "/")
	}
	for _, part := range parts {
		if part == "" {
			return errors.New("a level of a topic cannot be empty")
		}
		if strings.Contains(part, "/") {
			return errors.New("it contains '/'")
		}
		if err := plain(part); err != nil {
			return err
		}
	}
	return nil
}
