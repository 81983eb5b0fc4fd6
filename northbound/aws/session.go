package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const (
	answerWait = 20 * time.Second // for shadow and job requests
	burst      = 64 << 10         // octets that go out before the throughput is looked at
)

// session is an MQTT session that speaks the platform's reserved topics.
type session struct {
	*mqtt.Session
	c    *Connector
	down northbound.Downlink

	mu       sync.Mutex
	requests map[string]func(error)   // guarded by mu; by client token
	shadows  map[string]chan struct{} // guarded by mu; by prefix: room for unanswered requests; nil: answers are not to be had
	asked    map[string]bool          // guarded by mu; shadows whose state was asked for
	next     time.Time                // guarded by mu; when the throughput is used up
}

func newSession(c *Connector, down northbound.Downlink) *session {
	return &session{
		c: c, down: down, requests: map[string]func(error){}, shadows: map[string]chan struct{}{}, asked: map[string]bool{},
	}
}

// begin subscribes to what routes wait for and to the answers that belong to it, and asks for what happened while the gateway was away.
func (s *session) begin(ctx context.Context) error {
	filters := s.down.Topics()
	var ask []msg.Publication
	for _, f := range s.down.Topics() {
		r, ok := parse(f)
		switch {
		case ok && r.shadow && r.op == "update/delta":
			filters = append(filters, r.prefix+"/get/accepted", r.prefix+"/get/rejected")
			if !strings.Contains(f, "+") {
				ask = append(ask, msg.Publication{Topic: r.prefix + "/get", QoS: 1})
				s.asked[r.prefix] = true
			}
		case ok && r.op == "notify-next":
			filters = append(filters, r.prefix+"/$next/get/accepted", r.prefix+"/+/update/accepted", r.prefix+"/+/update/rejected")
			if !strings.Contains(f, "+") {
				ask = append(ask, msg.Publication{Topic: r.prefix + "/$next/get", QoS: 1, Payload: []byte("{}")})
			}
		}
	}
	if err := mqtt.Forget(ctx, s.Session, s.c.env.State, filters); err != nil {
		s.c.env.Log.Warn("subscriptions of an earlier configuration may remain", "error", err)
	}
	err := s.Subscribe(ctx, filters...)
	if _, refused := errors.AsType[*mqtt.RefusedFilter](err); err != nil && !refused {
		return err
	}
	for _, p := range ask {
		if err := s.Publish(ctx, p); err != nil && !msg.IsPermanent(err) {
			return fmt.Errorf("%s: %w", p.Topic, err)
		}
	}
	return err
}

// reserved is a topic of a shadow or of jobs.
type reserved struct {
	thing  string
	prefix string // "$aws/things/THING/shadow", with "/name/NAME" where it has one, or "$aws/things/THING/jobs"
	op     string // what follows the prefix
	shadow bool
}

// parse reads a reserved topic of a thing.
func parse(topic string) (r reserved, ok bool) {
	rest, ok := strings.CutPrefix(topic, "$aws/things/")
	if !ok {
		return r, false
	}
	thing, rest, _ := strings.Cut(rest, "/")
	kind, rest, ok := strings.Cut(rest, "/")
	r.thing, r.prefix, r.op, r.shadow = thing, "$aws/things/"+thing+"/"+kind, rest, kind == "shadow"
	if !ok || !r.shadow && kind != "jobs" {
		return r, false
	}
	if named, is := strings.CutPrefix(rest, "name/"); is && r.shadow {
		name, op, _ := strings.Cut(named, "/")
		r.prefix, r.op = r.prefix+"/name/"+name, op
	}
	return r, true
}

