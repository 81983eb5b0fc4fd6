package coap

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

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

func newSocket(c *net.UDPConn) socket {
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.To4() != nil {
		return ipv4.NewPacketConn(c)
	}
	return ipv6.NewPacketConn(c)
}

// read takes datagrams until the socket is closed.
func (l *listener) read() error {
	in := make([]ipv4.Message, batchLen)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, maxDatagram)}
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
			t.datagram(in[i].Buffers[0][:in[i].N], unmap(from.AddrPort()))
		}
		l.end(t)
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// turn is one stretch of work under the listener's lock, and what it leaves to be done without it.
type turn struct {
	l    *listener
	now  time.Time
	out  []ipv4.Message // out[:n] is to be sent; the buffers and addresses of the rest are used again
	n    int
	subs []submission
	wall time.Time // env.Now of this turn; zero until it is asked for
	pkt  packet
	path []byte
	text []byte // an answer before it is sealed
}

// submission is a report for the uplink.
type submission struct {
	m msg.Message
	p *pending
}

// begin takes the lock.
func (l *listener) begin(now time.Time) *turn {
	t := l.turns.Get().(*turn)
	t.now, t.wall = now, time.Time{}
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

// put sends b, which was built in slot, when the turn ends.
func (t *turn) put(b []byte, to netip.AddrPort) {
	m := &t.out[t.n]
	m.Buffers[0] = b
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
func (t *turn) putAll(list [][]byte, to netip.AddrPort) {
	for _, d := range list {
		t.put(append(t.slot(), d...), to)
	}
}

func (t *turn) time() time.Time {
	if t.wall.IsZero() {
		t.wall = t.l.env.Now()
	}
	return t.wall
}
