package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/internal/supervise"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/status"
)

// source is the gateway as the status page, the socket and the metrics see it.
type source struct {
	*gateway
	list func(context.Context) []keyring.Status // asks the chips

	mu    sync.Mutex
	of    *plan        // guarded by mu; what the figures below are of
	keys  []status.Key // guarded by mu
	bytes int64        // guarded by mu
}

// slowFigures is how often what is costly to look up is looked up again.
const slowFigures = 30 * time.Second

var _ interface {
	status.Source
	status.DeviceLister
	status.Reloader
	status.RouteTester
	status.DeadLetters
	status.Disconnecter
	status.Pauser
	status.Forgetter
	status.Acknowledger
	status.Prober
} = (*source)(nil)

func (s *source) current() (*plan, time.Time) {
	s.gateway.mu.Lock()
	defer s.gateway.mu.Unlock()
	return s.plan, s.reloaded
}

// startStatus serves the page and the socket.
func (g *gateway) startStatus(cfg *config.Config) error {
	dir, err := stateDir(cfg, "status")
	if err != nil {
		return err
	}
	src := &source{gateway: g, list: g.keys.List}
	o := status.Options{
		Source: src, Log: g.log.With("part", "status"), Now: g.now, Listen: cfg.Status.Listen, Socket: string(cfg.Status.Socket),
		State: dir, Records: g.records, Bound: g.page,
	}
	if cfg.Status.Listen != "" && !config.Loopback(cfg.Status.Listen) {
		if o.TLS, o.Login, err = g.door(cfg); err != nil {
			return err
		}
	}
	server, err := status.New(o)
	if err != nil {
		return err
	}
	g.sup.Go(g.tasks, "figures", func(ctx context.Context, t *supervise.Task) error {
		src.look(ctx)
		return nil
	})
	g.sup.Go(g.tasks, "status", func(ctx context.Context, t *supervise.Task) error { return server.Serve(ctx) })
	return nil
}

// door gives what people on other machines need to see the page: TLS with a key of the ring, and a log-in.
func (g *gateway) door(cfg *config.Config) (*tls.Config, *status.Login, error) {
	keys, s := g.keys.For("status"), cfg.Status
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Time: g.now, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return keys.Certificate(h.Context(), s.Key)
	}}
	secret := func(ref config.SecretRef) func(context.Context) ([]byte, error) {
		if ref == "" {
			return nil
		}
		return func(ctx context.Context) ([]byte, error) { return keys.Secret(ctx, string(ref)) }
	}
	login := &status.Login{Password: secret(s.Password)}
	if s.Issuer != "" {
		issuer := cfg.Issuers[s.Issuer]
		roots, err := issuer.CA.CertPool()
		if err != nil {
			return nil, nil, err
		}
		login.Issuer = &status.Issuer{Name: s.Issuer, URL: issuer.URL, ClientID: s.ClientID, Secret: secret(s.ClientSecret), Roles: s.RolesClaim,
			Client: &http.Client{Timeout: 15 * time.Second, Transport: auth.OverTLS(&http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Time: g.now}})}}
	}
	return conf, login, nil
}

// Snapshot implements status.Source.
func (s *source) Snapshot() status.Snapshot {
	p, reloaded := s.current()
	b := s.bridge.Snapshot()
	snap := status.Snapshot{
		Time:     s.now(),
		Gateway:  status.Gateway{ID: p.cfg.Gateway.ID, Version: version, Config: p.cfg.Path, Started: s.started, Reloaded: reloaded, RSSBytes: residentBytes()},
		Problems: s.tracker.Problems(),
		Spool:    b.Spool,
		Ledger:   b.Ledger,
		Chips:    s.gateway.keys.Queues(),
		PSKs:     pskWhere(p.cfg),
	}
	snap.Outcomes = map[string]int64{"accepted": b.Accepted, "filtered": b.Filtered}
	maps.Copy(snap.Outcomes, b.Refused)
	for _, n := range b.Mailboxes {
		snap.Devices.Queued += n
	}
	for _, name := range slices.Sorted(maps.Keys(p.listeners)) {
		l := p.listeners[name].status()
		snap.Devices.Connected += l.Devices
		snap.Listeners = append(snap.Listeners, l)
	}
	for _, r := range p.table.Routes() {
		snap.Routes = append(snap.Routes, status.Route{Name: r.Name, Direction: status.Direction(r.Direction), Resource: r.Resource,
			Topic: r.Topic, Peers: r.Connectors, Transform: r.Transform})
	}
	for _, c := range b.Connectors {
		snap.Connectors = append(snap.Connectors, connectorStatus(p, c))
	}
	snap.Keys, snap.Gateway.StateBytes = s.slow(p)
	return snap
}

