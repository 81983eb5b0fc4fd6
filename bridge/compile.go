package bridge

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/config"
)

// Compile makes the routes of cfg ready for use. The error is a config.Errors with every mistake, each with its place: a
// pattern, template or transform that cannot be read, a name that nothing captures, two routes of which neither is more specific
// although both can match. cfg has passed the checks of its own package: names that it refers to are there.
//
// A resource is matched segment by segment from the left; a literal is more specific than a capture, a capture than a tail. Among
// routes with equal resources one that names the device beats one that names a group of it, which beats one that names neither. A
// route that names devices and groups is for both. Routes for different groups compete only where a configured device is in
// both; should a certificate put a device in both, the first in the file wins.
func Compile(cfg *config.Config) (*Table, error) {
	c := compiler{cfg: cfg, t: &Table{
		gateway: cmp.Or(cfg.Gateway.ID, "gateway"), // that it is missing has been told
		downs:   map[string][]*downRoute{},
		topics:  map[string][]string{},
		devices: map[string]device{},
	}}
	for name, d := range cfg.Devices {
		c.t.devices[name] = device{d.Groups, d.Sleepy}
	}
	c.uplinks()
	c.downlinks()
	if len(c.errs) > 0 {
		return nil, config.Join(c.errs)
	}
	return c.t, nil
}

type compiler struct {
	cfg  *config.Config
	t    *Table
	errs config.Errors
}

// wrong records a mistake at a key of a route.
func (c *compiler) wrong(route any, key, hint, format string, args ...any) {
	e := c.cfg.Errorf(c.cfg.At(route, key), format, args...)
	e.Hint = hint
	c.errs = append(c.errs, e)
}

// pattern reads the pattern in a key of a route. reserved are the names that it cannot capture.
func (c *compiler) pattern(route any, key, text string, reserved ...string) pattern {
	p, err := parsePattern(text)
	if err != nil {
		c.wrong(route, key, "", "%s: %v", key, err)
		return nil
	}
	for _, s := range p {
		if slices.Contains(reserved, s.Name) {
			c.wrong(route, key, "give the placeholder another name", "%s: {%s} is filled in by the gateway", key, s.Name)
		}
	}
	return p
}

// template reads the template in a key of a route. p and builtin are what can be filled in.
func (c *compiler) template(route any, key, text string, p pattern, builtin ...string) template {
	kinds := map[string]bool{}
	for _, s := range p {
		if s.Name != "" {
			kinds[s.Name] = s.Rest
		}
	}
	for _, name := range builtin {
		kinds[name] = name == "resource"
	}
	t, err := parseTemplate(text, kinds)
	if err == nil {
		return t
	}
	hint := ""
	if _, ok := errors.AsType[*unknownCapture](err); ok {
		hint = "known here: {" + strings.Join(slices.Sorted(maps.Keys(kinds)), "}, {") + "}"
	}
	c.wrong(route, key, hint, "%s: %v", key, err)
	return nil
}

func (c *compiler) pipeline(route any, text string) *transform.Pipeline {
	p, err := transform.Parse(text)
	if err != nil {
		c.wrong(route, "transform", "", "transform: %v", err)
	}
	return p
}

func (c *compiler) uplinks() {
	type origin struct {
		u *config.Uplink
		e entry
	}
	var all []origin
	for _, u := range c.cfg.Uplinks {
		if r := c.uplink(u); r != nil {
			for _, e := range r.entries() {
				all = append(all, origin{u, e})
			}
		}
	}
	for i, b := range all {
		for _, a := range all[:i] {
			if a.u != b.u && a.e.rank == b.e.rank && a.e.by == b.e.by &&
				a.e.r.pattern.overlaps(b.e.r.pattern) && c.sameDevice(a.e, b.e) {
				c.wrong(b.u, "resource", "make one more specific, or restrict them to different devices or groups",
					"uplinks %q and %q (line %d) compete: both match %s", b.u.Name, a.u.Name, a.u.Pos.Line, example(a.e.r.pattern, b.e.r.pattern))
				break
			}
		}
		c.t.uplinks = append(c.t.uplinks, b.e)
	}
	slices.SortStableFunc(c.t.uplinks, compareEntries)
}

func (c *compiler) uplink(u *config.Uplink) *upRoute {
	if u.Resource == "" || u.Topic == "" {
		return nil // told already
	}
	before := len(c.errs)
	p := c.pattern(u, "resource", u.Resource, "gateway", "resource")
	if p == nil {
		return nil // what its captures are for would only repeat the mistake
	}
	r := &upRoute{
		name: u.Name, resource: u.Resource, pattern: p, devices: u.Devices, groups: u.Groups, to: u.To,
		topic:     c.template(u, "topic", u.Topic, p, "gateway", "device", "resource"),
		topicText: u.Topic,
		pipeline:  c.pipeline(u, u.Transform),
		cloudAck:  u.Ack == "cloud", qos: byte(u.QoS), retain: u.Retain, properties: u.Properties,
		ttl:   time.Duration(u.TTL),
		class: classes[u.Priority],
		seal:  u.Sealing,
	}
	if len(c.errs) > before {
		return nil
	}
	return r
}

