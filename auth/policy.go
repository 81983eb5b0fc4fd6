package auth

import (
	"fmt"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/config"
)

// rules is [[allow]] compiled: by operation, then by whom a rule is for. It never changes.
type rules struct {
	report, command    index[config.Pattern]
	publish, subscribe index[[]string] // topic filters, cut at the slashes
}

// index finds the rules for a device: those for all, those for it by name, those for its groups.
type index[P any] struct {
	all      []rule[P]
	byDevice map[string][]rule[P]
	byGroup  map[string][]rule[P]
}

// rule is one pattern of one [[allow]].
type rule[P any] struct {
	pattern    P
	connectors []string // of commands; none: every one
	allow      *config.Allow
}

func compile(allow []*config.Allow) (*rules, error) {
	r := &rules{}
	for _, a := range allow {
		for _, resource := range a.Resources {
			var err error
			switch Op(a.Op) {
			case Report, Command:
				var p config.Pattern
				if p, err = config.ParsePattern(resource); err == nil {
					if Op(a.Op) == Report {
						r.report.add(a, p)
					} else {
						r.command.add(a, p)
					}
				}
			case Publish, Subscribe:
				if err = config.CheckFilter(resource); err == nil {
					if Op(a.Op) == Publish {
						r.publish.add(a, strings.Split(resource, "/"))
					} else {
						r.subscribe.add(a, strings.Split(resource, "/"))
					}
				}
			default:
				err = fmt.Errorf("no such op")
			}
			if err != nil {
				return nil, fmt.Errorf("allow on line %d: op %q, resource %q: %w", a.Pos.Line, a.Op, resource, err)
			}
		}
	}
	return r, nil
}

func (x *index[P]) add(a *config.Allow, pattern P) {
	r := rule[P]{pattern, a.Connectors, a}
	if len(a.Devices) == 0 && len(a.Groups) == 0 {
		x.all = append(x.all, r)
	}
	if x.byDevice == nil {
		x.byDevice, x.byGroup = map[string][]rule[P]{}, map[string][]rule[P]{}
	}
	for _, d := range a.Devices {
		x.byDevice[d] = append(x.byDevice[d], r)
	}
	for _, g := range a.Groups {
		x.byGroup[g] = append(x.byGroup[g], r)
	}
}

// find gives the rule for the device that ok takes, or nil.
func (x *index[P]) find(device string, groups []string, ok func(*rule[P]) bool) *config.Allow {
	if a := first(x.all, ok); a != nil {
		return a
	}
	if len(x.byDevice) > 0 {
		if a := first(x.byDevice[device], ok); a != nil {
			return a
		}
	}
	if len(x.byGroup) > 0 {
		for _, g := range groups {
			if a := first(x.byGroup[g], ok); a != nil {
				return a
			}
		}
	}
	return nil
}

func first[P any](list []rule[P], ok func(*rule[P]) bool) *config.Allow {
	for i := range list {
		if ok(&list[i]) {
			return list[i].allow
		}
	}
	return nil
}

// Allowed tells whether the device may report on the resource, publish to the topic, or subscribe to the filter.
func (r *Realm) Allowed(id *Identity, op Op, resource string) bool {
	return r.now.Load().rules.allow(id, op, resource) != nil
}

// Commandable tells whether the connector may command the device on the resource.
func (r *Realm) Commandable(connector, device string, groups []string, resource string) bool {
	return r.now.Load().rules.commandable(connector, device, groups, resource) != nil
}

// Explain gives the rule by which the device may do what op says, whose Pos tells where it stands; nil where no rule allows it.
// connector is only looked at for Command.
func (r *Realm) Explain(id *Identity, op Op, connector, resource string) *config.Allow {
	if op == Command {
		return r.now.Load().rules.commandable(connector, id.Device, id.Groups, resource)
	}
	return r.now.Load().rules.allow(id, op, resource)
}

