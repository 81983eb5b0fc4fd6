package main

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/bridge"
)

// wireCount dials for one connector and counts what goes over its connections, TLS, log-ins and pings included. It is a bridge.Wire.
type wireCount struct {
	sent, received atomic.Int64
}

// Octets is bridge.Wire's.
func (m *wireCount) Octets() (sent, received int64) { return m.sent.Load(), m.received.Load() }

// dial is northbound.Env's.
func (m *wireCount) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return metered{c, m}, nil
}

const dialTimeout = 30 * time.Second

type metered struct {
	net.Conn
	m *wireCount
}

func (c metered) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.m.received.Add(int64(n))
	return n, err
}

func (c metered) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.m.sent.Add(int64(n))
	return n, err
}

// budgets gives what each connector of the plan may put on the wire, and what it has.
func (p *plan) budgets() map[string]bridge.Budget {
	b := map[string]bridge.Budget{}
	for name, c := range p.connectors {
		b[name] = bridge.Budget{Budget: p.cfg.Connectors[name].Budget, Wire: c.wire}
	}
	return b
}

// wireCounters adds what a connector has had on the wire to its own figures.
func wireCounters(own map[string]int64, w bridge.WireStatus) map[string]int64 {
	all := map[string]int64{"wire_sent": w.Sent, "wire_received": w.Received, "wire_day": w.Day, "wire_month": w.Month}
	if w.DayMax > 0 {
		all["budget_day"] = w.DayMax
	}
	if w.MonthMax > 0 {
		all["budget_month"] = w.MonthMax
	}
	for _, route := range slices.Sorted(maps.Keys(w.Routes)) {
		all["route_octets "+route] = w.Routes[route]
	}
	maps.Copy(all, own)
	return all
}
