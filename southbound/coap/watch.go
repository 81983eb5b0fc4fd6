package coap

import (
	"bytes"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// The gateway observes resources of devices (RFC 7641) where the listener's configuration names them and a rule lets the device report on
// them. Each new representation is a report. A confirmable notification is acknowledged when the uplink has said yes, so one that is not
// taken comes again.
//
// An observation is made when an association is, and renewed when the Max-Age of the last representation is over, when the device has
// been silent and is heard again, and after a restart. Its token follows from the resource, so that notifications are known after a restart;
// one that is not wanted any more is rejected by a RST, which ends it.

// maxWatches is how many resources of a device are observed.
const maxWatches = 16

// watch is the gateway's observation of a resource of a device.
type watch struct {
	resource string
	token    []byte
	seq      uint32
	at       time.Time // when the newest representation came; zero: the next one is newer, whatever its number
	etag     []byte    // of the newest representation that the uplink has taken or is about to
	due      time.Time // when it is asked for again
	parked   bool      // not asked for until the device is heard
	asking   bool      // a request waits or is under way
	failed   int       // requests in a row
}

// watchToken is longer than the tokens of commands.
func watchToken(resource string) []byte {
	h := fnv.New64a()
	h.Write([]byte(resource))
	return h.Sum(nil)
}

// watch gives the observation with the token, nil where there is none.
func (k *talk) watch(token []byte) *watch {
	if k == nil {
		return nil
	}
	if i := slices.IndexFunc(k.watches, func(w *watch) bool { return bytes.Equal(w.token, token) }); i >= 0 {
		return k.watches[i]
	}
	return nil
}

// rewatch makes the session's observations those that the configuration and the rules ask for. The device is asked when it is next heard.
func (t *turn) rewatch(s *session) {
	var wanted []string
	for _, resource := range t.l.cfg.Observe {
		if t.l.env.Policy.Allowed(s.id, auth.Report, resource) {
			wanted = append(wanted, resource)
		}
	}
	if len(wanted) == 0 && (s.talk == nil || len(s.talk.watches) == 0) {
		return
	}
	k := s.speak()
	old := k.watches
	k.watches = nil
	for _, w := range old {
		if slices.Contains(wanted, w.resource) {
			k.watches = append(k.watches, w)
		} else if !w.at.IsZero() {
			k.commands = append(k.commands, &command{m: msg.Message{Device: s.id.Device, Method: "GET", Resource: w.resource}, watch: w, cancel: true, block: block{szx: maxBlockSZX}})
		}
	}
	for _, resource := range wanted {
		if token := watchToken(resource); k.watch(token) == nil {
			k.watches = append(k.watches, &watch{resource: resource, token: token, due: t.now, parked: true})
		}
	}
	t.next(s)
}

// renew asks for what is due. heard tells that the device has just spoken.
func (t *turn) renew(s *session, heard bool) {
	if s.talk == nil || len(s.talk.watches) == 0 || s.dead || !heard && s.id.Sleepy && t.now.Sub(s.seen) > wakeful {
		return
	}
	for _, w := range s.talk.watches {
		if w.asking || w.parked && !heard || w.due.After(t.now) {
			continue
		}
		w.asking, w.parked = true, false
		s.talk.commands = append(s.talk.commands, &command{m: msg.Message{Device: s.id.Device, Method: "GET", Resource: w.resource}, watch: w, block: block{szx: maxBlockSZX}})
	}
	t.next(s)
}

// options are those that a request for the observation begins with.
func (w *watch) options(cancel bool) (opts message.Options) {
	if cancel {
		return append(opts, uintOption(message.Observe, 1))
	}
	if len(w.etag) > 0 {
		opts = append(opts, message.Option{ID: message.ETag, Value: w.etag})
	}
	return append(opts, uintOption(message.Observe, 0))
}

// newer tells whether a notification is newer than what came before (RFC 7641 section 3.4).
func (w *watch) newer(seq uint32, now time.Time) bool {
	const half = 1 << 23
	return w.at.IsZero() || now.Sub(w.at) > 128*time.Second || w.seq < seq && seq-w.seq < half || w.seq > seq && w.seq-seq > half
}

// note remembers what a representation or its first block says of itself. It is asked for again some seconds after its Max-Age
// (RFC 7641 section 3.3.1).
func (w *watch) note(p *packet, now time.Time) {
	w.seq, _ = p.number(message.Observe)
	w.at, w.failed = now, 0
	if p.code != codes.Valid {
		etag, _ := p.option(message.ETag)
		w.etag = bytes.Clone(etag)
	}
	w.due = now.Add(p.maxAge() + 5*time.Second + rand.N(10*time.Second))
}

func (p *packet) maxAge() time.Duration {
	n, ok := p.number(message.MaxAge)
	if !ok {
		n = 60 // RFC 7252 section 5.10.5
	}
	return time.Duration(n) * time.Second
}

// fail makes a pause that grows before it is asked for again.
func (w *watch) fail(now time.Time) {
	w.at, w.etag = time.Time{}, nil
	w.due = now.Add(time.Minute << min(w.failed, 6))
	w.failed++
}

// watched takes the end of a request for an observation. p is nil where there was no sound answer; silent tells that there was none at all.
func (t *turn) watched(s *session, c *command, p *packet, silent bool) {
	w := c.watch
	if c.cancel || s.talk.watch(w.token) != w {
		return
	}
	w.asking = false
	switch {
	case p == nil:
		w.fail(t.now)
		w.parked = silent
		if c.fetched > 0 && w.failed == 1 { // it has changed between two blocks
			w.due = t.now
		}
	case p.code == codes.Valid:
	case p.code == codes.Content:
		t.represent(s, w, p, c.answer, message.Acknowledgement)
	default:
		t.l.count.observeRefused.Add(1)
		w.fail(t.now)
		if _, ok := p.option(message.MaxAge); ok {
			w.due = t.now.Add(p.maxAge())
		}
	}
}

// notification takes a response with the token of an observation; false where there is none.
func (t *turn) notification(s *session, p *packet) bool {
	w := s.talk.watch(p.token)
	if w == nil {
		return false
	}
	if s.doubted { // it may be a replay; the request that renew sends will tell
		return true
	}
	confirm := func() {
		if p.typ == message.Confirmable {
			t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
		}
	}
	if s.stream == nil && p.typ != message.Acknowledgement {
		if e := s.find(p.mid, t.l.seconds(t.now)); e != nil {
			t.l.count.duplicates.Add(1)
			if p.typ == message.Confirmable && e.state != submitted {
				confirm()
			}
			return true
		}
	}
	seq, there := p.number(message.Observe)
	b, blocks, sound := p.block(message.Block2)
	switch {
	case p.vet() != 0 || !sound:
		t.reset(s, p.mid)
		return true
	case p.code != codes.Content: // it has ended (RFC 7641 section 4.2)
		confirm()
		w.fail(t.now)
		return true
	case s.stream == nil && there && !w.newer(seq, t.now): // overtaken by what has come
		confirm()
		return true
	case w.asking && blocks && b.more: // what is asked for already may be of before
		confirm()
		w.due = t.now
		return true
	case s.waiting >= maxPending || !s.spend(t.l.cfg.DeviceRate, t.now):
		return true // a confirmable one comes again
	}
	if c := s.talk.underWay(); c != nil && c.watch == w && c.registers() { // it has come in the place of the answer
		w.asking = false
		t.drop(s, c)
		defer t.next(s)
	}
	before := *w
	w.note(p, t.now)
	if blocks && b.more && b.num == 0 && b.fits(len(p.payload)) {
		confirm()
		w.asking = true
		s.speak().commands = append(s.talk.commands, &command{
			m: msg.Message{Device: s.id.Device, Method: "GET", Resource: w.resource}, watch: w, block: block{szx: maxBlockSZX},
			answer: bytes.Clone(p.payload), fetched: len(p.payload), fetch: b, etag: w.etag,
		})
		t.next(s)
		return true
	}
	if !t.represent(s, w, p, p.payload, p.typ) {
		*w = before
	}
	return true
}

// represent submits a representation; false where the credential has ended.
func (t *turn) represent(s *session, w *watch, p *packet, payload []byte, typ message.Type) bool {
	if !s.id.Expires.IsZero() && t.time().After(s.id.Expires) {
		t.bye(s)
		return false
	}
	t.l.count.notifications.Add(1)
	m := t.makeMessage(s.id, p, []byte(w.resource), payload)
	m.Method = "GET"
	pend := t.l.pendings.Get().(*pending)
	pend.s, pend.watch, pend.mid, pend.con = s, w, p.mid, typ == message.Confirmable
	if t.l.values.limit > 0 {
		pend.keep(w.resource, p, payload)
	}
	if s.stream == nil && typ != message.Acknowledgement {
		e := exchange{at: t.l.seconds(t.now), mid: p.mid, state: non}
		if pend.con {
			e.state = submitted
		}
		s.note(e)
	}
	s.waiting++
	t.subs = append(t.subs, submission{m: m, p: pend})
	return true
}

// notified acknowledges a notification that the uplink has taken. One that it cannot take now comes again; one that it will never take ends
// the observation.
func (t *turn) notified(p *pending) {
	s, w := p.s, p.watch
	e := s.find(p.mid, t.l.seconds(t.now))
	code, maxAge := codeOf(p.err)
	switch {
	case p.err == nil:
		t.took(p)
		fallthrough
	case code == codes.BadRequest || code == codes.RequestEntityTooLarge: // the next one may be better
		if p.con {
			t.send(s, appendShort(t.text[:0], message.Acknowledgement, codes.Empty, p.mid, nil))
			if e != nil {
				e.state = separate
				t.l.noteAnswered(s, e, t.now)
			}
		}
	case code>>5 == 4:
		if p.con {
			t.reset(s, p.mid)
		}
		w.fail(t.now)
	default:
		w.at, w.etag = time.Time{}, nil
		w.due = t.now.Add(time.Duration(maxAge) * time.Second)
		if p.con && e != nil {
			e.at = t.l.seconds(t.now) - exchangeLifetime // its repetition is taken anew
		}
	}
}
