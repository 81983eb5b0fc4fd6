package coap

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
)

// RFC 7252 section 4.8.2.
const exchangeLifetime = 247

const (
	maxExchanges = 128 // message ids of one device that are remembered
	maxPending   = 64  // reports of one device that may wait for the uplink
)

// unlimited is the credit of a peer whose address is proved.
const unlimited = math.MaxInt32

// session is one endpoint: a DTLS association or, without DTLS, an address. It is guarded by the listener's lock.
type session struct {
	conn        *dtls.Conn // nil without DTLS
	stream      *stream    // nil over UDP
	addr        netip.AddrPort
	local       netip.Addr // of this side, that the peer has sent to last; the zero Addr: the socket has but one, or nothing has come yet
	id          *auth.Identity
	since       time.Time
	seen        time.Time
	recent      []exchange     // a ring once it is full
	at          int            // where the ring goes on
	former      netip.AddrPort // where it was before it moved to an address that is not proved
	formerUntil time.Time
	credit      int       // octets that may be sent to an address that is not proved
	paced       time.Time // what it has sent is paid for then
	waiting     int       // reports that wait for the uplink
	mid         uint16    // of the next message of this side
	dead        bool
	talk        *talk // what goes the other way; nil until something does
	parts       []*assembly

	slot      int   // in the file of kept associations
	keptAt    uint8 // where the next answered request is stored there
	reserving bool  // sequence numbers are being reserved
	doubted   bool  // after a power cut: what comes may be a replay
	tries     int
	challenge []byte

	challenged time.Time // when it was challenged first
}

// exchange is a message id of the device that is not to be carried out again.
type exchange struct {
	at    uint32 // seconds since the listener's epoch
	mid   uint16
	code  uint8 // of the answer
	state state
}

type state uint8

const (
	submitted state = iota + 1 // the uplink has not decided
	acked                      // the same, and an empty ACK has gone out
	answered                   // by a piggybacked answer
	separate                   // by one of its own
	non                        // not confirmable: repetitions are ignored
)

// find gives the exchange of a message id, nil where there is none that still lives.
func (s *session) find(mid uint16, now uint32) *exchange {
	for i := range s.recent {
		if e := &s.recent[i]; e.mid == mid && now-e.at < exchangeLifetime {
			return e
		}
	}
	return nil
}

// note remembers a message id in the place of one that has expired, in a new one, or in the oldest.
func (s *session) note(e exchange) {
	if n := len(s.recent); n < maxExchanges {
		if n == 0 || e.at-s.recent[s.at%n].at < exchangeLifetime {
			if n == cap(s.recent) {
				s.recent = slices.Grow(s.recent, min(max(n, 2), maxExchanges-n))
			}
			// The oldest stays where the ring goes on.
			s.recent = slices.Insert(s.recent, s.at, e)
			s.at++
			if s.at == len(s.recent) {
				s.at = 0
			}
			return
		}
	}
	s.recent[s.at] = e
	s.at = (s.at + 1) % len(s.recent)
}

func (l *listener) seconds(now time.Time) uint32 { return uint32(now.Sub(l.epoch) / time.Second) }

// nextMID gives a message id for a message of this side. The first one is random.
func (s *session) nextMID() uint16 {
	if s.mid == 0 {
		var b [2]byte
		rand.Read(b[:])
		s.mid = binary.BigEndian.Uint16(b[:])
	}
	s.mid++
	return s.mid
}

// add makes the session known in the place of others that it supersedes, and makes room if there is none.
func (l *listener) add(t *turn, s *session) {
	if l.count.sessions.Load() >= int64(l.cfg.MaxDevices) {
		l.evict()
	}
	if cid, ok := s.cid(); ok {
		l.byCID[cid] = s
	} else {
		if old := l.byAddr[s.addr]; old != nil {
			if old.talk != nil && old.id.Device == s.id.Device {
				s.speak().commands = old.talk.handOver(l)
			}
			l.remove(old)
		}
		l.byAddr[s.addr] = s
	}
	l.count.sessions.Add(1)
	defer t.rewatch(s)
	if s.anyone() {
		l.byDevice[s.id.Device] = append(l.byDevice[s.id.Device], s)
		return
	}
	// A device that has made a new association has most likely lost the old one: what waits for it goes on with the new one.
	// A few old ones are kept: some devices run more than one client.
	for _, old := range l.byDevice[s.id.Device] {
		if old.talk != nil {
			s.speak().commands = append(s.talk.commands, old.talk.handOver(l)...)
		}
	}
	for list := l.byDevice[s.id.Device]; len(list) >= maxPerDevice; list = l.byDevice[s.id.Device] {
		l.remove(list[0])
	}
	l.byDevice[s.id.Device] = append(l.byDevice[s.id.Device], s)
	t.next(s)
}

// anyone tells that the session has shown no credential.
func (s *session) anyone() bool { return s.id.Method == "none" }

// maxPerDevice is how many associations one device may have.
const maxPerDevice = 4

func (s *session) cid() (dtls.CID, bool) {
	if s.conn == nil {
		return dtls.CID{}, false
	}
	return s.conn.CID()
}

// remove ends a session without a word.
func (l *listener) remove(s *session) {
	if s.dead {
		return
	}
	s.dead = true
	if s.stream != nil {
		s.stream.wake()
	}
	for len(s.parts) > 0 {
		l.discard(s, 0)
	}
	l.count.sessions.Add(-1)
	if cid, ok := s.cid(); ok {
		delete(l.byCID, cid)
	} else if l.byAddr[s.addr] == s {
		delete(l.byAddr, s.addr)
	}
	l.unname(s)
	l.abandon(s)
	l.dropKept(s)
}

