package coap

import (
	"bytes"
	"slices"

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

// get answers a GET: the list of what there is, or an observation of a resource on which commands may come.
func (t *turn) get(s *session, p *packet, path []byte) {
	if string(path) == "/.well-known/core" {
		t.wellKnown(s, p)
		return
	}
	observe, asked := p.number(message.Observe)
	switch {
	case asked && observe == 0 && t.l.commandable(s.id, string(path)):
		k := s.speak()
		k.forget(p.token)
		o := k.observation(string(path))
		if o == nil {
			if len(k.observed) >= maxObservations {
				break // answered without Observe: not observed
			}
			o = &observation{resource: string(path)}
			k.observed = append(k.observed, o)
		}
		o.token = bytes.Clone(p.token)
		t.l.keep(s)
		t.say(s, p, codes.Content, nil, uintOption(message.Observe, o.next()))
		t.l.awake(s.id)
		t.next(s)
		return
	case asked && observe == 1 && s.talk != nil:
		s.talk.forget(p.token)
		t.l.keep(s)
	}
	if t.l.commandable(s.id, string(path)) {
		t.say(s, p, codes.Content, nil)
		return
	}
	t.say(s, p, codes.NotFound, nil)
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

// wellKnown lists the resources (RFC 6690): those on which commands may come to the device, as it observes them.
func (t *turn) wellKnown(s *session, p *packet) {
	if n, ok := p.number(message.Accept); ok && n != 40 {
		t.say(s, p, codes.NotAcceptable, nil)
		return
	}
	links := []byte(`</.well-known/core>;ct=40`)
	if s.talk != nil {
		for _, o := range s.talk.observed {
			links = append(links, ",<"...)
			links = append(links, o.resource...)
			links = append(links, ">;obs"...)
		}
	}
	t.sayContent(s, p, links, uintOption(message.ContentFormat, 40))
}
