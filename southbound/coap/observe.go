package coap

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
)

// maxObservations is how many resources one device may observe.
const maxObservations = 16

// observation is a device's wish to hear of a resource (RFC 7641). Commands on it go as notifications.
type observation struct {
	resource  string
	token     []byte
	seq       uint32
	mid       uint16    // of the last notification of a last value
	format    int       // Content-Format of the representations (RFC 7641 section 4.2); anyFormat: there was none
	confirmed time.Time // when a confirmable notification was sent last, or the observation made
}

const anyFormat = -2

// confirmEvery is how often a notification of a last value is confirmable, so that an observer that is gone is forgotten. RFC 7641 section 4.5 asks for
// once in 24 hours.
const confirmEvery = time.Hour

func (o *observation) next() uint32 {
	o.seq = (o.seq + 1) & 0xffffff
	return o.seq
}

// observation gives the one on a resource, nil where there is none.
func (k *talk) observation(resource string) *observation {
	if k == nil {
		return nil
	}
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
	o.token, o.format, o.confirmed = bytes.Clone(p.token), anyFormat, t.now
	if v != nil {
		o.format = v.format
	}
	t.l.keep(s)
	t.read(s, p, v, uintOption(message.Observe, o.next()))
	t.l.awake(s.id)
	t.next(s)
}

// notify tells an observer of the last value. One that is longer than a message has room for goes with its first block; the observer asks for the rest.
func (t *turn) notify(s *session, o *observation, v *value) {
	if o.format == anyFormat {
		o.format = v.format
	}
	if o.format != v.format {
		t.endObservation(s, o, codes.NotAcceptable)
		return
	}
	m := message.Message{Code: codes.Content, Payload: v.payload, Options: message.Options{uintOption(message.Observe, o.next())}}
	if v.format >= 0 {
		m.Options = append(m.Options, uintOption(message.ContentFormat, uint32(v.format)))
	}
	if szx, most, whole := s.room(0); len(v.payload) > whole {
		m.Payload = v.payload[:most]
		m.Options = append(m.Options, message.Option{ID: message.ETag, Value: v.etag()}, block{more: true, szx: szx}.option(message.Block2),
			uintOption(message.Size2, uint32(len(v.payload))))
		sorted(m.Options)
	}
	t.inform(s, o, &m)
}

// endObservation tells an observer that there will be no more notifications, and forgets it.
func (t *turn) endObservation(s *session, o *observation, code codes.Code) {
	t.inform(s, o, &message.Message{Code: code})
	t.forgetObservation(s, o)
}

func (t *turn) forgetObservation(s *session, o *observation) {
	if s.talk != nil {
		s.talk.forget(o.token)
		t.l.keep(s)
	}
}

// inform sends a notification, now and then a confirmable one.
func (t *turn) inform(s *session, o *observation, m *message.Message) {
	m.Type, m.Token, m.MessageID = message.NonConfirmable, o.token, int32(s.nextMID())
	o.mid = uint16(m.MessageID)
	confirm := t.now.Sub(o.confirmed) >= confirmEvery && s.stream == nil && s.talk.underWay() == nil // NSTART is 1
	if confirm {
		m.Type, o.confirmed = message.Confirmable, t.now
	}
	if data := t.sendMessage(s, m); data != nil && confirm {
		t.track(&transmission{s: s, mid: o.mid, data: bytes.Clone(data), seen: o})
	}
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
	all := map[string]link{"/.well-known/core": {format: 40}}
	if s.talk != nil {
		for _, o := range s.talk.observed {
			all[o.resource] = link{format: -1, observable: true}
		}
	}
	for resource, e := range t.l.values.byDevice[t.deviceOf(s, p)] {
		v := e.Value.(*value)
		all[resource] = link{format: v.format, size: len(v.payload), observable: true}
	}
	var links []byte
	for _, resource := range slices.Sorted(maps.Keys(all)) {
		if !p.lists(resource, all[resource]) {
			continue
		}
		if links != nil {
			links = append(links, ',')
		}
		links = fmt.Appendf(links, "<%s>%s", (&url.URL{Path: resource}).EscapedPath(), all[resource])
	}
	t.sayContent(s, p, links, uintOption(message.ContentFormat, 40))
}

// link is what the list tells of a resource.
type link struct {
	format     int // negative: none
	size       int
	observable bool
}

// sizeWorthTelling is what a message holds: of what is longer the list tells the size (RFC 6690 section 3.3).
const sizeWorthTelling = 1024

// attribute gives a target attribute.
func (l link) attribute(name string) (value string, ok bool) {
	switch {
	case name == "ct" && l.format >= 0:
		return strconv.Itoa(l.format), true
	case name == "sz" && l.size > sizeWorthTelling:
		return strconv.Itoa(l.size), true
	case name == "obs" && l.observable:
		return "", true
	}
	return "", false
}

func (l link) String() string {
	var b strings.Builder
	for _, name := range []string{"ct", "sz", "obs"} {
		switch value, ok := l.attribute(name); {
		case !ok:
		case value == "":
			b.WriteString(";" + name)
		default:
			b.WriteString(";" + name + "=" + value)
		}
	}
	return b.String()
}

// lists tells whether the queries let a link through (RFC 6690 section 4.1).
func (p *packet) lists(resource string, l link) bool {
	for _, o := range p.options {
		name, want, ok := strings.Cut(string(o.Value), "=")
		if o.ID != message.URIQuery || !ok || name == "device" {
			continue
		}
		value, there := l.attribute(name)
		if name == "href" {
			value, there = resource, true
		}
		prefix, wild := strings.CutSuffix(want, "*")
		if !there || value != want && !(wild && strings.HasPrefix(value, prefix)) {
			return false
		}
	}
	return true
}
