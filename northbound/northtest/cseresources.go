package northtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// creation is CREATE with the knobs.
func (c *CSE) creation(ctx context.Context, q cseMap) (cseMap, bool) {
	if !c.verified(ctx, q) {
		return cseFail(5204, "the target of the subscription does not answer"), false
	}
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
	root, a, why := cseCheck(q["pc"], ty, "")
	if why != "" {
		return cseFail(4000, "%s", why)
	}
	if ty == 9 {
		if r := c.grouped(a); r != nil {
			return r
		}
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
	now := c.now().UTC()
	stamp := now.Format(cseTime + ",000000")
	maps.Copy(a, cseMap{"rn": name, "ri": id, "pi": parent.a["ri"], "ct": stamp, "lt": stamp, "ty": ty})
	if ty == 4 {
		a["cr"], a["cs"], a["st"] = from, len(fmt.Sprint(a["con"])), c.serial
	}
	c.grant(a, now)
	n := &cseNode{path: parent.path + "/" + name, parent: parent.path, ty: ty, root: root, a: a}
	c.nodes[n.path], c.ids[id] = n, n
	parent.children = append(parent.children, n)
	if ty == 23 {
		parent.subs = append(parent.subs, n)
	}
	if ty == 15 {
		c.channels[from] = make(chan cseAsked, 1000)
	}
	c.event(parent, n)
	r := cseMap{"rsc": 2001}
	if q["rcn"] == nil || cseInt(q["rcn"]) == 1 {
		r["pc"] = cseMap{root: maps.Clone(a)}
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
	_, a, why := cseCheck(q["pc"], n.ty, n.root)
	if why != "" {
		return cseFail(4000, "%s", why)
	}
	if n.ty == 9 {
		if r := c.grouped(a); r != nil {
			return r
		}
	}
	maps.Copy(n.a, a)
	c.grant(n.a, c.now().UTC())
	return cseMap{"rsc": 2004, "pc": cseMap{n.root: maps.Clone(n.a)}}
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
			list, _ := a[child.root].([]any)
			a[child.root] = append(list, maps.Clone(child.a))
		}
	}
	return cseMap{"rsc": 2000, "pc": cseMap{n.root: a}}
}

// decodeCSE reads JSON as the CSE holds it.
func decodeCSE(data []byte) (cseMap, bool) {
	var m cseMap
	return m, json.Unmarshal(data, &m) == nil
}
