package hwcrypto

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// URI names a key. It never holds a secret: a PIN is named by where it stands.
//
//	pkcs11:token=gw;object=identity?pin-source=file:/etc/drawbridge/pin    RFC 7512
//	tpm:name=hub;device=/dev/tpmrm0    a key blob of that name in the state directory
//	tpm:handle=0x81010002              a persistent handle
//	file:dev.key                       a software key, PEM (PKCS#8)
type URI struct {
	Scheme string // "pkcs11", "tpm", "file"

	// pkcs11. What is empty matches everything; what is given must match, all of it.
	Token, Manufacturer, Model, Serial                      string
	SlotDescription, SlotManufacturer                       string
	LibraryDescription, LibraryManufacturer, LibraryVersion string
	SlotID                                                  *uint
	Object                                                  string
	ID                                                      []byte
	Type                                                    string // "private", "secret-key" or empty
	PINSource                                               string // "file:/path" or "credential:NAME"
	ModuleName                                              string
	ModulePath                                              string

	// tpm: one of Name and Handle.
	Name   string
	Handle uint32
	Device string // "/dev/tpmrm0", "unix:/path"; empty: /dev/tpmrm0

	// file
	Path string // absolute after ParseURI
}

// ParseURI reads a key URI strictly: unknown and repeated attributes are errors, and so is a PIN in the URI.
// Relative paths are relative to the directory base.
func ParseURI(s, base string) (URI, error) {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok {
		return URI{}, fmt.Errorf("key URI %q: want pkcs11:…, tpm:… or file:…", s)
	}
	u := URI{Scheme: scheme}
	var err error
	switch scheme {
	case "pkcs11":
		err = u.parsePKCS11(rest, base)
	case "tpm":
		err = u.parseTPM(rest, base)
	case "file":
		u.Path, err = parsePath(rest, base)
	default:
		err = fmt.Errorf("unknown scheme %q: want pkcs11, tpm or file", scheme)
	}
	if err != nil {
		return URI{}, fmt.Errorf("key URI: %w", err)
	}
	return u, nil
}

