package northtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// CSE is a oneM2M IN-CSE in this process, with the CSE-ID "/id-in" and the CSEBase "cse-in", that holds every request against the
// attribute tables and misbehaves as it is told. Bindings are added by ServeHTTP, ServeMQTT and ServeCoAP.
type CSE struct {
	CA CA

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
}

// CSEQuirks are what real CSEs do beside the standard.
type CSEQuirks struct {
	Floats    bool          // numbers are written like 2.0
	BareSGN   bool          // notifications come without their root
	Repeat    bool          // each notification comes twice
	Silent    bool          // no notification comes at all
	Verify    bool          // subscriptions are verified, though the originator is the target
	MaxLife   time.Duration // the longest expiry that is granted; 0: any
	StatusOf  int           // HTTP: requests for contentInstances are answered with this status and no header, as a proxy does
	WantToken func(authorization string, tkns []string) bool
}

type cseMap = map[string]any

type cseNode struct {
	path, parent string
	ty           int
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
		CA: NewCA(t), ctx: ctx, t: t, never: map[string]bool{}, busy: map[string]bool{},
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
	base := &cseNode{path: cseName, ty: 5, a: cseMap{
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
	now := time.Now()
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

// handle answers a request primitive. cut says that the connection is to be broken instead.
func (c *CSE) handle(ctx context.Context, q cseMap, authorization string) (r cseMap, cut bool) {
	r, cut = c.decide(ctx, q, authorization)
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

func (c *CSE) decide(ctx context.Context, q cseMap, authorization string) (r cseMap, cut bool) {
	if why := csePrimitiveWrong(q); why != "" {
		return cseFail(4000, "%s", why), false
	}
	c.mu.Lock()
	c.expire()
	want := c.quirks.WantToken
	if cseInt(q["ty"]) != 4 {
		c.requests = append(c.requests, q)
	}
	c.mu.Unlock()
	if want != nil && !want(authorization, cseStrings(q["tkns"])) {
		return cseFail(4106, "no token"), false
	}
	switch cseInt(q["op"]) {
	case 1:
		return c.creation(q)
	case 2:
		return c.retrieve(ctx, q), false
	case 3:
		return c.update(q), false
	case 5:
		return c.notify(q), false
	}
	return cseFail(4005, "operation"), false
}

// creation is CREATE with the knobs.
func (c *CSE) creation(q cseMap) (cseMap, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cseInt(q["ty"]) != 4 {
		return c.create(q, false), false
	}
	cin, _ := q["pc"].(cseMap)["m2m:cin"].(cseMap)
	con, _ := cin["con"].(string)
	switch {
	case c.unwell > 0:
		c.unwell--
		return cseFail(5000, "unwell"), false
	case c.busy[con]:
		delete(c.busy, con)
		return cseFail(5000, "busy"), false
	case c.never[con]:
		return cseFail(4102, "contents"), false
	}
	r := c.create(q, false)
	if r["rsc"] != 2001 {
		return r, false
	}
	c.received = append(c.received, con)
	if c.cut > 0 {
		c.cut--
		return r, c.cut == 0
	}
	return r, false
}

// address gives the structured address of what a primitive is for; mu is held.
func (c *CSE) address(to string) string {
	to = strings.TrimPrefix(to, "//sp.example")
	if rest, ok := strings.CutPrefix(to, cseID+"/"); ok {
		to = rest
	} else if to == cseID {
		return cseName
	}
	if to == "-" || strings.HasPrefix(to, "-/") {
		to = cseName + to[1:]
	}
	if n := c.ids[to]; n != nil {
		return n.path
	}
	return to
}

// create makes a resource; own says that the CSE does so by itself. mu is held.
func (c *CSE) create(q cseMap, own bool) cseMap {
	ty, from := cseInt(q["ty"]), q["fr"].(string)
	parent := c.nodes[c.address(q["to"].(string))]
	if !own && ty != 2 && !c.registered(from) {
		return cseFail(4103, "originator %s is not registered", from)
	}
	if parent == nil {
		return cseFail(4004, "no parent")
	}
	a, why := cseCheck(q["pc"], ty, false)
	if why != "" {
		return cseFail(4000, "%s", why)
	}
	if !slices.Contains(cseParents[ty], parent.ty) {
		return cseFail(4108, "type %d in %d", ty, parent.ty)
	}
	a = maps.Clone(a)
	c.serial++
	name, _ := a["rn"].(string)
	if name == "" {
		name = fmt.Sprintf("r%d", c.serial)
	}
	if c.nodes[parent.path+"/"+name] != nil {
		return cseFail(4105, "%s exists", name)
	}
	id := fmt.Sprintf("id%d", c.serial)
	if ty == 2 {
		if from == "C" || from == "S" || from == "" {
			from = "C" + id
		}
		if c.registered(from) {
			return cseFail(4117, "%s", from)
		}
		id = from
		a["aei"] = from
	}
	if mbs, limited := parent.a["mbs"]; limited && ty == 4 && len(fmt.Sprint(a["con"])) > cseInt(mbs) {
		return cseFail(5207, "larger than mbs")
	}
	now := time.Now().UTC()
	stamp := now.Format(cseTime + ",000000")
	maps.Copy(a, cseMap{"rn": name, "ri": id, "pi": parent.a["ri"], "ct": stamp, "lt": stamp, "ty": ty})
	if ty == 4 {
		a["cr"], a["cs"], a["st"] = from, len(fmt.Sprint(a["con"])), c.serial
	}
	c.grant(a, now)
	n := &cseNode{path: parent.path + "/" + name, parent: parent.path, ty: ty, a: a}
	c.nodes[n.path], c.ids[id] = n, n
	parent.children = append(parent.children, n)
	if ty == 23 {
		parent.subs = append(parent.subs, n)
	}
	if ty == 15 {
		c.channels[from] = make(chan cseAsked, 1000)
	}
	c.event(parent, n)
	if ty == 23 && c.quirks.Verify {
		c.tell(n, cseMap{"vrq": true, "sur": cseID + "/" + n.path})
	}
	r := cseMap{"rsc": 2001}
	if q["rcn"] == nil || cseInt(q["rcn"]) == 1 {
		r["pc"] = cseMap{cseRoots[ty]: maps.Clone(a)}
	}
	return r
}

// grant bounds the expiry of a resource; mu is held.
func (c *CSE) grant(a cseMap, now time.Time) {
	if c.quirks.MaxLife == 0 {
		return
	}
	most := now.Add(c.quirks.MaxLife).Format(cseTime)
	if et, ok := a["et"].(string); !ok || et > most {
		a["et"] = most
	}
}

// registered tells whether an AE has that id; mu is held.
func (c *CSE) registered(id string) bool {
	n := c.ids[id]
	return n != nil && n.ty == 2
}

func (c *CSE) update(q cseMap) cseMap {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[c.address(q["to"].(string))]
	if !c.registered(q["fr"].(string)) {
		return cseFail(4103, "not registered")
	}
	if n == nil {
		return cseFail(4004, "nothing there")
	}
	if n.ty == 4 {
		return cseFail(4005, "contentInstances do not change")
	}
	a, why := cseCheck(q["pc"], n.ty, true)
	if why != "" {
		return cseFail(4000, "%s", why)
	}
	maps.Copy(n.a, a)
	c.grant(n.a, time.Now().UTC())
	return cseMap{"rsc": 2004, "pc": cseMap{cseRoots[n.ty]: maps.Clone(n.a)}}
}

func (c *CSE) retrieve(ctx context.Context, q cseMap) cseMap {
	c.mu.Lock()
	to, from := c.address(q["to"].(string)), q["fr"].(string)
	if !c.registered(from) && to != cseName {
		c.mu.Unlock()
		return cseFail(4103, "not registered")
	}
	if pch, ok := strings.CutSuffix(to, "/pcu"); ok && c.nodes[pch] != nil && c.nodes[pch].ty == 15 {
		channel := c.channels[from]
		c.mu.Unlock()
		return c.held(ctx, channel, q)
	}
	defer c.mu.Unlock()
	n := c.nodes[to]
	if n == nil {
		return cseFail(4004, "nothing there")
	}
	fc, _ := q["fc"].(cseMap)
	if cseInt(fc["fu"]) == 1 {
		list := []string{}
		for path, child := range c.nodes {
			if strings.HasPrefix(path, n.path+"/") && slices.Contains(cseInts(fc["ty"]), child.ty) {
				list = append(list, path)
			}
		}
		slices.Sort(list)
		return cseMap{"rsc": 2000, "pc": cseMap{"m2m:uril": list}}
	}
	a := maps.Clone(n.a)
	if cseInt(q["rcn"]) == 4 {
		for _, child := range n.children {
			if types := cseInts(fc["ty"]); len(types) > 0 && !slices.Contains(types, child.ty) {
				continue
			}
			if after, ok := fc["cra"].(string); ok && child.a["ct"].(string) <= after {
				continue
			}
			root := cseRoots[child.ty]
			list, _ := a[root].([]any)
			a[root] = append(list, maps.Clone(child.a))
		}
	}
	return cseMap{"rsc": 2000, "pc": cseMap{cseRoots[n.ty]: a}}
}

// decodeCSE reads JSON as the CSE holds it.
func decodeCSE(data []byte) (cseMap, bool) {
	var m cseMap
	return m, json.Unmarshal(data, &m) == nil
}
