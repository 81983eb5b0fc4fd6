package northtest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"
)

// held waits for something to say on a polling channel.
func (c *CSE) held(ctx context.Context, channel chan cseAsked, q cseMap) cseMap {
	until := time.Minute
	if t, err := time.Parse(cseTime, fmt.Sprint(q["rqet"])); err == nil {
		c.mu.Lock()
		until = t.Sub(c.now())
		c.mu.Unlock()
	}
	late := time.NewTimer(until)
	defer late.Stop()
	select {
	case asked := <-channel:
		c.mu.Lock()
		key := "answer " + asked.q["rqi"].(string)
		c.channels[key] = make(chan cseAsked, 1)
		c.channels[key] <- asked
		c.mu.Unlock()
		return cseMap{"rsc": 2000, "pc": cseMap{"m2m:rqp": asked.q}}
	case <-late.C:
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return cseFail(4008, "nothing to say")
}

// notify is the answer to a polled request.
func (c *CSE) notify(q cseMap) cseMap {
	pc, _ := q["pc"].(cseMap)
	rsp, _ := pc["m2m:rsp"].(cseMap)
	if rsp == nil {
		return cseFail(4000, "no m2m:rsp")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := "answer " + fmt.Sprint(rsp["rqi"])
	select {
	case asked := <-c.channels[key]:
		asked.answer <- rsp
		delete(c.channels, key)
		return cseMap{"rsc": 2000}
	default:
		return cseFail(4004, "nobody asked")
	}
}

// event tells subscriptions that n was made in parent; mu is held.
func (c *CSE) event(parent, n *cseNode) {
	for _, sub := range parent.subs {
		if sub == n || c.quirks.Silent {
			continue
		}
		sgn := cseMap{"sur": cseID + "/" + sub.path, "nev": cseMap{"net": 3, "rep": cseMap{n.root: maps.Clone(n.a)}}}
		c.tell(sub, sgn)
		if c.quirks.Repeat {
			c.tell(sub, sgn)
		}
	}
}

// tell sends a notification to the targets of a subscription, each on a goroutine of its own: they may overtake each other. mu is held.
func (c *CSE) tell(sub *cseNode, sgn cseMap) {
	pc := cseMap{"m2m:sgn": sgn}
	if c.quirks.BareSGN {
		pc = sgn
	}
	for _, target := range cseStrings(sub.a["nu"]) {
		send := c.prepare(target, pc)
		late := c.quirks.Reorder && c.serial%2 == 0
		if send == nil {
			continue
		}
		c.open++
		c.tasks.Go(func() {
			if late {
				select {
				case <-time.After(30 * time.Millisecond):
				case <-c.ctx.Done():
				}
			}
			send()
			c.mu.Lock()
			c.open--
			c.mu.Unlock()
		})
	}
}

// prepare makes a notification for a target, and gives what sends it and returns the answer; nil: there is no such AE. mu is held.
func (c *CSE) prepare(target string, pc cseMap) (send func() cseMap) {
	ae := c.ids[strings.TrimPrefix(target, cseID+"/")]
	if ae == nil {
		return nil
	}
	c.serial++
	if c.quirks.Floats {
		pc = cseFloat(pc).(cseMap)
	}
	id := ae.a["aei"].(string)
	q := cseMap{"op": 5, "to": target, "fr": cseID, "rqi": fmt.Sprintf("n%d", c.serial), "rvi": "3", "pc": pc}
	poa, channel := cseStrings(ae.a["poa"]), c.channels[id]
	return func() cseMap { return c.send(q, id, poa, channel) }
}

// verified asks the target of a subscription whether it wants it (TS-0001 clause 10.2.10.2), where the quirks say so.
func (c *CSE) verified(ctx context.Context, q cseMap) bool {
	c.mu.Lock()
	after := c.quirks.Verify
	c.mu.Unlock()
	pc, _ := q["pc"].(cseMap)
	sub, _ := pc["m2m:sub"].(cseMap)
	if cseInt(q["ty"]) != 23 || after == 0 {
		return true
	}
	select {
	case <-time.After(after):
	case <-ctx.Done():
	}
	for _, target := range cseStrings(sub["nu"]) {
		c.mu.Lock()
		send := c.prepare(target, cseMap{"m2m:sgn": cseMap{"vrq": true, "sur": fmt.Sprint(q["to"]) + "/" + fmt.Sprint(sub["rn"]), "cr": q["fr"]}})
		c.mu.Unlock()
		if send == nil || cseInt(send()["rsc"]) != 2000 {
			return false
		}
	}
	return true
}

// send brings a notification to an AE and gives its answer, or nil.
func (c *CSE) send(q cseMap, id string, poa []string, channel chan cseAsked) cseMap {
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	if len(poa) > 0 {
		scheme, _, _ := strings.Cut(poa[0], ":")
		if reach := c.reach[strings.TrimSuffix(scheme, "s")]; reach != nil {
			r, err := reach(ctx, poa[0], id, q)
			if err != nil {
				return nil
			}
			return r
		}
		return nil
	}
	asked := cseAsked{q, make(chan cseMap, 1)}
	select {
	case channel <- asked:
	default:
		return nil
	}
	select {
	case r := <-asked.answer:
		return r
	case <-ctx.Done():
		return nil
	}
}
