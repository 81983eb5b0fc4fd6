package onem2m

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// entity is an AE that is registered.
type entity struct {
	name    string
	id      string // AE-ID: the originator of its requests
	address string // SP-relative
	acp     string // address of the policy of its containers; empty: the CSE's own
}

// tree is what the session knows to be at the CSE.
type tree struct {
	mu       sync.Mutex
	entities map[string]*entity     // guarded by mu: by name
	there    map[string]place       // guarded by mu: containers and flexContainers by address
	locks    map[string]*sync.Mutex // guarded by mu: by the AE's name, held while something is made below it
	due      time.Time              // guarded by mu: when the first of the registrations is to be renewed; zero: there is none
}

// place is a container or flexContainer that is there.
type place struct {
	root string // of its representation
	made bool   // by this session
}

func (t *tree) init() {
	t.entities, t.there, t.locks = map[string]*entity{}, map[string]place{}, map[string]*sync.Mutex{}
}

// making gives the mutex of what is made below an AE.
func (t *tree) making(name string) *sync.Mutex {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.locks[name] == nil {
		t.locks[name] = &sync.Mutex{}
	}
	return t.locks[name]
}

func (t *tree) has(address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, there := t.there[address]
	return there
}

// made tells whether this session has made a container: nothing was in it before.
func (t *tree) made(address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.there[address].made
}

func (t *tree) add(address string, p place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.there[address] = p
}

// forget lets a container and those above it be looked for again.
func (t *tree) forget(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.there {
		if a == address || strings.HasPrefix(address, a+"/") {
			delete(t.there, a)
		}
	}
}

func (t *tree) entity(name string) *entity {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entities[name]
}

func (t *tree) all() (list []*entity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entities {
		list = append(list, e)
	}
	return list
}

// below gives what is there below an address.
func (t *tree) below(address string) map[string]place {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := map[string]place{}
	for a, p := range t.there {
		if strings.HasPrefix(a, address+"/") {
			found[a] = p
		}
	}
	return found
}

// originator is what an AE registers with.
func (c *Connector) originator(name string) string {
	if c.cfg.AEID != "" {
		return c.cfg.AEID
	}
	return "C" + name
}

