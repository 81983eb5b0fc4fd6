package coap

import (
	"errors"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// ackDelay is how long an answer may take before an empty ACK goes ahead of it. It is below the ACK_TIMEOUT of devices.
const ackDelay = time.Second

// pending is a report that waits for the uplink.
type pending struct {
	s        *session
	mid      uint16
	con      bool
	tkl      uint8
	token    [8]byte
	suppress uint8          // No-Response
	block    message.Option // the Block1 to echo; ID 0: none
	watch    *watch         // the report is a notification on it; nil: it is a request
	resource string         // whose last value it is; empty: of none
	format   int
	payload  []byte
	patch    bool      // the payload changes the last value
	due      time.Time // of the empty ACK
	prev     *pending
	next     *pending
	listed   bool
	err      error
	done     func(error) // see newPending
}

// newPending makes one whose done is made once and used again with it.
func (l *listener) newPending() any {
	p := new(pending)
	p.done = func(err error) {
		p.err = err
		l.doneMu.Lock()
		l.done = append(l.done, p)
		l.doneMu.Unlock()
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return p
}

// release gives p back. The caller holds the lock.
func (l *listener) release(p *pending) {
	l.waiting.remove(p)
	p.s.waiting--
	if cap(p.payload) > 1024 {
		p.payload = nil
	}
	*p = pending{done: p.done, payload: p.payload[:0]}
	l.pendings.Put(p)
}

// keep copies what becomes the last value of the resource.
func (p *pending) keep(resource string, from *packet, payload []byte) {
	p.resource, p.format, p.payload = resource, -1, append(p.payload, payload...)
	if n, ok := from.number(message.ContentFormat); ok {
		p.format = int(n)
	}
}

// pendingList is ordered by due: every report waits equally long for its empty ACK.
type pendingList struct{ first, last *pending }

func (l *pendingList) push(p *pending) {
	p.prev, p.listed = l.last, true
	if l.last != nil {
		l.last.next = p
	} else {
		l.first = p
	}
	l.last = p
}

func (l *pendingList) remove(p *pending) {
	if !p.listed {
		return
	}
	if p.prev != nil {
		p.prev.next = p.next
	} else if l.first == p {
		l.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else if l.last == p {
		l.last = p.prev
	}
	p.prev, p.next, p.listed = nil, nil, false
}

// expirePending sends the empty ACKs that are due.
func (l *listener) expirePending(t *turn) {
	for p := l.waiting.first; p != nil && !p.due.After(t.now); p = l.waiting.first {
		l.waiting.remove(p)
		if e := p.s.find(p.mid, l.seconds(t.now)); e != nil && e.state == submitted {
			e.state = acked
			t.send(p.s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
		}
	}
}

// codeOf gives the answer to a report, and the Max-Age that goes with it.
func codeOf(err error) (code codes.Code, maxAge uint32) {
	switch msg.ReasonOf(err) {
	case 0:
		return codes.Changed, 0
	case msg.Denied:
		return codes.Forbidden, 0
	case msg.NoRoute:
		return codes.NotFound, 0
	case msg.BadPayload, msg.Unprocessable:
		return codes.BadRequest, 0
	case msg.TooLarge:
		return codes.RequestEntityTooLarge, 0
	case msg.Unconfirmed:
		return codes.GatewayTimeout, 0
	}
	maxAge = 60 // RFC 7252 section 5.10.5
	if r, ok := errors.AsType[*msg.Refusal](err); ok && r.RetryAfter > 0 {
		maxAge = uint32((r.RetryAfter + time.Second - 1) / time.Second)
	}
	return codes.ServiceUnavailable, maxAge
}

// answer tells the device what has become of its report.
func (t *turn) answer(p *pending) {
	t.respond(p)
	if p.s.stream != nil {
		t.answered(p.s, p.mid)
	}
}

func (t *turn) respond(p *pending) {
	if p.watch != nil {
		t.notified(p)
		return
	}
	s := p.s
	code, maxAge := codeOf(p.err)
	t.l.count.answer(code)
	if p.err == nil {
		t.took(p)
	}
	token := p.token[:p.tkl]
	m := message.Message{Code: code, Token: token, MessageID: int32(p.mid), Type: message.Acknowledgement}
	e := s.find(p.mid, t.l.seconds(t.now))
	late := e != nil && e.state == acked
	if e != nil && p.con {
		e.code, e.state = uint8(code), answered
		if late {
			e.state = separate
		}
		t.l.noteAnswered(s, e, t.now)
	}
	if suppressed(p.suppress, code) {
		if p.con && !late {
			t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
		}
		return
	}
	if maxAge != 0 && code == codes.ServiceUnavailable {
		m.Options = append(m.Options, uintOption(message.MaxAge, maxAge))
	}
	if p.block.ID != 0 {
		m.Options = append(m.Options, p.block)
	}
	switch {
	case !p.con:
		m.Type, m.MessageID = message.NonConfirmable, int32(s.nextMID())
	case late:
		m.Type, m.MessageID = message.Confirmable, int32(s.nextMID())
		if data := t.sendMessage(s, &m); data != nil {
			t.track(&transmission{s: s, mid: uint16(m.MessageID), data: append([]byte(nil), data...)})
		}
		return
	case len(m.Options) == 0:
		t.text = appendShort(t.text[:0], message.Acknowledgement, code, p.mid, token)
		t.send(s, t.text)
		return
	}
	t.sendMessage(s, &m)
}

// suppressed tells whether No-Response keeps an answer back (RFC 7967 section 2).
func suppressed(bits uint8, code codes.Code) bool { return bits>>(code>>5-1)&1 == 1 }
