// Package broker is a small MQTT broker: the cloud of `drawbridge demo` and of the tests.
//
// It speaks MQTT 5 and 3.1.1 with QoS 0 to 2, persistent sessions, retained messages and wills, over any listener, which is usually
// one of TLS. Sessions are held in memory and bounded. It is written on another packet library than the connector
// that it tests, so that one does not excuse the other's mistakes.
//
// Every way in which a platform may misbehave or say no is a hook of Options: refusing log-ins, publications and subscriptions, announcing
// limits (and enforcing them), confirming late or never, dropping the connection.
//
// It has no access rules of its own beyond the hooks, no shared subscriptions, and nothing on disk.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Options are the hooks. Nil hooks allow everything. They are called without locks held and may be called from many goroutines.
type Options struct {
	Log *slog.Logger // nil: silent

	// Admit decides on a log-in. It may change the answer's limits.
	Admit func(*Login) Answer
	// Auth goes on with an enhanced authentication: each AUTH of the client, and re-authentication on a running connection.
	Auth func(client, method string, data []byte) (code byte, answer []byte)
	// Published decides on what a client publishes, before it is passed on.
	Published func(client string, m Message) Verdict
	// Subscribed decides on a topic filter: the granted QoS, or a reason code from 0x80.
	Subscribed func(client, filter string, qos byte) byte
	// Web decides on a WebSocket handshake: 0, or the HTTP status with which it is refused.
	Web func(*http.Request) int
}

// Login is what a client has shown.
type Login struct {
	ClientID  string
	Username  string
	Password  []byte
	Version   byte // 4 or 5
	Clean     bool
	KeepAlive uint16
	Method    string // of enhanced authentication
	Data      []byte
	TLS       *tls.ConnectionState // nil without TLS
	Local     net.Addr
	Request   *http.Request // of the WebSocket handshake; nil without
}

// Answer is CONNACK.
type Answer struct {
	Code byte   // 0 admits; else the reason code of MQTT 5, which 3.1.1 clients get translated
	Why  string // reason string
	Limits
	Challenge []byte // not nil: an AUTH with it is sent first, and Options.Auth decides
	Drop      bool   // close the connection instead of answering
}

// Limits is what CONNACK announces to MQTT 5 clients; zero values announce nothing. What is announced is enforced.
type Limits struct {
	ReceiveMaximum    uint16
	MaximumPacketSize uint32
	MaximumQoS        *byte
	NoRetain          bool
	NoWildcards       bool
	ServerKeepAlive   uint16
	AssignedClientID  string
	TopicAliasMaximum uint16
}

// Verdict is what becomes of a publication.
type Verdict struct {
	Code  byte          // of PUBACK or PUBREC; from 0x80 it is not passed on. MQTT 3.1.1 has no codes: the connection is closed
	Why   string        // reason string
	Delay time.Duration // until it is confirmed
	Mute  bool          // never confirm it, nor what comes after it
	Lose  bool          // never confirm it, but what comes after it
	Drop  bool          // close the connection instead of confirming; it is not passed on
	Kick  byte          // not 0: DISCONNECT with this reason code instead of confirming
}

// Message is one publication.
type Message struct {
	Topic         string
	Payload       []byte
	QoS           byte
	Retain        bool
	Dup           bool
	Type          string
	Expiry        uint32 // seconds; 0: never
	ResponseTopic string
	Correlation   []byte
	User          map[string]string
	From          string // client id; empty: published in this process
}

// Broker is safe for use by many goroutines.
type Broker struct {
	opts Options

	mu       sync.Mutex
	sessions map[string]*session  // guarded by mu
	retained map[string]Message   // guarded by mu
	watchers map[int]watcher      // guarded by mu
	conns    map[*client]struct{} // guarded by mu
	serial   int                  // guarded by mu
}

type watcher struct {
	filter string
	f      func(Message)
}

// New makes a broker that serves nobody yet.
func New(o Options) *Broker {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Broker{
		opts: o, sessions: map[string]*session{}, retained: map[string]Message{}, watchers: map[int]watcher{},
		conns: map[*client]struct{}{},
	}
}

// Serve accepts clients until ctx ends, and returns when the last of them is gone. It closes l.
func (b *Broker) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		case err != nil: // out of descriptors, or a client that left at once
			b.opts.Log.Warn("accept", "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() { b.ServeConn(ctx, conn) })
	}
}

// Publish passes m on to whoever has subscribed.
func (b *Broker) Publish(m Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pass(m)
}

// Watch calls f with what is published on filter, in order, until stop is called. f must not call the broker.
func (b *Broker) Watch(filter string, f func(Message)) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serial++
	id := b.serial
	b.watchers[id] = watcher{filter, f}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, id)
	}
}

// Drop closes the connections of the client without a word, or of every client where id is empty. It tells how many there were.
func (b *Broker) Drop(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for c := range b.conns {
		if id == "" || c.session != nil && c.session.id == id {
			c.conn.Close()
			n++
		}
	}
	return n
}

// Clients lists the client ids that are connected.
func (b *Broker) Clients() (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, s := range b.sessions {
		if s.client != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// Unconfirmed counts what the client has been sent, or is to be sent, and has not acknowledged.
func (b *Broker) Unconfirmed(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	if s == nil {
		return 0
	}
	return len(s.inflight) + len(s.queue)
}

// pass hands m to watchers, sessions and the retained messages; mu is held.
func (b *Broker) pass(m Message) {
	if m.Retain {
		if len(m.Payload) == 0 {
			delete(b.retained, m.Topic)
		} else if len(b.retained) < retainedMax {
			b.retained[m.Topic] = m
		}
	}
	for _, w := range b.watchers {
		if Match(w.filter, m.Topic) {
			w.f(m)
		}
	}
	now := time.Now()
	for id, s := range b.sessions {
		if s.over(now) {
			delete(b.sessions, id)
			continue
		}
		if qos, ok := s.wants(&m); ok {
			out := m
			out.QoS, out.Retain, out.Dup = min(m.QoS, qos), false, false
			s.enqueue(out)
		}
	}
}
