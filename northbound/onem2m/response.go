package onem2m

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Values of responseTypeValue (TS-0004 clause 6.3.4.2.8) that are asked for.
const (
	nonBlockingSynch  = 1
	nonBlockingAsynch = 2
)

// Values of requestStatus of a <request> resource.
const (
	requestPending   = 3
	requestForwarded = 4
)

// Pauses between two looks at a <request> that is not completed.
const (
	firstLook = 50 * time.Millisecond
	lastLook  = 2 * time.Second
)

// results are those of non-blocking requests that the CSE sends by itself.
type results struct {
	mu      sync.Mutex
	waiting map[string]chan *response // guarded by mu: by request id
}

func (r *results) expect(id string) (result chan *response, forget func()) {
	result = make(chan *response, 1)
	r.mu.Lock()
	r.waiting[id] = result
	r.mu.Unlock()
	return result, func() {
		r.mu.Lock()
		delete(r.waiting, id)
		r.mu.Unlock()
	}
}

// take gives a result to who waits for it. One that nobody waits for is of an earlier session: its publication is sent again.
func (r *results) take(result *response) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if waiting := r.waiting[result.ID]; waiting != nil {
		waiting <- result
		delete(r.waiting, result.ID)
	}
}

// resultIn reads the result of a non-blocking request from a notification, where it is one.
func resultIn(data []byte) (*response, bool) {
	inner := unwrap(data, "m2m:rsp", "rsp")
	if len(inner) == len(data) {
		return nil, false
	}
	_, r, err := parsePrimitive(inner)
	return r, err == nil && r != nil
}

// report sends the request of a publication, blocking or not as the file says, and waits for its result.
func (s *session) report(ctx context.Context, q *request) (*response, error) {
	switch s.c.cfg.Response {
	case "synch":
		q.Response = &responseType{Value: nonBlockingSynch}
	case "asynch":
		q.Response = &responseType{Value: nonBlockingAsynch, To: []string{s.c.target(q.From)}}
	default:
		return s.ask(ctx, q)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, requestTime, fmt.Errorf("the CSE has not completed a request for %s", requestTime))
	defer cancel()
	s.name(q)
	result, forget := s.results.expect(q.ID) // before the request: the result may overtake the acknowledgement
	defer forget()
	r, err := s.exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	if r.RSC == 1001 || q.Response.Value == nonBlockingSynch && r.RSC == 1000 {
		r, err = s.completed(ctx, q, r)
	} else if r.RSC == 1002 || r.RSC == 1000 {
		r, err = s.sent(ctx, result)
	}
	if err != nil {
		return nil, err
	}
	if meaningOf(r.RSC) != done {
		return r, refused(q, r)
	}
	return r, nil
}

// sent waits for a result that the CSE sends.
func (s *session) sent(ctx context.Context, result <-chan *response) (*response, error) {
	select {
	case r := <-result:
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// completed looks at a <request> until it holds the result (TS-0001 clause 8.2.2.2).
func (s *session) completed(ctx context.Context, q *request, accepted *response) (*response, error) {
	var at string
	if err := json.Unmarshal(unwrap(accepted.Content, "m2m:uri", "uri"), &at); err != nil || at == "" {
		return nil, unsendable{errors.New("the CSE has accepted a non-blocking request, but does not say where its result will be")}
	}
	pause := time.NewTimer(firstLook)
	defer pause.Stop()
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		r, err := s.ask(ctx, &request{Op: opRetrieve, To: at, From: q.From})
		if err != nil {
			return nil, fmt.Errorf("the result of a non-blocking request: %w", err)
		}
		result, pending, err := resultOf(r.Content)
		if err != nil {
			return nil, unsendable{err}
		}
		if !pending {
			return result, nil
		}
		pause.Reset(wait)
	}
}

// resultOf reads a <request> resource.
func resultOf(data []byte) (result *response, pending bool, err error) {
	a, err := attributes(data)
	if err != nil {
		return nil, false, fmt.Errorf("the result of a non-blocking request: %w", err)
	}
	var status number
	if err := json.Unmarshal(a["rs"], &status); err != nil {
		return nil, false, fmt.Errorf("the result of a non-blocking request: its status: %w", err)
	}
	if status == requestPending || status == requestForwarded {
		return nil, true, nil
	}
	_, result, err = parsePrimitive(a["ors"])
	if err != nil || result == nil {
		return nil, false, msg.Permanent(errors.New("the result of a non-blocking request: it has none"))
	}
	return result, false, nil
}
