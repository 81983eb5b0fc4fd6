package onem2m

import "context"

// notified takes what the CSE sends of itself, and answers once the commands that it tells of are settled, or after settleWait.
func (s *session) notified(ctx context.Context, q *request) *response {
	answer := &response{RSC: rscOK, ID: q.ID, Release: s.c.cfg.Release, To: q.From, From: q.To}
	if q.Op != opNotify {
		answer.RSC = 4005 // OPERATION_NOT_ALLOWED
		return answer
	}
	if result, ok := resultIn(q.Content); ok {
		s.results.take(result)
		return answer
	}
	list, err := parseNotifications(q.Content)
	if err != nil {
		answer.RSC = 4000 // BAD_REQUEST
		return answer
	}
	s.c.notified.Add(1)
	for i := range list {
		if err := s.note(ctx, &list[i]); err != nil {
			answer.RSC = rscInternal
		}
	}
	return answer
}

// note acts on one notification.
func (s *session) note(ctx context.Context, n *notification) error {
	if n.Verify {
		return nil
	}
	f := &s.followers
	f.mu.Lock()
	w, known := f.subs[n.Sub]
	f.mu.Unlock()
	if n.Deleted {
		f.mu.Lock()
		delete(f.subs, n.Sub)
		f.mu.Unlock()
	}
	if _, instance := n.Event.Rep["m2m:cin"]; w != nil && instance {
		return s.await(ctx, w.ask)
	}
	if !known { // it may be of any container
		f.mu.Lock()
		for _, w := range f.list {
			w.poke()
		}
		f.mu.Unlock()
	} else if w != nil {
		w.poke()
	}
	return s.await(ctx, f.ask)
}
