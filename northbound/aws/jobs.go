package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// execution is what notify-next and $next/get tell of a job.
type execution struct {
	JobID   string `json:"jobId"`
	Number  int64  `json:"executionNumber"`
	Status  string `json:"status"`
	Version int64  `json:"versionNumber"`
}

// jobUpdate is the body of an update.
type jobUpdate struct {
	Status  string            `json:"status"`
	Details map[string]string `json:"statusDetails,omitempty"`
	Token   string            `json:"clientToken"`
}

// detailMax is how much of a device's answer is told to the platform: a value has at most 1024 characters.
const detailMax = 1000

// job carries out the execution in p: it is set in progress, delivered, and set by the device's answer. An execution that was
// carried out already, but whose outcome may not have reached the platform, is not carried out again.
func (s *session) job(ctx context.Context, r reserved, p msg.Publication) error {
	var doc struct {
		Execution json.RawMessage `json:"execution"`
	}
	var e execution
	if json.Unmarshal(p.Payload, &doc) != nil || len(doc.Execution) == 0 || json.Unmarshal(doc.Execution, &e) != nil || e.JobID == "" {
		return nil // nothing to do
	}
	key := fmt.Sprintf("%s/%s/%d", r.thing, e.JobID, e.Number)
	s.c.mu.Lock()
	outcome, known := s.c.jobs[key]
	if !known {
		s.c.jobs[key] = nil // under way
	}
	s.c.mu.Unlock()
	if known && outcome == nil {
		return nil
	}
	if !known {
		err := s.updateJob(ctx, r, e.JobID, jobUpdate{Status: "IN_PROGRESS"})
		if err == nil {
			p.Topic = r.prefix + "/notify-next"
			var reply msg.Reply
			if reply, err = s.down.Deliver(ctx, p); err == nil {
				outcome = outcomeOf(reply)
			}
		}
		s.c.mu.Lock()
		if len(s.c.jobs) >= 10_000 {
			clear(s.c.jobs)
		}
		if outcome != nil {
			s.c.jobs[key] = outcome
		} else {
			delete(s.c.jobs, key)
		}
		s.c.mu.Unlock()
		if msg.IsPermanent(err) {
			return nil // cancelled meanwhile, or another gateway has it
		}
		if err != nil {
			return err
		}
	}
	if err := s.updateJob(ctx, r, e.JobID, *outcome); err != nil && !msg.IsPermanent(err) {
		return err
	}
	return nil
}

// outcomeOf says in the platform's words how the device answered.
func outcomeOf(reply msg.Reply) *jobUpdate {
	u := &jobUpdate{Details: map[string]string{}}
	switch reply.Status {
	case msg.Done:
		u.Status = "SUCCEEDED"
	case msg.Queued:
		u.Status = "IN_PROGRESS"
		u.Details["waits"] = "in the device's mailbox"
	default:
		u.Status = "FAILED"
		switch reply.Code {
		case "denied", "no-route", "unknown-device":
			u.Status = "REJECTED"
		}
	}
	if reply.Code != "" {
		u.Details["code"] = reply.Code
	}
	if answer := strings.ToValidUTF8(string(reply.Payload[:min(len(reply.Payload), detailMax)]), ""); answer != "" {
		u.Details["answer"] = answer
	}
	return u
}

// updateJob tells the platform a job's status and waits for its answer.
func (s *session) updateJob(ctx context.Context, r reserved, job string, u jobUpdate) error {
	u.Token = msg.NewID(s.c.env.Now()).String()
	body, err := json.Marshal(u)
	if err != nil {
		return msg.Permanent(err)
	}
	answered := make(chan error, 1)
	s.request(u.Token, func(err error) { answered <- err })
	if err := s.Publish(ctx, msg.Publication{Topic: r.prefix + "/" + job + "/update", QoS: 1, Type: "application/json", Payload: body}); err != nil {
		s.take(u.Token)
		return err
	}
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Context().Done():
		return context.Cause(s.Context())
	}
}
