package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/supervise"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// gateway is the house put together: config → keys → spool → connectors → bridge → listeners, and status beside them.
//
// What stands for as long as the process is made by openGateway; what a reload replaces is a plan.
type gateway struct {
	parts
	now     func() time.Time
	started time.Time
	tracker *health.Tracker
	sup     *supervise.Supervisor
	lock    *os.File
	clock   *auth.Clock
	keys    *keyring.Ring
	realm   *auth.Realm
	tokens  *auth.Tokens
	spool   *spool.Spool
	bridge  *bridge.Bridge
	ready   chan struct{}   // closed once every listener of the first plan is bound
	tasks   context.Context // that of every task; a reload starts its tasks in it
	end     context.CancelFunc

	reloading sync.Mutex // one reload at a time

	mu       sync.Mutex
	plan     *plan     // guarded by mu; in force
	reloaded time.Time // guarded by mu
}

// stopWithin bounds a stop: what is not done by then is done after the next start.
const stopWithin = 5 * time.Second

// openGateway reads keys and spool and builds everything that the file asks for. Nothing is bound or dialled yet.
func openGateway(ctx context.Context, path string, p parts) (*gateway, error) {
	if p.kinds.listeners == nil {
		p.kinds = kinds()
	}
	g := &gateway{parts: p, ready: make(chan struct{})}
	cfg, table, err := load(path, g.kinds)
	if err != nil {
		return nil, err
	}
	// Tasks outlive ctx: run ends them in its own order.
	g.tasks, g.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := g.openState(ctx, cfg); err != nil {
		g.close()
		return nil, err
	}
	if g.plan, err = g.build(cfg, table, nil); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// openState opens what lies on disk and in chips, in the order in which one needs the other.
func (g *gateway) openState(ctx context.Context, cfg *config.Config) (err error) {
	state := string(cfg.Gateway.State)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return hinted(fmt.Errorf("state directory: %w", err), "gateway.state names a directory that the gateway may write to")
	}
	if g.lock, err = lockState(state); err != nil {
		return err
	}
	if err = claimState(state); err != nil {
		return err
	}
	if g.system == nil {
		g.system = time.Now
	}
	if g.clock, err = auth.OpenClock(filepath.Join(state, "clock"), builtAt(), g.system); err != nil {
		return err
	}
	g.now, g.started = g.clock.Now, g.clock.Now()
	g.tracker = health.New(g.log, g.now)
	g.sup = supervise.New(g.log, g.tracker)
	if g.keys, err = openKeys(ctx, cfg, g.log, g.tracker, g.now); err != nil {
		return err
	}
	g.keys.ProveBy(func(ctx context.Context, key string, c *tls.Certificate) error {
		g.mu.Lock()
		p := g.plan
		g.mu.Unlock()
		return g.proveCertificate(ctx, p.cfg, key, c)
	})
	if isFirst(cfg.Path) {
		g.firstStart(ctx, cfg.Gateway.ID, string(cfg.Keys["identity"].Cert))
	}
	g.realm, err = auth.NewRealm(ctx, cfg, auth.Options{
		Secret: g.keys.Secret, MAC: g.keys.For("pre-shared keys").MAC, Certificate: g.keys.Certificate, Log: g.log, Health: g.tracker, Now: g.now, Clock: g.clock,
	})
	if err != nil {
		return err
	}
	dir, err := stateDir(cfg, "tokens")
	if err != nil {
		return err
	}
	g.tokens, err = auth.NewTokens(ctx, cfg.Tokens, auth.TokenOptions{
		Keys: g.keys.For("tokens"), State: dir, Log: g.log.With("part", "tokens"), Health: g.tracker, Now: g.now, Clock: g.clock,
	})
	if err != nil {
		return err
	}
	g.spool, err = spool.Open(filepath.Join(state, "spool"), spool.Options{
		MaxSize: int64(cfg.Spool.MaxSize), MaxAge: time.Duration(cfg.Spool.MaxAge), DropOldest: cfg.Spool.Full == "drop-oldest", Now: g.now, Correct: g.clock.Correct,
	})
	if err != nil {
		return err
	}
	if dir, err = stateDir(cfg, "bridge"); err != nil {
		return err
	}
	g.bridge, err = bridge.Open(bridge.Options{
		Spool: g.spool, Dir: dir, Log: g.log.With("part", "bridge"), Health: g.tracker, Now: g.now, Correct: g.clock.Correct, Envelopes: g.keys.For("payloads"),
	})
	return err
}

// openKeys opens the key ring of a configuration. Nothing is asked of a chip yet.
func openKeys(ctx context.Context, cfg *config.Config, log *slog.Logger, tracker *health.Tracker, now func() time.Time) (*keyring.Ring, error) {
	return keyring.New(ctx, keyring.Options{
		Keys: cfg.Keys, BaseDir: filepath.Dir(cfg.Path), State: string(cfg.Gateway.State),
		Credentials: os.Getenv("CREDENTIALS_DIRECTORY"), Log: log.With("part", "keys"), Health: tracker, Now: now,
	})
}

