package bridge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

func TestAMessageThatEndsEverySessionIsFoundAndPutAside(t *testing.T) {
	for name, c := range map[string]*cloud{
		"the broker hangs up": {breaks: func(p msg.Publication) bool { return string(p.Payload) == "40" }},
		"the cloud says not now": {take: func(p msg.Publication) error {
			return map[bool]error{true: errors.New("try later")}[string(p.Payload) == "40"]
		}},
		"the cloud says nothing": {take: func(p msg.Publication) error { return map[bool]error{true: errSilence}[string(p.Payload) == "40"] }},
	} {
		t.Run(name, func(t *testing.T) {
			pumped(t, c, func(t *testing.T, r *rig) {
				r.reports(0, 100)
				time.Sleep(3 * time.Hour)
				// Where only it is left, there is nothing to compare it with, and it is kept until there is.
				r.reports(100, 110)
				time.Sleep(time.Hour)
				synctest.Wait()
				if l := r.line("sensors"); l.Delivered != 109 || l.Dead != 1 || l.Pending != 0 {
					t.Errorf("got %+v", l)
				}
				list, err := r.DeadLetters("cloud", "", 10)
				if err != nil || len(list) != 1 || !strings.Contains(list[0].Reason, "but took those behind it") {
					t.Errorf("got %+v, %v", list, err)
				}
			})
		})
	}
}

func TestACloudThatTakesNothingForHoursLosesNothing(t *testing.T) {
	for name, c := range map[string]*cloud{
		"it hangs up":     {breaks: func(msg.Publication) bool { return true }},
		"it says not now": {take: func(msg.Publication) error { return errors.New("busy") }},
		"it says nothing": {take: func(msg.Publication) error { return errSilence }},
	} {
		t.Run(name, func(t *testing.T) {
			pumped(t, c, func(t *testing.T, r *rig) {
				r.reports(0, 50)
				time.Sleep(6 * time.Hour)
				synctest.Wait()
				if l := r.line("sensors"); l.Pending != 50 {
					t.Errorf("got %+v", l)
				}
				c.set(func(c *cloud) { c.breaks, c.take = nil, nil })
				time.Sleep(2 * lastPause)
				synctest.Wait()
				if got := c.payloads(); !slices.Equal(got, numbers(0, 50)) {
					t.Errorf("got %v", got)
				}
				if got := r.problems(); len(got) > 0 {
					t.Errorf("problems: %v", got)
				}
			})
		})
	}
}

func TestACloudThatRefusesEverythingForGoodDoesNotEatTheQueue(t *testing.T) {
	c := &cloud{take: func(msg.Publication) error { return msg.Permanent(errors.New("not authorized")) }}
	pumped(t, c, func(t *testing.T, r *rig) {
		r.reports(0, 1500)
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		l := r.line("sensors")
		if l.Dead < maxDeadRun || l.Dead > 1000 {
			t.Errorf("got %+v", l)
		}
		if got := r.problems(); !slices.Contains(got, "cloud-refuses-all") {
			t.Errorf("problems: %v", got)
		}
		c.set(func(c *cloud) { c.take = nil })
		time.Sleep(2 * lastPause)
		if n, err := r.Replay(t.Context(), "cloud"); err != nil || n != int(r.line("sensors").Dead) {
			t.Errorf("replayed %d, %v", n, err)
		}
		time.Sleep(2 * lastPause)
		synctest.Wait()
		if got := r.problems(); len(got) != 0 || len(c.payloads()) != 1500 {
			t.Errorf("%d arrived, problems: %v", len(c.payloads()), got)
		}
	})
}

// A line that breaks at random is not the fault of any message: none is given up, and each device's arrive in order.
func TestALineThatKeepsBreakingCostsNeitherMessagesNorOrder(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			whim := rand.New(rand.NewPCG(seed, 4))
			c := &cloud{breaks: func(msg.Publication) bool { return whim.IntN(10) < 3 }}
			pumped(t, c, func(t *testing.T, r *rig) {
				for i := range 200 {
					if err := r.report(fmt.Sprint("d", i%5), "/sensors/n", fmt.Sprint(i)); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(6 * time.Hour)
				synctest.Wait()
				if l := r.line("sensors"); l.Delivered != 200 {
					t.Errorf("got %+v", l)
				}
				last := map[string]int{}
				for _, p := range c.all() {
					var n int
					fmt.Sscan(string(p.Payload), &n)
					if before, ok := last[p.Device]; ok && n <= before {
						t.Errorf("%s: %d after %d", p.Device, n, before)
					}
					last[p.Device] = n
				}
			})
		})
	}
}
