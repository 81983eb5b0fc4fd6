package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// decoder fills structs from nodes. The keys of a struct are its toml tags; fields without a tag, or with "-", are not keys.
// A struct that is embedded without a tag lends its keys to the outer one.
type decoder struct {
	dir   string // of the file, for relative paths
	kinds Kinds
	errs  []*Error

	entries map[any]*node // pointers to decoded structs
	paths   []named
	secrets []named
}

// named is a file or secret that the file names.
type named struct {
	pos   Pos
	key   string
	value string
}

func (d *decoder) errorAt(pos Pos, hint, format string, args ...any) {
	d.errs = append(d.errs, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// defaulter is implemented by entries that are not zero where the file is silent.
type defaulter interface{ defaults(name string) }

var (
	durationType  = reflect.TypeFor[Duration]()
	sizeType      = reflect.TypeFor[Size]()
	pathType      = reflect.TypeFor[Path]()
	secretType    = reflect.TypeFor[SecretRef]()
	posType       = reflect.TypeFor[Pos]()
	componentType = reflect.TypeFor[*Component]()
	textType      = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// fields gives the struct's fields by key, through embedded structs.
func fields(v reflect.Value, into map[string]reflect.Value) map[string]reflect.Value {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case tag == "-":
		case tag != "":
			into[tag] = v.Field(i)
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			fields(v.Field(i), into)
		}
	}
	return into
}

// table fills the struct v from n. where names the table for messages: "[spool]"; empty for the file itself.
func (d *decoder) table(n *node, v reflect.Value, where string) {
	if p := v.FieldByName("Pos"); p.IsValid() && p.Type() == posType {
		p.Set(reflect.ValueOf(n.pos))
	}
	if v.CanAddr() {
		d.entries[v.Addr().Interface()] = n
	}
	known := fields(v, map[string]reflect.Value{})
	for _, key := range n.keys {
		child := n.fields[key]
		f, ok := known[key]
		if !ok {
			d.unknown(n, key, child, sortedKeys(known), where)
			continue
		}
		if !d.value(child, f, key) {
			n.blame(key)
		}
	}
}

// unknown reports a key that the table does not have.
func (d *decoder) unknown(n *node, key string, child *node, known []string, where string) {
	n.blame(key)
	hint := ""
	if s := similar(key, known); s != "" {
		hint = fmt.Sprintf("did you mean %q?", s)
		n.blame(s) // that it is missing is the same mistake
	} else if where != "" && len(known) <= 12 {
		hint = "its keys are " + strings.Join(known, ", ")
	}
	switch {
	case where != "":
		d.errorAt(child.key, hint, "unknown key %q in %s", key, where)
	case child.shape == isTable || child.tables:
		d.errorAt(child.key, hint, "unknown table %q", key)
	default:
		d.errorAt(child.key, hint, "unknown key %q outside of any table", key)
	}
}

// value fills v from n and tells whether it could.
func (d *decoder) value(n *node, v reflect.Value, key string) bool {
	wrong := func(expected string) bool {
		d.errorAt(n.pos, "", "%s: expected %s, got %s", key, expected, n.shape)
		return false
	}
	bad := func(what string, err error, hint string) bool {
		d.errorAt(n.pos, hint, "%s: %s %q: %v", key, what, n.text, err)
		return false
	}
	switch v.Type() {
	case durationType:
		if n.shape != isText {
			return wrong(`a duration such as "30s"`)
		}
		x, err := parseDuration(n.text)
		if err != nil {
			return bad("bad duration", err, "")
		}
		v.SetInt(int64(x))
		return true
	case sizeType:
		if n.shape != isText {
			return wrong(`a size such as "256MiB"`)
		}
		x, err := parseSize(n.text)
		if err != nil {
			return bad("bad size", err, "")
		}
		v.SetInt(int64(x))
		return true
	case pathType:
		if n.shape != isText {
			return wrong("a path in quotes")
		}
		if strings.ContainsRune(n.text, 0) {
			return bad("bad path", errNUL, "")
		}
		v.SetString(string(absolute(n.text, d.dir)))
		d.paths = append(d.paths, named{n.pos, key, v.String()})
		return true
	case secretType:
		if n.shape != isText {
			return wrong("a secret's name: " + secretForms)
		}
		x, err := parseSecretRef(n.text, d.dir)
		if err != nil {
			// Not the text: it may be the secret itself.
			d.errorAt(n.pos, "write "+secretForms, "%s: %v", key, err)
			return false
		}
		v.SetString(string(x))
		d.secrets = append(d.secrets, named{n.pos, key, v.String()})
		return true
	}
	if v.CanAddr() && v.Addr().Type().Implements(textType) {
		if n.shape != isText {
			return wrong("text in quotes")
		}
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text)); err != nil {
			d.errorAt(n.pos, "", "%s: %v", key, err)
			return false
		}
		return true
	}
	return d.plain(n, v, key, wrong)
}

