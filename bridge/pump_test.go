package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// pumped runs f with a rig whose connector "cloud" is c and is being run.
func pumped(t *testing.T, c *cloud, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.use(map[string]northbound.Connector{"cloud": c})
		stop := r.run("cloud")
		defer stop()
		synctest.Wait()
		f(t, r)
	})
}

// reports submits numbered reports of one device.
func (r *rig) reports(from, to int) {
	r.t.Helper()
	for i := from; i < to; i++ {
		if err := r.report("th-17", "/sensors/n", fmt.Sprint(i)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func numbers(from, to int) (list []string) {
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprint(i))
	}
	return list
}

func (r *rig) line(route string) spool.Tally {
	for _, l := range r.queue.Ledger() {
		if l.Route == route {
			return l
		}
	}
	return spool.Tally{}
}

func TestTheBacklogOfACloudThatWasAwayArrivesInOrder(t *testing.T) {
	c := &cloud{dial: errors.New("connection refused")}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 2000)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := r.problems(); !slices.Contains(got, "cloud-unreachable") {
			t.Errorf("problems: %v", got)
		}
		c.set(func(c *cloud) {
			if c.dials < 12 || c.dials > 30 {
				t.Errorf("dialled %d times in an hour", c.dials)
			}
			c.dial = nil
		})
		time.Sleep(lastPause)
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, numbers(0, 2000)) {
			t.Errorf("got %d, out of order or incomplete", len(got))
		}
		if got := r.problems(); len(got) > 0 {
			t.Errorf("problems: %v", got)
		}
		if l := r.line("sensors"); l.Delivered != 2000 || l.Pending != 0 {
			t.Errorf("got %+v", l)
		}
	})
}

func TestALoginThatIsRefusedIsTriedSlowly(t *testing.T) {
	c := &cloud{dial: msg.Permanent(errors.New("bad credentials"))}
	pumped(t, c, func(t *testing.T, r *rig) {
		time.Sleep(time.Hour)
		synctest.Wait()
		c.set(func(c *cloud) {
			if c.dials > 25 {
				t.Errorf("dialled %d times in an hour", c.dials)
			}
			c.dial = nil
		})
		if got := r.problems(); !slices.Equal(got, []string{"cloud-refuses-login"}) {
			t.Errorf("problems: %v", got)
		}
		r.Resume("cloud") // an operator who has mended it does not wait
		synctest.Wait()
		if got := r.problems(); len(got) > 0 {
			t.Errorf("problems: %v", got)
		}
	})
}

func TestASessionThatBreaksIsRepeatedInOrder(t *testing.T) {
	n := 0
	c := &cloud{breaks: func(msg.Publication) bool { n++; return n%7 == 0 }}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 100)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, numbers(0, 100)) {
			t.Errorf("got %v", got)
		}
	})
}

func TestWhatIsRefusedForGoodBecomesADeadLetterAndTheRestArrives(t *testing.T) {
	c := &cloud{take: func(p msg.Publication) error {
		if string(p.Payload) == "3" {
			return msg.Permanent(errors.New("topic not allowed"))
		}
		return nil
	}}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 6)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, []string{"0", "1", "2", "4", "5"}) {
			t.Errorf("got %v", got)
		}
		if l := r.line("sensors"); l.Delivered != 5 || l.Dead != 1 || l.Pending != 0 {
			t.Errorf("got %+v", l)
		}
		list, err := r.DeadLetters("cloud", "", 10)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if l := list[0]; l.Reason != "topic not allowed" || l.Topic != "dt/gw/th-17/n" || l.Device != "th-17" || l.Size != 1 || l.Route != "sensors" {
			t.Errorf("got %+v", l)
		}
		if got := r.problems(); !slices.Contains(got, "dead-letters") {
			t.Errorf("problems: %v", got)
		}

		c.set(func(c *cloud) { c.take = nil })
		if n, err := r.Replay(t.Context(), "cloud", list[0].ID); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		if got := c.payloads(); got[len(got)-1] != "3" {
			t.Errorf("got %v", got)
		}
		if list, _ := r.DeadLetters("cloud", "", 10); len(list) != 0 {
			t.Errorf("got %+v", list)
		}
		time.Sleep(2 * time.Second)
		if got := r.problems(); len(got) > 0 {
			t.Errorf("problems: %v", got)
		}
	})
}

func TestExpiryAndLimitsBeforeSending(t *testing.T) {
	c := &cloud{dial: errors.New("away")}
	pumped(t, c, func(t *testing.T, r *rig) {
		if err := r.report("th-17", "/brief", "late"); err != nil {
			t.Fatal(err)
		}
		r.reports(0, 1)
		if err := r.report("th-17", "/sensors/n", "too long"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		// The limits are those of the connector at the time of sending.
		c.set(func(c *cloud) { c.dial, c.limits = nil, northbound.Limits{Payload: 4} })
		r.use(map[string]northbound.Connector{"cloud": c})
		time.Sleep(lastPause)
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, []string{"0"}) {
			t.Errorf("got %v", got)
		}
		if l := r.line("brief"); l.Expired != 1 {
			t.Errorf("got %+v", l)
		}
		if l := r.line("sensors"); l.Dead != 1 || l.Delivered != 1 {
			t.Errorf("got %+v", l)
		}
	})
}

