package config

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// checker holds the parts of the file against each other.
type checker struct {
	c      *Config
	root   *node
	errs   []*Error
	groups map[string]bool // that rules may name; nil where devices from outside may be in any
}

// at reports a mistake at key of an entry.
func (k *checker) at(entry any, key, format string, args ...any) *Error {
	e := &Error{Pos: k.c.At(entry, key), Msg: fmt.Sprintf(format, args...)}
	if n := k.c.entries[entry]; n == nil || !n.bad[key] {
		k.errs = append(k.errs, e)
	}
	return e
}

// item reports a mistake at one value of a list.
func (k *checker) item(entry any, key string, i int, format string, args ...any) *Error {
	e := k.at(entry, key, format, args...)
	if n := k.c.entries[entry].child(key); n != nil && i < len(n.items) {
		e.Pos = n.items[i].pos
	}
	return e
}

func (k *checker) oneOf(entry any, key, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	e := k.at(entry, key, "%s: %q is not one of %s", key, value, quoted(allowed))
	if m := similar(value, allowed); m != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", m)
	}
}

func (k *checker) check() {
	c := k.c
	k.gateway()
	for _, name := range sortedKeys(c.Keys) {
		k.key(name, c.Keys[name])
	}
	for _, name := range sortedKeys(c.Issuers) {
		i := c.Issuers[name]
		k.name(i, "issuer", name)
		if i.URL == "" {
			k.at(i, "url", "issuer %q has no url", name)
		} else if _, why := parseURL(i.URL, "https"); why != "" {
			k.at(i, "url", "url: %s", why)
		}
		if i.Audience == "" {
			k.at(i, "audience", "issuer %q has no audience", name).Hint = "the aud that its tokens for this gateway carry"
		}
	}
	if a := c.Ask; a != nil {
		if _, why := parseURL(a.URL, "https"); why != "" {
			k.at(a, "url", "url: %s", why)
		}
		if a.Key != "" && c.Keys[a.Key] == nil {
			k.noSuch(a, "key", -1, "key", a.Key, sortedKeys(c.Keys))
		}
		if a.Timeout <= 0 {
			k.at(a, "timeout", "timeout: nobody answers within %s", a.Timeout)
		}
	}
	if !k.open() {
		k.groups = c.groups()
	}
	k.devices()
	for _, name := range sortedKeys(c.Groups) {
		k.name(c.Groups[name], "group", name)
	}
	for _, a := range c.Allow {
		k.allow(a)
	}
	k.routes()
	for _, name := range sortedKeys(c.Tokens) {
		k.token(name, c.Tokens[name])
	}
	k.components(c.Listeners, "listener")
	k.components(c.Connectors, "connector")
}

func (k *checker) gateway() {
	c := k.c
	switch id := c.Gateway.ID; {
	case id == "":
		k.at(&c.Gateway, "id", "[gateway] has no id").Hint = `for example id = "plant7-gw1"; it is {gateway} in topics`
	case badName(id) != "":
		k.at(&c.Gateway, "id", "id: %q %s", id, badName(id))
	}
	if c.Gateway.State == "" {
		k.at(&c.Gateway, "state", "state: the path is empty")
	}
	k.oneOf(&c.Log, "level", c.Log.Level, "debug", "info", "warn", "error")
	k.oneOf(&c.Log, "format", c.Log.Format, "text", "json")
	if c.Status.Listen != "" {
		if why := badAddress(c.Status.Listen); why != "" {
			k.at(&c.Status, "listen", "listen: %q is not an address to listen on: %s", c.Status.Listen, why).Hint = `for example "127.0.0.1:8480", or "" for none`
		}
	}
	k.statusLogin()
	if n := len(c.Status.Socket); n == 0 || n > 107 {
		k.at(&c.Status, "socket", "socket: the path of a socket has 1 to 107 octets, not %d", n)
	}
	if c.Spool.MaxSize < 1<<20 {
		k.at(&c.Spool, "max_size", "max_size: %s is too little to store anything", c.Spool.MaxSize).Hint = "1MiB is the least"
	}
	if c.Spool.MaxAge <= 0 {
		k.at(&c.Spool, "max_age", "max_age: nothing could be stored for %s", c.Spool.MaxAge)
	}
	k.oneOf(&c.Spool, "full", c.Spool.Full, "refuse", "drop-oldest")
}

