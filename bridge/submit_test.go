package bridge

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

func TestWhatAReportIsAnswered(t *testing.T) {
	r := newRig(t)
	small := &cloud{limits: northbound.Limits{Payload: 10, TopicLevels: 3}}
	r.Swap(Setup{
		Table:      r.table(standard()),
		Policy:     rules{report: func(device, resource string) bool { return device != "stranger" }},
		Connectors: map[string]northbound.Connector{"cloud": &cloud{}, "plant": small},
	})
	for name, c := range map[string]struct {
		device, resource, payload string
		fail                      error
		want                      msg.Reason
		why                       string
	}{
		"taken":                        {"th-17", "/sensors/temp", "21.5", nil, 0, ""},
		"denied":                       {"stranger", "/sensors/temp", "1", nil, msg.Denied, `no rule allows "stranger"`},
		"no route":                     {"th-17", "/other", "1", nil, msg.NoRoute, `no uplink takes "/other"`},
		"no resource":                  {"th-17", "sensors/temp", "1", nil, msg.NoRoute, ""},
		"too deep a resource":          {"th-17", strings.Repeat("/x", 100), "1", nil, msg.NoRoute, ""},
		"a wildcard in a capture":      {"th-17", "/sensors/#", "1", nil, msg.Unprocessable, `{kind} is "#"`},
		"a slash in the device's name": {"a/b", "/sensors/temp", "1", nil, msg.Unprocessable, `{device} is "a/b"`},
		"a control in a capture":       {"th-17", "/sensors/a\x00", "1", nil, msg.Unprocessable, "{kind}"},
		"too large for one connector":  {"th-17", "/both/x", "12345678901", nil, msg.TooLarge, `connector "plant" takes 10`},
		"just not too large":           {"th-17", "/both/x", "1234567890", nil, 0, ""},
		"a payload that is not JSON":   {"th-17", "/picked", "{", nil, msg.BadPayload, "ends too early"},
		"full":                         {"th-17", "/sensors/temp", "1", spool.ErrFull, msg.Full, ""},
		"stopping":                     {"th-17", "/sensors/temp", "1", spool.ErrClosed, msg.Unavailable, ""},
		"a failing disk":               {"th-17", "/sensors/temp", "1", spool.ErrAmbiguous, msg.Unavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.queue.setFail(c.fail)
			defer r.queue.setFail(nil)
			err := r.report(c.device, c.resource, c.payload)
			if msg.ReasonOf(err) != c.want || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("got %v, want %v %q", err, c.want, c.why)
			}
			if refusal, ok := errors.AsType[*msg.Refusal](err); c.want == msg.Full && (!ok || refusal.RetryAfter <= 0) {
				t.Errorf("%v does not say when to try again", err)
			}
		})
	}
	if got := r.Snapshot().Refused["unprocessable"]; got != 3 {
		t.Errorf("%d refusals counted as unprocessable, want 3", got)
	}
}

func TestWithoutASetupEverythingIsRefused(t *testing.T) {
	r := newRig(t)
	if err := r.report("th-17", "/sensors/temp", "1"); msg.ReasonOf(err) != msg.Denied {
		t.Errorf("got %v", err)
	}
}

func TestWhatGoesIntoTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.use(nil)
		start := time.Now()
		m := msg.Message{ID: msg.NewID(start), Device: "th-17", Resource: "/both/x", Type: "text/plain", Payload: []byte("abc"), Expires: start.Add(time.Hour)}
		r.Submit(&m, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		copy(m.Payload, "xyz") // it is the caller's again
		if err := r.report("th-17", "/brief", "b"); err != nil {
			t.Fatal(err)
		}
		if err := r.report("th-17", "/alarm", "a"); err != nil {
			t.Fatal(err)
		}
		list, err := r.queue.reader("cloud").Read(t.Context(), spool.Low, 10, 1<<20)
		if err != nil || len(list) != 3 {
			t.Fatal(list, err)
		}
		var dec decoder
		var got []msg.Publication
		for i := range list {
			p, err := dec.publication(&list[i])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p)
		}
		if got[0].Topic != "alarm" || list[0].Pos.Class != spool.High {
			t.Errorf("the alarm does not come first: %+v", got[0])
		}
		p := got[1]
		if p.ID != m.ID || p.Device != "th-17" || p.Topic != "dt/th-17/x" || p.Type != "text/plain" || string(p.Payload) != "abc" || p.QoS != 1 ||
			p.Route != "both" || !p.Expires.Equal(start.Add(time.Hour)) || p.Properties != nil {
			t.Errorf("got %+v", p)
		}
		if p := got[2]; !p.Expires.Equal(start.Add(time.Minute)) || p.ID == (msg.ID{}) {
			t.Errorf("got %+v", p)
		}
	})
}

