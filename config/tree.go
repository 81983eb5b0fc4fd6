package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// shape is what kind of TOML value a node is.
type shape uint8

const (
	isTable shape = iota
	isList
	isText
	isInteger
	isFloat
	isBool
	isDate
)

// String gives the words with which a value is called in messages.
func (s shape) String() string {
	return [...]string{"a table", "a list", "text", "a number", "a number", "true or false", "a date"}[s]
}

// node is one value of the file and where it stands.
type node struct {
	shape shape
	key   Pos    // where the key or header that names it begins
	pos   Pos    // where the value begins; of a table with a header, where the header begins
	text  string // of scalars: the decoded text, or the literal

	keys   []string // of tables, in the order of the file
	fields map[string]*node
	items  []*node // of lists

	closed bool // an inline table, a list of values, or a table that its header has opened: may not be opened again
	tables bool // a list made by [[headers]]
	dotted bool // made by a dotted key

	bad map[string]bool // of tables: keys that have been complained about already
}

// child gives the value at key, or nil.
func (n *node) child(key string) *node {
	if n == nil || n.shape != isTable {
		return nil
	}
	return n.fields[key]
}

func (n *node) add(key string, c *node) {
	if n.fields == nil {
		n.fields = map[string]*node{}
	}
	n.keys = append(n.keys, key)
	n.fields[key] = c
}

// blame notes that key has been complained about, so that consequences of the same mistake are not reported too.
func (n *node) blame(key string) {
	if n.bad == nil {
		n.bad = map[string]bool{}
	}
	n.bad[key] = true
}

// source is the text of the file with what is needed to tell positions.
type source struct {
	data  []byte
	lines []int // offset at which each line begins

	offset int // of the last question, and
	last   Pos // its answer: the next is mostly further on in the same line
}

