package onem2m

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	channelName = "drawbridge-pch"
	pollTime    = 20 * time.Second // how long the CSE may hold a request for what it has to say
	pollPause   = time.Second      // after one that it has not held though it had nothing to say; it doubles up to pollTime
	atOnce      = 64               // notifications that are worked on
	// polledDevices is how many AEs of devices can have polling channels.
	polledDevices = 1 << 16
)

// channel makes the polling channel of an AE and starts to poll it (TS-0001 clause 10.2.5). Nobody notifies the gateway's own AE where it is there
// for groups alone.
func (s *session) channel(ctx context.Context, e *entity) error {
	if s.isHome(e) {
		return nil
	}
	if err := s.keepChannel(ctx, e); err != nil {
		return err
	}
	s.tasks.Go(func() {
		if err := s.poll(e, e.address+"/"+channelName+"/pcu"); err != nil {
			s.fail(fmt.Errorf("polling channel: %w", err))
		}
	})
	return nil
}

// keepChannel makes the polling channel, or renews it.
func (s *session) keepChannel(ctx context.Context, e *entity) error {
	a := map[string]any{"rn": channelName, "et": s.end()}
	_, err := s.ask(ctx, &request{Op: opCreate, To: e.address, From: e.id, Type: tyPCH, Content: represent("m2m:pch", a)})
	if r, answered := errors.AsType[*refusal](err); answered && meaningOf(r.rsc) == conflict {
		delete(a, "rn")
		_, err = s.ask(ctx, &request{Op: opUpdate, To: e.address + "/" + channelName, From: e.id, Content: represent("m2m:pch", a)})
	}
	if err != nil {
		return fmt.Errorf("polling channel: %w", err)
	}
	return nil
}

// poll asks for requests until the session ends, and answers each on its own.
func (s *session) poll(e *entity, at string) error {
	room := make(chan struct{}, atOnce)
	pause := pollPause
	for s.ctx.Err() == nil {
		began := time.Now()
		ctx, cancel := context.WithTimeoutCause(s.ctx, pollTime+requestTime, fmt.Errorf("the CSE has not answered for %s", pollTime+requestTime))
		r, err := s.exchange(ctx, &request{Op: opRetrieve, To: at, From: e.id, Deadline: stamp(s.c.env.Now().Add(pollTime))})
		cancel()
		switch {
		case err != nil:
			return err
		case r.RSC == rscTimeout || r.RSC == 504:
		case meaningOf(r.RSC) != done:
			return refused(&request{Op: opRetrieve, To: at}, r)
		}
		list := polled(r.Content)
		if len(list) > 0 || time.Since(began) >= pollPause {
			pause = pollPause
		} else { // it holds none, or finds them out of date by its clock
			select {
			case <-time.After(pause):
				pause = min(2*pause, pollTime)
			case <-s.ctx.Done():
				return nil
			}
		}
		for _, q := range list {
			select {
			case room <- struct{}{}:
			case <-s.ctx.Done():
				return nil
			}
			s.tasks.Go(func() {
				defer func() { <-room }()
				s.answer(e, at, q)
			})
		}
	}
	return nil
}

// polled reads the requests that a polling channel gave; what cannot be read is left out.
func polled(data []byte) (list []*request) {
	var many []json.RawMessage
	inner := unwrap(data, "m2m:agrp")
	if json.Unmarshal(unwrap(inner, "m2m:rqp"), &many) != nil {
		many = []json.RawMessage{inner}
	}
	for _, one := range many {
		if q, _, err := parsePrimitive(one); err == nil && q != nil && q.ID != "" {
			list = append(list, q)
		}
	}
	return list
}

// answer settles a polled request and puts the response into the channel.
func (s *session) answer(e *entity, at string, q *request) {
	r := s.notified(s.ctx, q)
	body := map[string]any{"rsc": r.RSC, "rqi": r.ID, "rvi": r.Release}
	_, err := s.ask(s.ctx, &request{Op: opNotify, To: at, From: e.id, Content: represent("m2m:rsp", body)})
	if _, answered := errors.AsType[*refusal](err); err != nil && !answered {
		s.fail(err)
	}
}