func TestAReportThatTheExpressionLeavesOutIsAnsweredYesAndCounted(t *testing.T) {
	r := newRig(t)
	r.use(nil)
	if err := r.report("th-17", "/picked", `{"v":1}`); err != nil {
		t.Fatal(err)
	}
	if s := r.Snapshot(); s.Filtered != 1 || s.Accepted != 0 || len(s.Ledger) != 0 {
		t.Errorf("got %+v", s)
	}
	if err := r.report("th-17", "/picked", `{"v":2}`); err != nil {
		t.Fatal(err)
	}
	if s := r.Snapshot(); s.Filtered != 1 || s.Accepted != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestASwapForgetsWhatWasAllowed(t *testing.T) {
	r := newRig(t)
	r.use(nil)
	if err := r.report("th-17", "/sensors/temp", "1"); err != nil {
		t.Fatal(err)
	}
	r.Swap(Setup{Table: r.table(standard()), Policy: rules{report: func(string, string) bool { return false }}})
	if err := r.report("th-17", "/sensors/temp", "1"); msg.ReasonOf(err) != msg.Denied {
		t.Errorf("got %v", err)
	}
}

func TestTheSameDeviceWithOtherGroupsIsLookedAtAnew(t *testing.T) {
	r := newRig(t)
	cfg := &config.Config{Uplinks: []*config.Uplink{{Name: "g", Resource: "/r", Topic: "t", Groups: []string{"in"}, To: []string{"cloud"}}}}
	r.Swap(Setup{Table: r.table(cfg), Policy: rules{}})
	for _, c := range []struct {
		groups []string
		want   msg.Reason
	}{{nil, msg.NoRoute}, {[]string{"in"}, 0}, {[]string{"out"}, msg.NoRoute}, {[]string{"in", "out"}, 0}} {
		r.Submit(&msg.Message{Device: "d", Groups: c.groups, Resource: "/r"}, func(err error) {
			if msg.ReasonOf(err) != c.want {
				t.Errorf("%v: got %v, want %v", c.groups, err, c.want)
			}
		})
	}
}

func TestADeviceThatMakesUpResourcesCostsLittleMemory(t *testing.T) {
	r := newRig(t)
	r.use(nil)
	held := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := held()
	for i := range 20_000 {
		r.Submit(&msg.Message{Device: "d", Resource: fmt.Sprint("/made/up/", i, strings.Repeat("x", i*i%5000))}, func(error) {})
	}
	if grown := held() - before; int64(grown) > 40<<20 {
		t.Errorf("%d MiB are remembered", grown>>20)
	}
	runtime.KeepAlive(r)
}

func TestSubmitAndSwapFromManyGoroutines(t *testing.T) {
	r := newRig(t)
	r.use(nil)
	var answered atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				m := msg.Message{Device: string(rune('a' + g)), Resource: "/sensors/" + string(rune('a'+i%7)), Payload: []byte{byte(g)}}
				r.Submit(&m, func(error) { answered.Add(1) })
			}
		})
	}
	for range 50 {
		r.use(nil)
	}
	wg.Wait()
	if n := answered.Load(); n != 8*500 {
		t.Errorf("%d answers for %d reports", n, 8*500)
	}
	// What was appended is what was said: no job was used twice at a time.
	list, _ := r.queue.reader("cloud").Read(t.Context(), spool.Low, 5000, 1<<30)
	var dec decoder
	for i := range list {
		p, err := dec.publication(&list[i])
		if err != nil || p.Device != string(rune('a'+p.Payload[0])) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
}

func TestAckByTheCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, p := &cloud{}, &cloud{}
		r.use(map[string]northbound.Connector{"cloud": a, "plant": p})
		stop := r.run("cloud", "plant")
		defer stop()
		answer := func() (chan error, *msg.Message) {
			c := make(chan error, 2)
			m := &msg.Message{ID: msg.NewID(time.Now()), Device: "th-17", Resource: "/sure", Payload: []byte("x")}
			r.Submit(m, func(err error) { c <- err })
			synctest.Wait()
			return c, m
		}

		c, _ := answer()
		if err := <-c; err != nil {
			t.Errorf("both took it: %v", err)
		}

		p.set(func(c *cloud) { c.hold = true })
		c, _ = answer()
		if len(c) > 0 {
			t.Errorf("answered %v before plant has confirmed", <-c)
		}
		time.Sleep(10 * time.Second)
		p.release()
		synctest.Wait()
		if err := <-c; err != nil {
			t.Error(err)
		}

		c, _ = answer()
		time.Sleep(32 * time.Second)
		if err := <-c; msg.ReasonOf(err) != msg.Unconfirmed || !strings.Contains(err.Error(), "plant") {
			t.Errorf("after the time: %v", err)
		}
		p.release() // it may still arrive, and is counted
		synctest.Wait()
		if len(c) > 0 {
			t.Error("answered twice")
		}

		p.set(func(c *cloud) {
			c.hold = false
			c.take = func(msg.Publication) error { return msg.Permanent(errors.New("not authorized")) }
		})
		c, _ = answer()
		if err := <-c; msg.ReasonOf(err) != msg.Unprocessable {
			t.Errorf("refused for good: %v", err)
		}

		r.queue.setFail(spool.ErrFull)
		c, _ = answer()
		if err := <-c; msg.ReasonOf(err) != msg.Full {
			t.Errorf("full: %v", err)
		}
		r.queue.setFail(nil)
		if n := r.Snapshot().Unconfirmed; n != 0 {
			t.Errorf("%d are still waiting", n)
		}
	})
}

func TestWhoWaitsForACloudWhenTheBridgeClosesIsTold(t *testing.T) {
	r := newRig(t)
	r.use(nil)
	var got error
	r.Submit(&msg.Message{Device: "th-17", Resource: "/sure"}, func(err error) { got = err })
	r.waiting.closeAll()
	if msg.ReasonOf(got) != msg.Unconfirmed {
		t.Errorf("got %v", got)
	}
	if err := r.report("th-17", "/sure", ""); msg.ReasonOf(err) != msg.Unavailable {
		t.Errorf("got %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(appendRecord(nil, &msg.Publication{Device: "d", Topic: "t", Type: "x", QoS: 1, Payload: []byte("p")}, true))
	f.Add(appendRecord(nil, &msg.Publication{Topic: "t", Properties: map[string]string{"a": "b"}, ResponseTopic: "r", Correlation: []byte{1}}, false))
	f.Fuzz(func(t *testing.T, data []byte) {
		var dec decoder
		e := spool.Entry{Data: data}
		p, err := dec.publication(&e)
		if err != nil || data[1]&flagEnvelope != 0 {
			return
		}
		again, err := dec.publication(&spool.Entry{Data: appendRecord(nil, &p, false)})
		if err != nil || again.Topic != p.Topic || again.Device != p.Device || again.Retain != p.Retain || again.QoS != p.QoS ||
			!slices.Equal(again.Payload, p.Payload) || !slices.Equal(again.Correlation, p.Correlation) {
			t.Fatalf("%+v became %+v (%v)", p, again, err)
		}
	})
}

// null is a queue that takes everything and keeps nothing.
type null struct{ *memory }

func (null) Append(_ spool.Class, _ *spool.Record, done func(spool.Pos, error)) {
	done(spool.Pos{}, nil)
}

func BenchmarkSubmit(b *testing.B) {
	for name, transform := range map[string]string{"plain": "", "senml": "senml-json"} {
		b.Run(name, func(b *testing.B) {
			cfg := standard()
			cfg.Uplinks[0].Transform = transform
			table, err := Compile(cfg)
			if err != nil {
				b.Fatal(err)
			}
			br, err := open(Options{Dir: b.TempDir(), Now: time.Now}, null{newMemory(b)})
			if err != nil {
				b.Fatal(err)
			}
			br.Swap(Setup{Table: table, Policy: rules{}})
			var devices []string
			for i := range 256 {
				devices = append(devices, "device-"+time.Duration(i).String())
			}
			payload := []byte(`[{"bn":"urn:dev:ow:1:","n":"temp","u":"Cel","v":23.1}]`)
			done := func(error) {}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				m := msg.Message{Device: devices[i&255], Groups: []string{"thermostat"}, Resource: "/sensors/temp", Method: "POST", Payload: payload}
				br.Submit(&m, done)
				i++
			}
		})
	}
}