// entity gives the AE of that name, registered.
func (s *session) entity(ctx context.Context, name string) (*entity, error) {
	if e := s.tree.entity(name); e != nil {
		return e, nil
	}
	if names, err := segments(name); err != nil || len(names) != 1 {
		return nil, msg.Permanent(fmt.Errorf("%.80q cannot be the name of an AE", name))
	}
	lock := s.tree.making(name)
	lock.Lock()
	defer lock.Unlock()
	if e := s.tree.entity(name); e != nil {
		return e, nil
	}
	e := &entity{name: name, address: s.c.base + "/" + name}
	w, err := s.route(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.register(ctx, e, w); err != nil {
		return nil, err
	}
	if len(s.c.cfg.Allow) > 0 {
		if e.acp, err = s.policy(ctx, e); err != nil {
			return nil, err
		}
	}
	if s.polls {
		if err := s.channel(ctx, e); err != nil {
			return nil, err
		}
	}
	s.tree.mu.Lock()
	s.tree.entities[name] = e
	s.tree.mu.Unlock()
	s.followers.rescan() // for the containers of one more AE
	if err := s.regroup(ctx, e); err != nil {
		return nil, err
	}
	return e, nil
}

// registration is what an AE says of itself, at first and each time that it is renewed.
func (s *session) registration() map[string]any {
	a := map[string]any{"rr": s.c.cfg.notify() != "poll", "et": stamp(s.c.env.Now().Add(time.Duration(s.c.cfg.Lifetime)))}
	if poa := s.c.pointOfAccess(); poa != "" {
		a["poa"] = []string{poa}
	}
	if len(s.c.cfg.Labels) > 0 {
		a["lbl"] = s.c.cfg.Labels
	}
	return a
}

// pointOfAccess is where the CSE reaches us; empty: nowhere.
func (c *Connector) pointOfAccess() string {
	switch c.cfg.notify() {
	case "http":
		return c.cfg.POA
	case "mqtt":
		return c.url.Scheme + "://" + c.url.Host
	}
	return ""
}

// register makes the AE, or takes over the one that is ours from before.
func (s *session) register(ctx context.Context, e *entity, w wire) error {
	e.id = s.c.notes.id(e.name)
	fresh := e.id == ""
	if fresh {
		e.id = s.c.originator(e.name)
	}
	if err := s.carry(ctx, w, e.id); err != nil {
		return err
	}
	if !fresh {
		err := s.renew(ctx, e)
		r, answered := errors.AsType[*refusal](err)
		if err == nil || !answered || meaningOf(r.rsc) == later {
			return err
		}
		e.id = s.c.originator(e.name)
		if err := s.carry(ctx, w, e.id); err != nil {
			return err
		}
	}
	a := s.registration()
	a["rn"], a["api"], a["srv"] = e.name, s.c.cfg.AppID, []string{s.c.cfg.Release}
	r, err := s.ask(ctx, &request{Op: opCreate, To: s.c.base, From: e.id, Type: tyAE, Content: represent("m2m:ae", a)})
	refusal, answered := errors.AsType[*refusal](err)
	switch {
	case answered && meaningOf(refusal.rsc) == conflict:
		if s.renew(ctx, e) != nil {
			return msg.Permanent(fmt.Errorf("an AE %q is registered already, by another than %q: %w", e.name, e.id, err))
		}
	case answered && meaningOf(refusal.rsc) != later:
		return msg.Permanent(fmt.Errorf("registration: %w", err))
	case err != nil:
		return err
	default:
		got, err := attributes(r.Content)
		if id := text(got["aei"]); err == nil && id != "" && id != e.id {
			e.id = id
			if err := s.carry(ctx, w, id); err != nil {
				return err
			}
		}
		s.granted(text(got["et"]))
	}
	return s.c.notes.change(func(d *noted) bool {
		changed := d.IDs[e.name] != e.id
		d.IDs[e.name] = e.id
		return changed
	})
}

// renew puts off the end of a registration.
func (s *session) renew(ctx context.Context, e *entity) error {
	r, err := s.ask(ctx, &request{Op: opUpdate, To: e.address, From: e.id, Content: represent("m2m:ae", s.registration())})
	if err != nil {
		return err
	}
	got, _ := attributes(r.Content)
	s.granted(text(got["et"]))
	return nil
}

// granted notes the end of a registration that the CSE has granted, or else the one that was asked for: it is renewed
// when a third of its life has passed.
func (s *session) granted(et string) {
	now := s.c.env.Now()
	end, err := parseTime(et)
	if err != nil {
		end = now.Add(time.Duration(s.c.cfg.Lifetime))
	}
	due := now.Add(max(end.Sub(now)/3, time.Second))
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	if s.tree.due.IsZero() || due.Before(s.tree.due) {
		s.tree.due = due
	}
}

// isDue tells whether a renewal is due, and then counts it as under way.
func (s *session) isDue() bool {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	if s.tree.due.IsZero() || s.c.env.Now().Before(s.tree.due) {
		return false
	}
	s.tree.due = time.Time{}
	return true
}

// keep renews in time everything that ends.
func (s *session) keep() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if !s.isDue() {
			if s.groups.isBehind() {
				if err := s.regroup(s.ctx, nil); err != nil {
					s.fail(err)
					return
				}
			}
			continue
		}
		for _, e := range s.tree.all() {
			if err := s.renewAll(e); err != nil {
				s.fail(fmt.Errorf("renewal: %w", err))
				return
			}
		}
		if err := s.regroup(s.ctx, nil); err != nil {
			s.fail(fmt.Errorf("renewal: %w", err))
			return
		}
		s.followers.renew()
	}
}

