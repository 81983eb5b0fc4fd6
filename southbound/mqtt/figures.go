package mqtt

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// counters are the figures of one listener; see Counters for their names.
type counters struct {
	accepted, connectionsRefused, connectionsFailed atomic.Int64
	handshakes, handshakesFailed                    atomic.Int64
	loginsRefused, loginsFailed                     atomic.Int64
	sessions                                        atomic.Int64
	packetsIn, publishesIn                          atomic.Int64
	publishesTaken, publishesRefused, publishesSent atomic.Int64
	commands, dropped, protocolErrors, willsRefused atomic.Int64
}

// Counters implements southbound.Counters. "sessions" is a gauge, the others only grow.
func (l *listener) Counters() map[string]int64 {
	c := &l.count
	return map[string]int64{
		"connections_accepted": c.accepted.Load(),
		"connections_refused":  c.connectionsRefused.Load(),
		"connections_failed":   c.connectionsFailed.Load(),
		"handshakes_ok":        c.handshakes.Load(),
		"handshakes_failed":    c.handshakesFailed.Load(),
		"logins_refused":       c.loginsRefused.Load(),
		"logins_failed":        c.loginsFailed.Load(),
		"sessions":             c.sessions.Load(),
		"packets_in":           c.packetsIn.Load(),
		"publishes_in":         c.publishesIn.Load(),
		"publishes_taken":      c.publishesTaken.Load(),
		"publishes_refused":    c.publishesRefused.Load(),
		"publishes_sent":       c.publishesSent.Load(),
		"commands":             c.commands.Load(),
		"messages_dropped":     c.dropped.Load(),
		"wills_refused":        c.willsRefused.Load(),
		"protocol_errors":      c.protocolErrors.Load(),
	}
}

// ended counts a connection that the listener has ended.
func (c *counters) ended(code packet.Code) {
	switch code {
	case packet.MalformedPacket, packet.ProtocolError, packet.TopicAliasInvalid, packet.TopicNameInvalid, packet.PacketTooLarge,
		packet.ReceiveMaximumExceeded, packet.PayloadFormatInvalid:
		c.protocolErrors.Add(1)
	}
}

// trouble keeps the log from being flooded by what peers do: of each kind the first is logged, then one summary a minute.
type trouble struct {
	mu    sync.Mutex
	kinds map[string]*repeated // guarded by mu
}

type repeated struct {
	count  int
	last   error
	logged time.Time
}

const summaryEvery = time.Minute

func (t *trouble) note(kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kinds == nil {
		t.kinds = map[string]*repeated{}
	}
	r := t.kinds[kind]
	if r == nil {
		r = &repeated{}
		t.kinds[kind] = r
	}
	r.count++
	r.last = err
}

// flush writes what is due.
func (t *trouble) flush(log *slog.Logger, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for kind, r := range t.kinds {
		if r.count > 0 && time.Since(r.logged) >= summaryEvery {
			last, hint := health.Words(r.last, now)
			log.Warn("peers were turned away", "at", kind, "times", r.count, "last", last, "hint", hint)
			r.count, r.logged = 0, time.Now()
		}
	}
}
