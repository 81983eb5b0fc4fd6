package bridge

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// wire is a connector's connections as the gateway counts them.
type wire struct{ octets atomic.Int64 }

func (w *wire) Octets() (sent, received int64) { return w.octets.Load(), 0 }

// budgeted swaps in routes of every priority, to a cloud where each message costs 1,000 octets.
func (r *rig) budgeted(c *cloud, w *wire, b config.Budget) {
	cfg := standard()
	for _, priority := range []string{"low", "normal", "high"} {
		cfg.Uplinks = append(cfg.Uplinks, &config.Uplink{Name: priority, Resource: "/p/" + priority, Topic: "p/" + priority, To: []string{"cloud"}, QoS: 1, Priority: priority})
	}
	c.set(func(c *cloud) {
		c.take = func(msg.Publication) error {
			w.octets.Add(1000)
			return nil
		}
	})
	r.Swap(Setup{Table: r.table(cfg), Policy: rules{}, Connectors: map[string]northbound.Connector{"cloud": c}, Budgets: map[string]Budget{"cloud": {b, w}}})
}

// count gives how many of each priority have arrived.
func (c *cloud) count() (low, normal, high int) {
	for _, p := range c.payloads() {
		switch {
		case strings.HasPrefix(p, "low"):
			low++
		case strings.HasPrefix(p, "normal"):
			normal++
		default:
			high++
		}
	}
	return low, normal, high
}

func (r *rig) send(priority string, n int) {
	r.t.Helper()
	for i := range n {
		if err := r.report("th-17", "/p/"+priority, fmt.Sprint(priority, i)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestBudgetTurnsLowPriorityOffFirstAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(10 * time.Hour) // some time of the day
		r, c, w := newRig(t), &cloud{}, &wire{}
		r.budgeted(c, w, config.Budget{Day: 100_000, Month: 10_000_000})
		stop := r.run("cloud")
		r.send("low", 120)
		time.Sleep(time.Minute)
		low, _, _ := c.count()
		if low < 80 || low > 80+carefulBatch {
			t.Fatalf("%d of low priority went out", low)
		}
		r.send("normal", 40)
		time.Sleep(time.Minute)
		_, normal, _ := c.count()
		if all := low + normal; all < 100 || all > 100+carefulBatch {
			t.Fatalf("%d of low and %d of normal priority went out", low, normal)
		}
		r.send("high", 20)
		time.Sleep(time.Minute)
		if l, n, high := c.count(); l != low || n != normal || high != 20 {
			t.Fatalf("%d, %d, %d went out", l, n, high)
		}
		s := r.Snapshot().Connectors[0].Wire
		if !slices.Equal(s.Waits, []string{"normal", "low"}) || s.Day != w.octets.Load() || s.DayMax != 100_000 || s.Routes["high"] != int64(20*len("p/high")+10*len("high0")+10*len("high10")) {
			t.Fatalf("%+v", s)
		}
		if !slices.Contains(r.problems(), BudgetShort.Name) {
			t.Fatal(r.problems())
		}

		// A restart does not begin the day anew.
		stop()
		if err := r.Bridge.Close(); err != nil {
			t.Fatal(err)
		}
		r.reopen()
		w = &wire{}
		r.budgeted(c, w, config.Budget{Day: 100_000, Month: 10_000_000})
		stop = r.run("cloud")
		time.Sleep(time.Minute)
		if l, n, _ := c.count(); l != low || n != normal {
			t.Fatalf("after a restart: %d, %d", l, n)
		}
		time.Sleep(20 * time.Hour) // the next day
		if l, n, h := c.count(); l != 120 || n != 40 || h != 20 {
			t.Fatalf("in the end: %d, %d, %d", l, n, h)
		}
		if slices.Contains(r.problems(), BudgetShort.Name) {
			t.Fatal(r.problems())
		}
		if s := r.Snapshot().Connectors[0].Wire; s.Month != 180_000 || len(s.Waits) > 0 {
			t.Fatalf("%+v", s)
		}
		// A reload with a larger budget lets go at once what waits.
		r.send("low", 120)
		time.Sleep(time.Minute)
		r.budgeted(c, w, config.Budget{})
		time.Sleep(time.Minute)
		if l, _, _ := c.count(); l != 240 {
			t.Fatalf("after a reload: %d", l)
		}
		stop()
	})
}

func TestMessagesLingerForCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newRig(t), &cloud{}
		r.budgeted(c, &wire{}, config.Budget{Linger: config.Duration(10 * time.Second)})
		stop := r.run("cloud")
		defer stop()
		time.Sleep(time.Second)
		began := time.Now()
		r.send("normal", 1)
		for range 8 {
			time.Sleep(time.Second)
			r.send("low", 1)
		}
		if _, n, _ := c.count(); n != 0 {
			t.Fatal("it did not wait")
		}
		r.send("high", 1) // ends the wait of all, and goes first
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		if l, n, h := c.count(); l != 8 || n != 1 || h != 1 || c.payloads()[0] != "high0" {
			t.Fatalf("%d, %d, %d after %s: %q", l, n, h, time.Since(began), c.payloads())
		}
		r.send("low", 1)
		time.Sleep(9 * time.Second)
		if l, _, _ := c.count(); l != 8 {
			t.Fatal("it did not wait again")
		}
		time.Sleep(2 * time.Second)
		if l, _, _ := c.count(); l != 9 {
			t.Fatal("it waits for ever")
		}
	})
}
