package coap

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"golang.org/x/net/ipv4"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// wire is a listener without DTLS and without a socket, on a clock of its own: what is fed in is answered before feed returns.
type wire struct {
	t   testing.TB
	l   *listener
	up  *southtest.Uplink
	now time.Time

	mu   sync.Mutex
	sent []sentDatagram // guarded by mu
}

type sentDatagram struct {
	b  []byte
	to netip.AddrPort
}

var deviceAddr = netip.MustParseAddrPort("192.0.2.7:5683")

func newWire(t testing.TB, change func(*Config)) *wire {
	t.Helper()
	return newWireAt(t, southtest.NewSite(t), change)
}

func newWireAt(t testing.TB, site *southtest.Site, change func(*Config)) *wire {
	t.Helper()
	cfg := Kind().Config().(*Config)
	cfg.Security, cfg.Listen = []string{"none"}, "127.0.0.1:0"
	if change != nil {
		change(cfg)
	}
	l, err := open(site.Env(t, "field"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, l: l, up: southtest.NewUplink(), now: time.Now()}
	l.up, l.sock, l.serving, l.ctx, l.epoch = w.up, w, true, t.Context(), w.now
	l.gate = dtls.NewGate(w.now)
	return w
}

func (w *wire) ReadBatch([]ipv4.Message, int) (int, error) { return 0, net.ErrClosed }

func (w *wire) WriteBatch(list []ipv4.Message, _ int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range list {
		a := m.Addr.(*net.UDPAddr).AddrPort()
		w.sent = append(w.sent, sentDatagram{append([]byte(nil), m.Buffers[0]...), unmap(a)})
	}
	return len(list), nil
}

// feed gives the listener a datagram from the device and returns what it sends.
func (w *wire) feed(b []byte) []packet {
	w.feedFrom(b, deviceAddr)
	return w.take()
}

func (w *wire) feedFrom(b []byte, from netip.AddrPort) {
	t := w.l.begin(w.now)
	t.datagram(append([]byte(nil), b...), from)
	w.l.end(t)
	w.l.settle(w.now, nil)
}

// pass lets time pass and returns what the listener sends meanwhile.
func (w *wire) pass(d time.Duration) []packet {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(tick, end.Sub(w.now)))
		w.l.tick(w.now)
		w.l.settle(w.now, nil)
	}
	return w.take()
}

func (w *wire) take() (list []packet) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.sent {
		var p packet
		if err := p.parse(d.b); err != nil {
			w.t.Fatalf("listener sent %x: %v", d.b, err)
		}
		list = append(list, p)
	}
	w.sent = nil
	return list
}

// one fails unless the listener has sent exactly one message.
func (w *wire) one(list []packet) packet {
	w.t.Helper()
	if len(list) != 1 {
		w.t.Fatalf("listener sent %d messages, want 1: %v", len(list), list)
	}
	return list[0]
}

// request encodes a request of the device.
func (w *wire) request(typ message.Type, code codes.Code, mid uint16, token, path string, payload []byte, opts ...message.Option) []byte {
	w.t.Helper()
	m := message.Message{Type: typ, Code: code, MessageID: int32(mid), Token: []byte(token), Payload: payload}
	m.Options = pathOptions(nil, path)
	for _, o := range opts {
		m.Options = m.Options.Add(o)
	}
	b, err := appendMessage(nil, &m)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// sends counts what has been sent and not taken.
func (w *wire) sends() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}
