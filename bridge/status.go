package bridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
)

// Snapshot is the state of the bridge at one moment.
type Snapshot struct {
	Connectors  []ConnectorStatus `json:"connectors"` // by name; those of the setup, and those that the spool holds records or letters for
	Ledger      []spool.Tally     `json:"ledger"`     // by route and connector
	Spool       spool.Stats       `json:"spool"`
	Accepted    int64             `json:"accepted"` // reports since start
	Filtered    int64             `json:"filtered"` // reports that a route's jq expression left out, since start
	Refused     map[string]int64  `json:"refused"`  // reports since start, by reason
	Commands    int64             `json:"commands"` // publications that clouds sent, since start
	RepliesLost int64             `json:"replies_lost"`
	Unconfirmed int64             `json:"unconfirmed"` // reports whose device waits for a cloud (ack = "cloud")
	Mailboxes   map[string]int    `json:"mailboxes"`   // commands that wait, by device
}

// ConnectorStatus is the state of one connector.
type ConnectorStatus struct {
	Name         string        `json:"name"`
	State        string        `json:"state"`                // one of the State constants
	Since        time.Time     `json:"since"`                // of that state
	Next         time.Time     `json:"next,omitzero"`        // of the next attempt to dial, while waiting
	Attempts     int           `json:"attempts"`             // to dial, since it was last connected
	Sessions     int           `json:"sessions"`             // since start
	LastError    string        `json:"last_error,omitempty"` // why the last attempt or session ended; kept after it is up again
	LastFault    time.Time     `json:"last_fault,omitzero"`  // when that was
	InFlight     int           `json:"in_flight"`            // publications sent and not settled
	Latency      time.Duration `json:"latency_ns"`           // moving mean from send to confirmation; zero: none yet
	Pending      uint64        `json:"pending"`              // publications not settled
	PendingBytes int64         `json:"pending_bytes"`
	DeadLetters  int           `json:"dead_letters"`
	Wire         WireStatus    `json:"wire"`
}

// Snapshot gives the state for status.
func (b *Bridge) Snapshot() Snapshot {
	s := Snapshot{
		Ledger: b.queue.Ledger(), Spool: b.queue.Stats(), Accepted: b.count.accepted.Load(), Filtered: b.count.filtered.Load(),
		Refused: b.count.words(), Commands: b.count.commands.Load(), RepliesLost: b.count.replyLost.Load(),
		Unconfirmed: b.waiting.waiting.Load(), Mailboxes: b.mail.waiting(),
	}
	pending := map[string]uint64{}
	for _, t := range s.Ledger {
		pending[t.Connector] += t.Pending
	}
	names := slices.Concat(slices.Collect(maps.Keys(b.state.Load().s.Connectors)), b.queue.Consumers(), b.dead.connectors())
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		c := b.seen(name)
		dead := b.dead.box(name)
		c.Pending, c.PendingBytes = pending[name], s.Spool.PendingBytes[name]
		c.DeadLetters = dead.count
		s.Connectors = append(s.Connectors, c)
	}
	return s
}

// seen gives what the connector's pump does, if it has one.
func (b *Bridge) seen(name string) ConnectorStatus {
	b.mu.Lock()
	p := b.pumps[name]
	b.mu.Unlock()
	if p == nil {
		return ConnectorStatus{Name: name, State: StateStopped}
	}
	s := p.status()
	s.Wire = p.account.status(b.o.Now())
	return s
}

// examine reports and clears the problems that figures show.
func (b *Bridge) examine() {
	stats, gateway := b.queue.Stats(), b.o.Health.For("")
	if stats.Full {
		gateway.Set(&SpoolFull, fmt.Sprintf("%d of %d octets", stats.Bytes, stats.MaxBytes))
	} else {
		gateway.Clear(&SpoolFull)
		gateway.Clear(&RepliesLost)
	}
	if n := b.damage.unseen(stats.Lost); n > 0 {
		gateway.Set(&SpoolDamaged, fmt.Sprintf("%d messages", n))
	} else {
		gateway.Clear(&SpoolDamaged)
	}
	connectors := b.state.Load().s.Connectors
	var orphans []string
	for name, n := range stats.PendingBytes {
		if n > 0 && connectors[name] == nil {
			orphans = append(orphans, name)
		}
	}
	if len(orphans) > 0 {
		slices.Sort(orphans)
		gateway.Set(&QueueOrphaned, strings.Join(orphans, ", "))
	} else {
		gateway.Clear(&QueueOrphaned)
	}
	for name := range connectors {
		h, dead := b.o.Health.For("connector "+name), b.dead.box(name)
		b.examineBudget(name, h, b.o.Now())
		if dead.count > 0 {
			h.Set(&DeadLettersWaiting, fmt.Sprintf("%d messages", dead.count))
		} else {
			h.Clear(&DeadLettersWaiting)
		}
		if dead.count < maxLetters*9/10 && dead.bytes < maxLetterBytes*9/10 {
			h.Clear(&DeadLettersFull)
		}
		if p := stats.PendingBytes[name]; p > stats.MaxBytes/4 {
			h.Set(&QueueGrowing, fmt.Sprintf("%d of %d octets", p, stats.MaxBytes))
		} else {
			h.Clear(&QueueGrowing)
		}
	}
}
