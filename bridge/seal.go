package bridge

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Envelopes protects payloads from end to end by keys that live in chips, as keyring.View does. An error that is msg.Permanent says that
// a payload is not authentic; any other is trouble with a key or its chip, and passes.
type Envelopes interface {
	Protect(ctx context.Context, key, form, cipher string, e msg.Envelope) (sealed []byte, mediaType string, err error)
	Unprotect(ctx context.Context, key string, sealed []byte) (msg.Envelope, error)
	Verify(ctx context.Context, certificates string, sealed []byte) (msg.Envelope, error)
}

// seals puts reports into envelopes. A chip may take long, so it is asked on lanes beside the way of other reports: the reports of one
// device by one key stay in their order, and a key whose chip hangs holds up those who need it alone.
type seals struct {
	b *Bridge

	mu      sync.Mutex
	ctx     context.Context         // guarded by mu; of Run; nil while it does not run
	lanes   map[laneKey][]*sealing  // guarded by mu; a lane is there while its goroutine is
	failing map[config.Sealing]bool // guarded by mu; how it went last
	wg      sync.WaitGroup
}

type laneKey struct {
	key  string
	lane int
}

// sealing is a report on its way into its envelope.
type sealing struct {
	p        *plan
	envelope msg.Envelope
	r        report
}

// report is what is known of a report when its payload is ready.
type report struct {
	id      msg.ID
	device  string
	typ     string
	payload []byte
	time    time.Time
	expires time.Time
	done    func(error)
}

const (
	laneDepth = 64               // reports that wait in one of a key's 16 lanes
	sealRetry = 10 * time.Second // when a device is asked to try again, and how often a key that fails is tried
)

// run lends the context in which chips are asked, and looks after the keys until it ends.
func (s *seals) run(ctx context.Context) {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.ctx = nil
		s.mu.Unlock()
		s.wg.Wait()
	}()
	tick := time.NewTicker(sealRetry)
	defer tick.Stop()
	for {
		s.probe(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// probe tries every key that no payload has been sealed by yet, and those that failed last, so that trouble shows before the first
// report comes, and goes when it is over.
func (s *seals) probe(ctx context.Context) {
	used := s.b.state.Load().s.Table.sealings()
	s.mu.Lock()
	var ask []config.Sealing
	for _, c := range used {
		if failing, known := s.failing[c]; failing || !known {
			ask = append(ask, c)
		}
	}
	for c := range s.failing {
		if !slices.Contains(used, c) {
			delete(s.failing, c)
			s.b.o.Health.For("key " + c.Seal).Clear(&PayloadKeyFailing)
		}
	}
	s.mu.Unlock()
	for _, c := range ask {
		_, _, err := s.b.protect(ctx, c, msg.Envelope{})
		if ctx.Err() != nil {
			return
		}
		s.note(c, err)
	}
}

// note remembers and shows how it went with a key.
func (s *seals) note(c config.Sealing, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	failing, known := s.failing[c]
	if known && failing == (err != nil) {
		return
	}
	if s.failing == nil {
		s.failing = map[config.Sealing]bool{}
	}
	s.failing[c] = err != nil
	h := s.b.o.Health.For("key " + c.Seal)
	if err != nil {
		h.Set(&PayloadKeyFailing, err.Error())
		return
	}
	for o, bad := range s.failing {
		if bad && o.Seal == c.Seal {
			return // it fails in another form, as a key of the wrong kind does
		}
	}
	h.Clear(&PayloadKeyFailing)
}

// submit takes a report whose payload is to be sealed, or refuses it. It never blocks.
func (s *seals) submit(w *sealing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		return msg.Refuse(msg.Unavailable, "the gateway is starting or stopping")
	}
	k := laneKey{w.p.r.seal.Seal, spread(w.r.device, "")}
	lane, running := s.lanes[k]
	if len(lane) >= laneDepth {
		return &msg.Refusal{Reason: msg.Full, RetryAfter: sealRetry, Why: "too many reports wait to be sealed"}
	}
	if s.lanes == nil {
		s.lanes = map[laneKey][]*sealing{}
	}
	s.lanes[k] = append(lane, w)
	if !running {
		ctx := s.ctx
		s.wg.Go(func() { s.serve(ctx, k) })
	}
	return nil
}

// serve empties a lane.
func (s *seals) serve(ctx context.Context, k laneKey) {
	for {
		s.mu.Lock()
		lane := s.lanes[k]
		if len(lane) == 0 {
			delete(s.lanes, k)
			s.mu.Unlock()
			return
		}
		w := lane[0]
		s.lanes[k] = lane[1:]
		s.mu.Unlock()
		if err := s.seal(ctx, w); err != nil {
			s.b.count.refused(err)
			w.r.done(err)
		}
	}
}

// seal puts one report into its envelope and on its way. What cannot be sealed is refused, never sent as it is.
func (s *seals) seal(ctx context.Context, w *sealing) error {
	if ctx.Err() != nil {
		return msg.Refuse(msg.Unavailable, "the gateway is stopping")
	}
	c := w.p.r.seal
	sealed, typ, err := s.b.protect(ctx, c, w.envelope)
	if ctx.Err() != nil && err != nil {
		return msg.Refuse(msg.Unavailable, "the gateway is stopping")
	}
	s.note(c, err)
	if err != nil {
		return &msg.Refusal{Reason: msg.Full, RetryAfter: sealRetry, Why: "uplink " + w.p.r.name + ": the payload cannot be sealed now: " + err.Error()}
	}
	w.r.typ, w.r.payload = typ, sealed
	return s.b.enqueue(w.p, &w.r, s.b.o.Now())
}

// protect seals by a route's key.
func (b *Bridge) protect(ctx context.Context, c config.Sealing, e msg.Envelope) ([]byte, string, error) {
	if b.o.Envelopes == nil {
		return nil, "", errNoKeys
	}
	return b.o.Envelopes.Protect(ctx, c.Seal, c.SealAs, c.SealCipher, e)
}

// sealings gives every way in which the routes use keys for payloads.
func (t *Table) sealings() []config.Sealing {
	all := map[config.Sealing]bool{}
	for _, e := range t.uplinks {
		all[e.r.seal] = true
	}
	for _, list := range t.downs {
		for _, r := range list {
			all[r.seal] = true
			all[unsealing(r.unseal)] = true
		}
	}
	maps.DeleteFunc(all, func(c config.Sealing, _ bool) bool { return c.Seal == "" })
	return slices.SortedFunc(maps.Keys(all), func(a, b config.Sealing) int { return strings.Compare(a.Seal+a.SealAs, b.Seal+b.SealAs) })
}

// unsealing is how a key is tried by which commands are encrypted: by encrypting.
func unsealing(key string) config.Sealing {
	return config.Sealing{Seal: key, SealAs: "jwe", SealCipher: "A256GCM"}
}