func TestThePlatformsWindowAndRateAreKept(t *testing.T) {
	c := &cloud{limits: northbound.Limits{Window: 10}, hold: true}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 100)
		for range 30 {
			synctest.Wait()
			c.release()
		}
		synctest.Wait()
		if c.most > 10 || len(c.payloads()) != 100 {
			t.Errorf("%d in flight, %d delivered", c.most, len(c.payloads()))
		}
	})
	c = &cloud{limits: northbound.Limits{Rate: 50}, dial: errors.New("away")}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 500)
		c.set(func(c *cloud) { c.dial = nil })
		r.Resume("cloud")
		time.Sleep(5 * time.Second)
		if n := len(c.payloads()); n < 240 || n > 260 {
			t.Errorf("%d in 5 s at 50/s", n)
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	c := &cloud{}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 3)
		synctest.Wait()
		r.Pause("cloud")
		synctest.Wait()
		r.reports(3, 6)
		time.Sleep(time.Hour)
		if got := c.payloads(); len(got) != 3 {
			t.Errorf("got %v while paused", got)
		}
		if s := r.Snapshot().Connectors[0]; s.State != StatePaused || s.Pending != 3 {
			t.Errorf("got %+v", s)
		}
		if got := r.problems(); !slices.Equal(got, []string{"connector-paused"}) {
			t.Errorf("problems: %v", got)
		}
		r.Resume("cloud")
		synctest.Wait()
		if got := c.payloads(); !slices.Equal(got, numbers(0, 6)) {
			t.Errorf("got %v", got)
		}
		if s := r.Snapshot().Connectors[0]; s.State != StateConnected || s.Sessions != 2 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestNewSubscriptionsMakeANewSession(t *testing.T) {
	c := &cloud{}
	pumped(t, c, func(t *testing.T, r *rig) {
		if want := []string{"cmd/gw/+/setpoint", "quiet/+/+"}; !slices.Equal(c.topics, want) {
			t.Errorf("got %q", c.topics)
		}
		r.use(map[string]northbound.Connector{"cloud": c})
		synctest.Wait()
		if c.dials != 1 {
			t.Errorf("dialled %d times though nothing changed", c.dials)
		}
		cfg := standard()
		cfg.Downlinks = cfg.Downlinks[:1]
		r.Swap(Setup{Table: r.table(cfg), Policy: rules{}, Connectors: map[string]northbound.Connector{"cloud": c}})
		synctest.Wait()
		if c.dials != 2 || len(c.topics) != 1 {
			t.Errorf("dialled %d times, topics %q", c.dials, c.topics)
		}
	})
}

func TestASessionThatIsRenewedIsDialledAgainAtOnceAndIsNoProblem(t *testing.T) {
	c := &cloud{}
	pumped(t, c, func(t *testing.T, r *rig) {
		time.Sleep(time.Hour)
		c.session.cancel(northbound.ErrRenew)
		synctest.Wait()
		if c.dials != 2 {
			t.Errorf("dialled %d times", c.dials)
		}
		for range 10 { // it ends at once, again and again
			c.session.cancel(northbound.ErrRenew)
			synctest.Wait()
		}
		if c.dials != 2 {
			t.Errorf("dialled %d times without a pause", c.dials)
		}
		if got := r.problems(); len(got) != 0 {
			t.Errorf("problems: %v", got)
		}
	})
}

func TestConfirmationsThatComeAfterTheSessionCountNoMore(t *testing.T) {
	c := &cloud{hold: true}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 5)
		synctest.Wait()
		if s := r.Snapshot().Connectors[0]; s.InFlight != 5 || s.Latency != 0 {
			t.Errorf("got %+v", s)
		}
		c.session.cancel(errors.New("reset"))
		synctest.Wait()
		c.release() // of the session that is over
		if s := r.Snapshot().Connectors[0]; s.State != StateWaiting || s.InFlight != 0 || s.LastError != "reset" || s.LastFault.IsZero() {
			t.Errorf("got %+v", s)
		}
		if l := r.line("sensors"); l.Delivered != 0 || l.Pending != 5 {
			t.Errorf("got %+v", l)
		}
		c.set(func(c *cloud) { c.hold = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		if l := r.line("sensors"); l.Delivered != 5 {
			t.Errorf("got %+v", l)
		}
	})
}

