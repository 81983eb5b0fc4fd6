package coap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
)

// half is a handshake under way.
type half struct {
	hs      *dtls.Handshake // used by one worker at a time
	hello   []byte          // to know a repetition
	addr    netip.AddrPort
	local   netip.Addr // what the client has sent to
	cid     dtls.CID
	rules   uint64   // see listener
	inbox   [][]byte // datagrams for the worker
	workers chan<- *half
	queued  bool // a worker has it or will
	heard   bool // the client has gone on after the server's first flight
	started bool
	dead    bool
	flight  [][]byte // to be repeated
	again   time.Time
	wait    time.Duration
	born    time.Time
}

const maxInbox = 16

// datagram takes one datagram.
func (t *turn) datagram(b []byte, from netip.AddrPort) {
	l := t.l
	l.count.datagramsIn.Add(1)
	l.count.bytesIn.Add(int64(len(b)))
	if l.dtls == nil {
		t.plain(b, from)
		return
	}
	first, _, ok := dtls.NextRecord(b)
	if !ok {
		l.count.dropped.Add(1)
		return
	}
	if h, ok := dtls.ParseHello(first); ok {
		t.hello(&h, from)
		return
	}
	s, h := t.route(b, from)
	switch {
	case s != nil && t.records(s, b, from):
	case h != nil:
		t.post(h, b)
	default:
		l.count.dropped.Add(1)
	}
}

// route finds whose datagram it may be: by connection id, whatever the address, else by address.
func (t *turn) route(b []byte, from netip.AddrPort) (*session, *half) {
	for rest := b; ; {
		r, next, ok := dtls.NextRecord(rest)
		if !ok {
			break
		}
		if r.CID != nil {
			return t.l.byCID[dtls.CID(r.CID)], t.l.halfCID[dtls.CID(r.CID)]
		}
		rest = next
	}
	return t.l.byAddr[from], t.l.halves[from]
}

// hello takes a ClientHello. An association of the same address stays as it is until the new handshake has succeeded (RFC 6347 section 4.2.8).
func (t *turn) hello(h *dtls.Hello, from netip.AddrPort) {
	l := t.l
	admitted, challenge := l.gate.Admit(h, from, t.now, t.slot())
	if !admitted {
		l.count.challenges.Add(1)
		t.put(challenge, from, t.local)
		return
	}
	if old := l.halves[from]; old != nil {
		if bytes.Equal(old.hello, h.Bytes()) {
			t.putAll(old.flight, from, t.local)
			t.post(old, nil) // should no worker have taken it yet
			return
		}
		l.drop(old)
	}
	if !l.limits.allow(from.Addr(), t.now) {
		l.count.refusedHandshakes.Add(1)
		return
	}
	if len(l.halves) >= l.cfg.MaxHandshakes {
		l.count.refusedHandshakes.Add(1)
		l.env.Health.Set(&handshakesFull, "")
		l.giveUp()
	}
	n := &half{addr: from, local: t.local, hello: bytes.Clone(h.Bytes()), cid: dtls.NewCID(), rules: l.rules, born: t.now, wait: time.Second, again: t.now.Add(time.Hour)}
	for l.byCID[n.cid] != nil || l.halfCID[n.cid] != nil {
		n.cid = dtls.NewCID()
	}
	cfg := l.handshakeConfig()
	n.hs, n.workers = dtls.NewHandshake(cfg, h, n.cid), l.signs
	effort := h.Effort(cfg.Suites)
	if effort > dtls.Signing {
		n.workers = l.jobs
	}
	l.halves[from], l.halfCID[n.cid] = n, n
	if effort < dtls.Hashing {
		t.post(n, nil)
		return
	}
	n.started = true // here and now: to wake a worker would take longer
	flight, err := n.hs.Start(l.ctx)
	t.conclude(n, flight, err)
}