var classes = map[string]spool.Class{"high": spool.High, "": spool.Normal, "normal": spool.Normal, "low": spool.Low}

// sameDevice tells whether some device is known to be admitted by both entries, which are restricted in the same way.
func (c *compiler) sameDevice(a, b entry) bool {
	switch a.by {
	case byDevice:
		return share(a.r.devices, b.r.devices)
	case byGroup:
		if share(a.r.groups, b.r.groups) {
			return true
		}
		for name, d := range c.cfg.Devices {
			if share(a.r.groups, d.Groups) && share(b.r.groups, d.Groups) &&
				!slices.Contains(a.r.devices, name) && !slices.Contains(b.r.devices, name) {
				return true
			}
		}
		return false
	}
	return true
}

// example gives a resource that both patterns match.
func example(p, q pattern) string {
	var s strings.Builder
	for i := range max(len(p), len(q)) {
		text := "x"
		if i < len(p) && p[i].Name == "" {
			text = p[i].Text
		} else if i < len(q) && q[i].Name == "" {
			text = q[i].Text
		}
		s.WriteString("/" + text)
	}
	return s.String()
}

func (c *compiler) downlinks() {
	type origin struct {
		d *config.Downlink
		r *downRoute
	}
	var all []origin
	for _, d := range c.cfg.Downlinks {
		r := c.downlink(d)
		if r == nil {
			continue
		}
		for _, o := range all {
			if o.r.from == r.from && o.r.pattern.rank() == r.pattern.rank() && o.r.pattern.overlaps(r.pattern) {
				c.wrong(d, "topic", "make one more specific", "downlinks %q and %q (line %d) compete: both take %s",
					d.Name, o.d.Name, o.d.Pos.Line, example(o.r.pattern, r.pattern)[1:])
				break
			}
		}
		all = append(all, origin{d, r})
		c.t.downs[r.from] = append(c.t.downs[r.from], r)
	}
	for _, o := range all {
		for _, r := range c.t.downs[o.r.from] {
			if reply := c.replies(o.d); reply != nil && reply.overlaps(r.pattern) {
				c.wrong(o.d, "reply", "replies need topics that are no commands", "reply: downlink %q would take replies for commands", r.name)
				break
			}
		}
	}
	for name, list := range c.t.downs {
		slices.SortStableFunc(list, func(a, b *downRoute) int { return strings.Compare(a.pattern.rank(), b.pattern.rank()) })
		c.t.topics[name] = minimal(list)
	}
}

// replies gives the pattern of a route's replies; nil where it has none or its template cannot be written as a pattern.
func (c *compiler) replies(d *config.Downlink) pattern {
	p, err := parsePattern("/" + strings.ReplaceAll(d.Reply, "{gateway}", c.t.gateway))
	if err != nil {
		return nil
	}
	return p
}

// minimal gives the filters of the routes without those that another covers, sorted.
func minimal(list []*downRoute) []string {
	var all []string
	for _, r := range list {
		all = append(all, r.pattern.filter())
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.DeleteFunc(slices.Clone(all), func(f string) bool {
		return slices.ContainsFunc(all, func(o string) bool { return o != f && covers(o, f) })
	})
}

func (c *compiler) downlink(d *config.Downlink) *downRoute {
	if d.Topic == "" || d.Resource == "" {
		return nil // told already
	}
	before := len(c.errs)
	// {gateway} stands for this gateway alone, so it is a literal.
	p := c.pattern(d, "topic", "/"+strings.ReplaceAll(d.Topic, "{gateway}", c.t.gateway), "resource")
	if p == nil {
		return nil
	}
	if !slices.ContainsFunc(p, func(s config.Segment) bool { return s.Name == "device" && !s.Rest }) {
		c.wrong(d, "topic", "a level {device} names the device that the command is for", "topic: it names no device")
	}
	path, ok := strings.CutPrefix(d.Resource, "/")
	if !ok {
		c.wrong(d, "resource", "", `resource: a resource begins with "/"`)
	}
	r := &downRoute{
		name: d.Name, from: d.From, topicText: d.Topic, resourceText: d.Resource, pattern: p, method: d.Method,
		resource: c.template(d, "resource", path, p, "gateway"),
		pipeline: c.pipeline(d, d.Transform),
		ttl:      time.Duration(d.TTL),
		unseal:   d.Unseal, signedBy: string(d.SignedBy), seal: d.Sealing,
	}
	if d.Reply != "" {
		r.reply = c.template(d, "reply", d.Reply, p, "gateway", "resource")
	}
	if len(c.errs) > before {
		return nil
	}
	return r
}