// Send is northbound.Session's.
func (s *session) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	part, index := make([]msg.Publication, 0, len(batch)), make([]int, 0, len(batch))
	size := 0
	flush := func() error {
		sent := index
		err := s.Session.Send(ctx, part, func(k int, err error) { done(sent[k], err) })
		part, index, size = nil, nil, 0
		return err
	}
	for i := range batch {
		p := batch[i]
		p.Topic = s.c.ingest(p.Topic)
		if r, ok := parse(p.Topic); ok && r.shadow && r.op == "update" {
			if err := flush(); err != nil { // order is kept
				return err
			}
			if err := s.report(ctx, p, r, func(err error) { done(i, err) }); err != nil {
				return err
			}
			continue
		}
		if err := fits(p.Topic, len(p.Payload)); err != nil {
			done(i, err)
			continue
		}
		part, index = append(part, p), append(index, i)
		if size += len(p.Topic) + len(p.Payload); size >= burst {
			if err := s.throttle(ctx, size); err != nil {
				return err
			}
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := s.throttle(ctx, size); err != nil {
		return err
	}
	return flush()
}

// fits holds a publication against what the platform enforces by silence or by closing.
func fits(topic string, payload int) error {
	levels := topic
	if rest, ok := strings.CutPrefix(topic, "$aws/rules/"); ok {
		_, levels, _ = strings.Cut(rest, "/")
	}
	switch {
	case payload > maxPayload:
		return msg.Permanent(fmt.Errorf("payload of %d octets: AWS takes %d", payload, maxPayload))
	case len(topic) > maxTopic:
		return msg.Permanent(fmt.Errorf("topic of %d octets: AWS takes %d", len(topic), maxTopic))
	case strings.Count(levels, "/") >= maxLevels:
		return msg.Permanent(fmt.Errorf("topic of %d levels: AWS takes %d", strings.Count(levels, "/")+1, maxLevels))
	}
	return nil
}

// throttle waits until octets may go out: a second's worth at once, and no more than the platform takes after that.
func (s *session) throttle(ctx context.Context, octets int) error {
	s.mu.Lock()
	now := time.Now()
	if s.next.Before(now) {
		s.next = now
	}
	s.next = s.next.Add(time.Duration(octets) * time.Second / maxThroughput)
	wait := s.next.Sub(now) - time.Second
	s.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Context().Done():
		return context.Cause(s.Context())
	}
}

// receive takes what the platform sends. Nil: it is settled.
func (s *session) receive(ctx context.Context, p msg.Publication) error {
	r, ok := parse(p.Topic)
	switch {
	case !ok:
	case r.shadow:
		switch r.op {
		case "update/accepted", "update/rejected":
			s.answered(p.Payload)
			return nil
		case "get/accepted":
			return s.got(ctx, r, p)
		case "get/rejected": // there is no shadow yet
			return nil
		case "update/delta":
			return s.delta(ctx, r, p)
		}
	case r.op == "notify-next", r.op == "$next/get/accepted":
		return s.job(ctx, r, p)
	case strings.HasSuffix(r.op, "/update/accepted"), strings.HasSuffix(r.op, "/update/rejected"):
		s.answered(p.Payload)
		return nil
	}
	_, err := s.down.Deliver(ctx, p)
	return err
}

// request waits for the answer that carries the token, and tells it to done, once.
func (s *session) request(token string, done func(error)) {
	var once sync.Once
	tell := func(err error) { once.Do(func() { done(err) }) }
	timer := time.AfterFunc(answerWait, func() {
		s.mu.Lock()
		delete(s.requests, token)
		s.mu.Unlock()
		if s.Context().Err() == nil {
			tell(fmt.Errorf("AWS has not answered for %s", answerWait))
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[token] = func(err error) {
		timer.Stop()
		tell(err)
	}
}

// take gives what waits for the answer with the token; nil where nothing does.
func (s *session) take(token string) func(error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tell := s.requests[token]
	delete(s.requests, token)
	return tell
}

// answered reads an accepted or rejected document of a shadow or a job.
func (s *session) answered(payload []byte) {
	var a struct {
		Token   string          `json:"clientToken"`
		Code    json.RawMessage `json:"code"` // a number from shadows, a word from jobs; absent: accepted
		Message string          `json:"message"`
	}
	if json.Unmarshal(payload, &a) != nil || a.Token == "" {
		return
	}
	tell := s.take(a.Token)
	if tell == nil {
		return
	}
	code := strings.Trim(string(a.Code), `"`)
	switch code {
	case "":
		tell(nil)
	case "429", "500", "InternalError", "RequestThrottled":
		tell(fmt.Errorf("AWS: %s: %q", code, a.Message))
	default:
		tell(msg.Permanent(fmt.Errorf("AWS: %s: %q", code, a.Message)))
	}
}
