package status

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// gateway is a source with every ability and no gateway behind it.
type gateway struct {
	mu      sync.Mutex
	snap    Snapshot // guarded by mu
	devices []southbound.DeviceInfo
	letters []DeadLetter // guarded by mu
	did     []string     // guarded by mu
	reload  error
	tick    func(*Snapshot) // guarded by mu; moves the snapshot on before it is given; may be nil
}

func (g *gateway) Snapshot() Snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tick != nil {
		g.tick(&g.snap)
	}
	s := g.snap
	s.Ledger, s.Connectors, s.Listeners = slices.Clone(s.Ledger), slices.Clone(s.Connectors), slices.Clone(s.Listeners)
	s.Spool.PendingBytes = maps.Clone(s.Spool.PendingBytes)
	return s
}

func (g *gateway) change(f func(*Snapshot)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&g.snap)
}

func (g *gateway) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.did = append(g.did, fmt.Sprintf(format, args...))
}

func (g *gateway) done() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.did...)
}

func (g *gateway) Devices(yield func(southbound.DeviceInfo) bool) {
	for _, d := range g.devices {
		if !yield(d) {
			return
		}
	}
}

func (g *gateway) Reload(context.Context) (Reloaded, error) {
	if g.reload != nil {
		return Reloaded{}, g.reload
	}
	g.note("reload")
	return Reloaded{Restarted: []string{"connector plant"}}, nil
}

func (g *gateway) TestRoute(_ context.Context, t RouteTest) (RouteResult, error) {
	if t.Resource != "/sensors/temp" {
		return RouteResult{Refused: "no-route: no route leads from " + t.Resource}, nil
	}
	return RouteResult{
		Taken: true, Rule: "drawbridge.toml:62", Route: "sensors", Transform: "text-json", Type: "application/json", Payload: []byte(`{"v":21.5}`),
		To: []RouteLeads{{"cloud", "dt/plant7-gw1/" + t.Device + "/temp"}, {"plant", "dt/plant7-gw1/" + t.Device + "/temp"}},
	}, nil
}

func (g *gateway) DeadLetters(_ context.Context, connector string, limit int) ([]DeadLetter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := []DeadLetter{}
	for _, l := range g.letters {
		if len(out) < limit && (connector == "" || l.Connector == connector) {
			out = append(out, l)
		}
	}
	return out, nil
}

func (g *gateway) take(verb, connector string, ids []string) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var kept []DeadLetter
	for _, l := range g.letters {
		chosen := len(ids) == 0
		for _, id := range ids {
			chosen = chosen || id == l.ID
		}
		if !chosen || connector != "" && l.Connector != connector {
			kept = append(kept, l)
		}
	}
	n := len(g.letters) - len(kept)
	g.letters = kept
	g.did = append(g.did, fmt.Sprintf("%s %d of %q", verb, n, connector))
	return n, nil
}

func (g *gateway) Replay(_ context.Context, connector string, ids []string) (int, error) {
	return g.take("replay", connector, ids)
}

func (g *gateway) Drop(_ context.Context, connector string, ids []string) (int, error) {
	return g.take("drop", connector, ids)
}

func (g *gateway) Disconnect(device string) int {
	g.note("disconnect %s", device)
	return 1
}

func (g *gateway) Pause(connector string) error {
	if connector != "cloud" {
		return fmt.Errorf("connector %q: unknown", connector)
	}
	g.change(func(s *Snapshot) { s.Connectors[0].State = ConnectorPaused })
	g.note("pause %s", connector)
	return nil
}

func (g *gateway) Resume(connector string) error {
	g.change(func(s *Snapshot) { s.Connectors[0].State = ConnectorUp })
	g.note("resume %s", connector)
	return nil
}

func (g *gateway) Acknowledge() (int, error) {
	g.note("acknowledge")
	return 1, nil
}

func (g *gateway) Forget(connector string) (int, error) {
	g.note("forget %s", connector)
	return 7, nil
}

func (g *gateway) Probe(_ context.Context, connector string) error {
	if connector == "plant" {
		return errors.New("connector plant: not connected")
	}
	return nil
}