// lockState keeps two gateways from writing to one state directory.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, hinted(fmt.Errorf("state directory %q: another gateway runs on it", dir), "`drawbridge status` shows it")
		}
		return nil, fmt.Errorf("state directory: lock: %w", err)
	}
	return f, nil
}

func stateDir(cfg *config.Config, parts ...string) (string, error) {
	dir := filepath.Join(append([]string{string(cfg.Gateway.State)}, parts...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return dir, nil
}

// run starts everything and returns after ctx has ended and everything has stopped. It fails where a listener of the first plan cannot be bound.
func (g *gateway) run(ctx context.Context) error {
	defer g.close()
	defer g.end()
	// Tasks stop in reverse: listeners, then bridge and connectors, whose context ends when run says so.
	inner := g.tasks

	g.bridge.Swap(g.setup(g.plan))
	g.sup.Go(inner, "clock", func(ctx context.Context, t *supervise.Task) error { return g.clock.Run(ctx, g.tracker.For("clock")) })
	g.sup.Go(inner, "keys", func(ctx context.Context, t *supervise.Task) error { return g.keys.Run(ctx) })
	g.sup.Go(inner, "bridge", func(ctx context.Context, t *supervise.Task) error { return g.bridge.Run(ctx, t) })
	for _, c := range g.plan.connectors {
		g.startConnector(inner, c)
	}
	if err := g.startStatus(g.plan.cfg); err != nil {
		return errors.Join(err, g.stop())
	}
	first := make(chan error, len(g.plan.listeners))
	for _, l := range g.plan.listeners {
		g.startListener(inner, l, first)
	}
	err := awaitListeners(ctx, g.plan.listeners, first)
	if err == nil {
		g.log.Info("ready", "listeners", len(g.plan.listeners), "connectors", len(g.plan.connectors))
		close(g.ready) // from here on the plan may be another
		<-ctx.Done()
	}
	return errors.Join(err, g.stop())
}

// awaitListeners waits until every listener is bound, or one has failed, or ctx has ended.
func awaitListeners(ctx context.Context, listeners map[string]*listener, failed <-chan error) error {
	for _, l := range listeners {
		select {
		case <-l.bound:
		case err := <-failed:
			return fmt.Errorf("listener %w", err)
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (g *gateway) startListener(ctx context.Context, l *listener, failed chan<- error) {
	name := l.component.Name
	l.task = g.sup.Go(ctx, "listener "+name, func(ctx context.Context, t *supervise.Task) error {
		t.Waiting()
		l.running.Store(t)
		err := l.Serve(ctx, g.bridge)
		if err != nil {
			l.isNotBound(err)
			select {
			case failed <- fmt.Errorf("%s: %w", name, err):
			default: // somebody has failed before, or everybody has been bound
			}
		}
		return err
	})
}

func (g *gateway) startConnector(ctx context.Context, c *connector) {
	name := c.component.Name
	c.task = g.sup.Go(ctx, "connector "+name, func(ctx context.Context, t *supervise.Task) error {
		return g.bridge.RunConnector(ctx, name, t)
	})
}

func (g *gateway) setup(p *plan) bridge.Setup {
	s := bridge.Setup{Table: p.table, Policy: g.realm, Budgets: p.budgets(),
		Listeners: map[string]southbound.Listener{}, Connectors: map[string]northbound.Connector{}}
	for name, l := range p.listeners {
		s.Listeners[name] = l.Listener
	}
	for name, c := range p.connectors {
		s.Connectors[name] = c.Connector
	}
	return s
}

// stop ends listeners first, so that nothing is accepted that could not be stored, then all else.
func (g *gateway) stop() error {
	g.log.Info("stopping")
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(g.tasks), stopWithin, errors.New("it took too long"))
	defer cancel()
	g.mu.Lock()
	p := g.plan
	g.mu.Unlock()
	err := stopAll(ctx, slices.Collect(maps.Values(p.listeners)), func(l *listener) *supervise.Task { return l.task })
	g.end()
	rest := make(chan struct{})
	go func() {
		g.sup.Wait()
		close(rest)
	}()
	select {
	case <-rest:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("stop: some parts still run: %w", context.Cause(ctx)))
	}
	return err
}

func stopAll[T any](ctx context.Context, parts []T, task func(T) *supervise.Task) error {
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		if t := task(part); t != nil {
			wg.Go(func() { errs[i] = t.Stop(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// close lets go of what openState has opened, in reverse.
func (g *gateway) close() error {
	var errs []error
	if g.bridge != nil {
		errs = append(errs, g.bridge.Close())
	}
	if g.spool != nil {
		errs = append(errs, g.spool.Close())
	}
	if g.tokens != nil {
		errs = append(errs, g.tokens.Close())
	}
	if g.realm != nil {
		errs = append(errs, g.realm.Close())
	}
	if g.keys != nil {
		errs = append(errs, g.keys.Close())
	}
	if g.lock != nil {
		errs = append(errs, g.lock.Close())
	}
	return errors.Join(errs...)
}