// giveUp makes room for a handshake. Of some under way that one goes which is of the address with the most of them; of equal ones, one whose client has not gone
// on; of equal ones, the oldest. So who opens handshakes and leaves them there keeps nobody out for long, and least of all those who are elsewhere.
func (l *listener) giveUp() {
	var sample []*half
	of := map[netip.Prefix]int{}
	for _, h := range l.halves { // in random order
		sample = append(sample, h)
		of[prefixOf(h.addr.Addr())]++
		if len(sample) == 32 {
			break
		}
	}
	l.drop(slices.MinFunc(sample, func(a, b *half) int {
		return cmp.Or(of[prefixOf(b.addr.Addr())]-of[prefixOf(a.addr.Addr())], heard(a)-heard(b), a.born.Compare(b.born))
	}))
}

func heard(h *half) int {
	if h.heard {
		return 1
	}
	return 0
}

// post gives a worker something to do on h.
func (t *turn) post(h *half, b []byte) {
	if b != nil {
		if len(h.inbox) >= maxInbox {
			t.l.count.dropped.Add(1)
			return
		}
		h.inbox, h.heard = append(h.inbox, bytes.Clone(b)), true
	}
	if !h.queued {
		select {
		case h.workers <- h:
			h.queued = true
		default: // the client repeats itself
		}
	}
}

func (l *listener) drop(h *half) {
	h.dead = true
	if !h.queued && l.cfg.ECDHE == inChip {
		l.unclosed = append(l.unclosed, h) // else the worker that has it sees that it is dead
	}
	if l.halves[h.addr] == h {
		delete(l.halves, h.addr)
	}
	delete(l.halfCID, h.cid)
}

// handshake is a worker: it does for handshakes what takes time.
func (l *listener) handshake(ctx context.Context, jobs <-chan *half) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-jobs:
			l.advance(ctx, h)
		}
	}
}

func (l *listener) advance(ctx context.Context, h *half) {
	for {
		l.mu.Lock()
		inbox, started := h.inbox, h.started
		h.inbox, h.started = nil, true
		if h.dead || started && len(inbox) == 0 {
			h.queued = false
			dead := h.dead
			l.mu.Unlock()
			if dead {
				h.hs.Close(ctx)
			}
			return
		}
		l.mu.Unlock()

		var flight [][]byte
		var err error
		if !started {
			flight, err = h.hs.Start(ctx)
		}
		for len(inbox) > 0 && err == nil {
			var out [][]byte
			if out, err = h.hs.Step(ctx, inbox[0]); out != nil {
				flight = out
			}
			inbox = inbox[1:]
			if conn, peer := h.hs.Conn(); conn != nil {
				l.establish(h, conn, peer.(*auth.Identity), flight, inbox)
				return
			}
		}
		t := l.begin(time.Now())
		t.conclude(h, flight, err)
		l.end(t)
	}
}

// conclude sends what a step has given.
func (t *turn) conclude(h *half, flight [][]byte, err error) {
	switch {
	case h.dead:
	case err != nil:
		if alert := h.hs.AlertDatagram(err); alert != nil {
			t.putAll([][]byte{alert}, h.addr, h.local)
		}
		t.l.drop(h)
		t.l.failed(h, err, t.now)
	case flight != nil:
		t.putAll(flight, h.addr, h.local)
		h.flight, h.again = flight, t.now.Add(h.wait)
	}
}

// establish puts the new association in the place of what was at its address.
func (l *listener) establish(h *half, conn *dtls.Conn, id *auth.Identity, flight, rest [][]byte) {
	t := l.begin(time.Now())
	if !h.dead && l.serving {
		l.drop(h)
		if id = l.current(id, h.rules); id == nil {
			l.count.handshakesFailed.Add(1)
			l.count.fail("unknown-device")
			l.end(t)
			return
		}
		t.putAll(flight, h.addr, h.local)
		l.count.handshakesOK.Add(1)
		l.env.Health.Clear(&keyUnavailable)
		s := &session{conn: conn, addr: h.addr, local: h.local, id: id, since: t.now, seen: t.now, credit: unlimited, slot: noSlot}
		l.keep(s)
		l.add(t, s)
		t.renew(s, true)
		for _, b := range append(rest, h.inbox...) {
			t.datagram(b, h.addr)
		}
		l.awake(id)
	}
	l.end(t)
}

