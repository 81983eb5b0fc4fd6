package coap

import (
	"errors"
	"fmt"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// message takes one CoAP message of a session.
func (t *turn) message(s *session, b []byte) {
	t.take(s, b)
	t.renew(s, true)
}

func (t *turn) take(s *session, b []byte) {
	p := &t.pkt
	err := p.parse(b)
	switch {
	case errors.Is(err, errVersion):
		t.l.count.dropped.Add(1)
	case err != nil:
		t.l.count.malformed.Add(1)
		if p.typ == message.Confirmable {
			t.reset(s, p.mid)
		}
	case p.code == codes.Empty:
		switch p.typ {
		case message.Confirmable: // ping
			t.reset(s, p.mid)
		case message.Acknowledgement:
			t.acknowledged(s, p)
		case message.Reset:
			t.wasReset(s, p.mid)
		}
	case p.code>>5 == 0:
		if p.typ == message.Confirmable || p.typ == message.NonConfirmable {
			t.request(s, p)
		}
	case p.code>>5 == 2 || p.code>>5 == 4 || p.code>>5 == 5:
		t.response(s, p)
	case p.typ == message.Confirmable: // a reserved class
		t.reset(s, p.mid)
	}
}

func (t *turn) reset(s *session, mid uint16) {
	t.send(s, appendShort(t.text[:0], message.Reset, codes.Empty, mid, nil))
}

// request carries out a request, or repeats what was said to it before.
func (t *turn) request(s *session, p *packet) {
	t.l.count.requests.Add(1)
	if e := s.find(p.mid, t.l.seconds(t.now)); e != nil {
		t.l.count.duplicates.Add(1)
		if p.typ == message.Confirmable {
			t.repeat(s, p, e)
		}
		return
	}
	if id := p.vet(); id != 0 {
		t.l.count.malformed.Add(1)
		if p.typ == message.Confirmable { // a NON is rejected in silence (RFC 7252 section 5.4.1)
			t.say(s, p, codes.BadOption, fmt.Appendf(nil, "option %d", id))
		}
		return
	}
	_, proxyURI := p.option(message.ProxyURI)
	_, proxyScheme := p.option(message.ProxyScheme)
	if proxyURI || proxyScheme {
		t.say(s, p, codes.ProxyingNotSupported, nil)
		return
	}
	if !t.fresh(s, p) {
		return
	}
	path, ok := p.path(t.path[:0])
	t.path = path
	if !ok {
		t.say(s, p, codes.BadRequest, []byte("path"))
		return
	}
	switch p.code {
	case codes.GET:
		t.get(s, p, path)
	case codes.POST, codes.PUT, patch, ipatch:
		t.report(s, p, path)
	case codes.DELETE:
		t.forgetValue(s, p, path)
	case fetch:
		t.fetch(s, p, path)
	default:
		t.say(s, p, codes.MethodNotAllowed, nil)
	}
}

// repeat answers a confirmable request that has come again.
func (t *turn) repeat(s *session, p *packet, e *exchange) {
	switch e.state {
	case acked, separate:
		t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
	case answered:
		m := message.Message{Type: message.Acknowledgement, Code: codes.Code(e.code), MessageID: int32(p.mid), Token: p.token}
		if m.Code == codes.ServiceUnavailable {
			m.Options = append(m.Options, uintOption(message.MaxAge, 1))
		}
		if b, there, _ := p.block(message.Block1); there {
			m.Options = append(m.Options, b.option(message.Block1))
		}
		t.sendMessage(s, &m)
	}
}

// say answers a request at once, without noting its message id: what comes to the same when it is done twice.
func (t *turn) say(s *session, p *packet, code codes.Code, payload []byte, opts ...message.Option) {
	t.l.count.answer(code)
	m := message.Message{Code: code, Token: p.token, Options: opts, Payload: payload}
	t.reply(s, p, &m)
}

// reply sends m as the answer to p.
func (t *turn) reply(s *session, p *packet, m *message.Message) {
	bits, _ := p.number(message.NoResponse)
	m.Token = p.token
	con := p.typ == message.Confirmable
	switch {
	case con:
		m.Type, m.MessageID = message.Acknowledgement, int32(p.mid)
		if suppressed(uint8(bits), m.Code) {
			t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
			return
		}
	case suppressed(uint8(bits), m.Code):
		return
	default:
		m.Type, m.MessageID = message.NonConfirmable, int32(s.nextMID())
	}
	t.sendMessage(s, m)
}

// report submits what the device says on a resource.
func (t *turn) report(s *session, p *packet, path []byte) {
	payload, block, ok := t.assemble(s, p, path)
	if !ok {
		return
	}
	if !s.spend(t.l.cfg.DeviceRate, t.now) {
		if p.typ == message.Confirmable {
			t.say(s, p, codes.TooManyRequests, nil, uintOption(message.MaxAge, 2))
		}
		return
	}
	if s.waiting >= maxPending {
		if p.typ == message.Confirmable {
			t.say(s, p, codes.ServiceUnavailable, nil, uintOption(message.MaxAge, 1))
		}
		return
	}
	id := s.id
	if s.anyone() {
		if name, ok := p.query("device"); ok {
			if !deviceName(name) {
				t.say(s, p, codes.BadRequest, []byte("device"))
				return
			}
			t.rename(s, name)
		}
		id = s.id
		t.l.awake(id)
	} else if !id.Expires.IsZero() && t.time().After(id.Expires) {
		t.say(s, p, codes.Unauthorized, nil)
		t.bye(s)
		return
	}
	m := t.makeMessage(id, p, path, payload)
	if !p.conditions(t.l.values.get(id.Device, m.Resource)) {
		t.say(s, p, codes.PreconditionFailed, nil)
		return
	}
	patches := p.code == patch || p.code == ipatch
	if patches {
		if err := t.l.values.get(id.Device, m.Resource).patchable(p, payload); err != nil {
			t.say(s, p, codeOfEtch(err), nil)
			return
		}
	}
	pend := t.l.pendings.Get().(*pending)
	pend.patch = patches
	pend.s, pend.mid, pend.con, pend.block = s, p.mid, p.typ == message.Confirmable, block
	pend.tkl = uint8(copy(pend.token[:], p.token))
	if t.l.values.limit > 0 {
		pend.keep(m.Resource, p, payload)
	}
	if bits, ok := p.number(message.NoResponse); ok {
		pend.suppress = uint8(bits)
	}
	if s.stream == nil {
		e := exchange{at: t.l.seconds(t.now), mid: p.mid, state: non}
		if pend.con {
			e.state = submitted
			pend.due = t.now.Add(ackDelay)
			t.l.waiting.push(pend)
		}
		s.note(e)
	} else {
		s.stream.submitted = append(s.stream.submitted, p.mid)
	}
	s.waiting++
	t.subs = append(t.subs, submission{m: m, p: pend})
}

func (t *turn) makeMessage(id *auth.Identity, p *packet, path, payload []byte) msg.Message {
	now := t.time()
	m := msg.Message{
		ID: msg.NewID(now), Time: now, Listener: t.l.env.Name, Device: id.Device, Groups: id.Groups,
		Method: method(p.code), Resource: string(path), Payload: payload,
	}
	if n, ok := p.number(message.ContentFormat); ok {
		m.Type = mediaType(n)
	}
	return m
}

// deviceName tells whether a name that a device gives itself may be one.
func deviceName(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == 0x7f || c == '/' || c == '+' || c == '#' {
			return false
		}
	}
	return true
}

// forgetValue answers a DELETE: the last value is gone. Nothing is reported.
func (t *turn) forgetValue(s *session, p *packet, path []byte) {
	vs := &t.l.values
	device := t.deviceOf(s, p)
	if !p.conditions(vs.get(device, string(path))) {
		t.say(s, p, codes.PreconditionFailed, nil)
		return
	}
	vs.remove(vs.byDevice[device][string(path)])
	t.say(s, p, codes.Deleted, nil)
	for _, s := range t.l.byDevice[device] { // where commands may still come there is still a resource
		if o := s.talk.observation(string(path)); o != nil && !t.l.commandable(s.id, o.resource) {
			t.endObservation(s, o, codes.NotFound)
		}
	}
}

// deviceOf gives the device that a request is of. Without DTLS the request names it.
func (t *turn) deviceOf(s *session, p *packet) string {
	if s.anyone() {
		if name, ok := p.query("device"); ok && deviceName(name) {
			return name
		}
	}
	return s.id.Device
}
