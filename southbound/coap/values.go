package coap

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// valueMaxAge is how long a value that was read is good for, in seconds: the default of RFC 7252 section 5.10.5, spelled out.
const valueMaxAge = 60

// value is what a device has reported last on a resource. The device may read it back.
type value struct {
	device, resource string
	format           int // Content-Format; negative: the device did not say
	payload          []byte
}

const valueOverhead = 200

func (v *value) size() int { return valueOverhead + len(v.device) + len(v.resource) + len(v.payload) }

// etag tells one content from another.
func (v *value) etag() []byte {
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(v.format)))
	h.Write(v.payload)
	return h.Sum(nil)
}

// values are the last ones of all devices, within a bound: those that were written longest ago give way.
type values struct {
	limit    int
	size     int
	byDevice map[string]map[string]*list.Element
	order    list.List             // of *value, the newest first
	changed  map[valueKey]struct{} // since they were written last; nil: they are not kept
}

func (vs *values) get(device, resource string) *value {
	if e := vs.byDevice[device][resource]; e != nil {
		return e.Value.(*value)
	}
	return nil
}

// set stores a value. The payload is copied.
func (vs *values) set(device, resource string, format int, payload []byte) {
	e := vs.byDevice[device][resource]
	if valueOverhead+len(payload) > vs.limit/4 {
		vs.remove(e)
		return
	}
	if e == nil {
		if vs.byDevice == nil {
			vs.byDevice = map[string]map[string]*list.Element{}
		}
		if vs.byDevice[device] == nil {
			vs.byDevice[device] = map[string]*list.Element{}
		}
		e = vs.order.PushFront(&value{device: device, resource: resource})
		vs.byDevice[device][resource] = e
		vs.size += e.Value.(*value).size()
	} else {
		vs.order.MoveToFront(e)
	}
	v := e.Value.(*value)
	vs.note(v)
	vs.size += len(payload) - len(v.payload)
	v.format, v.payload = format, append(v.payload[:0], payload...)
	for vs.size > vs.limit {
		vs.remove(vs.order.Back())
	}
}

func (vs *values) remove(e *list.Element) {
	if e == nil {
		return
	}
	v := vs.order.Remove(e).(*value)
	vs.note(v)
	vs.size -= v.size()
	delete(vs.byDevice[v.device], v.resource)
	if len(vs.byDevice[v.device]) == 0 {
		delete(vs.byDevice, v.device)
	}
}

// note has a value written.
func (vs *values) note(v *value) {
	if vs.changed != nil {
		vs.changed[valueKey{v.device, v.resource}] = struct{}{}
	}
}

// took stores what the uplink has taken, and tells the device's clients that observe it.
func (t *turn) took(p *pending) {
	if p.resource == "" || t.l.values.limit == 0 {
		return
	}
	device := p.s.id.Device
	if p.patch {
		v := t.l.values.get(device, p.resource)
		changed, err := v.patch(p.format, p.payload)
		if err != nil {
			t.l.values.remove(t.l.values.byDevice[device][p.resource])
			return
		}
		p.format, p.payload = v.format, changed
	}
	t.l.values.set(device, p.resource, p.format, p.payload)
	for _, s := range t.l.byDevice[device] {
		if o := s.talk.observation(p.resource); o != nil {
			t.notify(s, o, &value{format: p.format, payload: p.payload})
		}
	}
}

// read answers a GET with the last value. v may be nil: then there is a resource for commands, but no content.
func (t *turn) read(s *session, p *packet, v *value, opts ...message.Option) {
	if v == nil {
		t.say(s, p, codes.Content, nil, opts...)
		return
	}
	if n, ok := p.number(message.Accept); ok && int(n) != v.format {
		t.say(s, p, codes.NotAcceptable, nil)
		return
	}
	etag := v.etag()
	opts = append(opts, message.Option{ID: message.ETag, Value: etag})
	for _, o := range p.options {
		if o.ID == message.ETag && bytes.Equal(o.Value, etag) {
			t.say(s, p, codes.Valid, nil, sorted(append(opts, uintOption(message.MaxAge, valueMaxAge)))...)
			return
		}
	}
	if v.format >= 0 {
		opts = append(opts, uintOption(message.ContentFormat, uint32(v.format)))
	}
	t.sayContent(s, p, v.payload, append(opts, uintOption(message.MaxAge, valueMaxAge))...)
}

func sorted(opts []message.Option) []message.Option {
	slices.SortStableFunc(opts, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
	return opts
}

// conditions tells whether If-Match and If-None-Match hold (RFC 7252 section 5.10.8) for the last value.
func (p *packet) conditions(v *value) bool {
	if _, ok := p.option(message.IfNoneMatch); ok && v != nil {
		return false
	}
	asked := false
	for _, o := range p.options {
		if o.ID == message.IfMatch {
			asked = true
			if v != nil && (len(o.Value) == 0 || bytes.Equal(o.Value, v.etag())) {
				return true
			}
		}
	}
	return !asked
}
