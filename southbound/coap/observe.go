package coap

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
)

// maxObservations is how many resources one device may observe.
const maxObservations = 16

// observation is a device's wish to hear of a resource (RFC 7641). Commands on it go as notifications.
type observation struct {
	resource string
	token    []byte
	seq      uint32
}

func (o *observation) next() uint32 {
	o.seq = (o.seq + 1) & 0xffffff
	return o.seq
}

// observation gives the one on a resource, nil where there is none.
func (k *talk) observation(resource string) *observation {
	if i := slices.IndexFunc(k.observed, func(o *observation) bool { return o.resource == resource }); i >= 0 {
		return k.observed[i]
	}
	return nil
}

func (k *talk) forget(token []byte) {
	k.observed = slices.DeleteFunc(k.observed, func(o *observation) bool { return bytes.Equal(o.token, token) })
}

// get answers a GET: the list of what there is, the last value of a resource, or nothing where only commands come. All but the list may be observed.
func (t *turn) get(s *session, p *packet, path []byte) {
	if string(path) == "/.well-known/core" {
		t.wellKnown(s, p)
		return
	}
	resource := string(path)
	v := t.l.values.get(t.deviceOf(s, p), resource)
	if v == nil && !t.l.commandable(s.id, resource) {
		t.say(s, p, codes.NotFound, nil)
		return
	}
	observe, asked := p.number(message.Observe)
	if asked && observe == 1 && s.talk != nil {
		s.talk.forget(p.token)
		t.l.keep(s)
	}
	if !asked || observe != 0 {
		t.read(s, p, v)
		return
	}
	k := s.speak()
	k.forget(p.token)
	o := k.observation(resource)
	if o == nil {
		if len(k.observed) >= maxObservations {
			t.read(s, p, v) // without Observe: not observed
			return
		}
		o = &observation{resource: resource}
		k.observed = append(k.observed, o)
	}
	o.token = bytes.Clone(p.token)
	t.l.keep(s)
	t.read(s, p, v, uintOption(message.Observe, o.next()))
	t.l.awake(s.id)
	t.next(s)
}

// commandable tells whether a command may come for the device on the resource.
func (l *listener) commandable(id *auth.Identity, resource string) bool {
	scope, ok := l.env.Policy.(auth.CommandScope)
	if !ok {
		return true
	}
	filter := resource[1:]
	if filter == "" || bytes.ContainsAny([]byte(filter), "+#") {
		return false
	}
	return scope.CommandsWithin(id, filter)
}

// wellKnown lists the device's resources (RFC 6690): what it has reported and what it observes.
func (t *turn) wellKnown(s *session, p *packet) {
	if n, ok := p.number(message.Accept); ok && n != 40 {
		t.say(s, p, codes.NotAcceptable, nil)
		return
	}
	all := map[string]string{"/.well-known/core": ";ct=40"}
	if s.talk != nil {
		for _, o := range s.talk.observed {
			all[o.resource] = ";obs"
		}
	}
	for resource, e := range t.l.values.byDevice[t.deviceOf(s, p)] {
		all[resource] = ";obs"
		if f := e.Value.(*value).format; f >= 0 {
			all[resource] = fmt.Sprintf(";ct=%d;obs", f)
		}
	}
	var links []byte
	for _, resource := range slices.Sorted(maps.Keys(all)) {
		if !p.lists(resource) {
			continue
		}
		if links != nil {
			links = append(links, ',')
		}
		links = fmt.Appendf(links, "<%s>%s", (&url.URL{Path: resource}).EscapedPath(), all[resource])
	}
	t.sayContent(s, p, links, uintOption(message.ContentFormat, 40))
}

// lists tells whether the queries let a link through (RFC 6690 section 4.1). Links here have no attribute that is asked for but href.
func (p *packet) lists(resource string) bool {
	for _, o := range p.options {
		name, want, ok := strings.Cut(string(o.Value), "=")
		if o.ID != message.URIQuery || !ok || name == "device" {
			continue
		}
		prefix, wild := strings.CutSuffix(want, "*")
		if name != "href" || resource != want && !(wild && strings.HasPrefix(resource, prefix)) {
			return false
		}
	}
	return true
}