// current gives who a device is whose credential was looked up when rules stood there: a reload meanwhile has not seen it. It is nil where the
// device is no longer known.
func (l *listener) current(id *auth.Identity, rules uint64) *auth.Identity {
	r, ok := l.env.Auth.(auth.Refresher)
	if !ok || rules == l.rules {
		return id
	}
	fresh, err := r.Refresh(l.ctx, *id)
	switch {
	case errors.Is(err, auth.ErrUnknown) || err == nil && fresh.Device != id.Device:
		return nil
	case err != nil:
		return id
	}
	return &fresh
}

// failed counts a handshake that came to nothing.
func (l *listener) failed(h *half, err error, now time.Time) {
	l.count.handshakesFailed.Add(1)
	f, ok := errors.AsType[*dtls.Failure](err)
	if !ok {
		return
	}
	l.count.fail(f.Reason)
	switch f.Reason {
	case "key-unavailable":
		l.env.Health.Fail(&keyUnavailable, err)
	case "psk-in-chip":
		l.env.Health.Fail(&credentialsRefused, err)
		l.refusedAt = now
	case "wrong-psk", "unknown-psk", "client-certificate", "unknown-device", "no-client-certificate":
		l.env.Health.Fail(&credentialsRefused, err)
		l.refusedAt = now
		l.limits.refused(h.addr.Addr(), now)
	}
}

// closeHalves has workers let go of what chips hold for handshakes that were given up.
func (l *listener) closeHalves() {
	for len(l.unclosed) > 0 {
		h := l.unclosed[len(l.unclosed)-1]
		select {
		case h.workers <- h:
			h.queued = true
			l.unclosed = l.unclosed[:len(l.unclosed)-1]
		default:
			return
		}
	}
}

// renewHalves repeats flights that nobody has answered and gives up handshakes that take too long.
func (l *listener) renewHalves(t *turn) {
	for _, h := range l.halves {
		switch {
		case t.now.Sub(h.born) > time.Duration(l.cfg.HandshakeTimeout):
			l.drop(h)
			l.count.handshakesFailed.Add(1)
			l.count.fail("timeout")
		case t.now.After(h.again):
			h.wait = min(2*h.wait, 15*time.Second)
			h.again = t.now.Add(h.wait)
			t.putAll(h.flight, h.addr, h.local)
		}
	}
	if len(l.halves) < l.cfg.MaxHandshakes/2 {
		l.env.Health.Clear(&handshakesFull)
	}
	if !l.refusedAt.IsZero() && t.now.Sub(l.refusedAt) > time.Hour {
		l.refusedAt = time.Time{}
		l.env.Health.Clear(&credentialsRefused)
	}
}

// records opens the records of a datagram for a session. taken is false where none of them was the session's.
func (t *turn) records(s *session, b []byte, from netip.AddrPort) (taken bool) {
	size := len(b)
	for rest := b; ; {
		r, next, ok := dtls.NextRecord(rest)
		if !ok {
			return taken
		}
		rest = next
		if r.Epoch == 0 {
			continue // nothing without protection reaches an association
		}
		typ, data, newest, err := s.conn.Open(r)
		if err != nil {
			t.l.count.undecryptable.Add(1)
			continue
		}
		if !taken {
			taken = true
			t.heard(s, from, newest, size)
		} else {
			t.l.noteReceived(s, false)
		}
		if typ == dtls.TypeApplication {
			t.message(s, data)
		} else {
			switch s.conn.Control(typ, data) {
			case dtls.Closed:
				t.l.remove(s)
			case dtls.Repeated:
				if out, err := s.conn.FinalFlight(t.slot()); err == nil {
					t.put(out, s.addr, s.local)
				}
			}
		}
		if s.dead {
			return taken
		}
	}
}

// plain takes a datagram on a listener without DTLS.
func (t *turn) plain(b []byte, from netip.AddrPort) {
	s := t.l.byAddr[from]
	if s == nil {
		if len(b) < 4 || b[0]>>6 != 1 {
			t.l.count.dropped.Add(1)
			return
		}
		s = &session{addr: from, id: &auth.Identity{Device: "anonymous", Method: "none"}, since: t.now, seen: t.now, credit: unlimited, slot: noSlot}
		t.l.add(t, s)
	}
	s.seen, s.local = t.now, t.local
	t.message(s, b)
}
