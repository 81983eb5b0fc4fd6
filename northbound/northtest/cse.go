package northtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// CSE is a oneM2M IN-CSE in this process, with the CSE-ID "/id-in" and the CSEBase "cse-in", that holds every request against the
// attribute tables and misbehaves as it is told. Bindings are added by ServeHTTP, ServeMQTT and ServeCoAP.
type CSE struct {
	CA CA
	// Hosts are the names that its certificates have; they are set before a binding is added.
	Hosts []string

	ctx   context.Context
	tasks sync.WaitGroup
	t     testing.TB
	drop  []func() // breaks the connections of each binding
	reach map[string]func(ctx context.Context, poa, ae string, n cseMap) (cseMap, error)

	mu       sync.Mutex
	nodes    map[string]*cseNode      // guarded by mu: by structured address
	ids      map[string]*cseNode      // guarded by mu: by resource id
	serial   int                      // guarded by mu
	looked   time.Time                // guarded by mu: when expiry was last looked for
	received []string                 // guarded by mu: contents of contentInstances from AEs
	requests []cseMap                 // guarded by mu: what was asked, beside contentInstances
	channels map[string]chan cseAsked // guarded by mu: polling channels by the AE's id
	open     int                      // guarded by mu: notifications without an answer
	delay    time.Duration            // guarded by mu
	never    map[string]bool          // guarded by mu: contents that are refused for good
	busy     map[string]bool          // guarded by mu: contents that are refused once
	cut      int                      // guarded by mu: contentInstances until the connections are dropped; 0: never
	unwell   int                      // guarded by mu: requests that are answered with 5000
	quirks   CSEQuirks                // guarded by mu
	now      func() time.Time         // guarded by mu
	badges   map[string][]string      // guarded by mu: the credentials that were shown, by the originator
}

// CSEQuirks are what real CSEs do beside the standard.
type CSEQuirks struct {
	Floats    bool          // numbers are written like 2.0
	BareSGN   bool          // notifications come without their root
	Repeat    bool          // each notification comes twice
	Reorder   bool          // every other notification comes later than the one after it
	Silent    bool          // no notification comes at all
	Verify    time.Duration // subscriptions are verified that long after they were asked for, before the answer, though the originator is the target
	Down      bool          // every request is answered with INTERNAL_SERVER_ERROR
	Blocking  bool          // requests are only answered with their result
	MaxLife   time.Duration // the longest expiry that is granted; 0: any
	StatusOf  int           // HTTP: requests for contentInstances are answered with this status and no header, as a proxy does
	WantToken func(authorization string, tkns []string) bool
}

type cseMap = map[string]any

type cseNode struct {
	path, parent string
	ty           int
	root         string // of its representation
	a            cseMap
	children     []*cseNode // contentInstances and others
	subs         []*cseNode // those of them that are subscriptions
}

// cseAsked is a request in a polling channel.
type cseAsked struct {
	q      cseMap
	answer chan cseMap
}

const (
	cseID   = "/id-in"
	cseName = "cse-in"
)

// NewCSE makes one without a binding.
func NewCSE(t testing.TB) *CSE {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c := &CSE{
		CA: NewCA(t), Hosts: Loopback, ctx: ctx, t: t, never: map[string]bool{}, busy: map[string]bool{}, now: time.Now, badges: map[string][]string{},
		reach: map[string]func(context.Context, string, string, cseMap) (cseMap, error){},
	}
	c.Reset()
	t.Cleanup(func() {
		cancel()
		c.tasks.Wait()
	})
	return c
}

// Reset is a restart with an empty store.
func (c *CSE) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	base := &cseNode{path: cseName, ty: 5, root: cseRoots[5], a: cseMap{
		"rn": cseName, "ri": "id-in", "csi": cseID, "ty": 5, "srv": []string{"2a", "3", "4"}, "cst": 1, "rr": true,
	}}
	c.nodes = map[string]*cseNode{cseName: base}
	c.ids = map[string]*cseNode{"id-in": base}
	c.channels = map[string]chan cseAsked{}
}

// Quirks sets what the CSE does beside the standard from now on.
func (c *CSE) Quirks(q CSEQuirks) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.quirks = q
}

// server is the configuration of a binding over TLS.
func (c *CSE) server() *tls.Config {
	s := c.CA.Server(c.t)
	s.Certificates = []tls.Certificate{c.CA.Certificate(c.t, broker.Subject{Name: "cse", Hosts: c.Hosts})}
	return s
}

// Clock is what the CSE takes for now, from now on.
func (c *CSE) Clock(now func() time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// Badges gives the credentials under which an originator's requests have come: common names of certificates, or KpsaIDs.
func (c *CSE) Badges(originator string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.badges[originator])
}

// Unwell answers the next n requests for contentInstances with INTERNAL_SERVER_ERROR.
func (c *CSE) Unwell(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwell = n
}

// Delay is Faulty's.
func (c *CSE) Delay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

// CutAfter is Faulty's: the nth contentInstance is made, but not confirmed.
func (c *CSE) CutAfter(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = n
}

// Refuse is Faulty's.
func (c *CSE) Refuse(payload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.never[payload] = true
}

// Busy is Faulty's.
func (c *CSE) Busy(payload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy[payload] = true
}

// Unconfirmed is Faulty's: notifications without an answer.
func (c *CSE) Unconfirmed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// Received is Cloud's.
func (c *CSE) Received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.received)
}

// Drop is Cloud's.
func (c *CSE) Drop() {
	for _, drop := range c.drop {
		drop()
	}
}

// Cloud makes a Faulty cloud of the CSE whose commands go to a container, such as "gw1/cmd/gw1/x".
func (c *CSE) Cloud(container string) Faulty { return &cseCloud{c, container} }

