package onem2m

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// ErrClosed is the cause of a session that was closed by its owner.
var ErrClosed = errors.New("session closed")

const (
	requestTime = 30 * time.Second // longest wait for a response
	farewell    = time.Second      // how long Close waits for what is in flight
)

// session is the gateway at one CSE. Requests of one device wait for each other in a lane; lanes take turns.
type session struct {
	c    *Connector
	down northbound.Downlink
	wire wire

	ctx    context.Context // ends with the cause for which the session does
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup // every goroutine of the session

	tree      tree
	followers followers

	mu      sync.Mutex
	room    *sync.Cond // with mu: something was done, or the session ends
	closing bool
	lanes   map[string]*lane // guarded by mu: by device; those that have something to do
	ready   []*lane          // guarded by mu: no worker has them
	queued  int              // guarded by mu: publications that are not done
	workers int              // guarded by mu
	serial  uint64           // guarded by mu: of requests
	prefix  string           // of request ids
}

// lane is the line of one device.
type lane struct {
	device string
	items  []item
}

// item is a publication and whom to tell.
type item struct {
	p    *msg.Publication
	i    int
	done func(int, error)
}

func newSession(ctx context.Context, c *Connector, down northbound.Downlink) *session {
	s := &session{c: c, down: down, lanes: map[string]*lane{}, prefix: msg.NewID(c.env.Now()).String()}
	s.room = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.tree.init()
	s.followers.init(s)
	return s
}

// begin connects, registers and follows the containers that routes wait for.
func (s *session) begin(ctx context.Context) (err error) {
	if s.wire, err = s.dialWire(ctx); err != nil {
		return err
	}
	names := []string{s.c.cfg.AE}
	if s.c.cfg.PerDev {
		names = s.c.notes.names()
	}
	for _, name := range names {
		if _, err := s.entity(ctx, name); err != nil {
			return err
		}
	}
	if err := s.listen(ctx); err != nil {
		return err
	}
	s.tasks.Go(s.keep)
	return nil
}

// Context is northbound.Session's.
func (s *session) Context() context.Context { return s.ctx }

func (s *session) fail(err error) {
	s.cancel(err)
	s.mu.Lock()
	s.room.Broadcast()
	s.mu.Unlock()
}

// Send is northbound.Session's.
func (s *session) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.room.Broadcast()
		s.mu.Unlock()
	})()
	for i := range batch {
		p := &batch[i]
		if _, err := segments(p.Topic); err != nil {
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			done(i, msg.Permanent(err))
			continue
		}
		if most := int(s.c.cfg.MBS); most > 0 && len(p.Payload) > most {
			done(i, msg.Permanent(fmt.Errorf("a payload of %d octets: the containers take %d", len(p.Payload), most)))
			continue
		}
		if err := s.queue(ctx, item{p, i, done}); err != nil {
			return err
		}
	}
	return nil
}

// queue puts an item into its lane once there is room.
func (s *session) queue(ctx context.Context, it item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closing && s.ctx.Err() == nil && ctx.Err() == nil && s.queued >= 16*s.c.cfg.Parallel {
		s.room.Wait()
	}
	switch {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case s.closing:
		return ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	s.queued++
	l := s.lanes[it.p.Device]
	if l == nil {
		l = &lane{device: it.p.Device}
		s.lanes[it.p.Device] = l
		s.ready = append(s.ready, l)
		if s.workers < s.c.cfg.Parallel {
			s.workers++
			s.tasks.Go(s.work)
		}
	}
	l.items = append(l.items, it)
	return nil
}

// work takes one publication of each lane in turn until there is none.
func (s *session) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ready) > 0 && s.ctx.Err() == nil {
		l := s.ready[0]
		s.ready = s.ready[1:]
		it := l.items[0]
		l.items = l.items[1:]
		s.mu.Unlock()
		err := s.post(s.ctx, it.p)
		ended := s.ctx.Err() != nil && !msg.IsPermanent(err) && err != nil
		if !ended {
			it.done(it.i, err)
		}
		s.mu.Lock()
		if ended {
			break
		}
		s.queued--
		if len(l.items) > 0 {
			s.ready = append(s.ready, l)
		} else {
			delete(s.lanes, l.device)
		}
		s.room.Broadcast()
	}
	s.workers--
}