func (r *rules) allow(id *Identity, op Op, resource string) *config.Allow {
	if id.Device == "" {
		return nil
	}
	switch op {
	case Report:
		return r.report.find(id.Device, id.Groups, func(x *rule[config.Pattern]) bool {
			return matches(x.pattern, id.Device, resource)
		})
	case Publish:
		if strings.ContainsAny(resource, "+#") {
			return nil
		}
		return r.publish.find(id.Device, id.Groups, func(x *rule[[]string]) bool {
			return covers(x.pattern, id.Device, resource)
		})
	case Subscribe:
		filter, ok := unshare(resource)
		if !ok {
			return nil
		}
		return r.subscribe.find(id.Device, id.Groups, func(x *rule[[]string]) bool {
			return covers(x.pattern, id.Device, filter)
		})
	}
	return nil
}

func (r *rules) commandable(connector, device string, groups []string, resource string) *config.Allow {
	return r.command.find(device, groups, func(x *rule[config.Pattern]) bool {
		return (len(x.connectors) == 0 || slices.Contains(x.connectors, connector)) && matches(x.pattern, device, resource)
	})
}

// CommandsWithin tells whether some connector may command the device on some resource whose topic the filter matches.
func (r *Realm) CommandsWithin(id *Identity, filter string) bool {
	filter, ok := unshare(filter)
	return ok && r.now.Load().rules.command.find(id.Device, id.Groups, func(x *rule[config.Pattern]) bool {
		return meets(x.pattern, id.Device, filter)
	}) != nil
}

// unshare gives the filter of a shared subscription, "$share/NAME/FILTER" (MQTT 5 section 4.8.2), or what is none as it is.
func unshare(filter string) (string, bool) {
	rest, shared := strings.CutPrefix(filter, "$share/")
	if !shared {
		return filter, filter != ""
	}
	name, rest, ok := strings.Cut(rest, "/")
	return rest, ok && name != "" && rest != "" && !strings.ContainsAny(name, "+#")
}

// matches tells whether the resource, an absolute path, is one of the pattern's. "{device}" is the device's own name; any other capture
// takes one segment that is not empty, "{name...}" one or more.
func matches(p config.Pattern, device, resource string) bool {
	if len(resource) == 0 || resource[0] != '/' {
		return false
	}
	rest, more := resource[1:], true
	for i := range p {
		if !more {
			return false
		}
		if p[i].Rest {
			return rest != "" && rest[0] != '/' && rest[len(rest)-1] != '/' && !strings.Contains(rest, "//")
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		switch {
		case p[i].Name == "device":
			if part != device {
				return false
			}
		case p[i].Name != "":
			if part == "" {
				return false
			}
		case p[i].Text != part:
			return false
		}
	}
	return !more
}

// covers tells whether every topic that the filter matches (or the topic, where it is none) is matched by the rule's filter too
// (MQTT 5 section 4.7). "{device}" in the rule is the device's own name.
func covers(rule []string, device, filter string) bool {
	// A wildcard at the start does not reach the topics that begin with "$".
	if filter[:min(1, len(filter))] == "$" && (rule[0] == "#" || rule[0] == "+") || filter == "" {
		return false
	}
	rest, more := filter, true
	for i, level := range rule {
		if level == "#" {
			// It also matches the level above; a filter that is all used up is such a one.
			return true
		}
		if !more {
			return false
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		switch {
		case part == "#":
			return false
		case level == "+":
		case level == "{device}":
			if part != device {
				return false
			}
		case level != part:
			return false
		}
		if !more && i == len(rule)-2 && rule[i+1] == "#" {
			return true
		}
	}
	return !more
}

// meets tells whether the filter matches the topic of some resource of the pattern.
func meets(p config.Pattern, device, filter string) bool {
	rest, more := filter, true
	for i := range p {
		if !more {
			return false
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		switch {
		case part == "#":
			return true
		case p[i].Rest:
			return part != "" && (!more || restMeets(rest))
		case part == "+":
		case p[i].Name == "device":
			if part != device {
				return false
			}
		case p[i].Name != "":
			if part == "" {
				return false
			}
		case p[i].Text != part:
			return false
		}
	}
	return !more || rest == "#" // "a/#" matches "a"
}

// restMeets tells whether some path without empty segments is matched by what is left of a filter.
func restMeets(filter string) bool {
	return filter != "" && filter[0] != '/' && filter[len(filter)-1] != '/' && !strings.Contains(filter, "//")
}
