package onem2m

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/lanes"
)

const (
	requestTime = 30 * time.Second // longest wait for a response
	farewell    = time.Second      // how long Close waits for what is in flight
)

// session is the gateway at one CSE.
type session struct {
	c    *Connector
	down northbound.Downlink // nil: doctor only looks whether the CSE answers
	wire wire                // of the gateway itself

	routes       sync.Mutex
	byName       map[string]wire // guarded by routes: of AEs with a credential of their own
	byOriginator map[string]wire // guarded by routes

	ctx    context.Context // ends with the cause for which the session does
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup // every goroutine of the session

	tree      tree
	followers followers
	groups    groups
	results   results
	polls     bool // each AE has a polling channel; set before begin is over

	lanes  *lanes.Lanes
	serial atomic.Uint64 // of requests
	prefix string        // of request ids
}

func newSession(ctx context.Context, c *Connector, down northbound.Downlink) *session {
	s := &session{c: c, down: down, prefix: msg.NewID(c.env.Now()).String()}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.lanes = lanes.New(s.ctx, lanes.Options{
		Parallel: c.cfg.Parallel, Batch: 1, Lane: func(p *msg.Publication) string { return p.Device }, Check: c.fits,
		Post: func(batch []*msg.Publication) []error { return []error{s.post(s.ctx, batch[0])} },
	})
	s.byName, s.byOriginator = map[string]wire{}, map[string]wire{}
	s.results.waiting = map[string]chan *response{}
	s.groups.init()
	s.tree.init()
	s.followers.init(s)
	return s
}

// begin connects, registers and follows the containers that routes wait for.
func (s *session) begin(ctx context.Context) (err error) {
	own, _ := s.c.badge(s.c.cfg.AE)
	if s.wire, err = s.dialWire(ctx, own); err != nil {
		return err
	}
	names := []string{s.c.cfg.AE}
	if s.c.cfg.PerDev {
		names = s.c.notes.names()
	}
	var failed []error
	for _, name := range names {
		_, err := s.entity(ctx, name)
		if err == nil {
			continue
		}
		if !ofOneAE(err) {
			return err
		}
		failed = append(failed, err)
		s.c.env.Log.Warn("an AE is not registered", "name", name, "error", err)
	}
	if len(failed) > 0 && len(failed) == len(names) {
		return failed[0]
	}
	if err := s.gather(ctx); err != nil {
		return err
	}
	if err := s.listen(ctx); err != nil {
		return err
	}
	s.tasks.Go(s.keep)
	return nil
}

// Context is northbound.Session's.
func (s *session) Context() context.Context { return s.ctx }

func (s *session) fail(err error) { s.cancel(err) }

// Send is northbound.Session's.
func (s *session) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	return s.lanes.Send(ctx, batch, done)
}

// fits says why a publication cannot become a contentInstance.
func (c *Connector) fits(p *msg.Publication) error {
	if most := int(c.cfg.MBS); most > 0 && len(p.Payload) > most {
		return fmt.Errorf("a payload of %d octets: the containers take %d", len(p.Payload), most)
	}
	_, err := segments(p.Topic)
	return err
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
	for again := false; ; again = true {
		to, err := s.put(ctx, ae, p)
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

// put brings a publication to where its topic says, and gives the address.
func (s *session) put(ctx context.Context, ae *entity, p *msg.Publication) (to string, err error) {
	if f := s.c.flexOf(p.Topic); f != nil {
		return ae.address + "/" + p.Topic, s.flex(ctx, ae, f, p)
	}
	to, err = s.container(ctx, ae, p.Topic)
	if err != nil {
		return to, err
	}
	nothing := 0
	_, err = s.report(ctx, &request{Op: opCreate, To: to, From: ae.id, Type: tyCIN, Content: instance(p), Result: &nothing})
	return to, err
}

// ofOne is an error that concerns one AE alone: its credential, or that the CSE does not take it.
type ofOne struct{ error }

func (e ofOne) Unwrap() error { return e.error }

// ofOneAE tells whether the AEs of other devices may fare better.
func ofOneAE(err error) bool {
	_, one := errors.AsType[ofOne](err)
	r, answered := errors.AsType[*refusal](err)
	return one || answered && meaningOf(r.rsc) != later
}

// judge says what an error means for a publication. What is no answer, and what says that our registration is gone, ends the session.
func (s *session) judge(err error) error {
	e, answered := errors.AsType[*refusal](err)
	_, own := errors.AsType[unsendable](err)
	_, one := errors.AsType[ofOne](err)
	switch {
	case own:
		return msg.Permanent(err)
	case one:
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

// name gives a request its id.
func (s *session) name(q *request) { q.ID = fmt.Sprintf("%s-%d", s.prefix, s.serial.Add(1)) }

// exchange sends a request with what every request has.
func (s *session) exchange(ctx context.Context, q *request) (*response, error) {
	if q.ID == "" {
		s.name(q)
	}
	q.Release = s.c.cfg.Release
	if s.c.cfg.Token != "" && s.c.cfg.TokenAs == "tkns" {
		token, _, err := s.c.bearer.Token(ctx)
		if err != nil {
			return nil, err
		}
		q.Tokens = []string{token}
	}
	s.c.requests.Add(1)
	r, err := s.via(q.From).ask(ctx, q)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	if r.RSC == 401 || r.RSC == rscNotKnown && s.c.cfg.Token != "" {
		err := s.c.bearer.Judge(msg.Permanent(meanings[rscNotKnown].Of(fmt.Errorf("the CSE does not take our credentials: %v", refused(q, r)), nil))) // no refusal of the request
		s.fail(err)
		return nil, err
	}
	return r, nil
}

// Close is northbound.Session's. It waits a little for what is in flight.
func (s *session) Close() error {
	s.lanes.Drain(farewell)
	s.fail(lanes.ErrClosed)
	if s.wire != nil {
		s.wire.close() // before the wait: what it takes in starts tasks
	}
	s.routes.Lock()
	own := slices.Collect(maps.Values(s.byName))
	s.routes.Unlock()
	for _, w := range own {
		w.close()
	}
	s.lanes.Wait()
	s.tasks.Wait()
	return nil
}