// well is a gateway at its best.
func well() *gateway {
	g := &gateway{}
	g.snap = Snapshot{
		Time: noon,
		Gateway: Gateway{ID: "plant7-gw1", Version: "0.1.0", Config: "/etc/drawbridge/drawbridge.toml", Started: noon.Add(-76 * time.Hour),
			StateBytes: 48 << 20, RSSBytes: 31 << 20},
		Outcomes: map[string]int64{"accepted": 81203, "denied": 4},
		Devices:  DeviceCount{Connected: 12, Queued: 3},
		Listeners: []Listener{
			{Name: "field", Type: "coap", Address: "[::]:5684", Security: []string{"psk", "x509"}, Bound: true, Devices: 8,
				Counters: map[string]int64{"handshakes_ok": 41, "handshakes_failed": 2}},
			{Name: "shop", Type: "mqtt", Address: "[::]:8883", Security: []string{"tls"}, Bound: true, Devices: 4,
				Counters: map[string]int64{"sessions": 4}},
		},
		Routes: []Route{
			{Name: "sensors", Direction: Up, Resource: "/sensors/{kind}", Topic: "dt/{gateway}/{device}/{kind}", Peers: []string{"cloud", "plant"}, Ack: "disk",
				Counters: map[string]int64{"accepted": 81203, "denied": 4}},
			{Name: "setpoint", Direction: Down, Resource: "/actuators/setpoint", Topic: "cmd/{gateway}/{device}/setpoint", Peers: []string{"cloud"},
				Counters: map[string]int64{"done": 17, "queued": 3}},
		},
		Connectors: []Connector{
			{Name: "cloud", Type: "aws", Address: "a1b2-ats.iot.eu-central-1.amazonaws.com:8883", State: ConnectorUp, Since: noon.Add(-5 * time.Hour), InFlight: 6,
				Latency: 38 * time.Millisecond, Limits: northbound.Limits{Payload: 128 << 10, Window: 100}, Transport: "MQTT 5, TLS 1.3",
				LastError: "keep-alive: no answer within 30s", LastFault: noon.Add(-5 * time.Hour), Counters: map[string]int64{"sent": 81195}},
			{Name: "plant", Type: "mqtt", Address: "broker.plant7.example:8883", State: ConnectorUp, Since: noon.Add(-76 * time.Hour), Latency: 4 * time.Millisecond},
		},
		Spool: spool.Stats{Bytes: 12 << 20, MaxBytes: 1 << 30, Records: 8, Oldest: noon.Add(-200 * time.Millisecond), Commits: 5012, Written: 31 << 20,
			SyncNanos:    append(make([]uint64, 17), 12, 4000, 900, 100),
			PendingBytes: map[string]int64{"cloud": 2048}},
		Ledger: []spool.Tally{
			{Route: "sensors", Connector: "cloud", Accepted: 81203, Delivered: 81193, Dead: 2, Pending: 8},
			{Route: "sensors", Connector: "plant", Accepted: 81203, Delivered: 81203},
		},
		Keys: []Key{{Name: "identity", Subject: "CN=plant7-gw1", Issuer: "CN=Plant 7 CA", Ends: noon.Add(212 * 24 * time.Hour),
			Info: hwcrypto.Info{URI: "tpm:name=identity", Where: "TPM 2.0 (IBM SW TPM)", Algorithm: hwcrypto.ECDSAP256, Hardware: true, Fingerprint: "5be2",
				Attributes: map[string]string{"fixedTPM": "true", "sensitiveDataOrigin": "true"}}}},
		PSKs:  PSKs{Chip: 2, Sealed: 40, Plain: 1},
		Chips: []hwcrypto.QueueStats{{Chip: "tpm:/dev/tpmrm0", Done: 112, Failed: 1, Latency: 21 * time.Millisecond, Histogram: []uint64{0, 0, 0, 0, 0, 2, 10, 90, 10, 0, 0, 0, 0, 0, 1}}},
	}
	return g
}

// unwell is a gateway with one of everything that can be wrong.
func unwell() *gateway {
	g := well()
	g.change(func(s *Snapshot) {
		s.Problems = []health.Problem{
			{Code: "cloud-unreachable", Title: "the cloud cannot be reached", Severity: health.Degraded, Subject: "connector plant", Since: noon.Add(-4 * time.Minute),
				Detail: "dial tcp 10.7.0.4:8883: connect: connection refused", Hint: "messages are kept on disk until it is back; `drawbridge doctor` shows which step fails"},
			{Code: "key-in-software", Title: "a key lives in a file, not in a chip", Severity: health.Notice, Subject: "key dev", Since: noon.Add(-76 * time.Hour),
				Hint: "good for first runs; name a pkcs11: or tpm: URI for real ones"},
		}
		s.Listeners[1].Bound, s.Listeners[1].Error = false, "listen tcp :8883: bind: address already in use"
		s.Connectors[1].State, s.Connectors[1].Since = ConnectorBackingOff, noon.Add(-4*time.Minute)
		s.Connectors[1].NextTry = noon.Add(8 * time.Second)
		s.Connectors[1].LastError, s.Connectors[1].LastFault = "dial tcp 10.7.0.4:8883: connect: connection refused", noon.Add(-3*time.Second)
		s.Ledger[1].Pending, s.Ledger[1].Delivered = 12345, 81203-12345
		s.Spool.Records, s.Spool.Oldest, s.Spool.Full, s.Spool.Dropped, s.Spool.Lost = 12353, noon.Add(-4*time.Minute), true, 3, 1
		s.Keys = append(s.Keys,
			Key{Name: "dev", Info: hwcrypto.Info{URI: "file:dev.key", Where: "file /etc/drawbridge/dev.key", Algorithm: hwcrypto.ECDSAP256, Extractable: true},
				Subject: "CN=dev", Ends: noon.Add(-26 * time.Hour)},
			Key{Name: "hub", Error: "TPM 2.0 at /dev/tpmrm0: no such file or directory"})
	})
	return g
}
