package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// commanded runs f with a rig whose connector "cloud" is connected to c.
func commanded(t *testing.T, f func(t *testing.T, r *rig, c *cloud)) {
	t.Helper()
	c := &cloud{}
	pumped(t, c, func(t *testing.T, r *rig) { f(t, r, c) })
}

// answers makes a device that answers with reply and remembers what it was told.
func answers(reply msg.Reply, told *[]msg.Message) func(context.Context, msg.Message) (msg.Reply, error) {
	var mu sync.Mutex
	return func(_ context.Context, m msg.Message) (msg.Reply, error) {
		mu.Lock()
		defer mu.Unlock()
		*told = append(*told, m)
		return reply, nil
	}
}

func TestACommandAndItsReply(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done, Code: "2.04", Type: "text/plain", Payload: []byte("ok")}, &told))
		start := time.Now()
		reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/th-17/setpoint", Type: "text/plain", Payload: []byte("21"), Correlation: []byte{7}})
		if err != nil || reply.Status != msg.Done || reply.Code != "2.04" {
			t.Fatal(reply, err)
		}
		if len(told) != 1 {
			t.Fatal(told)
		}
		if m := told[0]; m.Device != "th-17" || m.Method != "PUT" || m.Resource != "/actuators/setpoint" || string(m.Payload) != "21" ||
			m.Type != "text/plain" || !m.WantReply || !m.Expires.Equal(start.Add(10*time.Minute)) {
			t.Errorf("got %+v", m)
		}
		synctest.Wait()
		if len(c.all()) != 1 {
			t.Fatal(c.all())
		}
		p := c.all()[0]
		if p.Topic != "cmd/gw/th-17/setpoint/reply" || string(p.Payload) != "ok" || p.Type != "text/plain" || p.QoS != 1 ||
			p.Properties["status"] != "done" || p.Properties["code"] != "2.04" || !slices.Equal(p.Correlation, []byte{7}) {
			t.Errorf("got %+v", p)
		}
		if l := r.line("setpoint"); l.Accepted != 1 || l.Delivered != 1 {
			t.Errorf("the reply is not in the ledger: %+v", l)
		}
	})
}

func TestTheResponseTopicOfACommandComesFirst(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		for topic, want := range map[string]string{"app/7/answers": "app/7/answers", "app/+": "cmd/gw/th-17/setpoint/reply", "": "cmd/gw/th-17/setpoint/reply",
			"cmd/gw/press-3/setpoint": "cmd/gw/th-17/setpoint/reply"} {
			if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/th-17/setpoint", ResponseTopic: topic}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if p := c.all()[len(c.all())-1]; p.Topic != want || p.Properties["code"] != "not-connected" {
				t.Errorf("%q: got %+v", topic, p)
			}
		}
	})
}

func TestCommandsThatAreRefused(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		r.Swap(Setup{Table: r.table(standard()), Listeners: map[string]southbound.Listener{"field": r.field}, Connectors: map[string]northbound.Connector{"cloud": c},
			Policy: rules{command: func(_, device string, _ []string, resource string) bool {
				return device != "th-17" && resource != "/x/bad"
			}}})
		r.field.connect("dumb", func(ctx context.Context, _ msg.Message) (msg.Reply, error) {
			<-ctx.Done()
			return msg.Reply{}, ctx.Err()
		})
		for name, x := range map[string]struct {
			p    msg.Publication
			code string
		}{
			"no route":      {msg.Publication{Topic: "cmd/gw/th-17/other"}, "no-route"},
			"denied":        {msg.Publication{Topic: "cmd/gw/th-17/setpoint"}, "denied"},
			"not connected": {msg.Publication{Topic: "cmd/gw/press-3/setpoint"}, "not-connected"},
			"no answer":     {msg.Publication{Topic: "cmd/gw/dumb/setpoint"}, "no-answer"},
			"expired":       {msg.Publication{Topic: "cmd/gw/press-3/setpoint", Expires: time.Now().Add(-time.Second)}, "expired"},
			"bad payload":   {msg.Publication{Topic: "quiet/press-3/x", Payload: []byte("{")}, "bad-payload"},
			"no device":     {msg.Publication{Topic: "cmd/gw//setpoint"}, "no-route"},
			"bad resource":  {msg.Publication{Topic: "quiet/press-3/.."}, "bad-topic"},
		} {
			reply, err := c.down.Deliver(t.Context(), x.p)
			if err != nil || reply.Status != msg.Refused || reply.Code != x.code {
				t.Errorf("%s: got %+v, %v", name, reply, err)
			}
		}
	})
}

