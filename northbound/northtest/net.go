package northtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Net is a network in memory, for tests whose time is simulated: who waits on a socket keeps such time from passing, who waits here does not.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*listener // guarded by mu
}

type listener struct {
	address memoryAddr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }

// Listen takes what is dialled at address.
func (n *Net) Listen(address string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = map[string]*listener{}
	}
	l := &listener{address: memoryAddr(address), conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[address] = l
	return l
}

// Dial is for northbound.Env and auth.TokenOptions.
func (n *Net) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: connection refused", address)
	}
	there, here := &half{}, &half{}
	there.room, here.room = sync.NewCond(&there.mu), sync.NewCond(&here.mu)
	select {
	case l.conns <- &conn{in: there, out: here, address: l.address}:
		return &conn{in: here, out: there, address: l.address}, nil
	case <-l.closed:
		return nil, fmt.Errorf("dial %s: connection refused", address)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.address }

// half is one direction of a connection. It holds whatever is written.
type half struct {
	mu       sync.Mutex
	room     *sync.Cond   // with mu
	data     bytes.Buffer // guarded by mu
	over     bool         // guarded by mu: closed by either side
	deadline time.Time    // guarded by mu; of reading
	timer    *time.Timer  // guarded by mu
}

// conn is one side of a connection.
type conn struct {
	in, out *half
	address net.Addr
}

func (c *conn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.data.Len() == 0 {
		switch {
		case h.over:
			return 0, io.EOF
		case !h.deadline.IsZero() && !time.Now().Before(h.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		h.room.Wait()
	}
	return h.data.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return 0, net.ErrClosed
	}
	h.room.Broadcast()
	return h.data.Write(p)
}

func (c *conn) Close() error {
	for _, h := range []*half{c.in, c.out} {
		h.mu.Lock()
		h.over = true
		if h.timer != nil {
			h.timer.Stop()
		}
		h.room.Broadcast()
		h.mu.Unlock()
	}
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	if h.deadline = t; !t.IsZero() {
		h.timer = time.AfterFunc(time.Until(t), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.room.Broadcast()
		})
	}
	h.room.Broadcast()
	return nil
}

func (c *conn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error { return nil } // nothing waits to be written
func (c *conn) LocalAddr() net.Addr              { return c.address }
func (c *conn) RemoteAddr() net.Addr             { return c.address }
