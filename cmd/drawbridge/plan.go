package main

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/supervise"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// plan is what one file asks for: built whole before it takes over.
type plan struct {
	cfg        *config.Config
	table      *bridge.Table
	listeners  map[string]*listener
	connectors map[string]*connector
}

type listener struct {
	southbound.Listener
	component *config.Component
	task      *supervise.Task
	running   atomic.Pointer[supervise.Task] // task, as it knows itself
	once      sync.Once
	bound     chan struct{}

	mu      sync.Mutex
	address string // guarded by mu; empty until bound
	failure error  // guarded by mu; why it is not bound
}

type connector struct {
	northbound.Connector
	component *config.Component
	wire      *wireCount
	task      *supervise.Task
}

// build makes the plan of a file. Components that old has and that would work the same are taken over.
func (g *gateway) build(cfg *config.Config, table *bridge.Table, old *plan) (*plan, error) {
	p := &plan{cfg: cfg, table: table, listeners: map[string]*listener{}, connectors: map[string]*connector{}}
	sameID := old != nil && old.cfg.Gateway.ID == cfg.Gateway.ID
	var errs []error
	for name, c := range cfg.Connectors {
		if sameID && c.Equal(old.cfg.Connectors[name]) {
			p.connectors[name] = old.connectors[name]
			continue
		}
		built, err := g.openConnector(cfg, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("connector %s: %w", name, err))
			continue
		}
		p.connectors[name] = built
	}
	for name, c := range cfg.Listeners {
		if old != nil && c.Equal(old.cfg.Listeners[name]) {
			p.listeners[name] = old.listeners[name]
			continue
		}
		built, err := g.openListener(cfg, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", name, err))
			continue
		}
		p.listeners[name] = built
	}
	return p, errors.Join(errs...)
}

var _ northbound.Provers = (*auth.Tokens)(nil) // connectors look for it

func (g *gateway) openConnector(cfg *config.Config, c *config.Component) (*connector, error) {
	dir, err := stateDir(cfg, "connectors", c.Name)
	if err != nil {
		return nil, err
	}
	wire := &wireCount{}
	built, err := g.kinds.connectors[c.Type].Open(northbound.Env{
		Name: c.Name, Gateway: cfg.Gateway.ID, Log: g.log.With("connector", c.Name), Health: g.tracker.For("connector " + c.Name),
		Keys: g.keys.For("connector " + c.Name), Tokens: g.tokens, State: dir, Now: g.now, Groups: g.bridge.Groups,
		Dial: wire.dial,
	}, c.Own)
	if err != nil {
		return nil, err
	}
	return &connector{Connector: built, component: c, wire: wire}, nil
}

// aliveWithin is how long a listener that has said that it is alive may be silent.
const aliveWithin = 10 * time.Second

func (g *gateway) openListener(cfg *config.Config, c *config.Component) (*listener, error) {
	dir, err := stateDir(cfg, "listeners", c.Name)
	if err != nil {
		return nil, err
	}
	l := &listener{component: c, bound: make(chan struct{})}
	l.Listener, err = g.kinds.listeners[c.Type].Open(southbound.Env{
		Name: c.Name, Log: g.log.With("listener", c.Name), Health: g.tracker.For("listener " + c.Name),
		Keys: g.keys.For("listener " + c.Name), Auth: g.realm, Policy: g.realm, State: dir, Now: g.now, Correct: g.clock.Correct,
		Bound: l.isBound, Awake: g.bridge.Awake, Socket: g.socket(c.Name), Alive: l.alive,
	}, c.Own)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// socket gives a listener what systemd has bound for it, under its name, so that it can have ports below 1024 and lose no datagram
// while the gateway restarts. The files stay open: a listener that restarts gets them again.
func (g *gateway) socket(name string) func() (net.Listener, net.PacketConn) {
	files := g.sockets[name]
	if len(files) == 0 {
		return nil
	}
	return func() (l net.Listener, p net.PacketConn) {
		for _, f := range files {
			if got, err := net.FileListener(f); err == nil {
				l = got
			} else if got, err := net.FilePacketConn(f); err == nil {
				p = got
			}
		}
		return l, p
	}
}

// alive is called by the listener while it serves.
func (l *listener) alive() {
	if t := l.running.Load(); t != nil {
		t.Progress(aliveWithin)
	}
}

func (l *listener) isBound(a net.Addr) {
	l.mu.Lock()
	l.address, l.failure = a.String(), nil
	l.mu.Unlock()
	l.alive() // from here on it has to say so itself
	l.once.Do(func() { close(l.bound) })
}

func (l *listener) isNotBound(err error) {
	l.mu.Lock()
	l.address, l.failure = "", err
	l.mu.Unlock()
}