// statusLogin checks what an address that others can reach needs, and the names in it.
func (k *checker) statusLogin() {
	s := &k.c.Status
	if s.Key != "" && k.c.Keys[s.Key] == nil {
		k.noSuch(s, "key", -1, "key", s.Key, sortedKeys(k.c.Keys))
	}
	if s.Issuer != "" {
		if k.c.Issuers[s.Issuer] == nil {
			k.noSuch(s, "issuer", -1, "issuer", s.Issuer, sortedKeys(k.c.Issuers))
		}
		if s.ClientID == "" {
			k.at(s, "client_id", "[status] has an issuer but no client_id")
		}
	}
	if s.Listen == "" || badAddress(s.Listen) != "" || Loopback(s.Listen) {
		return
	}
	const hint = `or listen = "127.0.0.1:8480"`
	if s.Key == "" {
		k.at(s, "listen", "listen: others can reach %q, so [status] needs a key for TLS", s.Listen).Hint = hint
	}
	if s.Password == "" && s.Issuer == "" {
		k.at(s, "listen", "listen: others can reach %q, so [status] needs a password or an issuer", s.Listen).Hint = hint
	}
}

// badName says what keeps s from being the name of a gateway or device: names become levels of topics and parts of paths.
func badName(s string) string {
	switch {
	case s == "." || s == ".." || strings.HasPrefix(s, "$"):
		return "is not a name that can be given"
	case len(s) > 128:
		return "is longer than 128 octets"
	case !utf8.ValidString(s):
		return "is not UTF-8"
	}
	for _, r := range s {
		if strings.ContainsRune("/+#", r) || unicode.IsControl(r) || unicode.IsSpace(r) {
			return fmt.Sprintf("contains %q, which a name cannot", r)
		}
	}
	return ""
}

// ValidDevice tells whether s can be a device's name: a level of a topic, at most 128 octets, no blanks.
func ValidDevice(s string) bool { return s != "" && badName(s) == "" }

// name checks what names a table, a directory and a metric.
func (k *checker) name(entry any, role, name string) {
	plain := name != "" && len(name) <= 64
	for i, r := range name {
		plain = plain && (r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)) || i > 0 && strings.ContainsRune("-_.", r))
	}
	if !plain {
		k.at(entry, "name", "%s %q: a name is made of letters, digits, - and _, at most 64", role, name)
	}
}

func (k *checker) key(name string, key *Key) {
	k.name(key, "key", name)
	scheme, rest, _ := strings.Cut(key.URI, ":")
	switch {
	case key.URI == "":
		k.at(key, "uri", "key %q has no uri", name).Hint = `for example "tpm:name=` + name + `" or "file:` + name + `.key"`
		return
	case scheme != "pkcs11" && scheme != "tpm" && scheme != "file":
		k.at(key, "uri", "uri: a key's URI begins with \"pkcs11:\", \"tpm:\" or \"file:\"")
		return
	case rest == "":
		k.at(key, "uri", "uri: nothing follows %q", scheme+":")
		return
	case strings.Contains(rest, "pin-value="):
		k.at(key, "uri", "uri: a PIN does not stand in the file").Hint = "write it to a file and name that: pin-source=file:PATH"
		return
	}
	if key.Module != "" && scheme != "pkcs11" {
		k.at(key, "module", "module: only a pkcs11: key has one")
	}
	if key.EST != "" {
		if _, why := parseURL(key.EST, "https"); why != "" {
			k.at(key, "est", "est: %s", why)
		}
	}
	dir := path.Dir(k.c.Path)
	switch scheme {
	case "file":
		key.URI = "file:" + string(absolute(rest, dir))
		k.private(k.c.At(key, "uri"), "uri", key.URI[len("file:"):], true)
	case "pkcs11":
		key.URI = k.pinSource(key, dir)
	}
}