func (l *listener) unname(s *session) {
	list := slices.DeleteFunc(l.byDevice[s.id.Device], func(o *session) bool { return o == s })
	if len(list) == 0 {
		delete(l.byDevice, s.id.Device)
	} else {
		l.byDevice[s.id.Device] = list
	}
}

// rename makes a session without DTLS that of the device that its last request named.
func (t *turn) rename(s *session, device string) {
	if s.id.Device == device {
		return
	}
	t.l.unname(s)
	s.id = t.l.named(device)
	t.l.byDevice[device] = append(t.l.byDevice[device], s)
	t.rewatch(s)
}

// named gives the device of a name that nobody has proven, in the groups that the file puts it in.
func (l *listener) named(device string) *auth.Identity {
	id := auth.Identity{Device: device, Method: "none"}
	if r, ok := l.env.Auth.(auth.Refresher); ok {
		if known, err := r.Refresh(l.ctx, id); err == nil {
			id = known
		}
	}
	return &id
}

// evict makes room: among some, that association goes which is worth least. One whose device has a newer one is worth less than any device's only one;
// among equals the one that has been silent for longest goes.
func (l *listener) evict() {
	var oldest *session
	superseded := false
	n := 0
	for _, list := range l.byDevice { // in random order
		for i, s := range list {
			old := i < len(list)-1 && !s.anyone()
			if oldest == nil || old && !superseded || old == superseded && s.seen.Before(oldest.seen) {
				oldest, superseded = s, old
			}
		}
		if n++; n == 64 {
			break
		}
	}
	if oldest != nil {
		l.count.evicted.Add(1)
		l.remove(oldest)
	}
}

// coolAfter is how long a device is silent before its ciphers go. Most devices speak so seldom that they are made again each time.
const coolAfter = 30 * time.Second

// sweep removes sessions that are silent for too long or whose credential has ended.
func (l *listener) sweep(t *turn) {
	l.limits.sweep(t.now)
	idle := time.Duration(l.cfg.IdleTimeout)
	if l.dtls == nil && l.cfg.Transport == "udp" {
		idle = min(idle, exchangeLifetime*time.Second)
	}
	for _, list := range l.byDevice {
		for _, s := range slices.Clone(list) {
			l.sweepParts(s, t.now)
			if s.conn != nil && t.now.Sub(s.seen) > coolAfter {
				s.conn.Cool()
			}
			if t.now.Sub(s.seen) > idle {
				l.remove(s)
			} else if !s.id.Expires.IsZero() && t.time().After(s.id.Expires) {
				t.bye(s)
			} else {
				t.renew(s, false)
			}
		}
	}
}

// heard notes that an authentic record has come. Only the newest one moves the session to its address (RFC 9146 section 6).
func (t *turn) heard(s *session, from netip.AddrPort, newest bool, size int) {
	s.seen = t.now
	if newest {
		s.local = t.local
	}
	moved := false
	switch {
	case newest && from != s.addr:
		moved = true
		t.l.count.rebound.Add(1)
		switch {
		case from == s.former && t.now.Before(s.formerUntil): // it never left
			s.addr, s.credit, s.former = from, unlimited, netip.AddrPort{}
		case s.credit == unlimited:
			s.former, s.formerUntil = s.addr, t.now.Add(formerFor)
			fallthrough
		default:
			s.addr, s.credit = from, 3*size
		}
	case s.credit != unlimited && from == s.addr:
		s.credit = min(s.credit+3*size, 1<<20)
	}
	t.l.noteReceived(s, moved)
	if list := t.l.byDevice[s.id.Device]; len(list) > 1 && list[len(list)-1] != s {
		i := slices.Index(list, s)
		copy(list[i:], list[i+1:])
		list[len(list)-1] = s
	}
	t.l.awake(s.id)
}

func (l *listener) awake(id *auth.Identity) {
	if l.env.Awake != nil {
		l.env.Awake(id.Device)
	}
}

// send protects a message and sends it.
func (t *turn) send(s *session, m []byte) {
	if s.dead {
		return
	}
	if s.stream != nil {
		t.queue(s, m)
		return
	}
	b := t.slot()
	if s.conn == nil {
		b = append(b, m...)
	} else {
		var err error
		if b, err = s.conn.Seal(b, dtls.TypeApplication, m); err != nil {
			if errors.Is(err, dtls.ErrExhausted) && s.conn.Limit() >= 1<<48-1 {
				t.l.remove(s)
			}
			return
		}
		t.l.reserveAhead(s)
	}
	switch {
	case s.credit == unlimited:
		t.put(b, s.addr, s.local)
		return
	case s.credit >= len(b):
		s.credit -= len(b)
		t.put(b, s.addr, s.local)
	default: // the device asks again, and pays for more
		t.l.count.amplification.Add(1)
	}
	if s.former.IsValid() && t.now.Before(s.formerUntil) {
		t.put(append(t.slot(), b...), s.former, s.local)
	}
}

// formerFor is how long what is sent to an address that is not proved goes to the one before, too. So someone who copies a device's datagram and
// delivers it first, from elsewhere, does not cut the device off.
const formerFor = 10 * time.Second

// sendMessage encodes and sends.
func (t *turn) sendMessage(s *session, m *message.Message) []byte {
	b, err := appendMessage(t.text[:0], m)
	if err != nil {
		return nil
	}
	t.text = b
	t.send(s, b)
	return b
}

// bye ends a session and tells the device.
func (t *turn) bye(s *session) {
	if s.stream != nil && !s.dead {
		t.signal(s, codes.Release, nil)
	}
	if s.conn != nil && !s.dead {
		if b, err := s.conn.SealAlert(t.slot(), dtls.CloseNotify); err == nil {
			t.put(b, s.addr, s.local)
		}
	}
	t.l.remove(s)
}
