package status

import (
	"context"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
)

// Rates are counted over this many samples, which are a second apart.
const rateWindow = 5

// rate is what a line of the ledger moves, in messages per second.
type rate struct{ In, Out float64 }

// pair is a line of the ledger.
type pair struct{ route, connector string }

// moment is a snapshot with what follows from those before it.
type moment struct {
	Snapshot
	Rates map[pair]rate
	Total rate // In counts a message once, Out counts it for each cloud
}

// live keeps the newest moment and wakes those who wait for the next.
type live struct {
	mu      sync.Mutex
	past    []Snapshot    // guarded by mu; the last rateWindow+1
	now     *moment       // guarded by mu; never changed once it is here
	changed chan struct{} // guarded by mu; closed when now is replaced
}

func newLive() *live { return &live{changed: make(chan struct{})} }

// take makes a snapshot the newest moment.
func (l *live) take(s Snapshot) *moment {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.past = append(l.past, s)
	if len(l.past) > rateWindow+1 {
		l.past = append(l.past[:0], l.past[1:]...)
	}
	m := &moment{Snapshot: s, Rates: map[pair]rate{}}
	oldest := l.past[0]
	if seconds := s.Time.Sub(oldest.Time).Seconds(); seconds > 0 {
		before := map[pair]spool.Tally{}
		for _, t := range oldest.Ledger {
			before[pair{t.Route, t.Connector}] = t
		}
		in := map[string]float64{}
		for _, t := range s.Ledger {
			b := before[pair{t.Route, t.Connector}] // a line that is new began at nothing
			if t.Accepted < b.Accepted || t.Delivered < b.Delivered {
				continue // it was counted anew
			}
			r := rate{float64(t.Accepted-b.Accepted) / seconds, float64(t.Delivered-b.Delivered) / seconds}
			m.Rates[pair{t.Route, t.Connector}] = r
			in[t.Route] = max(in[t.Route], r.In)
			m.Total.Out += r.Out
		}
		for _, r := range in {
			m.Total.In += r
		}
	}
	l.now = m
	close(l.changed)
	l.changed = make(chan struct{})
	return m
}

// newest gives the newest moment, nil before the first, and a channel that is closed when there is a newer one.
func (l *live) newest() (*moment, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.changed
}

// watch samples the gateway once a second until ctx ends.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.sample()
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := s.history.save(); err != nil {
				s.o.Log.Warn("the plots' past is not kept", "error", err)
			}
			return
		}
	}
}

// sample takes a snapshot into the live values and the plots.
func (s *Server) sample() *moment {
	m := s.live.take(s.snapshot())
	p := point{At: m.Time.Truncate(time.Second), In: float32(m.Total.In), Out: float32(m.Total.Out), Pending: uint32(min(m.Totals().Pending, 1<<32-1))}
	for _, c := range m.Connectors {
		if c.State == ConnectorUp {
			p.Latency = max(p.Latency, c.Latency)
		}
	}
	if err := s.history.add(p); err != nil {
		s.o.Log.Warn("the plots' past is not kept", "error", err)
	}
	return m
}

// moment gives the newest moment, and makes the first one.
func (s *Server) moment() *moment {
	if m, _ := s.live.newest(); m != nil {
		return m
	}
	return s.sample()
}