func newSource(data []byte) *source {
	s := &source{data: data, lines: []int{0}, last: Pos{1, 1}}
	for i, b := range data {
		if b == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

// pos gives line and column of an offset; columns count characters.
func (s *source) pos(offset int) Pos {
	line := sort.SearchInts(s.lines, offset+1) // the first line that begins after offset
	from, col := s.lines[line-1], 1
	if line == s.last.Line && offset >= s.offset {
		from, col = s.offset, s.last.Col
	}
	s.offset, s.last = offset, Pos{line, col + utf8.RuneCount(s.data[from:offset])}
	return s.last
}

// builder makes the tree from the parser's expressions, by the rules of TOML 1.0 on what may be defined twice.
type builder struct {
	src    *source
	base   int // offset of the parser's input in src
	parser *unstable.Parser
	root   *node
	here   *node // the table that the last header opened; nil where that header was wrong
	errs   []*Error
}

// parseTree reads all of data. After a mistake of syntax it goes on at the next line that looks like the start of something,
// so that several are found at once; broken tells that there was one.
func parseTree(data []byte) (root *node, errs []*Error, broken bool) {
	text := bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	b := &builder{src: newSource(text), root: &node{shape: isTable, pos: Pos{1, 1}, key: Pos{1, 1}}}
	b.here = b.root
	for b.base < len(text) {
		b.parser = new(unstable.Parser)
		b.parser.Reset(text[b.base:])
		for b.parser.NextExpression() {
			b.expression(b.parser.Expression())
		}
		err := b.parser.Error()
		if err == nil {
			break
		}
		broken = true
		offset := b.base
		msg, hint := err.Error(), ""
		if perr, ok := errors.AsType[*unstable.ParserError](err); ok {
			// As in the parser: a slice of the input is found again by its capacity.
			if o := cap(b.parser.Data()) - cap(perr.Highlight); o >= 0 && o <= len(b.parser.Data()) {
				offset += o
			}
		}
		msg, hint = plainSyntax(msg)
		b.errorAt(b.src.pos(offset), hint, "%s", msg)
		if line := bytes.TrimLeft(text[b.src.lines[b.src.pos(offset).Line-1]:], " \t"); bytes.HasPrefix(line, []byte("[")) {
			b.here = nil // what follows belongs to a table whose name is not known
		}
		b.base = b.resume(offset)
	}
	return b.root, b.errs, broken
}

// plainSyntax puts the parser's message into words that help a person who does not know TOML's grammar.
func plainSyntax(msg string) (plain, hint string) {
	switch {
	case strings.HasPrefix(msg, "unexpected character") && strings.HasSuffix(msg, "at start of value"),
		strings.HasPrefix(msg, "expected keyword"), msg == "strings must be quoted":
		return "this value is not understood", `text stands in quotes: key = "value"`
	case strings.HasPrefix(msg, "expected newline"):
		return "there is something more on the line after its end", "one key = value on a line"
	}
	return msg, ""
}

var starts = regexp.MustCompile(`(?m)^[ \t]*(?:\[{1,2}[A-Za-z0-9_."' \t-]+\]{1,2}[ \t]*(?:#.*)?\r?$|[A-Za-z_])`)

// resume gives the offset at which parsing goes on after a mistake at offset.
func (b *builder) resume(offset int) int {
	line := b.src.pos(offset).Line
	if line >= len(b.src.lines) {
		return len(b.src.data)
	}
	next := b.src.lines[line]
	if m := starts.FindIndex(b.src.data[next:]); m != nil {
		return next + m[0]
	}
	return len(b.src.data)
}

func (b *builder) errorAt(pos Pos, hint, format string, args ...any) {
	b.errs = append(b.errs, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// part is one part of a dotted key.
type part struct {
	name   string
	offset int // in src
	end    int
}

func (b *builder) parts(it unstable.Iterator) []part {
	var list []part
	for it.Next() {
		k := it.Node()
		o := b.base + int(k.Raw.Offset)
		list = append(list, part{string(k.Data), o, o + int(k.Raw.Length)})
	}
	return list
}

func (b *builder) expression(e *unstable.Node) {
	switch e.Kind {
	case unstable.Table, unstable.ArrayTable:
		b.header(b.parts(e.Key()), e.Kind == unstable.ArrayTable)
	case unstable.KeyValue:
		if b.here != nil {
			b.keyValue(b.here, e)
		}
	}
}

func dotted(list []part) string {
	names := make([]string, len(list))
	for i, p := range list {
		names[i] = p.name
	}
	return strings.Join(names, ".")
}

// header opens a table.
func (b *builder) header(list []part, many bool) {
	start := list[0].offset
	for start > 0 && strings.IndexByte(" \t[", b.src.data[start-1]) >= 0 {
		start--
	}
	start += bytes.IndexByte(b.src.data[start:], '[')
	pos := b.src.pos(start)

	at := b.root
	b.here = nil
	for i, p := range list[:len(list)-1] {
		next := at.fields[p.name]
		switch {
		case next == nil:
			next = &node{shape: isTable, key: pos, pos: pos}
			at.add(p.name, next)
		case next.shape == isList && next.tables:
			next = next.items[len(next.items)-1]
		case next.shape != isTable || next.closed && next.dotted:
			b.errorAt(pos, "", "%q is %s already, on line %d", dotted(list[:i+1]), next.shape, next.pos.Line)
			return
		}
		at = next
	}
	last := list[len(list)-1]
	old := at.fields[last.name]
	fresh := &node{shape: isTable, key: pos, pos: pos, closed: true}
	switch {
	case many && old == nil:
		at.add(last.name, &node{shape: isList, key: pos, pos: pos, tables: true, items: []*node{fresh}})
	case many && old.shape == isList && old.tables:
		old.items = append(old.items, fresh)
	case !many && old == nil:
		at.add(last.name, fresh)
	case !many && old.shape == isTable && !old.closed && !old.dotted:
		old.closed, old.key, old.pos = true, pos, pos
		fresh = old
	case many:
		b.errorAt(pos, fmt.Sprintf("one pair of brackets: [%s]", dotted(list)), "%q is %s already, on line %d", dotted(list), old.shape, old.pos.Line)
		return
	case old.tables:
		b.errorAt(pos, fmt.Sprintf("two pairs of brackets: [[%s]]", dotted(list)), "[%s] is a list, since line %d", dotted(list), old.pos.Line)
		return
	default:
		b.errorAt(pos, "", "[%s] is there twice: the first is on line %d", dotted(list), old.pos.Line)
		return
	}
	b.here = fresh
}

// keyValue adds what e says to the table.
func (b *builder) keyValue(table *node, e *unstable.Node) {
	list := b.parts(e.Key())
	key := b.src.pos(list[0].offset)
	for i, p := range list[:len(list)-1] {
		next := table.fields[p.name]
		switch {
		case next == nil:
			next = &node{shape: isTable, key: key, pos: key, dotted: true}
			table.add(p.name, next)
		case next.shape != isTable || !next.dotted || next.closed:
			b.errorAt(key, "", "%q is %s already, on line %d", dotted(list[:i+1]), next.shape, next.pos.Line)
			return
		}
		table = next
	}
	last := list[len(list)-1]
	if old := table.fields[last.name]; old != nil {
		b.errorAt(key, "", "%q is there twice: the first is on line %d", last.name, old.key.Line)
		return
	}
	// Lists carry no offset of their own: the value begins after the key, blanks and "=".
	start := last.end + len(b.src.data[last.end:]) - len(bytes.TrimLeft(b.src.data[last.end:], " \t="))
	n := b.value(e.Value(), start)
	n.key = key
	table.add(last.name, n)
}

// value makes a node of a parsed value; start is where it begins, for those that do not know it themselves.
func (b *builder) value(v *unstable.Node, start int) *node {
	n := &node{text: string(v.Data)}
	if v.Raw.Length > 0 {
		start = b.base + int(v.Raw.Offset)
	}
	n.pos = b.src.pos(start)
	n.key = n.pos
	switch v.Kind {
	case unstable.String:
		n.shape = isText
	case unstable.Integer:
		n.shape = isInteger
	case unstable.Float:
		n.shape = isFloat
	case unstable.Bool:
		n.shape = isBool
	case unstable.Array:
		n.shape, n.text, n.closed = isList, "", true
		for it := v.Children(); it.Next(); {
			n.items = append(n.items, b.value(it.Node(), start))
		}
	case unstable.InlineTable:
		n.shape, n.text = isTable, ""
		n.closed = true
		for it := v.Children(); it.Next(); {
			b.keyValue(n, it.Node())
		}
		n.dotted = true // with closed: no header and no dotted key may add to it
	default:
		n.shape = isDate
	}
	return n
}

// sortedKeys gives the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