func TestACommandWhoseSessionEndsIsNotSettled(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		r.field.connect("th-17", func(ctx context.Context, _ msg.Message) (msg.Reply, error) {
			<-ctx.Done()
			return msg.Reply{}, ctx.Err()
		})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("session over"))
		defer cancel()
		if _, err := c.down.Deliver(ctx, msg.Publication{Topic: "cmd/gw/th-17/setpoint"}); err == nil || err.Error() != "session over" {
			t.Errorf("got %v", err)
		}
	})
}

func TestGroupsOfADeviceThatIsNotConfigured(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var asked []string
		r.Swap(Setup{Table: r.table(standard()), Listeners: map[string]southbound.Listener{"field": r.field}, Connectors: map[string]northbound.Connector{"cloud": c},
			Policy: rules{command: func(_, device string, groups []string, _ string) bool {
				asked = append(asked, device+" "+strings.Join(groups, ","))
				return true
			}}})
		r.field.connect("m-1.meters", func(context.Context, msg.Message) (msg.Reply, error) { return msg.Reply{Status: msg.Done}, nil })
		r.field.groups = map[string][]string{"m-1.meters": {"meter"}}
		r.Submit(&msg.Message{Device: "th-17", Groups: []string{"more", "thermostat"}, Resource: "/sensors/x"}, func(error) {})
		for _, d := range []string{"m-1.meters", "th-17", "nobody"} {
			if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/" + d + "/setpoint"}); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"m-1.meters meter", "th-17 more,thermostat", "nobody "}; !slices.Equal(asked, want) {
			t.Errorf("got %q", asked)
		}
	})
}

func TestACommandThatTheCloudRepeatsIsCarriedOutOnce(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var times atomic.Int32
		r.field.connect("th-17", func(context.Context, msg.Message) (msg.Reply, error) {
			time.Sleep(time.Second)
			return msg.Reply{Status: msg.Done, Code: fmt.Sprint(times.Add(1))}, nil
		})
		p := msg.Publication{ID: msg.NewID(time.Now()), Topic: "cmd/gw/th-17/setpoint"}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if reply, err := c.down.Deliver(t.Context(), p); err != nil || reply.Code != "1" {
					t.Errorf("got %+v, %v", reply, err)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Hour)
		if reply, _ := c.down.Deliver(t.Context(), p); reply.Code != "2" {
			t.Errorf("an hour later: %+v", reply)
		}
	})
}

func TestTheMailboxOfADeviceThatSleeps(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		send := func(what string) msg.Reply {
			reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "quiet/bed-1/" + what, Payload: []byte(`"` + what + `"`), ResponseTopic: "answers/" + what})
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}
		for _, what := range []string{"a", "b", "c"} {
			if reply := send(what); reply.Status != msg.Queued {
				t.Errorf("got %+v", reply)
			}
		}
		if got := r.Snapshot().Mailboxes["bed-1"]; got != 3 {
			t.Errorf("%d wait", got)
		}
		synctest.Wait() // it has been looked for once more
		var told []msg.Message
		r.field.connect("bed-1", answers(msg.Reply{Status: msg.Done, Code: "2.04"}, &told))
		if reply := send("d"); reply.Status != msg.Queued {
			t.Errorf("overtook those that wait: %+v", reply)
		}
		synctest.Wait()
		if len(told) != 0 {
			t.Errorf("told %v before it was awake", told)
		}
		r.Awake("bed-1")
		synctest.Wait()
		var got []string
		for _, m := range told {
			got = append(got, m.Resource+"="+string(m.Payload))
		}
		if want := []string{"/x/a=a", "/x/b=b", "/x/c=c", "/x/d=d"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		got = nil
		for _, p := range c.all() {
			got = append(got, p.Topic+" "+p.Properties["status"])
		}
		if want := []string{"answers/a done", "answers/b done", "answers/c done", "answers/d done"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		if reply := send("e"); reply.Status != msg.Done {
			t.Errorf("awake, with an empty mailbox: %+v", reply)
		}
	})
}

func TestTheMailboxSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newRig(t), &cloud{}
		r.use(map[string]northbound.Connector{"cloud": c})
		stop := r.run("cloud")
		synctest.Wait()
		for i := range 3 {
			if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "quiet/bed-1/x", Payload: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stop()
		if err := r.Bridge.Close(); err != nil {
			t.Fatal(err)
		}
		r.reopen()
		r.use(map[string]northbound.Connector{"cloud": c})
		defer r.run("cloud")()
		var told []msg.Message
		r.field.connect("bed-1", answers(msg.Reply{Status: msg.Done}, &told))
		r.Awake("bed-1")
		synctest.Wait()
		if len(told) != 3 || string(told[0].Payload) != "0" || string(told[2].Payload) != "2" {
			t.Errorf("got %v", told)
		}
	})
}

func TestACommandInAMailboxExpiresWithAReply(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/bed-1/setpoint", Payload: []byte("1")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Minute)
		if len(c.all()) != 0 {
			t.Errorf("got %+v", c.all())
		}
		time.Sleep(time.Minute + 2*time.Second)
		synctest.Wait()
		if len(c.all()) != 1 || c.all()[0].Properties["code"] != "expired" || c.all()[0].Topic != "cmd/gw/bed-1/setpoint/reply" {
			t.Errorf("got %+v", c.all())
		}
		if got := r.Snapshot().Mailboxes; len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
}

func TestACommandThatIsDeniedMeanwhileIsNotDelivered(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/bed-1/setpoint"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it has been looked for once more
		var told []msg.Message
		r.field.connect("bed-1", answers(msg.Reply{Status: msg.Done}, &told))
		r.Swap(Setup{Table: r.table(standard()), Listeners: map[string]southbound.Listener{"field": r.field}, Connectors: map[string]northbound.Connector{"cloud": c},
			Policy: rules{command: func(string, string, []string, string) bool { return false }}})
		r.Awake("bed-1")
		synctest.Wait()
		if len(told) != 0 || len(c.all()) != 1 || c.all()[0].Properties["code"] != "denied" {
			t.Errorf("told %v, replied %+v", told, c.all())
		}
	})
}

func TestADeviceThatFallsAsleepAgainKeepsItsMail(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		for i := range 4 {
			if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "quiet/bed-1/x", Payload: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // it has been looked for once more
		var told []string
		r.field.connect("bed-1", func(ctx context.Context, m msg.Message) (msg.Reply, error) {
			if len(told)%2 == 1 { // after each command it sleeps until it is woken again
				told = append(told, "-")
				return msg.Reply{}, southbound.ErrNotHere
			}
			told = append(told, string(m.Payload))
			return msg.Reply{Status: msg.Done}, nil
		})
		for range 4 {
			r.Awake("bed-1")
			synctest.Wait()
		}
		if got := strings.Join(told, ""); got != "0-1-2-3" {
			t.Errorf("got %s", got)
		}
	})
}

func TestMailboxesAreBounded(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var last msg.Reply
		for range maxMailDevice + 1 {
			var err error
			if last, err = c.down.Deliver(t.Context(), msg.Publication{Topic: "quiet/bed-1/x", Payload: []byte("1")}); err != nil {
				t.Fatal(err)
			}
		}
		if last.Status != msg.Refused || last.Code != "mailbox-full" {
			t.Errorf("got %+v", last)
		}
		if got := r.Snapshot().Mailboxes["bed-1"]; got != maxMailDevice {
			t.Errorf("%d wait", got)
		}
	})
}

func TestAReplyThatFindsNoRoomIsCounted(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done}, &told))
		r.queue.setFail(spool.ErrFull)
		reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/th-17/setpoint"})
		if err != nil || reply.Status != msg.Done || len(told) != 1 {
			t.Errorf("got %+v, %v", reply, err)
		}
		time.Sleep(2 * time.Second)
		if got := r.problems(); r.Snapshot().RepliesLost != 1 || !slices.Contains(got, "replies-lost") || !slices.Contains(got, "spool-full") {
			t.Errorf("problems: %v", got)
		}
		r.queue.setFail(nil)
		time.Sleep(2 * time.Second)
		if got := r.problems(); len(got) != 0 {
			t.Errorf("problems: %v", got)
		}
	})
}
