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
		until = time.Until(t)
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
		sgn := cseMap{"sur": cseID + "/" + sub.path, "nev": cseMap{"net": 3, "rep": cseMap{cseRoots[n.ty]: maps.Clone(n.a)}}}
		c.tell(sub, sgn)
		if c.quirks.Repeat {
			c.tell(sub, sgn)
		}
	}
}

// tell sends a notification to the targets of a subscription, each on a goroutine of its own: they may overtake each other. mu is held.
func (c *CSE) tell(sub *cseNode, sgn cseMap) {
	for _, target := range cseStrings(sub.a["nu"]) {
		ae := c.ids[strings.TrimPrefix(target, cseID+"/")]
		if ae == nil {
			continue
		}
		c.serial++
		pc := cseMap{"m2m:sgn": sgn}
		if c.quirks.BareSGN {
			pc = sgn
		}
		if c.quirks.Floats {
			pc = cseFloat(pc).(cseMap)
		}
		id := ae.a["aei"].(string)
		q := cseMap{"op": 5, "to": target, "fr": cseID, "rqi": fmt.Sprintf("n%d", c.serial), "rvi": "3", "pc": pc}
		poa, channel := cseStrings(ae.a["poa"]), c.channels[id]
		c.open++
		c.tasks.Go(func() {
			c.send(q, id, poa, channel)
			c.mu.Lock()
			c.open--
			c.mu.Unlock()
		})
	}
}

// send brings a notification to an AE and waits for its answer.
func (c *CSE) send(q cseMap, id string, poa []string, channel chan cseAsked) {
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	if len(poa) > 0 {
		scheme, _, _ := strings.Cut(poa[0], ":")
		if reach := c.reach[strings.TrimSuffix(scheme, "s")]; reach != nil {
			reach(ctx, poa[0], id, q)
		}
		return
	}
	asked := cseAsked{q, make(chan cseMap, 1)}
	select {
	case channel <- asked:
	default:
		return
	}
	select {
	case <-asked.answer:
	case <-ctx.Done():
	}
}
