package coap

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
)

const (
	batchLen    = 32
	maxDatagram = 16<<10 + dtls.Overhead + 255 // one DTLS record of the greatest size
)

// socket reads and writes many datagrams with one system call. ipv4.Message and ipv6.Message are one type.
type socket interface {
	ReadBatch([]ipv4.Message, int) (int, error)
	WriteBatch([]ipv4.Message, int) (int, error)
}

// newSocket makes one that tells what address a datagram was sent to where the socket has more than one: an answer has to come from there.
func newSocket(c *net.UDPConn) (socket, error) {
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if ok && a.IP.To4() != nil {
		s := ipv4.NewPacketConn(c)
		if !a.IP.IsUnspecified() {
			return s, nil
		}
		return s, s.SetControlMessage(ipv4.FlagDst, true)
	}
	s := ipv6.NewPacketConn(c)
	if !ok || !a.IP.IsUnspecified() {
		return s, nil
	}
	return s, s.SetControlMessage(ipv6.FlagDst, true)
}

// oobLen has room for an in6_pktinfo (RFC 3542 section 6.2) or an in_pktinfo.
const oobLen = 64

// sentTo gives the address that a datagram was sent to, where its control messages tell.
func sentTo(oob []byte) netip.Addr {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(data[8:12]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(data[:16]))
		}
		oob = rest
	}
	return netip.Addr{}
}

// maxSources bounds the control messages that are remembered.
const maxSources = 256

// from gives the control message that has a datagram leave from local, which sentTo gave.
func (l *listener) from(local netip.Addr) []byte {
	if !local.IsValid() {
		return nil
	}
	b := l.sources[local]
	if b == nil {
		if local.Is4() {
			b = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
		} else {
			b = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
		}
		if len(l.sources) >= maxSources {
			clear(l.sources)
		}
		l.sources[local] = b
	}
	return b
}

// read takes datagrams until the socket is closed.
func (l *listener) read() error {
	in := make([]ipv4.Message, batchLen)
	for i := range in {
		in[i].Buffers, in[i].OOB = [][]byte{make([]byte, maxDatagram)}, make([]byte, oobLen)
	}
	for {
		n, err := l.sock.ReadBatch(in, 0)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// What ICMP says about an earlier answer is nothing to stop for. Should it never end, it must not spin.
			l.count.socketErrors.Add(1)
			time.Sleep(time.Millisecond)
			continue
		}
		t := l.begin(time.Now())
		for i := range in[:n] {
			from, ok := in[i].Addr.(*net.UDPAddr)
			if !ok || in[i].N == len(in[i].Buffers[0]) {
				continue
			}
			t.local = sentTo(in[i].OOB[:in[i].NN])
			t.datagram(in[i].Buffers[0][:in[i].N], unmap(from.AddrPort()))
		}
		l.end(t)
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// turn is one stretch of work under the listener's lock, and what it leaves to be done without it.
type turn struct {
	l     *listener
	now   time.Time
	out   []ipv4.Message // out[:n] is to be sent; the buffers and addresses of the rest are used again
	n     int
	subs  []submission
	local netip.Addr // what the datagram at hand was sent to
	wall  time.Time  // env.Now of this turn; zero until it is asked for
	pkt   packet
	path  []byte
	text  []byte // an answer before it is sealed
}

// submission is a report for the uplink.
type submission struct {
	m msg.Message
	p *pending
}

// begin takes the lock.
func (l *listener) begin(now time.Time) *turn {
	t := l.turns.Get().(*turn)
	t.now, t.wall, t.local = now, time.Time{}, netip.Addr{}
	l.mu.Lock()
	return t
}

// end gives the lock back, submits and sends.
func (l *listener) end(t *turn) {
	sock, up := l.sock, l.up
	l.mu.Unlock()
	for i := range t.subs {
		up.Submit(&t.subs[i].m, t.subs[i].p.done)
		t.subs[i] = submission{}
	}
	t.subs = t.subs[:0]
	for list := t.out[:t.n]; len(list) > 0; {
		n, err := sock.WriteBatch(list[:min(len(list), 2*batchLen)], 0)
		if err != nil {
			// The first one cannot be sent: no route, or a full buffer. It counts as lost.
			l.count.socketErrors.Add(1)
			n = max(n, 1)
		}
		list = list[n:]
	}
	t.n = 0
	l.turns.Put(t)
}

// slot gives the buffer of the next datagram, emptied.
func (t *turn) slot() []byte {
	if t.n == len(t.out) {
		t.out = append(t.out, ipv4.Message{Buffers: [][]byte{make([]byte, 0, 256)}, Addr: &net.UDPAddr{IP: make(net.IP, 0, 16)}})
	}
	return t.out[t.n].Buffers[0][:0]
}

// put sends b, which was built in slot, from an address of this side when the turn ends.
func (t *turn) put(b []byte, to netip.AddrPort, from netip.Addr) {
	m := &t.out[t.n]
	m.Buffers[0], m.OOB = b, t.l.from(from)
	a := m.Addr.(*net.UDPAddr)
	if to.Addr().Is4() {
		ip := to.Addr().As4()
		a.IP = append(a.IP[:0], ip[:]...)
	} else {
		ip := to.Addr().As16()
		a.IP = append(a.IP[:0], ip[:]...)
	}
	a.Port, a.Zone = int(to.Port()), to.Addr().Zone()
	t.n++
	t.l.count.datagramsOut.Add(1)
	t.l.count.bytesOut.Add(int64(len(b)))
}

// putAll sends ready datagrams.
func (t *turn) putAll(list [][]byte, to netip.AddrPort, from netip.Addr) {
	for _, d := range list {
		t.put(append(t.slot(), d...), to, from)
	}
}

func (t *turn) time() time.Time {
	if t.wall.IsZero() {
		t.wall = t.l.env.Now()
	}
	return t.wall
}