func TestEnvelopeOfProperties(t *testing.T) {
	c := &cloud{}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		cfg := &config.Config{Uplinks: []*config.Uplink{{Name: "p", Resource: "/p", Topic: "p", To: []string{"cloud"}, Properties: true, QoS: 1, Retain: true}}}
		r.Swap(Setup{Table: r.table(cfg), Policy: rules{}, Connectors: map[string]northbound.Connector{"cloud": c}})
		defer r.run("cloud")()
		if err := r.report("th-17", "/p", "x"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p := c.all()[0]
		if p.Properties["id"] != p.ID.String() || p.Properties["device"] != "th-17" || p.Properties["time"] != time.Now().UTC().Format("2006-01-02T15:04:05.000Z") || !p.Retain {
			t.Errorf("got %+v", p)
		}
	})
}

// Whatever a cloud does, every report ends in exactly one place, and what was confirmed is what the ledger says.
func TestTheLedgerUnderRandomFailures(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random, whim := rand.New(rand.NewPCG(seed, 2)), rand.New(rand.NewPCG(seed, 3)) // whim is the cloud's, used under its lock
			c := &cloud{
				take: func(p msg.Publication) error {
					switch n := whim.IntN(100); {
					case n < 3:
						return msg.Permanent(errors.New("no"))
					case n < 5:
						return errors.New("not now")
					case n < 6:
						return errSilence
					}
					return nil
				},
				breaks: func(msg.Publication) bool { return whim.IntN(100) < 2 },
			}
			pumped(t, c, func(t *testing.T, r *rig) {
				for i := range 300 {
					resource := [...]string{"/sensors/n", "/brief", "/alarm"}[random.IntN(3)]
					if err := r.report("th-17", resource, fmt.Sprint(i)); err != nil {
						t.Fatal(err)
					}
					switch random.IntN(20) {
					case 0:
						time.Sleep(time.Duration(random.IntN(120)) * time.Second)
					case 1:
						c.set(func(c *cloud) {
							c.dial = [...]error{nil, errors.New("away"), msg.Permanent(errors.New("who"))}[random.IntN(3)]
						})
					case 2:
						r.Pause("cloud")
						r.Resume("cloud")
					}
				}
				c.set(func(c *cloud) { c.dial, c.take, c.breaks = nil, nil, nil })
				time.Sleep(time.Hour)
				synctest.Wait()
				delivered, dead, seen := 0, 0, map[string]int{}
				for _, p := range c.payloads() {
					seen[p]++
				}
				for _, l := range r.queue.Ledger() {
					if l.Pending != 0 {
						t.Errorf("still pending: %+v", l)
					}
					delivered += int(l.Delivered)
					dead += int(l.Dead)
				}
				if len(seen) < delivered {
					t.Errorf("%d delivered by the ledger, %d different ones arrived", delivered, len(seen))
				}
				if list, _ := r.DeadLetters("cloud", "", 1000); len(list) != dead {
					t.Errorf("%d dead by the ledger, %d letters", dead, len(list))
				}
			})
		})
	}
}

func TestRunConnectorThatIsNotThere(t *testing.T) {
	r := newRig(t)
	if err := r.RunConnector(context.WithoutCancel(t.Context()), "x", stillness{}); err == nil {
		t.Error("no error")
	}
}

// clock is a Beat that remembers what was said last.
type clock struct {
	mu     sync.Mutex
	within time.Duration // 0: waiting
}

func (c *clock) Progress(d time.Duration) { c.mu.Lock(); c.within = d; c.mu.Unlock() }
func (c *clock) Waiting()                 { c.Progress(0) }

func (c *clock) promised() time.Duration { c.mu.Lock(); defer c.mu.Unlock(); return c.within }

// stuckCloud has sessions that do not end when they are told to.
type stuckCloud struct {
	*cloud
	free chan struct{}
}

func (s stuckCloud) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	session, err := s.cloud.Dial(ctx, down)
	return stuckSession{session, s.free}, err
}

type stuckSession struct {
	northbound.Session
	free chan struct{}
}

func (s stuckSession) Close() error { <-s.free; return s.Session.Close() }

func TestTheWatchdogSeesASessionThatDoesNotEndAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c, beat := newRig(t), stuckCloud{&cloud{}, make(chan struct{})}, &clock{}
		r.use(map[string]northbound.Connector{"cloud": c})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.RunConnector(ctx, "cloud", beat) }()
		synctest.Wait()
		c.set(func(c *cloud) { c.hold = true })
		r.reports(0, 5)
		time.Sleep(time.Minute)
		if d := beat.promised(); d != 0 {
			t.Errorf("a cloud that is slow is a known wait, not a promise to move within %v", d)
		}
		time.Sleep(2 * stallTime) // it confirms nothing, so the session is told to end, and does not
		if d := beat.promised(); d == 0 {
			t.Error("nobody would notice")
		}
		close(c.free)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
