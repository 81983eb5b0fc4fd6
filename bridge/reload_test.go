package bridge

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

func TestAConnectorThatIsReplacedTakesOverTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		first, second := &cloud{}, &cloud{}
		r.use(map[string]northbound.Connector{"cloud": first})
		stop := r.run("cloud")
		r.reports(0, 3)
		synctest.Wait()
		first.set(func(c *cloud) { c.take = func(msg.Publication) error { return errSilence } })
		r.reports(3, 6)
		synctest.Wait()
		stop()
		if s := r.Snapshot().Connectors[0]; s.State != StateStopped || s.Pending != 3 {
			t.Errorf("got %+v", s)
		}

		r.use(map[string]northbound.Connector{"cloud": second})
		defer r.run("cloud")()
		r.reports(6, 9)
		synctest.Wait()
		if got := first.payloads(); !slices.Equal(got, numbers(0, 3)) {
			t.Errorf("the first got %v", got)
		}
		if got := second.payloads(); !slices.Equal(got, numbers(3, 9)) {
			t.Errorf("the second got %v", got)
		}
	})
}

func TestARouteThatIsGoneStillDeliversWhatItTook(t *testing.T) {
	c := &cloud{}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.use(map[string]northbound.Connector{"cloud": c})
		r.reports(0, 3)
		cfg := standard()
		cfg.Uplinks = cfg.Uplinks[1:]
		r.Swap(Setup{Table: r.table(cfg), Policy: rules{}, Connectors: map[string]northbound.Connector{"cloud": c}})
		if err := r.report("th-17", "/sensors/n", "x"); msg.ReasonOf(err) != msg.NoRoute {
			t.Errorf("got %v", err)
		}
		defer r.run("cloud")()
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, numbers(0, 3)) {
			t.Errorf("got %v", got)
		}
	})
}

func TestAListenerThatIsGoneIsAskedNoMore(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done}, &told))
		send := func() msg.Reply {
			reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/th-17/setpoint"})
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}
		if reply := send(); reply.Status != msg.Done {
			t.Errorf("got %+v", reply)
		}
		r.Swap(Setup{Table: r.table(standard()), Policy: rules{}, Listeners: map[string]southbound.Listener{}, Connectors: map[string]northbound.Connector{"cloud": c}})
		if reply := send(); reply.Code != "not-connected" || len(told) != 1 {
			t.Errorf("got %+v", reply)
		}
	})
}

func TestProblemsOfQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.use(map[string]northbound.Connector{"cloud": &cloud{hold: true}})
		r.queue.max, r.queue.lost = 400, 7
		defer r.run("cloud")()
		r.reports(0, 5) // 27 octets each
		if err := r.report("th-17", "/both/x", "for plant, which is not there"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if got, want := r.problems(), []string{"queue-growing", "spool-damaged", "queue-orphaned"}; !equalSets(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if n, err := r.Acknowledge(); n != 7 || err != nil {
			t.Errorf("%d acknowledged, %v", n, err)
		}
		time.Sleep(10 * time.Second) // before the session counts as stalled, which hides that the queue grows
		if got, want := r.problems(), []string{"queue-growing", "queue-orphaned"}; !equalSets(got, want) {
			t.Errorf("once it is acknowledged: %q, want %q", got, want)
		}
		r.queue.mu.Lock()
		r.queue.lost = 8
		r.queue.mu.Unlock()
		time.Sleep(10 * time.Second)
		if got, want := r.problems(), []string{"queue-growing", "spool-damaged", "queue-orphaned"}; !equalSets(got, want) {
			t.Errorf("once more is lost: %q, want %q", got, want)
		}
	})
}

func equalSets(a, b []string) bool {
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