type cseCloud struct {
	*CSE
	container string
}

func (c *cseCloud) Command(payload string) { c.Put(c.container, cseMap{"con": payload}) }

// Put makes a contentInstance in a container, and the container where it is missing, as another AE does.
func (c *CSE) Put(container string, attributes map[string]any) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	at := cseName
	for _, name := range strings.Split(container, "/") {
		if c.nodes[at+"/"+name] == nil {
			if r := c.create(cseMap{"to": at, "fr": "Cother", "ty": 3, "pc": cseMap{"m2m:cnt": cseMap{"rn": name}}}, true); r["rsc"] != 2001 {
				c.t.Errorf("container %s/%s: %v", at, name, r)
				return
			}
		}
		at += "/" + name
	}
	if r := c.create(cseMap{"to": at, "fr": "Cother", "ty": 4, "pc": cseMap{"m2m:cin": attributes}}, true); r["rsc"] != 2001 {
		c.t.Errorf("contentInstance in %s: %v", at, r)
	}
}

// Has tells whether there is a resource, such as "cse-in/gw1".
func (c *CSE) Has(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[path] != nil
}

// Attributes gives those of a resource, or nil.
func (c *CSE) Attributes(path string) map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[path]; n != nil {
		return maps.Clone(n.a)
	}
	return nil
}

// Contents gives those of the contentInstances in a container, such as "gw1/dt", in the order of their creation.
func (c *CSE) Contents(container string) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[cseName+"/"+container]
	if n == nil {
		return nil
	}
	for _, child := range n.children {
		if child.ty == 4 {
			list = append(list, fmt.Sprint(child.a["con"]))
		}
	}
	return list
}

// Occupy registers an AE of that name for somebody else.
func (c *CSE) Occupy(name string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.create(cseMap{"to": cseName, "fr": "Csomebody-else", "ty": 2, "pc": cseMap{"m2m:ae": cseMap{
		"rn": name, "api": "Nother", "rr": false, "srv": []any{"3"},
	}}}, true)
	if r["rsc"] != 2001 {
		c.t.Errorf("AE %s: %v", name, r)
	}
}

// Remove deletes a resource and all below it, as expiry does.
func (c *CSE) Remove(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(path)
}

// remove is Remove; mu is held.
func (c *CSE) remove(path string) {
	n := c.nodes[path]
	if n == nil {
		return
	}
	for _, child := range slices.Clone(n.children) {
		c.remove(child.path)
	}
	delete(c.nodes, path)
	delete(c.ids, n.a["ri"].(string))
	if p := c.nodes[n.parent]; p != nil {
		p.children = slices.DeleteFunc(p.children, func(x *cseNode) bool { return x == n })
		p.subs = slices.DeleteFunc(p.subs, func(x *cseNode) bool { return x == n })
	}
}

// expire removes what has passed its time; mu is held.
func (c *CSE) expire() {
	now := c.now()
	if now.Sub(c.looked) < time.Second/2 {
		return
	}
	c.looked = now
	for path, n := range maps.Clone(c.nodes) {
		if et, ok := n.a["et"].(string); ok && n.ty != 4 {
			if t, err := time.Parse(cseTime, et); err == nil && now.After(t.Add(time.Second)) {
				c.remove(path)
			}
		}
	}
}

const cseTime = "20060102T150405"

func cseFail(rsc int, why string, args ...any) cseMap {
	return cseMap{"rsc": rsc, "pc": cseMap{"m2m:dbg": fmt.Sprintf(why, args...)}}
}

// caller is what a binding knows of who asks.
type caller struct {
	authorization string
	badge         string // common name or KpsaID; empty: unknown
}

// handle answers a request primitive. cut says that the connection is to be broken instead.
func (c *CSE) handle(ctx context.Context, q cseMap, from caller) (r cseMap, cut bool) {
	r, cut = c.decide(ctx, q, from)
	c.mu.Lock()
	delay, floats := c.delay, c.quirks.Floats
	c.mu.Unlock()
	if delay > 0 && cseInt(q["op"]) != 2 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	r["rqi"], r["rvi"] = q["rqi"], q["rvi"]
	if floats {
		r = cseFloat(r).(cseMap)
	}
	return r, cut
}

func (c *CSE) decide(ctx context.Context, q cseMap, from caller) (r cseMap, cut bool) {
	if why := csePrimitiveWrong(q); why != "" {
		return cseFail(4000, "%s", why), false
	}
	originator := q["fr"].(string)
	c.mu.Lock()
	quirks := c.quirks
	if from.badge != "" && !slices.Contains(c.badges[originator], from.badge) {
		c.badges[originator] = append(c.badges[originator], from.badge)
	}
	if !quirks.Down {
		c.expire()
	}
	if cseInt(q["ty"]) != 4 {
		c.requests = append(c.requests, q)
	}
	c.mu.Unlock()
	switch {
	case quirks.Down:
		return cseFail(5000, "down"), false
	case quirks.WantToken != nil && !quirks.WantToken(from.authorization, cseStrings(q["tkns"])):
		return cseFail(4106, "no token"), false
	case q["rt"] != nil && cseInt(q["rt"].(cseMap)["rtv"]) != 3:
		return c.accept(ctx, q), false
	}
	return c.carryOut(ctx, q)
}

// carryOut is what a request asks for, whatever became of the question how it is to be answered.
func (c *CSE) carryOut(ctx context.Context, q cseMap) (r cseMap, cut bool) {
	switch cseInt(q["op"]) {
	case 1:
		return c.creation(ctx, q)
	case 2:
		return c.retrieve(ctx, q), false
	case 3:
		return c.update(q), false
	case 5:
		return c.notify(q), false
	}
	return cseFail(4005, "operation"), false
}