// renewAll renews an AE and what is below it, which a CSE does not let outlive it.
func (s *session) renewAll(e *entity) error {
	if err := s.renew(s.ctx, e); err != nil {
		return err
	}
	if s.polls && !s.isHome(e) {
		if err := s.keepChannel(s.ctx, e); err != nil {
			return err
		}
	}
	if e.acp != "" {
		if _, err := s.policy(s.ctx, e); err != nil {
			return err
		}
	}
	places := s.tree.below(e.address)
	for _, a := range slices.Sorted(maps.Keys(places)) {
		_, err := s.ask(s.ctx, &request{Op: opUpdate, To: a, From: e.id, Content: represent(places[a].root, map[string]any{"et": s.end()})})
		if _, answered := errors.AsType[*refusal](err); answered {
			s.tree.forget(a) // it is made again where it is needed
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) end() string { return stamp(s.c.env.Now().Add(time.Duration(s.c.cfg.Lifetime))) }

// policyName is the accessControlPolicy below an AE.
const policyName = "drawbridge"

// Operations that a policy allows (acop).
const (
	mayCommand = 1 + 2 + 16 + 32 // CREATE, RETRIEVE, NOTIFY, DISCOVERY
	mayAll     = 63
)

// policy makes the policy under which others may read and command, or renews it, and gives its address.
func (s *session) policy(ctx context.Context, e *entity) (string, error) {
	own := map[string]any{"acor": []string{e.id}, "acop": mayAll}
	a := map[string]any{
		"rn": policyName, "et": s.end(),
		"pv":  map[string]any{"acr": []any{own, map[string]any{"acor": s.c.cfg.Allow, "acop": mayCommand}}},
		"pvs": map[string]any{"acr": []any{own}},
	}
	to := e.address + "/" + policyName
	_, err := s.ask(ctx, &request{Op: opCreate, To: e.address, From: e.id, Type: tyACP, Content: represent("m2m:acp", a)})
	if r, answered := errors.AsType[*refusal](err); answered && meaningOf(r.rsc) == conflict {
		delete(a, "rn")
		_, err = s.ask(ctx, &request{Op: opUpdate, To: to, From: e.id, Content: represent("m2m:acp", a)})
	}
	if err != nil {
		return "", fmt.Errorf("policy: %w", err)
	}
	return to, nil
}

// container gives the address of a container, with what is missing of it made.
func (s *session) container(ctx context.Context, e *entity, topic string) (string, error) {
	address := e.address + "/" + topic
	if s.tree.has(address) {
		return address, nil
	}
	names, err := segments(topic)
	if err != nil {
		return "", msg.Permanent(err)
	}
	lock := s.tree.making(e.name)
	lock.Lock()
	defer lock.Unlock()
	at := e.address
	for _, name := range names {
		to := at
		at += "/" + name
		if s.tree.has(at) {
			continue
		}
		_, err := s.ask(ctx, &request{Op: opCreate, To: to, From: e.id, Type: tyCNT, Content: represent("m2m:cnt", s.newContainer(e, name))})
		if r, answered := errors.AsType[*refusal](err); err != nil && !(answered && meaningOf(r.rsc) == conflict) {
			return "", err
		}
		s.tree.add(at, place{"m2m:cnt", err == nil})
	}
	return address, nil
}

// resource gives the attributes of whatever we make below an AE.
func (s *session) resource(e *entity, name string) map[string]any {
	a := map[string]any{"rn": name, "et": s.end()}
	if len(s.c.cfg.Labels) > 0 {
		a["lbl"] = s.c.cfg.Labels
	}
	if e.acp != "" {
		a["acpi"] = []string{e.acp}
	}
	return a
}

func (s *session) newContainer(e *entity, name string) map[string]any {
	a := s.resource(e, name)
	if s.c.cfg.MNI > 0 {
		a["mni"] = s.c.cfg.MNI
	}
	if s.c.cfg.MBS > 0 {
		a["mbs"] = int64(s.c.cfg.MBS)
	}
	if s.c.cfg.MIA > 0 {
		a["mia"] = int64(time.Duration(s.c.cfg.MIA) / time.Second)
	}
	return a
}
