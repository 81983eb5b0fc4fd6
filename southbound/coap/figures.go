package coap

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/southbound"
)

// What can be wrong with a listener.
var (
	keyUnavailable = health.Code{
		Name: "coap-key-unavailable", Title: "devices cannot connect: a key that their handshake takes cannot be used", Severity: health.Failing,
		Hint: "look at the key with `drawbridge keys list` and at its chip with `drawbridge doctor`",
	}
	handshakesFull = health.Code{
		Name: "coap-handshakes-full", Title: "more devices connect than may do so at a time", Severity: health.Degraded,
		Hint: "wait, if all devices come back at once; else look for who floods the listener, or raise max_handshakes",
	}
	notKept = health.Code{
		Name: "coap-associations-not-kept", Title: "devices must make a new handshake after a restart", Severity: health.Notice,
		Hint: "name a key that seals by state_key, and see that the state directory can be written",
	}
	credentialsRefused = health.Code{
		Name: "coap-credentials-refused", Title: "a device was refused because of its credential", Severity: health.Notice,
		Hint: "compare the device's PSK, its identity or its certificate with the configuration",
	}
)

// counters are the listener's figures.
type counters struct {
	datagramsIn, datagramsOut, bytesIn, bytesOut                             atomic.Int64
	dropped, undecryptable, malformed, challenges, amplification             atomic.Int64
	handshakesOK, handshakesFailed, refusedHandshakes                        atomic.Int64
	sessions, evicted, rebound, restored                                     atomic.Int64
	requests, duplicates, commands, retransmissions, socketErrors            atomic.Int64
	success, clientError, serverError, notifications, observeRefused         atomic.Int64
	failKey, failSuite, failPSK, failCertificate, failTimeout, failMalformed atomic.Int64
}

func (c *counters) answer(code codes.Code) {
	switch code >> 5 {
	case 2:
		c.success.Add(1)
	case 4:
		c.clientError.Add(1)
	default:
		c.serverError.Add(1)
	}
}

func (c *counters) fail(reason string) {
	switch reason {
	case "key-unavailable", "internal":
		c.failKey.Add(1)
	case "no-common-suite", "psk-in-chip":
		c.failSuite.Add(1)
	case "wrong-psk", "unknown-psk":
		c.failPSK.Add(1)
	case "client-certificate", "no-client-certificate", "unknown-device":
		c.failCertificate.Add(1)
	case "timeout", "client-alert":
		c.failTimeout.Add(1)
	default:
		c.failMalformed.Add(1)
	}
}

// Counters implements southbound.Counters.
func (l *listener) Counters() map[string]int64 {
	c := &l.count
	l.mu.Lock()
	halves := int64(len(l.halves))
	l.mu.Unlock()
	m := map[string]int64{"handshakes_open": halves}
	for name, v := range map[string]*atomic.Int64{
		"datagrams_in": &c.datagramsIn, "datagrams_out": &c.datagramsOut, "bytes_in": &c.bytesIn, "bytes_out": &c.bytesOut,
		"dropped": &c.dropped, "undecryptable": &c.undecryptable, "malformed": &c.malformed, "challenges": &c.challenges,
		"amplification_held": &c.amplification, "handshakes_ok": &c.handshakesOK, "handshakes_failed": &c.handshakesFailed,
		"handshakes_refused": &c.refusedHandshakes, "sessions": &c.sessions, "evicted": &c.evicted, "rebound": &c.rebound, "restored": &c.restored,
		"requests": &c.requests, "duplicates": &c.duplicates, "commands": &c.commands, "retransmissions": &c.retransmissions,
		"socket_errors": &c.socketErrors, "notifications": &c.notifications, "observe_refused": &c.observeRefused, "answers_2xx": &c.success, "answers_4xx": &c.clientError, "answers_5xx": &c.serverError,
		"handshakes_failed_key": &c.failKey, "handshakes_failed_suite": &c.failSuite, "handshakes_failed_psk": &c.failPSK,
		"handshakes_failed_certificate": &c.failCertificate, "handshakes_failed_timeout": &c.failTimeout,
		"handshakes_failed_malformed": &c.failMalformed,
	} {
		m[name] = v.Load()
	}
	return m
}

// Devices implements southbound.Inventory.
func (l *listener) Devices(yield func(southbound.DeviceInfo) bool) {
	l.mu.Lock()
	var all []southbound.DeviceInfo
	for _, list := range l.byDevice {
		for _, s := range list {
			all = append(all, l.describe(s))
		}
	}
	l.mu.Unlock()
	for _, d := range all {
		if !yield(d) {
			return
		}
	}
}

func (l *listener) describe(s *session) southbound.DeviceInfo {
	d := southbound.DeviceInfo{
		Device: s.id.Device, Groups: s.id.Groups, Listener: l.env.Name, Address: s.addr.String(), Auth: s.id.Method,
		Protocol: "CoAP", Since: s.since, LastSeen: s.seen, Connected: true,
	}
	if s.conn != nil {
		words := []string{"DTLS 1.2", s.conn.Suite().Name}
		if _, ok := s.conn.CID(); ok {
			words = append(words, "CID")
		}
		d.Protocol = strings.Join(words, " ")
	}
	if s.stream != nil {
		d.Protocol = "CoAP over TCP"
		if v := s.stream.state.Version; v != 0 {
			d.Protocol = "CoAP over " + tls.VersionName(v) + " " + tls.CipherSuiteName(s.stream.state.CipherSuite)
		}
	}
	if s.talk != nil {
		d.Queued = len(s.talk.commands)
	}
	return d
}

// Disconnect implements southbound.Inventory.
func (l *listener) Disconnect(device string) int {
	l.mu.Lock()
	serving := l.serving
	l.mu.Unlock()
	if !serving {
		return 0
	}
	t := l.begin(time.Now())
	list := slices.Clone(l.byDevice[device])
	for _, s := range list {
		t.bye(s)
	}
	l.end(t)
	return len(list)
}

// PolicyChanged implements southbound.PolicyChanged: sessions learn who their device is now; those of devices that are gone end.
func (l *listener) PolicyChanged() {
	refresher, ok := l.env.Auth.(auth.Refresher)
	if !ok {
		return
	}
	l.mu.Lock()
	l.rules++
	ctx := l.ctx
	ids := map[*session]auth.Identity{}
	for _, list := range l.byDevice {
		for _, s := range list {
			ids[s] = *s.id
		}
	}
	l.mu.Unlock()
	fresh := map[*session]*auth.Identity{}
	for s, old := range ids {
		id, err := refresher.Refresh(ctx, old)
		switch {
		case errors.Is(err, auth.ErrUnknown):
			fresh[s] = nil
		case err == nil:
			fresh[s] = &id
		}
	}
	t := l.begin(time.Now())
	for s, id := range fresh {
		switch {
		case s.dead || !l.serving:
		case s.anyone() && id != nil && id.Device != s.id.Device: // named anew since, by the new rules
		case id == nil || id.Device != s.id.Device:
			t.bye(s)
		default:
			moved := !slices.Equal(s.id.Groups, id.Groups)
			s.id = id
			if moved {
				l.keep(s) // else the next start would find the groups of before
			}
			t.rewatch(s)
		}
	}
	l.end(t)
}
