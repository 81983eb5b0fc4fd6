package bridge

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/config"
)

// Table is the compiled routes of a configuration. It never changes; see Compile.
// The zero value has no route.
type Table struct {
	gateway string
	uplinks []entry // the most specific first; those of one rank by restriction, then as in the file
	downs   map[string][]*downRoute
	topics  map[string][]string // by connector, without those that another covers
	devices map[string]device
}

// device is what the configuration says of a device.
type device struct {
	groups []string
	sleepy bool
}

// upRoute is one [[uplink]].
type upRoute struct {
	name       string
	resource   string // as in the file
	pattern    pattern
	devices    []string
	groups     []string
	to         []string
	topic      template
	topicText  string // as in the file
	pipeline   *transform.Pipeline
	cloudAck   bool
	qos        byte
	retain     bool
	properties bool
	ttl        time.Duration
	class      spool.Class
	seal       config.Sealing // without a key: payloads go as they are
}

// restriction orders how closely a route is restricted to the device.
type restriction byte

const (
	byDevice restriction = iota // the device is named
	byGroup                     // a group of the device is named
	unrestricted
)

// entry is one way in which a route can match. A route that names both devices and groups has two.
type entry struct {
	rank string
	by   restriction
	r    *upRoute
}

func (e entry) admits(device string, groups []string) bool {
	switch e.by {
	case byDevice:
		return slices.Contains(e.r.devices, device)
	case byGroup:
		return share(e.r.groups, groups)
	}
	return true
}

// share tells whether a and b have an element in common.
func share(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// entries gives the ways in which the route can match.
func (r *upRoute) entries() (list []entry) {
	rank := r.pattern.rank()
	if len(r.devices) > 0 {
		list = append(list, entry{rank, byDevice, r})
	}
	if len(r.groups) > 0 {
		list = append(list, entry{rank, byGroup, r})
	}
	if list == nil {
		list = append(list, entry{rank, unrestricted, r})
	}
	return list
}

func compareEntries(a, b entry) int {
	return cmp.Or(strings.Compare(a.rank, b.rank), cmp.Compare(a.by, b.by))
}

// uplink finds the route for a report, nil where there is none.
func (t *Table) uplink(device string, groups []string, resource string) (*upRoute, captures) {
	path, ok := strings.CutPrefix(resource, "/")
	if !ok || strings.Count(path, "/") >= maxSegments {
		return nil, captures{}
	}
	parts := strings.Split(path, "/")
	for _, e := range t.uplinks {
		if e.r.pattern.match(parts, device) && e.admits(device, groups) {
			return e.r, captures{e.r.pattern, parts}
		}
	}
	return nil, captures{}
}

// fill gives the topic of a report.
func (r *upRoute) fill(gateway, device, resource string, c captures) (string, error) {
	return r.topic.fill(func(name string) (string, bool) {
		switch name {
		case "gateway":
			return gateway, true
		case "device":
			return device, true
		case "resource":
			return strings.TrimPrefix(resource, "/"), true
		}
		return c.get(name)
	})
}

// downRoute is one [[downlink]].
type downRoute struct {
	name         string
	from         string
	topicText    string // as in the file
	resourceText string // as in the file
	pattern      pattern
	method       string
	resource     template
	reply        template // nil: none
	pipeline     *transform.Pipeline
	ttl          time.Duration
	unseal       string         // the key by which commands are encrypted; empty: they are not
	signedBy     string         // the certificates of those who sign commands; empty: they are not signed
	seal         config.Sealing // of replies
}

// downlink finds the route for a publication of the connector, nil where there is none.
func (t *Table) downlink(connector, topic string) (*downRoute, captures) {
	if strings.Count(topic, "/") >= maxSegments {
		return nil, captures{}
	}
	parts := strings.Split(topic, "/")
	for _, r := range t.downs[connector] {
		if r.pattern.match(parts, "") {
			return r, captures{r.pattern, parts}
		}
	}
	return nil, captures{}
}

// down gives the connector's route of a name, nil where there is none.
func (t *Table) down(connector, name string) *downRoute {
	if i := slices.IndexFunc(t.downs[connector], func(r *downRoute) bool { return r.name == name }); i >= 0 {
		return t.downs[connector][i]
	}
	return nil
}

// commands tells whether the connector's topic is one that commands come on.
func (t *Table) commands(connector, topic string) bool {
	r, _ := t.downlink(connector, topic)
	return r != nil
}

// fill gives the value of a template of the route: its resource or its reply's topic.
func (r *downRoute) fill(t template, gateway, resource string, c captures) (string, error) {
	return t.fill(func(name string) (string, bool) {
		switch name {
		case "gateway":
			return gateway, true
		case "resource":
			return strings.TrimPrefix(resource, "/"), true
		}
		return c.get(name)
	})
}

// filters gives the topic filters that the connector has to subscribe to.
func (t *Table) filters(connector string) []string { return t.topics[connector] }

// unite gives the sorted union of two lists.
func unite(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}