// pinSource makes the path of a PKCS#11 URI's pin-source absolute (RFC 7512 section 2.4) and checks that file.
func (k *checker) pinSource(key *Key, dir string) string {
	const attr = "pin-source="
	i := strings.Index(key.URI, attr)
	if i < 0 || !strings.Contains("?&", key.URI[i-1:i]) {
		return key.URI
	}
	value, tail, _ := strings.Cut(key.URI[i+len(attr):], "&")
	file, ok := strings.CutPrefix(value, "file:")
	if !ok || strings.HasPrefix(file, "//") || strings.Contains(file, "%") {
		return key.URI
	}
	file = string(absolute(file, dir))
	k.private(k.c.At(key, "uri"), "uri: pin-source", file, false)
	if tail != "" {
		tail = "&" + tail
	}
	return key.URI[:i+len(attr)] + "file:" + file + tail
}

func (k *checker) devices() {
	c := k.c
	identities, certs := map[string]string{}, map[string]string{}
	byLine := sortedKeys(c.Devices)
	slices.SortFunc(byLine, func(a, b string) int { return c.Devices[a].Pos.Line - c.Devices[b].Pos.Line })
	for _, name := range byLine {
		d := c.Devices[name]
		if !ValidDevice(name) {
			k.at(d, "", "device %q %s", name, badName(name))
		}
		if d.PSK != "" {
			switch other, taken := identities[d.PSKIdentity]; {
			case taken:
				k.at(d, "psk_identity", "device %q: %q has the same PSK identity, %q", name, other, d.PSKIdentity)
			case d.PSKIdentity == "" || len(d.PSKIdentity) > 128:
				k.at(d, "psk_identity", "psk_identity: it has 1 to 128 octets (RFC 4279 section 5.3)")
			default:
				identities[d.PSKIdentity] = name
			}
			k.psk(d)
		} else if k.given(d, "psk_identity") {
			k.at(d, "psk_identity", "device %q has a psk_identity but no psk", name)
		}
		if d.Password != "" {
			k.password(c.At(d, "password"), d.Password)
		}
		if fp, ok := strings.CutPrefix(d.Cert, "sha256:"); ok {
			if _, err := ParseFingerprint(fp); err != nil {
				k.at(d, "cert", "cert: %v", err)
			}
		}
		if d.Cert != "" {
			cert := certName(d.Cert)
			if other, taken := certs[cert]; taken {
				k.at(d, "cert", "device %q: %q has the same certificate name", name, other)
			}
			certs[cert] = name
		}
		for i, g := range d.Groups {
			if g == "" {
				k.item(d, "groups", i, "groups: a group has a name")
			}
		}
	}
	for _, name := range byLine { // a device without cert shows one with its own name
		if other, taken := certs[certName(name)]; taken && other != name && c.Devices[name].Cert == "" {
			k.at(c.Devices[other], "cert", "device %q: the certificate name %q is that of the device %q", other, c.Devices[other].Cert, name)
		}
	}
}

// certName gives what two devices may not share: letters of either case are the same in names, and colons mean nothing in fingerprints.
func certName(cert string) string {
	if fp, ok := strings.CutPrefix(cert, "sha256:"); ok {
		cert = "sha256:" + strings.ReplaceAll(fp, ":", "")
	}
	return strings.ToLower(cert)
}

func (k *checker) given(entry any, key string) bool { return k.c.entries[entry].child(key) != nil }

func (k *checker) allow(a *Allow) {
	ops := []string{"report", "command", "publish", "subscribe"}
	if a.Op == "" {
		k.at(a, "op", "[[allow]] has no op").Hint = "one of " + quoted(ops)
	} else {
		k.oneOf(a, "op", a.Op, ops...)
	}
	if len(a.Resources) == 0 {
		k.at(a, "resources", "[[allow]] has no resources")
	}
	if len(a.Connectors) > 0 && a.Op != "command" && slices.Contains(ops, a.Op) {
		k.at(a, "connectors", "connectors: only op = \"command\" comes from a connector")
	}
	for i, r := range a.Resources {
		var err error
		switch a.Op {
		case "report", "command":
			_, err = ParsePattern(r)
		case "publish", "subscribe":
			err = CheckFilter(r)
		}
		if err != nil {
			k.item(a, "resources", i, "resources: %q: %v", r, err)
		}
	}
	k.who(a, a.Devices, a.Groups)
	for i, name := range a.Connectors {
		if k.c.Connectors[name] == nil {
			k.noSuch(a, "connectors", i, "connector", name, sortedKeys(k.c.Connectors))
		}
	}
}
