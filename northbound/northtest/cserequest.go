package northtest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"
)

// accept is the answer to a non-blocking request (TS-0001 clause 8.2.2): it is carried out by itself, and its result is kept in a <request>,
// and sent where that is asked for.
func (c *CSE) accept(ctx context.Context, q cseMap) cseMap {
	rt := q["rt"].(cseMap)
	kind := cseInt(rt["rtv"])
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.quirks.Blocking:
		return cseFail(5206, "no non-blocking requests")
	case !c.registered(q["fr"].(string)):
		return cseFail(4103, "not registered")
	case kind != 1 && kind != 2:
		return cseFail(4000, "rt %d", kind)
	}
	c.serial++
	id := fmt.Sprintf("req%d", c.serial)
	n := &cseNode{path: cseName + "/" + id, parent: cseName, ty: 17, root: cseRoots[17], a: cseMap{
		"ri": id, "rn": id, "ty": 17, "pi": "id-in", "op": cseInt(q["op"]), "tg": q["to"], "org": q["fr"], "rid": q["rqi"], "rs": 3,
	}}
	c.nodes[n.path], c.ids[id] = n, n
	delay := c.delay
	c.tasks.Go(func() { c.complete(context.WithoutCancel(ctx), q, n, delay) })
	if kind == 1 {
		return cseMap{"rsc": 1001, "pc": cseMap{"m2m:uri": cseID + "/" + id}}
	}
	return cseMap{"rsc": 1002, "pc": cseMap{"m2m:uri": cseID + "/" + id}}
}

// grouped says why a group cannot have the members that it is given, or nil. mu is held.
func (c *CSE) grouped(a cseMap) cseMap {
	members := cseStrings(a["mid"])
	if most, given := a["mnm"]; given && len(members) > cseInt(most) {
		return cseFail(6010, "%d members", len(members))
	}
	for _, m := range members {
		n := c.nodes[c.address(m)]
		if n == nil {
			return cseFail(4004, "member %s", m)
		}
		if mt := cseInt(a["mt"]); mt != 0 && n.ty != mt {
			return cseFail(4110, "member %s is of type %d", m, n.ty)
		}
	}
	return nil
}

// PutToGroup makes a contentInstance in a container of each member of a group, as a request to its fanOutPoint does.
func (c *CSE) PutToGroup(group, container string, attributes map[string]any) {
	c.t.Helper()
	c.mu.Lock()
	n := c.nodes[cseName+"/"+group]
	if n == nil {
		c.mu.Unlock()
		c.t.Errorf("there is no group %s", group)
		return
	}
	var members []string
	for _, m := range cseStrings(n.a["mid"]) {
		members = append(members, strings.TrimPrefix(c.address(m), cseName+"/"))
	}
	c.mu.Unlock()
	for _, m := range members {
		c.Put(m+"/"+container, maps.Clone(attributes))
	}
}

// complete carries a non-blocking request out.
func (c *CSE) complete(ctx context.Context, q cseMap, n *cseNode, delay time.Duration) {
	select {
	case <-time.After(delay):
	case <-c.ctx.Done():
		return
	}
	r, cut := c.carryOut(ctx, q)
	if cut {
		for _, drop := range c.drop {
			drop()
		}
	}
	r["rqi"], r["rvi"] = q["rqi"], q["rvi"]
	c.mu.Lock()
	n.a["ors"], n.a["rs"] = r, 1
	if rsc := cseInt(r["rsc"]); rsc >= 3000 {
		n.a["rs"] = 2
	}
	var send []func() cseMap
	if rt := q["rt"].(cseMap); cseInt(rt["rtv"]) == 2 {
		for _, target := range cseStrings(rt["nu"]) {
			if f := c.prepare(target, cseMap{"m2m:rsp": r}); f != nil {
				send = append(send, f)
			}
		}
	}
	c.mu.Unlock()
	for _, f := range send {
		f()
	}
}