// post makes one contentInstance, and the containers above it where they are missing. An error that is not permanent may be of the
// publication alone, or, where the session has ended with it, of the session.
func (s *session) post(ctx context.Context, p *msg.Publication) error {
	name := s.c.cfg.AE
	if s.c.cfg.PerDev {
		name = p.Device
	}
	ae, err := s.entity(ctx, name)
	if err != nil {
		return s.judge(err)
	}
	nothing := 0
	for again := false; ; again = true {
		to, err := s.container(ctx, ae, p.Topic)
		if err != nil {
			return s.judge(err)
		}
		_, err = s.ask(ctx, &request{Op: opCreate, To: to, From: ae.id, Type: tyCIN, Content: instance(p), Result: &nothing})
		if err == nil {
			return nil
		}
		e, answered := errors.AsType[*refusal](err)
		switch {
		case answered && meaningOf(e.rsc) == conflict:
			return nil // it has arrived before
		case answered && meaningOf(e.rsc) == lost && !again:
			s.tree.forget(to)
			continue
		case answered && meaningOf(e.rsc) == denied && p.Topic != "":
			return s.suspect(ctx, ae, err)
		}
		return s.judge(err)
	}
}

// judge says what an error means for a publication. What is no answer, and what says that our registration is gone, ends the session.
func (s *session) judge(err error) error {
	e, answered := errors.AsType[*refusal](err)
	_, own := errors.AsType[unsendable](err)
	switch {
	case own:
		return msg.Permanent(err)
	case !answered:
		s.fail(err)
	case meaningOf(e.rsc) == lost:
		s.fail(fmt.Errorf("the CSE has lost our resources: %w", err))
	case meaningOf(e.rsc) == later:
	default:
		return msg.Permanent(err)
	}
	return err
}

// suspect looks whether our registration is still there after a request was denied: a CSE that has lost it denies everything.
func (s *session) suspect(ctx context.Context, ae *entity, denial error) error {
	_, err := s.ask(ctx, &request{Op: opRetrieve, To: ae.address, From: ae.id})
	if err == nil {
		return msg.Permanent(denial)
	}
	if e, answered := errors.AsType[*refusal](err); answered && meaningOf(e.rsc) == later {
		return denial
	}
	s.fail(fmt.Errorf("our registration at the CSE is gone: %w", err))
	return denial
}

// ask sends a request and makes errors of responses that are not a yes.
func (s *session) ask(ctx context.Context, q *request) (*response, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTime, fmt.Errorf("the CSE has not answered for %s", requestTime))
	defer cancel()
	r, err := s.exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	if meaningOf(r.RSC) != done {
		return r, refused(q, r)
	}
	return r, nil
}

// exchange sends a request with what every request has.
func (s *session) exchange(ctx context.Context, q *request) (*response, error) {
	s.mu.Lock()
	s.serial++
	q.ID = fmt.Sprintf("%s-%d", s.prefix, s.serial)
	s.mu.Unlock()
	q.Release = s.c.cfg.Release
	if s.c.cfg.Token != "" && s.c.cfg.TokenAs == "tkns" {
		token, _, err := s.c.bearer.Token(ctx)
		if err != nil {
			return nil, err
		}
		q.Tokens = []string{token}
	}
	s.c.requests.Add(1)
	r, err := s.wire.ask(ctx, q)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	if r.RSC == 401 || r.RSC == rscNotKnown && s.c.cfg.Token != "" {
		err := msg.Permanent(fmt.Errorf("the CSE does not take our credentials: %w", refused(q, r)))
		s.fail(s.c.bearer.Judge(err))
		return nil, err
	}
	return r, nil
}

// Close is northbound.Session's. It waits a little for what is in flight.
func (s *session) Close() error {
	s.mu.Lock()
	s.closing = true
	s.room.Broadcast()
	late := time.AfterFunc(farewell, func() { s.fail(ErrClosed) })
	for s.queued > 0 && s.ctx.Err() == nil {
		s.room.Wait()
	}
	s.mu.Unlock()
	late.Stop()
	s.fail(ErrClosed)
	if s.wire != nil {
		s.wire.close() // before the wait: what it takes in starts tasks
	}
	s.tasks.Wait()
	return nil
}
