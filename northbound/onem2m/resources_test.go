package onem2m_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// eachWith is each with a configuration of its own.
func eachWith(t *testing.T, change func(*northbound.Env, *onem2m.Config), f func(t *testing.T, c *northtest.CSE, conn northbound.Connector)) {
	for name, b := range bindings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			conn, _ := connector(t, c, b.serve(c), func(e *northbound.Env, cfg *onem2m.Config) {
				if b.change != nil {
					b.change(t, cfg)
				}
				change(e, cfg)
			})
			f(t, c, conn)
		})
	}
}

func TestFlexContainers(t *testing.T) {
	eachWith(t, func(_ *northbound.Env, cfg *onem2m.Config) {
		cfg.Labels = []string{"plant7"}
		cfg.Flex = []*onem2m.Flex{{Topic: "dt/+/light", Type: "cod:color", CND: "org.onem2m.common.moduleclass.colour"}}
	}, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		s := northtest.Dial(t, conn, &northtest.Downlink{})
		light := func(payloads ...string) []msg.Publication {
			list := publications("x", len(payloads))
			for i, p := range payloads {
				list[i].Topic, list[i].Payload = "dt/th-17/light", []byte(p)
			}
			return list
		}
		batch := light(`{"red":1,"green":2}`, `{"red":3}`)
		errs, ended := outcome(t, s, batch)
		clean(t, errs, ended)
		errs, ended = outcome(t, s, batch) // said again
		clean(t, errs, ended)
		a := c.Attributes("cse-in/gw1/dt/th-17/light")
		if fmt.Sprintln(a["red"], a["green"], a["cnd"], a["lbl"], a["ty"]) != "3 2 org.onem2m.common.moduleclass.colour [plant7] 28\n" {
			t.Errorf("flexContainer: %v", a)
		}
		errs, ended = outcome(t, s, light(`[1]`, `{"ri":"mine"}`, `{"a b":1}`, `{}`))
		for _, err := range errs {
			if !msg.IsPermanent(err) || ended != nil {
				t.Errorf("error %v, ended %v", err, ended)
			}
		}
		c.Remove("cse-in/gw1/dt/th-17")
		errs, ended = outcome(t, s, light(`{"red":4}`))
		clean(t, errs, ended)
		if a := c.Attributes("cse-in/gw1/dt/th-17/light"); a["red"] != 4.0 {
			t.Errorf("flexContainer made again: %v", a)
		}
		// Another session finds it there.
		s.Close()
		errs, ended = outcome(t, northtest.Dial(t, conn, &northtest.Downlink{}), light(`{"red":5}`))
		clean(t, errs, ended)
		if a := c.Attributes("cse-in/gw1/dt/th-17/light"); a["red"] != 5.0 {
			t.Errorf("flexContainer of another session: %v", a)
		}
	})
}

func TestDeviceGroupsBecomeGroups(t *testing.T) {
	eachWith(t, func(e *northbound.Env, cfg *onem2m.Config) {
		cfg.PerDev, cfg.Groups = true, []string{"thermostat", "meter"}
		e.Groups = func(device string) []string {
			if strings.HasPrefix(device, "th-") {
				return []string{"all", "thermostat"}
			}
			return nil
		}
	}, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		d := &northtest.Downlink{Filters: []string{"+/cmd/set"}}
		s := northtest.Dial(t, conn, d)
		batch := publications("a", 3)
		batch[1].Device, batch[2].Device = "th-18", "press-1"
		errs, ended := outcome(t, s, batch)
		clean(t, errs, ended)
		want := "[/id-in/cse-in/th-17 /id-in/cse-in/th-18]"
		if g := c.Attributes("cse-in/gw1/thermostat"); g == nil || fmt.Sprint(g["mid"]) != want || g["mt"] != 2.0 {
			t.Errorf("group: %v", g)
		}
		if c.Has("cse-in/gw1/meter") || c.Has("cse-in/gw1/all") {
			t.Error("a group without members, or one that nobody asked for")
		}
		for _, name := range []string{"th-17", "th-18"} {
			northtest.Await(t, "the container of commands", func() bool { return c.Has("cse-in/" + name + "/cmd/set/drawbridge") })
		}
		c.PutToGroup("gw1/thermostat", "cmd/set", map[string]any{"con": "21"})
		northtest.Await(t, "a command for each member", func() bool { return len(d.Got()) == 2 })

		c.Reset() // a restart with an empty store
		if _, ended := outcome(t, s, publications("b", 1)); ended == nil {
			t.Fatal("the session did not end")
		}
		s.Close()
		northtest.Dial(t, conn, d)
		if g := c.Attributes("cse-in/gw1/thermostat"); g == nil || fmt.Sprint(g["mid"]) != want {
			t.Errorf("group made again: %v", g)
		}
	})
}

func TestNonBlockingRequests(t *testing.T) {
	for _, kind := range []string{"synch", "asynch"} {
		t.Run(kind, func(t *testing.T) {
			eachWith(t, func(_ *northbound.Env, cfg *onem2m.Config) { cfg.Response = kind }, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
				c.Delay(20 * time.Millisecond) // each result is only there after some looks
				c.Refuse("a-1")
				s := northtest.Dial(t, conn, &northtest.Downlink{})
				batch := publications("a", 3)
				for range 2 { // the second time two of them are there already
					errs, ended := outcome(t, s, batch)
					if ended != nil || errs[0] != nil || errs[2] != nil || !msg.IsPermanent(errs[1]) {
						t.Fatalf("ended %v, errors %v", ended, errs)
					}
				}
				c.Unwell(1)
				errs, ended := outcome(t, s, publications("b", 1))
				if ended != nil || errs[0] == nil || msg.IsPermanent(errs[0]) {
					t.Errorf("ended %v, errors %v", ended, errs)
				}
				if got := c.Received(); !slices.Equal(got, []string{"a-0", "a-2"}) {
					t.Errorf("received %q", got)
				}
				c.Quirks(northtest.CSEQuirks{Blocking: true})
				errs, ended = outcome(t, s, publications("c", 1))
				if ended != nil || !msg.IsPermanent(errs[0]) || !strings.Contains(errs[0].Error(), "5206") {
					t.Errorf("ended %v, errors %v", ended, errs)
				}
			})
		})
	}
}

func TestLimitsOfContainersAndLabels(t *testing.T) {
	t.Parallel()
	c := northtest.NewCSE(t)
	conn, _ := connector(t, c, c.ServeHTTP(), func(_ *northbound.Env, cfg *onem2m.Config) {
		cfg.MNI, cfg.MBS, cfg.MIA, cfg.Labels = 7, 4096, config.Duration(time.Minute), []string{"a", "b"}
	})
	errs, ended := outcome(t, northtest.Dial(t, conn, &northtest.Downlink{}), publications("a", 1))
	clean(t, errs, ended)
	if a := c.Attributes("cse-in/gw1/dt/th-17/temp"); fmt.Sprintln(a["mni"], a["mbs"], a["mia"], a["lbl"]) != "7 4096 60 [a b]\n" {
		t.Errorf("container: %v", a)
	}
	if a := c.Attributes("cse-in/gw1"); fmt.Sprintln(a["lbl"], a["api"], a["srv"]) != "[a b] Ndrawbridge [3]\n" {
		t.Errorf("AE: %v", a)
	}
}
