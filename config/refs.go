package config

import (
	"fmt"
	"slices"
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