func (l *listener) status() status.Listener {
	l.mu.Lock()
	address, failure := l.address, l.failure
	l.mu.Unlock()
	out := status.Listener{Name: l.component.Name, Type: l.component.Type, Address: address, Bound: address != ""}
	if address == "" {
		out.Address, _ = l.component.Value("listen").(string)
	}
	if failure != nil {
		out.Error = failure.Error()
	}
	out.Security, _ = l.component.Value("security").([]string)
	if c, ok := l.Listener.(southbound.Counters); ok {
		out.Counters = c.Counters()
	}
	if inv, ok := l.Listener.(southbound.Inventory); ok {
		inv.Devices(func(d southbound.DeviceInfo) bool {
			if d.Connected {
				out.Devices++
			}
			return true
		})
	}
	return out
}

func connectorStatus(p *plan, c bridge.ConnectorStatus) status.Connector {
	out := status.Connector{Name: c.Name, State: connectorStates[c.State], Since: c.Since, NextTry: c.Next, LastError: c.LastError,
		LastFault: c.LastFault, InFlight: c.InFlight, Latency: c.Latency}
	built := p.connectors[c.Name]
	if built == nil {
		out.State = status.ConnectorGone
		return out
	}
	out.Type = built.component.Type
	for _, key := range []string{"url", "endpoint"} {
		if a, _ := built.component.Value(key).(string); a != "" {
			out.Address = a
		}
	}
	if l, ok := built.Connector.(northbound.Limited); ok {
		out.Limits = l.Limits()
	}
	if f, ok := built.Connector.(northbound.Counters); ok {
		out.Counters = f.Counters()
	}
	out.Counters = wireCounters(out.Counters, c.Wire)
	return out
}

var connectorStates = map[string]status.ConnectorState{
	bridge.StateConnected: status.ConnectorUp,
	bridge.StateDialing:   status.ConnectorConnecting,
	bridge.StateStopped:   status.ConnectorBackingOff,
	bridge.StateWaiting:   status.ConnectorBackingOff,
	bridge.StatePaused:    status.ConnectorPaused,
}

// slow gives what takes an operation in a chip or a walk over the disk, looked up at first and after each reload. In between look renews it.
func (s *source) slow(p *plan) ([]status.Key, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of != p {
		s.of = p
		s.keys, s.bytes = s.lookUp(s.tasks, p)
	}
	return s.keys, s.bytes
}

// look renews now and then what slow gives, so that a chip that hangs holds up nobody who asks how the gateway is.
func (s *source) look(ctx context.Context) {
	tick := time.NewTicker(slowFigures)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		p, _ := s.current()
		keys, bytes := s.lookUp(ctx, p)
		s.mu.Lock()
		if s.of == p {
			s.keys, s.bytes = keys, bytes
		}
		s.mu.Unlock()
	}
}

func (s *source) lookUp(ctx context.Context, p *plan) (keys []status.Key, bytes int64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, k := range s.list(ctx) {
		keys = append(keys, keyStatus(k))
	}
	return keys, directoryBytes(string(p.cfg.Gateway.State))
}

func keyStatus(k keyring.Status) status.Key {
	out := status.Key{Name: k.Name, Info: k.Info, Error: k.Err}
	if out.Error == "" {
		out.Error = k.CertErr
	}
	if c := k.Certificate; c != nil {
		out.Subject, out.Issuer, out.Ends = c.Subject, c.Issuer, c.NotAfter
	}
	return out
}

// Devices implements status.DeviceLister.
func (s *source) Devices(yield func(southbound.DeviceInfo) bool) {
	p, _ := s.current()
	for _, l := range p.listeners {
		inv, ok := l.Listener.(southbound.Inventory)
		if !ok {
			continue
		}
		more := true
		inv.Devices(func(d southbound.DeviceInfo) bool {
			more = yield(d)
			return more
		})
		if !more {
			return
		}
	}
}

// Disconnect implements status.Disconnecter.
func (s *source) Disconnect(device string) (n int) {
	p, _ := s.current()
	for _, l := range p.listeners {
		if inv, ok := l.Listener.(southbound.Inventory); ok {
			n += inv.Disconnect(device)
		}
	}
	return n
}

// Reload implements status.Reloader.
func (s *source) Reload(context.Context) (status.Reloaded, error) { return s.reload(s.tasks) }

