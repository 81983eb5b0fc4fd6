package onem2m

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// SubscriptionRefused is the problem of a connector whose CSE does not let it wait for some commands. Reports go on.
var SubscriptionRefused = health.Code{
	Name:     "onem2m-subscription-refused",
	Title:    "the CSE does not let the gateway wait for some commands",
	Severity: health.Degraded,
	Hint:     "allow the gateway's AE to create containers and subscriptions at the address in the detail",
}

const (
	subscription = "drawbridge"     // name of our subscriptions
	settleWait   = 5 * time.Second  // how long the answer to a notification waits for the command: the container keeps it anyway
	retryPause   = 10 * time.Second // after a command that could not be settled, or a CSE that may do it later
)

// followers are the containers that routes wait for.
type followers struct {
	s    *session
	scan chan struct{} // capacity 1: asks for a look at what is there

	mu      sync.Mutex
	list    map[string]*follower // guarded by mu: by address
	subs    map[string]*follower // guarded by mu: by each name that a notification may give the subscription; nil: of a container above
	fresh   []*follower          // guarded by mu: new, and not yet settled
	waiting []chan error         // guarded by mu: of notifications that ask for a look
}

// follower delivers what is put into one container, in order.
type follower struct {
	ae      *entity
	address string
	topic   string
	wake    chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []chan error // guarded by mu: of notifications whose commands are not settled
}

func (f *followers) init(s *session) {
	f.s, f.scan = s, make(chan struct{}, 1)
	f.list, f.subs = map[string]*follower{}, map[string]*follower{}
}

// rescan has the containers looked for again.
func (f *followers) rescan() {
	select {
	case f.scan <- struct{}{}:
	default:
	}
}

// renew has the subscriptions renewed.
func (f *followers) renew() {
	f.mu.Lock()
	clear(f.subs)
	f.mu.Unlock()
	f.rescan()
}

func (w *follower) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// listen opens the way for notifications and looks for the containers that routes wait for.
func (s *session) listen(ctx context.Context) error {
	if len(s.down.Topics()) == 0 && s.c.cfg.Response != "asynch" {
		return nil
	}
	switch s.c.cfg.notify() {
	case "http":
		if err := s.serve(ctx); err != nil {
			return err
		}
	case "poll":
		s.polls = true
		for _, e := range s.tree.all() {
			if err := s.channel(ctx, e); err != nil {
				return err
			}
		}
	}
	if err := s.followers.look(ctx); err != nil {
		return err
	}
	s.tasks.Go(s.followers.run)
	return nil
}

// run looks for containers whenever it is asked to.
func (f *followers) run() {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-f.scan:
		case <-again.C:
		case <-f.s.ctx.Done():
			return
		}
		f.mu.Lock()
		waiting := f.waiting // those who come during the look may be told of what it does not see
		f.waiting = nil
		f.mu.Unlock()
		err := f.look(f.s.ctx)
		if _, answered := errors.AsType[*refusal](err); err != nil && !answered {
			f.s.fail(err)
			return
		} else if err != nil {
			f.s.c.env.Log.Warn("commands may come late", "error", err)
			for _, ch := range waiting {
				ch <- err
			}
			again.Reset(retryPause)
			continue
		}
		again.Reset(time.Hour)
		f.s.tasks.Go(func() {
			err := f.settled()
			for _, ch := range waiting {
				ch <- err
			}
		})
	}
}

