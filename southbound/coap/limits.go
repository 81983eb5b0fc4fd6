package coap

import (
	"net/netip"
	"time"
)

// What one address may cost. Many devices may stand behind one NAT, so the limits are wide until credentials from there are refused.
// The number of handshakes from this machine itself is not limited.
const (
	burstHandshakes = 2000
	handshakeEvery  = 500 * time.Microsecond // after the burst
	burstRefusals   = 10
	refusalEvery    = 5 * time.Second // after the burst
	maxPrefixes     = 8192
)

// limiter knows what is due for what an address did. An IPv4 address counts as one, and so does an IPv6 /64.
type limiter map[netip.Prefix]dues

// dues are leaky buckets: each holds the time until which it leaks.
type dues struct{ handshakes, refusals time.Time }

func prefixOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// allow tells whether a handshake may begin, and lets it count.
func (m limiter) allow(from netip.Addr, now time.Time) bool {
	p := prefixOf(from)
	d, known := m[p]
	if d.handshakes.Sub(now) > burstHandshakes*handshakeEvery && !from.IsLoopback() || d.refusals.Sub(now) > burstRefusals*refusalEvery {
		return false
	}
	d.handshakes = later(d.handshakes, now).Add(handshakeEvery)
	if known || len(m) < maxPrefixes { // those for whom there is no room are under the limit of all handshakes alone
		m[p] = d
	}
	return true
}

// refused lets a refused credential count.
func (m limiter) refused(from netip.Addr, now time.Time) {
	p := prefixOf(from)
	d, known := m[p]
	d.refusals = later(d.refusals, now).Add(refusalEvery)
	if known || len(m) < maxPrefixes {
		m[p] = d
	}
}

// sweep forgets those for whom nothing is due.
func (m limiter) sweep(now time.Time) {
	for p, d := range m {
		if d.handshakes.Before(now) && d.refusals.Before(now) {
			delete(m, p)
		}
	}
}

// spend tells whether a device may send one more report now (RFC 8516). Its bucket holds what it may send in two seconds.
func (s *session) spend(rate int, now time.Time) bool {
	if rate <= 0 {
		return true
	}
	every := time.Second / time.Duration(rate)
	if s.paced.Sub(now) > 2*time.Second {
		return false
	}
	s.paced = later(s.paced, now).Add(every)
	return true
}
