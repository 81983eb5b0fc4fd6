package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const (
	shadowMax     = 8 << 10 // octets of a document
	shadowPending = 10      // unanswered requests per thing
	shadowsKnown  = 10      // shadows whose answers are subscribed to: two subscriptions each, of 50
)

// shadowRequest is the body of an update. Payloads of that form are sent as they are, others are wrapped.
type shadowRequest struct {
	State   json.RawMessage `json:"state"`
	Version json.RawMessage `json:"version,omitempty"`
	Token   string          `json:"clientToken,omitempty"`
}

// wrap makes a shadow request of a report.
func wrap(payload []byte, token string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(payload, &fields); err != nil || fields == nil {
		return nil, msg.Permanent(errors.New("a shadow takes JSON objects only"))
	}
	r := shadowRequest{Token: token}
	known := 0
	for _, k := range []string{"state", "version", "clientToken"} {
		if _, ok := fields[k]; ok {
			known++
		}
	}
	if _, ok := fields["state"]; ok && known == len(fields) {
		r.State, r.Version = fields["state"], fields["version"]
	} else {
		r.State = append(append([]byte(`{"reported":`), payload...), '}')
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, msg.Permanent(fmt.Errorf("shadow request: %w", err))
	}
	if len(body) > shadowMax {
		return nil, msg.Permanent(fmt.Errorf("a shadow request of %d octets: AWS takes %d", len(body), shadowMax))
	}
	return body, nil
}

// report sends a shadow update, and is done when the shadow has answered. Its own error says that the session or ctx has ended.
func (s *session) report(ctx context.Context, p msg.Publication, r reserved, done func(error)) error {
	token := p.ID.String()
	body, err := wrap(p.Payload, token)
	if err != nil {
		done(err)
		return nil
	}
	p.Payload, p.Type = body, "application/json"
	room, err := s.answers(ctx, r.prefix)
	if err != nil {
		return err
	}
	if room == nil { // the platform bears no more subscriptions: PUBACK has to do
		return s.Session.Send(ctx, []msg.Publication{p}, func(_ int, err error) { done(err) })
	}
	select {
	case room <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Context().Done():
		return context.Cause(s.Context())
	}
	s.request(token, func(err error) {
		<-room
		done(err)
	})
	return s.Session.Send(ctx, []msg.Publication{p}, func(_ int, err error) {
		if err == nil {
			return // the answer will come
		}
		if tell := s.take(token); tell != nil {
			tell(err)
		}
	})
}

// answers sees that answers of the shadow arrive, and gives the room for requests to it; nil where they cannot.
// The first report on a shadow whose deltas are waited for by a wildcard also asks what differs by now.
func (s *session) answers(ctx context.Context, prefix string) (chan struct{}, error) {
	s.mu.Lock()
	room, known := s.shadows[prefix]
	full := len(s.shadows) >= shadowsKnown
	s.mu.Unlock()
	if known || full {
		return room, nil
	}
	err := s.Subscribe(ctx, prefix+"/update/accepted", prefix+"/update/rejected")
	if _, refused := errors.AsType[*mqtt.RefusedFilter](err); err != nil && !refused {
		return nil, err
	}
	if err == nil {
		room = make(chan struct{}, shadowPending)
	}
	s.mu.Lock()
	s.shadows[prefix] = room
	ask := !s.asked[prefix] && s.waitsFor(prefix+"/update/delta")
	s.asked[prefix] = true
	s.mu.Unlock()
	if ask {
		return room, s.Session.Send(ctx, []msg.Publication{{Topic: prefix + "/get", QoS: 1}}, func(int, error) {})
	}
	return room, nil
}

// waitsFor tells whether a route waits for what is published on topic.
func (s *session) waitsFor(topic string) bool {
	for _, f := range s.down.Topics() {
		if mqtt.Match(f, topic) {
			return true
		}
	}
	return false
}

// seen is the newest version of a shadow that was delivered. Its mutex is held during deliveries: those of one shadow come one by one.
type seen struct {
	mu      sync.Mutex
	version int64    // guarded by mu
	in      *session // guarded by mu; in which it was delivered
}

const seenMax = 10_000 // shadows

func (c *Connector) seen(prefix string) *seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.shadows[prefix]
	if v == nil {
		if len(c.shadows) >= seenMax {
			clear(c.shadows)
		}
		v = &seen{}
		c.shadows[prefix] = v
	}
	return v
}

// got takes the shadow's document and delivers what differs between desired and reported state. What it says of the version
// holds even where it is lower than before: the shadow was deleted then. But where this very session has delivered a
// newer one, the answer was overtaken on its way: publications are handled side by side.
func (s *session) got(ctx context.Context, r reserved, p msg.Publication) error {
	var doc struct {
		State struct {
			Delta json.RawMessage `json:"delta"`
		} `json:"state"`
		Version int64 `json:"version"`
	}
	if json.Unmarshal(p.Payload, &doc) != nil {
		return nil
	}
	v := s.c.seen(r.prefix)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.version == doc.Version || v.in == s && doc.Version < v.version || len(doc.State.Delta) == 0 {
		return nil
	}
	body, err := json.Marshal(struct {
		Version int64           `json:"version"`
		State   json.RawMessage `json:"state"`
	}{doc.Version, doc.State.Delta})
	if err != nil {
		return nil
	}
	p.Topic, p.Payload = r.prefix+"/update/delta", body
	return s.deliver(ctx, v, doc.Version, p)
}

// delta delivers a delta unless that version or a newer one has been delivered.
func (s *session) delta(ctx context.Context, r reserved, p msg.Publication) error {
	var doc struct {
		Version int64 `json:"version"`
	}
	if json.Unmarshal(p.Payload, &doc) != nil {
		return nil
	}
	v := s.c.seen(r.prefix)
	v.mu.Lock()
	defer v.mu.Unlock()
	if doc.Version <= v.version && doc.Version > 0 {
		return nil
	}
	return s.deliver(ctx, v, doc.Version, p)
}

// deliver hands a version over and notes it; v.mu is held.
func (s *session) deliver(ctx context.Context, v *seen, version int64, p msg.Publication) error {
	if _, err := s.down.Deliver(ctx, p); err != nil {
		return err
	}
	v.version, v.in = version, s
	return nil
}