// settled waits until what was in the containers that are new has been settled.
func (f *followers) settled() (err error) {
	f.mu.Lock()
	fresh := slices.Clone(f.fresh)
	f.mu.Unlock()
	for _, w := range fresh {
		err = errors.Join(err, f.s.await(f.s.ctx, w.ask))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fresh = slices.DeleteFunc(f.fresh, func(w *follower) bool { return slices.Contains(fresh, w) })
	return err
}

// ask registers whom to tell when what is in the container now is settled.
func (w *follower) ask(settled chan error) {
	w.mu.Lock()
	w.waiting = append(w.waiting, settled)
	w.mu.Unlock()
	w.poke()
}

// ask registers whom to tell when the containers that are there now are followed, and what is new is settled.
func (f *followers) ask(settled chan error) {
	f.mu.Lock()
	f.waiting = append(f.waiting, settled)
	f.mu.Unlock()
	f.rescan()
}

// await waits for what ask registers, at most settleWait.
func (s *session) await(ctx context.Context, ask func(chan error)) error {
	settled := make(chan error, 1)
	ask(settled)
	late := time.NewTimer(settleWait)
	defer late.Stop()
	select {
	case err := <-settled:
		return err
	case <-late.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// look makes what is missing of the containers that routes wait for, and follows those that are there.
func (f *followers) look(ctx context.Context) error {
	var denials []string
	for _, e := range f.s.tree.all() {
		if f.s.isHome(e) {
			continue
		}
		for _, filter := range f.s.down.Topics() {
			err := f.lookFor(ctx, e, filter)
			r, answered := errors.AsType[*refusal](err)
			switch {
			case answered && (meaningOf(r.rsc) == denied || meaningOf(r.rsc) == never):
				denials = append(denials, err.Error())
			case err != nil:
				return err
			}
		}
	}
	if len(denials) > 0 {
		f.s.c.env.Health.Set(&SubscriptionRefused, strings.Join(denials, "; "))
	} else {
		f.s.c.env.Health.Clear(&SubscriptionRefused)
	}
	return nil
}

// below gives the part of a filter that is a path below the AE.
func (s *session) below(e *entity, filter string) (levels []string, ours bool) {
	levels = strings.Split(filter, "/")
	if !s.c.cfg.PerDev || filter == "#" {
		return levels, true
	}
	if levels[0] != e.name && levels[0] != "+" || len(levels) == 1 {
		return nil, false
	}
	return levels[1:], true
}

// lookFor follows what one filter matches below one AE.
func (f *followers) lookFor(ctx context.Context, e *entity, filter string) error {
	levels, ours := f.s.below(e, filter)
	if !ours {
		return nil
	}
	fixed := 0
	for fixed < len(levels) && levels[fixed] != "+" && levels[fixed] != "#" {
		fixed++
	}
	paths := []string{strings.Join(levels[:fixed], "/")}
	root := e.address
	if fixed > 0 {
		var err error
		if root, err = f.s.container(ctx, e, paths[0]); err != nil {
			return err
		}
	}
	if fixed < len(levels) {
		// The subscription comes before the look: what is made in between is in one of them.
		if err := f.follow(ctx, e, paths[0], levels, filter); err != nil {
			return err
		}
		found, err := f.discover(ctx, e, root)
		if err != nil {
			return err
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		if err := f.follow(ctx, e, path, levels, filter); err != nil {
			return err
		}
	}
	return f.s.c.notes.change(func(d *noted) bool {
		for _, known := range d.Filters {
			if known == filter {
				return false
			}
		}
		d.Filters = append(d.Filters, filter)
		return true
	})
}

// discover gives the paths of the containers below root.
func (f *followers) discover(ctx context.Context, e *entity, root string) (paths []string, err error) {
	r, err := f.s.ask(ctx, &request{
		Op: opRetrieve, To: root, From: e.id, Filter: &filter{Use: 1, Types: []int{tyCNT}}, Names: 1,
	})
	if err != nil {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal(unwrap(r.Content, "m2m:uril"), &list); err != nil {
		return nil, nil // a CSE that finds nothing may say so with something else
	}
	_, base, _ := strings.Cut(e.address[1:], "/") // the address within the CSE
	for _, address := range list {
		if _, path, ok := strings.Cut(address, base+"/"); ok {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// matches compares a path with a filter: whether its instances are waited for, and whether those of containers below it may be.
func matches(levels []string, path string) (here, below bool) {
	var names []string
	if path != "" {
		names = strings.Split(path, "/")
	}
	for i, l := range levels {
		if l == "#" {
			return true, true
		}
		if i == len(names) {
			return len(levels) == i+1 && l == "#", true
		}
		if l != "+" && l != names[i] {
			return false, false
		}
	}
	return len(levels) == len(names), false
}

// follow subscribes to a container where the filter asks for it, once in a session.
func (f *followers) follow(ctx context.Context, e *entity, path string, levels []string, filter string) error {
	here, below := matches(levels, path)
	if !here && !below {
		return nil
	}
	address, topic := e.address, path
	if path != "" {
		address += "/" + path
	}
	if f.s.c.cfg.PerDev {
		topic = e.name + "/" + path
	}
	f.mu.Lock()
	w := f.list[address]
	_, subscribed := f.subs[address+"/"+subscription]
	f.mu.Unlock()
	started := w != nil
	if w == nil && here && path != "" {
		w = &follower{ae: e, address: address, topic: topic, wake: make(chan struct{}, 1)}
	}
	if !subscribed || w != nil && !started {
		if err := f.subscribe(ctx, e, address, w); err != nil {
			return err
		}
	}
	if w == nil || started {
		return nil
	}
	if err := f.start(ctx, w, filter); err != nil {
		return err
	}
	f.mu.Lock()
	f.list[address], f.fresh = w, append(f.fresh, w)
	f.mu.Unlock()
	f.s.tasks.Go(func() { f.s.attend(w) })
	return nil
}

// start sets the cursor of a container that has none: what is in it when a filter is new was not meant for us.
func (f *followers) start(ctx context.Context, w *follower, filter string) error {
	w.poke()
	if _, ok := f.s.c.notes.cursor(w.address); ok || f.s.c.notes.known(filter) || f.s.tree.made(w.address) {
		return nil
	}
	list, err := f.s.fetch(ctx, w, cursor{})
	if err != nil {
		return err
	}
	var k cursor
	for i := range list {
		k = k.after(&list[i])
	}
	return f.s.c.notes.change(func(d *noted) bool {
		d.Cursors[w.address] = k
		return true
	})
}

// subscribe makes the subscription to a container, or renews it.
func (f *followers) subscribe(ctx context.Context, e *entity, address string, w *follower) error {
	a := map[string]any{"et": f.s.end(), "nu": []string{f.s.c.target(e.id)}, "nct": 1, "enc": map[string]any{"net": []int{3}}}
	update := represent("m2m:sub", a)
	a["rn"] = subscription
	r, err := f.s.ask(ctx, &request{Op: opCreate, To: address, From: e.id, Type: tySUB, Content: represent("m2m:sub", a)})
	if no, answered := errors.AsType[*refusal](err); answered && meaningOf(no.rsc) == conflict {
		r, err = f.s.ask(ctx, &request{Op: opUpdate, To: address + "/" + subscription, From: e.id, Content: update})
	}
	if err != nil {
		return fmt.Errorf("subscription: %w", err)
	}
	got, _ := attributes(r.Content)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[address+"/"+subscription] = w
	_, within, _ := strings.Cut(address[1:], "/")
	f.subs[within+"/"+subscription] = w
	if id := text(got["ri"]); id != "" {
		f.subs[id], f.subs[f.s.c.csi+"/"+id] = w, w
	}
	return nil
}

// target is where the CSE sends notifications for an AE: the SP-relative AE-ID.
func (c *Connector) target(id string) string {
	if strings.HasPrefix(id, "C") {
		return c.csi + "/" + id
	}
	return "/" + strings.TrimPrefix(id, "/")
}

// fetch gives the instances of a container that are not behind the cursor.
func (s *session) fetch(ctx context.Context, w *follower, k cursor) ([]cin, error) {
	with := 4 // attributes and children
	q := &request{Op: opRetrieve, To: w.address, From: w.ae.id, Result: &with, Filter: &filter{Types: []int{tyCIN}}}
	if t, err := parseTime(k.Created); err == nil {
		q.Filter.After = stamp(t.Add(-time.Second)) // createdAfter leaves out what was created at that time
	}
	r, err := s.ask(ctx, q)
	if err != nil {
		return nil, err
	}
	list, err := instances(r.Content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.address, err)
	}
	fresh := list[:0]
	for i := range list {
		if !k.isPast(&list[i]) {
			fresh = append(fresh, list[i])
		}
	}
	return fresh, nil
}

// attend delivers a container's instances whenever there may be new ones.
func (s *session) attend(w *follower) {
	for {
		select {
		case <-w.wake:
		case <-s.ctx.Done():
			return
		}
		w.mu.Lock()
		waiting := w.waiting
		w.waiting = nil
		w.mu.Unlock()
		err := s.settle(w)
		for _, ch := range waiting {
			ch <- err
		}
		switch _, answered := errors.AsType[*refusal](err); {
		case err == nil:
		case s.ctx.Err() != nil:
			return
		case answered:
			s.followers.rescan()
		default:
			s.c.env.Log.Warn("a command is not settled", "container", w.address, "error", err)
		}
		if err != nil {
			pause := time.NewTimer(retryPause)
			select {
			case <-pause.C:
				w.poke()
			case <-s.ctx.Done():
				pause.Stop()
				return
			}
		}
	}
}

// settle delivers what is new in a container.
func (s *session) settle(w *follower) error {
	k, _ := s.c.notes.cursor(w.address)
	list, err := s.fetch(s.ctx, w, k)
	if err != nil {
		return err
	}
	for i := range list {
		if err := mqtt.CheckTopic(w.topic); err != nil {
			return err
		}
		p := list[i].publication(w.topic)
		if t, err := parseTime(list[i].Expires); err == nil {
			p.Expires = t
		}
		p.Time = s.c.env.Now()
		if list[i].Creator != w.ae.id { // what we have put there ourselves is no command
			if _, err := s.down.Deliver(s.ctx, p); err != nil {
				return err
			}
		}
		k = k.after(&list[i])
		if err := s.c.notes.change(func(d *noted) bool {
			d.Cursors[w.address] = k
			return true
		}); err != nil {
			return err
		}
	}
	return nil
}
