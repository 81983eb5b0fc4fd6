package bridge

import (
	"errors"
	"fmt"
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
		gateway: cfg.Gateway.ID,
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

func (c *compiler) errorf(pos config.Pos, hint, format string, args ...any) {
	c.errs = append(c.errs, &config.Error{Path: c.cfg.Path, Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// template reads the template of a route's field; on a mistake it is recorded and nil returned.
func (c *compiler) template(pos config.Pos, route, field, text string, p pattern, builtin ...string) template {
	kinds := map[string]bool{}
	for _, s := range p {
		if s.kind != literal {
			kinds[s.text] = s.kind == rest
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
	c.errorf(pos, hint, "%s: %s %q: %v", route, field, text, err)
	return nil
}

func (c *compiler) pipeline(pos config.Pos, route, text string) *transform.Pipeline {
	p, err := transform.Parse(text)
	if err != nil {
		c.errorf(pos, "", "%s: transform %q: %v", route, text, err)
	}
	return p
}

// reserved are the names that the gateway fills in itself.
var reserved = [...]string{"gateway", "device", "resource"}

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
				c.errorf(b.u.Pos, "make one more specific, or restrict them to different devices or groups",
					"uplink %q: competes with uplink %q in line %d: both match %s", b.u.Name, a.u.Name, a.u.Pos.Line, example(a.e, b.e))
				break
			}
		}
		c.t.uplinks = append(c.t.uplinks, b.e)
	}
	slices.SortStableFunc(c.t.uplinks, compareEntries)
}

func (c *compiler) uplink(u *config.Uplink) *upRoute {
	route := fmt.Sprintf("uplink %q", u.Name)
	before := len(c.errs)
	path, ok := strings.CutPrefix(u.Resource, "/")
	if !ok {
		c.errorf(u.Pos, "", "%s: resource %q: has to begin with '/'", route, u.Resource)
		return nil
	}
	p, err := parsePattern(path)
	if err != nil {
		c.errorf(u.Pos, "", "%s: resource %q: %v", route, u.Resource, err)
		return nil
	}
	for _, s := range p {
		if s.kind != literal && slices.Contains(reserved[:], s.text) {
			c.errorf(u.Pos, "give the capture another name", "%s: resource %q: {%s} is filled in by the gateway, a device cannot say it", route, u.Resource, s.text)
		}
	}
	r := &upRoute{
		name: u.Name, resource: u.Resource, pattern: p, devices: u.Devices, groups: u.Groups, to: dedupe(u.To),
		topic:     c.template(u.Pos, route, "topic", u.Topic, p, reserved[:]...),
		topicText: u.Topic,
		pipeline:  c.pipeline(u.Pos, route, u.Transform),
		cloudAck:  u.Ack == "cloud", qos: byte(u.QoS), retain: u.Retain, properties: u.Properties,
		ttl:   time.Duration(u.TTL),
		class: classes[u.Priority],
	}
	if len(c.errs) > before {
		return nil
	}
	return r
}

var classes = map[string]spool.Class{"high": spool.High, "": spool.Normal, "normal": spool.Normal, "low": spool.Low}

// dedupe gives the names once each, in their order.
func dedupe(names []string) (list []string) {
	for _, n := range names {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

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
func example(a, b entry) string {
	var s strings.Builder
	p, q := a.r.pattern, b.r.pattern
	for i := range max(len(p), len(q)) {
		text := "x"
		if i < len(p) && p[i].kind == literal {
			text = p[i].text
		} else if i < len(q) && q[i].kind == literal {
			text = q[i].text
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
				c.errorf(d.Pos, "make one more specific", "downlink %q: competes with downlink %q in line %d: both take topics such as %q",
					d.Name, o.d.Name, o.d.Pos.Line, example(entry{r: &upRoute{pattern: o.r.pattern}}, entry{r: &upRoute{pattern: r.pattern}})[1:])
				break
			}
		}
		all = append(all, origin{d, r})
		c.t.downs[r.from] = append(c.t.downs[r.from], r)
	}
	for name, list := range c.t.downs {
		slices.SortStableFunc(list, func(a, b *downRoute) int { return strings.Compare(a.pattern.rank(), b.pattern.rank()) })
		c.t.topics[name] = minimal(list)
	}
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
	route := fmt.Sprintf("downlink %q", d.Name)
	before := len(c.errs)
	// {gateway} stands for this gateway alone, so it is a literal.
	p, err := parsePattern(strings.ReplaceAll(d.Topic, "{gateway}", c.t.gateway))
	if err != nil {
		c.errorf(d.Pos, "", "%s: topic %q: %v", route, d.Topic, err)
		return nil
	}
	named := false
	for _, s := range p {
		if s.kind != literal && s.text == "resource" {
			c.errorf(d.Pos, "give the capture another name", "%s: topic %q: {resource} is filled in by the gateway", route, d.Topic)
		}
		named = named || s.kind == capture && s.text == "device"
	}
	if !named {
		c.errorf(d.Pos, "a level {device} names the device that the command is for", "%s: topic %q: names no device", route, d.Topic)
	}
	path, ok := strings.CutPrefix(d.Resource, "/")
	if !ok {
		c.errorf(d.Pos, "", "%s: resource %q: has to begin with '/'", route, d.Resource)
		return nil
	}
	r := &downRoute{
		name: d.Name, from: d.From, topicText: d.Topic, resourceText: d.Resource, pattern: p, method: d.Method,
		resource: c.template(d.Pos, route, "resource", path, p, "gateway"),
		pipeline: c.pipeline(d.Pos, route, d.Transform),
		ttl:      time.Duration(d.TTL),
	}
	if d.Reply != "" {
		r.reply = c.template(d.Pos, route, "reply", d.Reply, p, "gateway", "resource")
	}
	if len(c.errs) > before {
		return nil
	}
	return r
}
