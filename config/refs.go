package config

import (
	"fmt"
	"slices"
	"time"
)

// noSuch reports a name in a list, or a lone one where i is negative, that nothing bears.
func (k *checker) noSuch(entry any, key string, i int, role, name string, known []string) {
	e := k.item(entry, key, max(i, 0), "%s: there is no %s %q", key, role, name)
	if s := similar(name, known); s != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", s)
	}
}

// exists is noSuch for a component's own keys.
func (k *checker) exists(s *Scope, key, name, role string, known []string) bool {
	if slices.Contains(known, name) {
		return true
	}
	e := s.Errorf(key, "%s: there is no %s %q", key, role, name)
	if m := similar(name, known); m != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", m)
	} else {
		e.Hint = fmt.Sprintf("write [%s.%s]", role, name)
	}
	return false
}

// who checks the devices and groups that a rule or route names.
func (k *checker) who(entry any, devices, groups []string) {
	if k.groups == nil {
		return // tokens, or an authenticator outside, may bring any name
	}
	for i, g := range groups {
		if !k.groups[g] {
			k.noSuch(entry, "groups", i, "group", g, sortedKeys(k.groups))
		}
	}
	for i, name := range devices {
		if k.c.Devices[name] == nil && !k.c.inGroup(name) {
			k.noSuch(entry, "devices", i, "device", name, sortedKeys(k.c.Devices))
		}
	}
}

// groups gives the names of those that have a table and of those that devices name.
func (c *Config) groups() map[string]bool {
	known := map[string]bool{}
	for name := range c.Groups {
		known[name] = true
	}
	for _, d := range c.Devices {
		for _, g := range d.Groups {
			known[g] = true
		}
	}
	return known
}

// inGroup tells whether a certificate of some [group] can make a device of that name.
func (c *Config) inGroup(device string) bool {
	for _, g := range c.Groups {
		if g.SAN != "" && Glob(g.SAN, device) || g.CN != "" && Glob(g.CN, device) {
			return true
		}
	}
	return false
}

// open tells whether a listener takes devices that the file does not name.
func (k *checker) open() bool {
	for _, n := range k.root.child("listener").each() {
		for _, key := range []string{"auth", "security"} {
			if list := n.child(key); list != nil {
				for _, item := range append([]*node{list}, list.items...) {
					if slices.Contains([]string{"jwt", "http", "anonymous", "none"}, item.text) {
						return true
					}
				}
			}
		}
	}
	return false
}

// each gives the tables in a table, in the order of the file.
func (n *node) each() []*node {
	if n == nil {
		return nil
	}
	list := make([]*node, 0, len(n.keys))
	for _, key := range n.keys {
		list = append(list, n.fields[key])
	}
	return list
}

func (k *checker) routes() {
	c := k.c
	names := map[string]Pos{}
	name := func(entry any, role, name string, pos Pos) {
		if name == "" {
			k.at(entry, "name", "%s has no name", role)
			return
		}
		k.name(entry, "route", name)
		if first, taken := names[name]; taken {
			k.at(entry, "name", "name: there is a route %q already, on line %d", name, first.Line)
			return
		}
		names[name] = pos
	}
	for _, u := range c.Uplinks {
		name(u, "[[uplink]]", u.Name, u.Pos)
		if u.Resource == "" {
			k.at(u, "resource", "[[uplink]] has no resource").Hint = `for example resource = "/sensors/{kind}"`
		}
		if u.Topic == "" {
			k.at(u, "topic", "[[uplink]] has no topic").Hint = `for example topic = "dt/{gateway}/{device}"`
		}
		if len(u.To) == 0 {
			k.at(u, "to", "[[uplink]] leads to no connector").Hint = `for example to = ["NAME"] for [connector.NAME]`
		}
		for i, to := range u.To {
			switch {
			case c.Connectors[to] == nil:
				k.noSuch(u, "to", i, "connector", to, sortedKeys(c.Connectors))
			case slices.Contains(u.To[:i], to):
				k.item(u, "to", i, "to: %q is there twice", to)
			}
		}
		k.who(u, u.Devices, u.Groups)
		k.oneOf(u, "ack", u.Ack, "disk", "cloud")
		k.oneOf(u, "priority", u.Priority, "high", "normal", "low")
		if u.QoS < 0 || u.QoS > 2 {
			k.at(u, "qos", "qos: %d is not 0, 1 or 2", u.QoS)
		}
		k.seal(u, &u.Sealing)
	}
	for _, d := range c.Downlinks {
		name(d, "[[downlink]]", d.Name, d.Pos)
		if d.Resource == "" {
			k.at(d, "resource", "[[downlink]] has no resource").Hint = `for example resource = "/actuators/{name}"`
		}
		if d.Topic == "" {
			k.at(d, "topic", "[[downlink]] has no topic").Hint = `for example topic = "cmd/{gateway}/{device}/{name}"`
		}
		switch {
		case d.From == "":
			k.at(d, "from", "[[downlink]] comes from no connector").Hint = `for example from = "NAME" for [connector.NAME]`
		case c.Connectors[d.From] == nil:
			k.noSuch(d, "from", -1, "connector", d.From, sortedKeys(c.Connectors))
		}
		k.oneOf(d, "method", d.Method, "GET", "POST", "PUT", "DELETE", "FETCH", "PATCH", "iPATCH")
		k.seal(d, &d.Sealing)
		k.unseal(d)
	}
}