// String gives the URI in one canonical form.
func (u URI) String() string {
	var b strings.Builder
	b.WriteString(u.Scheme + ":")
	switch u.Scheme {
	case "file":
		b.WriteString(u.Path)
		return b.String()
	case "tpm":
		if u.Name != "" {
			b.WriteString("name=" + u.Name)
		} else {
			fmt.Fprintf(&b, "handle=%#08x", u.Handle)
		}
		if u.Device != "" {
			b.WriteString(";device=" + escape(u.Device, "/:"))
		}
		return b.String()
	}
	sep := ""
	for _, a := range u.attributes() {
		if *a.to == "" {
			continue
		}
		b.WriteString(sep + a.name + "=" + escape(*a.to, ":[]@!$'()*+,=&"))
		sep = ";"
	}
	if u.SlotID != nil {
		fmt.Fprintf(&b, "%sslot-id=%d", sep, *u.SlotID)
		sep = ";"
	}
	if len(u.ID) > 0 {
		b.WriteString(sep + "id=")
		for _, c := range u.ID {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	sep = "?"
	for _, a := range u.queries() {
		if *a.to == "" {
			continue
		}
		b.WriteString(sep + a.name + "=" + escape(*a.to, ":[]@!$'()*+,=/?|"))
		sep = "&"
	}
	return b.String()
}

type attribute struct {
	name string
	to   *string
}

func (u *URI) attributes() []attribute {
	return []attribute{
		{"token", &u.Token}, {"manufacturer", &u.Manufacturer}, {"model", &u.Model}, {"serial", &u.Serial},
		{"slot-description", &u.SlotDescription}, {"slot-manufacturer", &u.SlotManufacturer},
		{"library-description", &u.LibraryDescription}, {"library-manufacturer", &u.LibraryManufacturer}, {"library-version", &u.LibraryVersion},
		{"object", &u.Object}, {"type", &u.Type},
	}
}

func (u *URI) queries() []attribute {
	return []attribute{{"pin-source", &u.PINSource}, {"module-name", &u.ModuleName}, {"module-path", &u.ModulePath}}
}

func (u *URI) parsePKCS11(s, base string) error {
	path, query, hasQuery := strings.Cut(s, "?")
	own := map[string]func(string) error{
		"slot-id": func(v string) error {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return fmt.Errorf("slot-id %q is not a number", v)
			}
			id := uint(n)
			u.SlotID = &id
			return nil
		},
		"id": func(v string) error { u.ID = []byte(v); return nil },
	}
	if err := parseList(path, ";", ":[]@!$'()*+,=&", u.attributes(), own); err != nil {
		return err
	}
	if hasQuery {
		refuse := map[string]func(string) error{"pin-value": func(string) error {
			return fmt.Errorf("pin-value is refused: a secret does not stand in a URI; put the PIN into a file and write pin-source=file:/path")
		}}
		if err := parseList(query, "&", ":[]@!$'()*+,=/?|;", u.queries(), refuse); err != nil {
			return err
		}
	}
	if u.Object == "" && len(u.ID) == 0 {
		return fmt.Errorf("object or id is missing: which key of the token?")
	}
	if u.Type != "" && u.Type != "private" && u.Type != "secret-key" {
		return fmt.Errorf("type %q is no key: want private or secret-key", u.Type)
	}
	if u.ModulePath != "" && !filepath.IsAbs(u.ModulePath) {
		u.ModulePath = filepath.Join(base, u.ModulePath)
	}
	if strings.ContainsAny(u.ModuleName, "/\x00") {
		return fmt.Errorf("module-name %q is a path: use module-path", u.ModuleName)
	}
	switch kind, rest, _ := strings.Cut(u.PINSource, ":"); {
	case u.PINSource == "":
	case kind == "file":
		p, err := parsePath(rest, base)
		if err != nil {
			return fmt.Errorf("pin-source: %w", err)
		}
		u.PINSource = "file:" + p
	case kind == "credential":
		if !isName(rest) {
			return fmt.Errorf("pin-source: %q is not the name of a credential", rest)
		}
	default:
		return fmt.Errorf("pin-source %q: want file:/path or credential:NAME", u.PINSource)
	}
	return nil
}

func (u *URI) parseTPM(s, base string) error {
	own := map[string]func(string) error{
		"name": func(v string) error {
			if !isName(v) {
				return fmt.Errorf("name %q: want letters, digits, '.', '_', '-', at most 64, and no '.' first", v)
			}
			u.Name = v
			return nil
		},
		"handle": func(v string) error {
			n, err := strconv.ParseUint(v, 0, 32)
			if err != nil || n>>24 != 0x81 {
				return fmt.Errorf("handle %q is not a persistent handle: want 0x81000000 to 0x81ffffff", v)
			}
			u.Handle = uint32(n)
			return nil
		},
		"device": func(v string) error {
			p, isSocket := strings.CutPrefix(v, "unix:")
			p, err := parsePath(p, base)
			if err != nil {
				return fmt.Errorf("device: %w", err)
			}
			u.Device = p
			if isSocket {
				u.Device = "unix:" + p
			}
			return nil
		},
	}
	if err := parseList(s, ";", ":/@+,", nil, own); err != nil {
		return err
	}
	if (u.Name == "") == (u.Handle == 0) {
		return fmt.Errorf("want one of name=… and handle=0x81…")
	}
	return nil
}

// parseList reads name=value pairs; bare are the reserved characters that may stand unescaped in a value.
func parseList(s, sep, bare string, plain []attribute, own map[string]func(string) error) error {
	var seen []string
	for pair := range strings.SplitSeq(s, sep) {
		name, raw, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("%q: want name=value", pair)
		}
		set := own[name]
		if i := slices.IndexFunc(plain, func(a attribute) bool { return a.name == name }); i >= 0 {
			set = func(v string) error { *plain[i].to = v; return nil }
		}
		if set == nil {
			return fmt.Errorf("unknown attribute %q", name)
		}
		if slices.Contains(seen, name) {
			return fmt.Errorf("attribute %q stands twice", name)
		}
		seen = append(seen, name)
		v, err := unescape(raw, bare)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if v == "" {
			return fmt.Errorf("%s is empty", name)
		}
		if strings.ContainsRune(v, 0) && name != "id" {
			return fmt.Errorf("%s holds a zero octet", name)
		}
		if err := set(v); err != nil {
			return err
		}
	}
	return nil
}

func parsePath(s, base string) (string, error) {
	if after, ok := strings.CutPrefix(s, "//"); ok { // file:///path, RFC 8089
		if !strings.HasPrefix(after, "/") {
			return "", fmt.Errorf("path %q names a host", s)
		}
		s = after
	}
	switch {
	case s == "":
		return "", fmt.Errorf("path is empty")
	case strings.ContainsRune(s, 0):
		return "", fmt.Errorf("path %q holds a zero octet", s)
	case filepath.IsAbs(s):
		return filepath.Clean(s), nil
	}
	return filepath.Join(base, s), nil
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// isName tells whether s may name a file in a directory of ours, or a credential.
func isName(s string) bool {
	return s != "" && len(s) <= 64 && s[0] != '.' && !strings.ContainsFunc(s, func(r rune) bool {
		return r > 127 || !isUnreserved(byte(r)) || r == '~'
	})
}

func unescape(s, bare string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+3 > len(s) {
				return "", fmt.Errorf("%q ends within a percent escape", s)
			}
			d, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return "", fmt.Errorf("%q is no percent escape", s[i:i+3])
			}
			b.WriteByte(d[0])
			i += 2
		case isUnreserved(c), strings.IndexByte(bare, c) >= 0:
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("character %q must be written %%%02X", c, c)
		}
	}
	return b.String(), nil
}

func escape(s, bare string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; isUnreserved(c) || strings.IndexByte(bare, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
