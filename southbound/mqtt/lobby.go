package mqtt

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// lobby holds the connections that have not logged in yet. It is bounded: where it is full, the oldest connection from the
// network that has the most there is closed, so that a flood costs the flooder before others.
type lobby struct {
	limit int
	rate  int // connections per second and network; 0: no limit

	mu     sync.Mutex
	count  int                       // guarded by mu
	guests map[netip.Prefix][]*guest // guarded by mu, by network, oldest first
	rates  map[netip.Prefix]*bucket  // guarded by mu, by network
}

// manyRates is how many networks are remembered; beyond, all are forgotten and start anew.
const manyRates = 10000

// within tells whether one more connection from the network is within its rate.
func (l *lobby) within(nc net.Conn, now time.Time) bool {
	if l.rate == 0 {
		return true
	}
	from := network(nc.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.rates[from]
	if b == nil {
		if l.rates == nil || len(l.rates) >= manyRates {
			l.rates = map[netip.Prefix]*bucket{}
		}
		b = &bucket{}
		l.rates[from] = b
	}
	return b.take(now, l.rate)
}

type guest struct {
	nc   net.Conn
	from netip.Prefix
	out  bool // guarded by lobby.mu: left or closed
}

// network gives the address that is counted: an IPv4 address, or the /64 that one IPv6 host may roam in.
func network(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap()
	bits := ip.BitLen()
	if bits == 128 {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

func (l *lobby) enter(nc net.Conn) *guest {
	g := &guest{nc: nc, from: network(nc.RemoteAddr())}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.guests == nil {
		l.guests = map[netip.Prefix][]*guest{}
	}
	l.guests[g.from] = append(l.guests[g.from], g)
	l.count++
	if l.count > l.limit {
		var most []*guest
		for _, list := range l.guests {
			if len(list) > len(most) {
				most = list
			}
		}
		most[0].nc.Close()
		l.remove(most[0])
	}
	return g
}

// leave tells whether the guest was still there.
func (l *lobby) leave(g *guest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.out {
		return false
	}
	l.remove(g)
	return true
}

func (l *lobby) remove(g *guest) { // l.mu held
	g.out = true
	l.count--
	list := l.guests[g.from]
	for i, o := range list {
		if o == g {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(l.guests, g.from)
	} else {
		l.guests[g.from] = list
	}
}

// clear closes everyone.
func (l *lobby) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, list := range l.guests {
		for _, g := range list {
			g.out = true
			g.nc.Close()
		}
	}
	l.guests, l.count = nil, 0
}