// TestRoute implements status.RouteTester.
func (s *source) TestRoute(_ context.Context, t status.RouteTest) (status.RouteResult, error) {
	p, _ := s.current()
	known, _ := s.realm.Lookup(t.Device)
	trial := p.table.Test(s.realm, t.Device, known.Groups, t.Resource, t.Type, t.Payload, s.now())
	out := status.RouteResult{Taken: trial.Refusal == "", Refused: trial.Refusal, Route: trial.Route, Type: trial.Type, Payload: trial.Payload}
	if rule := s.realm.Explain(&auth.Identity{Device: t.Device, Groups: trial.Groups}, auth.Report, "", t.Resource); rule != nil {
		out.Rule = filepath.Base(p.cfg.Path) + ":" + strconv.Itoa(rule.Pos.Line)
	}
	for _, step := range trial.Steps {
		out.Transform = strings.TrimPrefix(out.Transform+" | "+step.Step, " | ")
	}
	for _, connector := range trial.To {
		out.To = append(out.To, status.RouteLeads{Connector: connector, Topic: trial.Topic})
	}
	return out, nil
}

// DeadLetters implements status.DeadLetters.
func (s *source) DeadLetters(_ context.Context, connector string, limit int) (list []status.DeadLetter, err error) {
	for _, name := range s.lettersOf(connector) {
		letters, err := s.bridge.DeadLetters(name, "", limit-len(list))
		if err != nil {
			return nil, err
		}
		for _, l := range letters {
			list = append(list, status.DeadLetter{ID: l.ID, Connector: l.Connector, Route: l.Route, Device: l.Device, Topic: l.Topic,
				Reason: l.Reason, Accepted: l.Time, Died: l.Since, Size: l.Size, Type: l.Type, Payload: l.Payload})
		}
	}
	return list, nil
}

// Replay implements status.DeadLetters.
func (s *source) Replay(ctx context.Context, connector string, ids []string) (n int, err error) {
	for _, name := range s.lettersOf(connector) {
		m, err := s.bridge.Replay(ctx, name, ids...)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Drop implements status.DeadLetters.
func (s *source) Drop(_ context.Context, connector string, ids []string) (n int, err error) {
	for _, name := range s.lettersOf(connector) {
		m, err := s.bridge.Drop(name, ids...)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// lettersOf names the connectors that are meant: one, or all that have letters.
func (s *source) lettersOf(connector string) (names []string) {
	if connector != "" {
		return []string{connector}
	}
	for _, c := range s.bridge.Snapshot().Connectors {
		if c.DeadLetters > 0 {
			names = append(names, c.Name)
		}
	}
	return names
}

// Pause implements status.Pauser.
func (s *source) Pause(connector string) error { return s.onConnector(connector, s.bridge.Pause) }

// Resume implements status.Pauser.
func (s *source) Resume(connector string) error { return s.onConnector(connector, s.bridge.Resume) }

// Forget implements status.Forgetter.
func (s *source) Forget(connector string) (int, error) {
	p, _ := s.current()
	for _, c := range s.bridge.Snapshot().Connectors {
		if c.Name == connector && p.connectors[connector] == nil {
			return s.bridge.Forget(connector)
		}
	}
	if p.connectors[connector] != nil {
		return 0, hinted(fmt.Errorf("connector %q is in the file: its messages are not given up", connector), "take it out of the file and reload; or drop its dead letters alone")
	}
	return 0, fmt.Errorf("nothing waits for a connector %q", connector)
}

// Acknowledge implements status.Acknowledger.
func (s *source) Acknowledge() (int, error) { return s.bridge.Acknowledge() }

// Probe implements status.Prober: it does by a connection of its own what `drawbridge doctor` does, up to the publication and its echo.
func (s *source) Probe(ctx context.Context, connector string) error {
	p, _ := s.current()
	built := p.connectors[connector]
	if built == nil {
		return fmt.Errorf("there is no connector %q", connector)
	}
	ctx, cancel := context.WithTimeout(ctx, subjectTimeout)
	defer cancel()
	var failed error
	beside := &gateway{parts: parts{kinds: s.kinds, log: slog.New(slog.DiscardHandler)}, now: s.now, keys: s.gateway.keys, tokens: s.tokens, bridge: s.bridge}
	beside.examineConnector(ctx, p.cfg, built.component, func(f finding) {
		if f.Result != "ok" && failed == nil {
			failed = hinted(fmt.Errorf("%s", strings.TrimPrefix(f.ID+": "+f.Note, ": ")), "%s", f.Hint)
		}
	})
	return failed
}

func (s *source) onConnector(name string, do func(string)) error {
	if p, _ := s.current(); p.connectors[name] == nil {
		return fmt.Errorf("there is no connector %q", name)
	}
	do(name)
	return nil
}

func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

func directoryBytes(dir string) (n int64) {
	filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil // what vanishes meanwhile does not count
	})
	return n
}
