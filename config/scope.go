package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Checker is implemented by the own structs of listeners and connectors that check more than types.
// Check is called once the struct is filled in; what is wrong it says through s.
type Checker interface{ Check(s *Scope) }

// Scope is what a component's own check sees: its name, the rest of the file by name, and where to complain.
type Scope struct {
	k    *checker
	node *node
	c    *Component
}

// Name gives the component's name.
func (s *Scope) Name() string { return s.c.Name }

// Errorf reports a mistake at the value of key, or at the component's header where the file does not give the key.
// "token.url" is a key of an inner table, "auth[1]" the second value of a list. The *Error is returned so that a Hint may be added.
// What follows from a mistake that has been reported at the same key is dropped.
func (s *Scope) Errorf(key, format string, args ...any) *Error {
	e := &Error{Pos: s.node.pos, Msg: fmt.Sprintf(format, args...)}
	n := s.node
	for part := range strings.SplitSeq(key, ".") {
		part, index, _ := strings.Cut(part, "[")
		if n.bad[part] {
			return e
		}
		child := n.child(part)
		if child == nil {
			break
		}
		n = child
		if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); err == nil && i >= 0 && i < len(n.items) {
			n = n.items[i]
		}
		e.Pos = n.pos
	}
	s.k.errs = append(s.k.errs, e)
	return e
}

// Given tells whether the file has the key; without it the field holds the default.
func (s *Scope) Given(key string) bool {
	n := s.node
	for part := range strings.SplitSeq(key, ".") {
		if n = n.child(part); n == nil {
			return false
		}
	}
	return true
}

// Issuers counts the [issuer.*].
func (s *Scope) Issuers() int { return len(s.k.c.Issuers) }

// Key reports a key's value that names no [key.NAME], and lets the component be restarted when that key changes.
// The top-level key "key" is seen to without a call.
func (s *Scope) Key(key, name string) bool {
	s.c.uses(name)
	return s.k.exists(s, key, name, "key", sortedKeys(s.k.c.Keys))
}

// Reportable tells whether some [[allow]] lets some device report on the resource.
func (s *Scope) Reportable(resource string) bool {
	for _, a := range s.k.c.Allow {
		for _, r := range a.Resources {
			if p, err := ParsePattern(r); a.Op == "report" && err == nil && p.covers(resource) {
				return true
			}
		}
	}
	return false
}

// KeyScheme gives the scheme of a [key.NAME]'s URI: "pkcs11", "tpm" or "file"; empty where there is no such key.
func (s *Scope) KeyScheme(name string) string {
	k := s.k.c.Keys[name]
	if k == nil {
		return ""
	}
	scheme, _, _ := strings.Cut(k.URI, ":")
	return scheme
}

// Token reports a key's value that names no [token.NAME], or one that is bound to a key: only a request over HTTP has a place for the proof.
func (s *Scope) Token(key, name string) bool {
	if !s.TokenOverHTTP(key, name) {
		return false
	}
	if s.k.c.Tokens[name].DPoP {
		s.Errorf(key, "%s: token %q is bound to its key by dpop, which only a request over HTTP can prove", key, name).Hint = "take a token without dpop"
		return false
	}
	return true
}

// TokenOverHTTP is Token for a connector whose every request proves that it holds the token's key (RFC 9449 section 7).
func (s *Scope) TokenOverHTTP(key, name string) bool {
	return s.k.exists(s, key, name, "token", sortedKeys(s.k.c.Tokens))
}

// OneOf reports a value that is not one of allowed.
func (s *Scope) OneOf(key, value string, allowed ...string) bool {
	if slices.Contains(allowed, value) {
		return true
	}
	e := s.Errorf(key, "%s: %q is not one of %s", key, value, quoted(allowed))
	if m := similar(value, allowed); m != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", m)
	}
	return false
}

// Address reports a value that is not an address to listen on, such as ":5684" or "[::1]:8883".
func (s *Scope) Address(key, value string) bool {
	if why := badAddress(value); why != "" {
		s.Errorf(key, "%s: %q is not an address to listen on: %s", key, value, why).Hint = `for example ":8883" or "127.0.0.1:8883"`
		return false
	}
	return true
}

func badAddress(value string) string {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return "there is no port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		return "the port is not a number up to 65535"
	}
	if strings.ContainsAny(host, " /") {
		return "the host is not a name"
	}
	return ""
}

// Loopback tells whether an address to listen on can be reached from this machine alone.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Loopback reports at key that what (such as `security "none"`) is only allowed where listen can be reached from this machine alone.
func (s *Scope) Loopback(key, listen, what string) bool {
	if Loopback(listen) {
		return true
	}
	s.Errorf(key, "%s: %s is only allowed on loopback, and %q is not", key, what, listen).Hint = `listen on "127.0.0.1:PORT", or ask for credentials`
	return false
}

// URL reports a value that is not a URL with a host and one of the schemes, and gives the URL or nil.
func (s *Scope) URL(key, value string, schemes ...string) *url.URL {
	u, why := parseURL(value, schemes...)
	if why != "" {
		s.Errorf(key, "%s: %s", key, why)
		return nil
	}
	return u
}

func parseURL(value string, schemes ...string) (*url.URL, string) {
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return nil, fmt.Sprintf("%q is not a URL", value)
	case u.User != nil:
		return nil, "no user name or password stands in a URL"
	case !slices.Contains(schemes, u.Scheme):
		return nil, fmt.Sprintf("%q does not begin with %s", value, strings.Join(schemes, ":// or ")+"://")
	case u.Hostname() == "":
		return nil, fmt.Sprintf("%q has no host", value)
	}
	if p := u.Port(); p != "" {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return nil, fmt.Sprintf("%q: the port is not a number up to 65535", value)
		}
	}
	return u, ""
}