// seal checks how a route protects payloads, as far as that can be known without asking the chip.
func (k *checker) seal(entry any, s *Sealing) {
	k.oneOf(entry, "seal_as", s.SealAs, "jwe", "jws", "cose-encrypt0", "cose-sign1")
	k.oneOf(entry, "seal_cipher", s.SealCipher, "A256GCM", "ARIA-256-GCM", "LEA-256-GCM")
	n := k.c.entries[entry]
	if s.Seal == "" {
		if *s != sealDefaults() {
			k.at(entry, "seal_as", "seal_as: nothing is sealed without seal").Hint = `seal = "NAME" for [key.NAME]`
		}
		return
	}
	if k.c.Keys[s.Seal] == nil {
		k.noSuch(entry, "seal", -1, "key", s.Seal, sortedKeys(k.c.Keys))
	}
	if signs := s.SealAs == "jws" || s.SealAs == "cose-sign1"; signs && n.child("seal_cipher") != nil {
		k.at(entry, "seal_cipher", "seal_cipher: %s signs and encrypts nothing", s.SealAs).Hint = `seal_as = "jwe" or "cose-encrypt0" encrypts`
	}
}

// unseal checks how the commands of a route are protected.
func (k *checker) unseal(d *Downlink) {
	if d.Unseal == "" && d.SignedBy == "" {
		return
	}
	if d.Unseal != "" && d.SignedBy != "" {
		k.at(d, "signed_by", "signed_by: commands are either encrypted (unseal) or signed, not both")
	}
	if d.Unseal != "" && k.c.Keys[d.Unseal] == nil {
		k.noSuch(d, "unseal", -1, "key", d.Unseal, sortedKeys(k.c.Keys))
	}
	if d.TTL <= 0 {
		k.at(d, "ttl", "ttl: a command that is sealed needs an end, after which it may not be repeated").Hint = `for example ttl = "10m"`
	}
}

// components lets each listener or connector check its own keys.
func (k *checker) components(m map[string]*Component, role string) {
	c := k.c
	for _, name := range sortedKeys(m) {
		comp := m[name]
		k.name(comp, role, name)
		if comp.Own == nil {
			continue // its type is unknown, and that has been said
		}
		s := &Scope{k: k, node: k.c.entries[comp], c: comp}
		if d := time.Duration(comp.Budget.Linger); d < 0 || d > time.Hour {
			s.Errorf("budget.linger", "budget.linger: from \"0s\" to \"1h\"")
		}
		if key, _ := comp.Value("key").(string); key != "" {
			s.Key("key", key)
		}
		if methods, _ := comp.Value("auth").([]string); c.Ask == nil && slices.Contains(methods, "http") {
			s.Errorf(fmt.Sprintf("auth[%d]", slices.Index(methods, "http")), `auth "http" needs an authenticator`).Hint = "add an [authenticator] with url"
		}
		if own, ok := comp.Own.(Checker); ok {
			own.Check(s)
		}
	}
}
