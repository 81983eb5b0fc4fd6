package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/supervise"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/status"
)

// boundWithin is how long a reload waits for its listeners. The watchdog of the unit bears that on top of a stop.
const boundWithin = 15 * time.Second

// reload reads the file again and takes it over, all or nothing, once the first plan stands. ctx is that of run's tasks.
func (g *gateway) reload(ctx context.Context) (status.Reloaded, error) {
	select {
	case <-g.ready:
	case <-ctx.Done():
		return status.Reloaded{}, fmt.Errorf("reload: %w", context.Cause(ctx))
	}
	g.reloading.Lock()
	defer g.reloading.Unlock()
	g.mu.Lock()
	old := g.plan
	g.mu.Unlock()

	cfg, table, err := load(old.cfg.Path, g.kinds)
	if err != nil {
		return status.Reloaded{}, err
	}
	if fixed := needsRestart(old.cfg, cfg); len(fixed) > 0 {
		return status.Reloaded{}, hinted(fmt.Errorf("reload: %s changed, which only a restart takes over", strings.Join(fixed, " and ")), "nothing was changed; restart the gateway")
	}
	fresh, err := g.build(cfg, table, old)
	if err != nil {
		return status.Reloaded{}, err
	}
	if err := g.keys.Swap(cfg.Keys, filepath.Dir(cfg.Path)); err != nil {
		return status.Reloaded{}, err
	}
	if err := g.tokens.Swap(cfg.Tokens); err != nil {
		return status.Reloaded{}, errors.Join(err, g.keys.Swap(old.cfg.Keys, filepath.Dir(old.cfg.Path)))
	}
	if err := g.realm.Swap(ctx, cfg); err != nil {
		return status.Reloaded{}, errors.Join(err, g.tokens.Swap(old.cfg.Tokens), g.keys.Swap(old.cfg.Keys, filepath.Dir(old.cfg.Path)))
	}
	failed := make(chan error, len(fresh.listeners))
	done := g.takeOver(ctx, old, fresh, failed)
	started := maps.Clone(fresh.listeners)
	maps.DeleteFunc(started, func(name string, l *listener) bool { return old.listeners[name] == l })
	moment, cancel := context.WithTimeout(ctx, boundWithin)
	defer cancel()
	if err := awaitListeners(moment, started, failed); err != nil {
		return done, hinted(fmt.Errorf("reload: %w", err), "all else was taken over, and the listener is tried again; `drawbridge status` shows it")
	}
	return done, nil
}

// needsRestart names the settings that are read once.
func needsRestart(old, fresh *config.Config) (names []string) {
	for name, same := range map[string]bool{
		"gateway.state": old.Gateway.State == fresh.Gateway.State,
		"[spool]":       old.Spool == fresh.Spool,
		"[status]":      old.Status == fresh.Status,
		"[log]":         old.Log == fresh.Log,
		"the [issuer] of people who log in to the page": sameIssuer(old.Issuers[old.Status.Issuer], fresh.Issuers[old.Status.Issuer]),
	} {
		if !same {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// sameIssuer tells whether two issuers, which may be nil, differ in their place in the file alone.
func sameIssuer(old, fresh *config.Issuer) bool {
	if old == nil || fresh == nil {
		return old == fresh
	}
	a, b := *old, *fresh
	a.Pos, b.Pos = config.Pos{}, config.Pos{}
	return a == b
}

// takeOver puts fresh in the place of old. failed is told of listeners that cannot be bound.
func (g *gateway) takeOver(ctx context.Context, old, fresh *plan, failed chan<- error) status.Reloaded {
	var done status.Reloaded
	stopping, cancel := context.WithTimeoutCause(ctx, stopWithin, errors.New("it took too long"))
	defer cancel()
	var gone []*supervise.Task
	for name, l := range old.listeners {
		if fresh.listeners[name] != l {
			gone = append(gone, l.task)
			if fresh.listeners[name] == nil {
				done.Stopped = append(done.Stopped, "listener "+name)
			}
		}
	}
	for name, c := range old.connectors {
		if fresh.connectors[name] != c {
			gone = append(gone, c.task)
			if fresh.connectors[name] == nil {
				done.Stopped = append(done.Stopped, "connector "+name)
			}
		}
	}
	if err := stopAll(stopping, gone, func(t *supervise.Task) *supervise.Task { return t }); err != nil {
		g.log.Warn("reload: a part did not stop in time", "error", err)
	}
	g.bridge.Swap(g.setup(fresh))
	g.mu.Lock()
	g.plan, g.reloaded = fresh, g.now()
	g.mu.Unlock()
	if !isFirst(fresh.cfg.Path) {
		g.tracker.For("").Clear(&unconfigured)
	}
	note := func(kind, name string, existed bool) {
		if existed {
			done.Restarted = append(done.Restarted, kind+" "+name)
		} else {
			done.Started = append(done.Started, kind+" "+name)
		}
	}
	for name, c := range fresh.connectors {
		if c.task == nil {
			g.startConnector(ctx, c)
			note("connector", name, old.connectors[name] != nil)
		}
	}
	for name, l := range fresh.listeners {
		if l.task == nil {
			g.startListener(ctx, l, failed)
			note("listener", name, old.listeners[name] != nil)
			continue
		}
		if p, ok := l.Listener.(southbound.PolicyChanged); ok {
			p.PolicyChanged()
		}
	}
	for _, list := range []*[]string{&done.Started, &done.Restarted, &done.Stopped} {
		slices.Sort(*list)
	}
	return done
}