// plain fills v, of one of Go's own types.
func (d *decoder) plain(n *node, v reflect.Value, key string, wrong func(string) bool) bool {
	switch v.Kind() {
	case reflect.String:
		if n.shape != isText {
			return wrong("text in quotes")
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.shape != isBool {
			return wrong("true or false")
		}
		v.SetBool(n.text == "true")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n.shape != isInteger {
			if n.shape == isFloat {
				d.errorAt(n.pos, "", "%s: expected a whole number, got %s", key, n.text)
				return false
			}
			return wrong("a number")
		}
		x, err := strconv.ParseInt(n.text, 0, 64)
		switch {
		case err != nil, v.CanInt() && v.OverflowInt(x), v.CanUint() && v.OverflowUint(uint64(x)) && x >= 0:
			d.errorAt(n.pos, "", "%s: the number %s is too large", key, n.text)
			return false
		case v.CanUint() && x < 0:
			d.errorAt(n.pos, "", "%s: the number cannot be negative", key)
			return false
		case v.CanUint():
			v.SetUint(uint64(x))
		default:
			v.SetInt(x)
		}
	case reflect.Float32, reflect.Float64:
		if n.shape != isFloat && n.shape != isInteger {
			return wrong("a number")
		}
		x, err := strconv.ParseFloat(strings.ReplaceAll(n.text, "_", ""), 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
			d.errorAt(n.pos, "", "%s: bad number %s", key, n.text)
			return false
		}
		v.SetFloat(x)
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if df, ok := p.Interface().(defaulter); ok {
			df.defaults(key)
		}
		v.Set(p)
		return d.value(n, p.Elem(), key)
	case reflect.Struct:
		if n.shape != isTable {
			return wrong("a table")
		}
		d.table(n, v, "["+key+"]")
	case reflect.Slice:
		return d.list(n, v, key, wrong)
	case reflect.Map:
		return d.byName(n, v, key, wrong)
	default:
		panic("config: no TOML value fills a " + v.Type().String())
	}
	return true
}

func (d *decoder) list(n *node, v reflect.Value, key string, wrong func(string) bool) bool {
	if n.shape != isList {
		elem := v.Type().Elem()
		switch {
		case elem.Kind() == reflect.String && n.shape == isText:
			d.errorAt(n.pos, fmt.Sprintf("write %s = [%q]", key, n.text), "%s: expected a list, got text", key)
		case elem.Kind() == reflect.Pointer && n.shape == isTable:
			d.errorAt(n.pos, fmt.Sprintf("two pairs of brackets: [[%s]]", key), "%s: expected a list of tables, got one table", key)
		default:
			return wrong("a list")
		}
		return false
	}
	if v.Type().Elem().Kind() == reflect.Pointer {
		key = "[" + key + "]" // as its tables are headed
	}
	ok := true
	s := reflect.MakeSlice(v.Type(), 0, len(n.items))
	for _, item := range n.items {
		e := reflect.New(v.Type().Elem()).Elem()
		if d.value(item, e, key) {
			s = reflect.Append(s, e)
		} else {
			ok = false
		}
	}
	v.Set(s)
	return ok
}

// byName fills a map whose keys are the names of tables, or plain keys.
func (d *decoder) byName(n *node, v reflect.Value, key string, wrong func(string) bool) bool {
	if n.shape == isList && n.tables {
		d.errorAt(n.pos, fmt.Sprintf("write [%s.NAME]", key), "%s: each has a name of its own", key)
		return false
	}
	if n.shape != isTable {
		return wrong("a table")
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.keys))
	elem := v.Type().Elem()
	for _, name := range n.keys {
		child := n.fields[name]
		if elem.Kind() == reflect.Pointer && child.shape != isTable {
			d.errorAt(child.key, fmt.Sprintf("write [%s.NAME] above", key), "[%s] holds tables that have names, not the key %q", key, name)
			continue
		}
		e := reflect.New(elem).Elem()
		switch {
		case elem == componentType:
			e.Set(reflect.ValueOf(d.component(child, key, name)))
		case elem.Kind() == reflect.Pointer:
			p := reflect.New(elem.Elem())
			if df, ok := p.Interface().(defaulter); ok {
				df.defaults(name)
			}
			e.Set(p)
			d.table(child, p.Elem(), fmt.Sprintf("[%s.%s]", key, name))
		default:
			if !d.value(child, e, name) {
				continue
			}
		}
		m.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), e)
	}
	v.Set(m)
	return true
}

// component fills a listener or connector by its type.
func (d *decoder) component(n *node, role, name string) *Component {
	c := &Component{Pos: n.pos, Name: name}
	d.entries[c] = n
	kinds := d.kinds.Listeners
	if role == "connector" {
		kinds = d.kinds.Connectors
	}
	known := sortedKeys(kinds)
	t := n.child("type")
	switch {
	case t == nil:
		hint := "one of " + quoted(known)
		if s := similar("type", n.keys); s != "" {
			hint = fmt.Sprintf("did you mean %q by %q?", "type", s)
		}
		d.errorAt(n.pos, hint, "%s %q has no type", role, name)
		return c
	case t.shape != isText:
		d.errorAt(t.pos, "", "type: expected text in quotes, got %s", t.shape)
		return c
	}
	c.Type = t.text
	fresh, ok := kinds[c.Type]
	if !ok {
		hint := "one of " + quoted(known)
		if s := similar(c.Type, known); s != "" {
			hint = fmt.Sprintf("did you mean %q?", s)
		}
		d.errorAt(t.pos, hint, "there is no %s of type %q", role, c.Type)
		return c
	}
	c.Own = fresh()
	rest := *n
	rest.keys = nil
	budget := n.child("budget")
	if role != "connector" || budget != nil && budget.shape != isTable {
		budget = nil // it is no table that we know
	}
	for _, k := range n.keys {
		if k != "type" && (k != "budget" || budget == nil) {
			rest.keys = append(rest.keys, k)
		}
	}
	if budget != nil {
		d.table(budget, reflect.ValueOf(&c.Budget).Elem(), fmt.Sprintf("[%s.%s.budget]", role, name))
	}
	d.table(&rest, reflect.ValueOf(c.Own).Elem(), fmt.Sprintf("[%s.%s]", role, name))
	n.bad = rest.bad
	return c
}
