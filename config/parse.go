package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"
)

// Kinds says which types of listener and connector there are: the value of type = "..." and a function that gives a pointer to a new
// struct of the type's own keys (by toml tags) with the defaults filled in.
//
// In such a struct, a field of type Path, SecretRef, Duration or Size is read and checked accordingly; a string whose key
// is "key" names a [key.NAME]; a Path whose key is "ca" or ends in "_ca" is a file of PEM certificates that must exist.
type Kinds struct{ Listeners, Connectors map[string]func() any }

// maxFile bounds the file that Load reads.
const maxFile = 16 << 20

// Load reads and checks the file at path. An error of the type Errors holds every mistake in it; see Parse.
func Load(path string, kinds Kinds) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("configuration %q: not a file of less than 16 MiB", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, data, kinds)
}

// Parse reads and checks data as the content of the file at path, whose directory relative paths start from.
// Its error is of the type Errors; a Config beside it is not to be run, but may be checked further (see Join). There is none where
// mistakes of syntax leave unread what the rest refers to.
func Parse(path string, data []byte, kinds Kinds) (*Config, error) {
	c := &Config{
		Path:   path,
		Log:    Log{Level: "info", Format: "text"},
		Status: Status{Listen: "127.0.0.1:8480", Socket: "/run/drawbridge/drawbridge.sock", RolesClaim: "roles"},
		Spool:  Spool{MaxSize: 1 << 30, MaxAge: Duration(168 * time.Hour), Full: "refuse"},
		Gateway: Gateway{
			State: "/var/lib/drawbridge",
		},
		named: path,
	}
	if abs, err := filepath.Abs(path); err == nil {
		c.Path = abs
	}
	root, errs, broken := parseTree(data)
	d := &decoder{dir: filepath.Dir(c.Path), kinds: kinds, entries: map[any]*node{}, errs: errs}
	d.table(root, reflect.ValueOf(c).Elem(), "")
	c.entries = d.entries
	errs = d.errs
	if !broken { // else what refers to something may refer to what could not be read
		k := &checker{c: c, root: root}
		k.check()
		k.files(d)
		errs = append(errs, k.errs...)
	}
	for _, e := range errs {
		e.Path = path
	}
	if err := Errors(errs).sorted(); err != nil {
		if broken {
			c = nil
		}
		return c, err
	}
	c.fingerprint()
	return c, nil
}

func (i *Issuer) defaults(string) { i.DeviceClaim, i.GroupsClaim = "sub", "groups" }
func (t *Token) defaults(string)  { t.Grant, t.ClientAuth = "client_credentials", "private_key_jwt" }
func (a *Authenticator) defaults(string) {
	a.Timeout, a.Cache = Duration(5*time.Second), Duration(time.Minute)
}
func (d *Device) defaults(name string) { d.PSKIdentity = name }
func (u *Uplink) defaults(string) {
	u.Ack, u.QoS, u.Priority = "disk", 1, "normal"
	u.Sealing = sealDefaults()
}
func (d *Downlink) defaults(string) {
	d.Method, d.TTL = "PUT", Duration(10*time.Minute)
	d.Sealing = sealDefaults()
}

func sealDefaults() Sealing { return Sealing{SealAs: "jwe", SealCipher: "A256GCM"} }

// At tells where key stands in an entry of c (a pointer such as *Uplink or *Component); where the entry does not have it, where
// the entry begins.
func (c *Config) At(entry any, key string) Pos {
	n := c.entries[entry]
	if n == nil {
		return Pos{1, 1}
	}
	if child := n.child(key); child != nil {
		return child.pos
	}
	return n.pos
}

// Errorf makes a mistake of the file at a position, for those who check more than this package does. See Join.
func (c *Config) Errorf(at Pos, format string, args ...any) *Error {
	return &Error{Path: cmp.Or(c.named, c.Path), Pos: at, Msg: fmt.Sprintf(format, args...)}
}
