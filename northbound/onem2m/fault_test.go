package onem2m_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

func publications(prefix string, n int) []msg.Publication {
	list := make([]msg.Publication, n)
	for i := range list {
		now := time.Now()
		list[i] = msg.Publication{ID: msg.NewID(now), Time: now, Device: "th-17", Topic: "dt/th-17/temp", Payload: fmt.Appendf(nil, "%s-%d", prefix, i)}
	}
	return list
}

// outcome sends a batch and waits until all of it is done or the session has ended.
func outcome(t *testing.T, s northbound.Session, batch []msg.Publication) (errs []error, ended error) {
	t.Helper()
	o := northtest.NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		return nil, err
	}
	northtest.Await(t, "the outcome", func() bool {
		errs = errs[:0]
		for i := range batch {
			if n, err := o.Err(i); n > 0 {
				errs = append(errs, err)
			}
		}
		return len(errs) == len(batch) || s.Context().Err() != nil
	})
	if len(errs) < len(batch) {
		return nil, context.Cause(s.Context())
	}
	return errs, nil
}

// clean fails unless everything was taken.
func clean(t *testing.T, errs []error, ended error) {
	t.Helper()
	if err := errors.Join(append(errs, ended)...); err != nil {
		t.Fatal(err)
	}
}

// each runs a test on each binding.
func each(t *testing.T, f func(t *testing.T, c *northtest.CSE, conn northbound.Connector)) {
	eachWith(t, func(*northbound.Env, *onem2m.Config) {}, f)
}

func TestACSEThatHasLostEverythingGetsItAgain(t *testing.T) {
	each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		d := &northtest.Downlink{Filters: []string{"cmd/+/set"}}
		s := northtest.Dial(t, conn, d)
		errs, ended := outcome(t, s, publications("a", 3))
		clean(t, errs, ended)
		c.Reset()
		batch := publications("b", 3)
		if _, ended := outcome(t, s, batch); ended == nil || msg.IsPermanent(ended) {
			t.Fatalf("the session did not end, or for good: %v", ended)
		}
		s.Close()
		s = northtest.Dial(t, conn, d)
		errs, ended = outcome(t, s, batch)
		clean(t, errs, ended)
		c.Put("gw1/cmd/th-17/set", map[string]any{"con": "21"})
		northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
		if got := d.Got()[0]; got.Topic != "cmd/th-17/set" || string(got.Payload) != "21" {
			t.Errorf("got %+v", got)
		}
	})
}

func TestAContainerThatIsGoneIsMadeAgainWithinTheSession(t *testing.T) {
	each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		s := northtest.Dial(t, conn, &northtest.Downlink{})
		errs, ended := outcome(t, s, publications("a", 2))
		clean(t, errs, ended)
		c.Remove("cse-in/gw1/dt")
		errs, ended = outcome(t, s, publications("b", 2))
		clean(t, errs, ended)
	})
}

func TestACSEThatIsUnwellIsTriedAgainAndTakesEachOnce(t *testing.T) {
	each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		s := northtest.Dial(t, conn, &northtest.Downlink{})
		c.Unwell(2)
		batch := publications("a", 3)
		errs, ended := outcome(t, s, batch)
		if ended != nil || errs[0] == nil || errs[1] == nil || errs[2] != nil || msg.IsPermanent(errs[0]) {
			t.Fatalf("ended %v, errors %v", ended, errs)
		}
		for range 2 { // the second time everything is there already
			errs, ended = outcome(t, s, batch)
			clean(t, errs, ended)
		}
		got := c.Received()
		slices.Sort(got)
		if !slices.Equal(got, []string{"a-0", "a-1", "a-2"}) {
			t.Errorf("received %q", got)
		}
	})
}

func TestTheRegistrationIsRenewed(t *testing.T) {
	t.Parallel()
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	c := northtest.NewCSE(t)
	c.Clock(now)
	conn, _ := connector(t, c, c.ServeHTTP(), func(e *northbound.Env, cfg *onem2m.Config) {
		e.Now, cfg.Allow = now, []string{"Coperator"}
		cfg.Flex = []*onem2m.Flex{{Topic: "light", Type: "cod:color", CND: "org.onem2m.common.moduleclass.colour"}}
	})
	c.Quirks(northtest.CSEQuirks{MaxLife: 3 * time.Minute})
	d := &northtest.Downlink{Filters: []string{"cmd/#"}}
	s := northtest.Dial(t, conn, d)
	batch := publications("a", 2)
	batch[1].Topic, batch[1].Payload = "light", []byte(`{"red":1}`)
	errs, ended := outcome(t, s, batch)
	clean(t, errs, ended)
	for range 3 {
		clock.Add(int64(70 * time.Second))
		end := now().Add(3 * time.Minute).UTC().Format("20060102T150405")
		for _, path := range []string{
			"gw1", "gw1/dt/th-17/temp", "gw1/light", "gw1/cmd", "gw1/cmd/drawbridge", "gw1/drawbridge-pch", "gw1/drawbridge",
		} {
			northtest.Await(t, path+" to be renewed", func() bool { return c.Attributes("cse-in/" + path)["et"] == end })
		}
	}
	c.Put("gw1/cmd/set", map[string]any{"con": "21"})
	northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
	if s.Context().Err() != nil {
		t.Errorf("the session ended: %v", context.Cause(s.Context()))
	}
}

func TestCommandsComeOnceAndInOrderWhateverTheCSEDoes(t *testing.T) {
	for name, q := range map[string]northtest.CSEQuirks{
		"numbers like 2.0":           {Floats: true},
		"notifications without root": {BareSGN: true},
		"repeated notifications":     {Repeat: true},
		"overtaking notifications":   {Repeat: true, Reorder: true},
		"verified subscriptions":     {Verify: time.Millisecond},
		"late verification":          {Verify: 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
				c.Quirks(q)
				d := &northtest.Downlink{Filters: []string{"cmd/+/set"}}
				s := northtest.Dial(t, conn, d)
				var want []string
				for i := range 20 {
					want = append(want, fmt.Sprint(i))
					c.Put("gw1/cmd/th-17/set", map[string]any{"con": want[i]})
				}
				c.Put("gw1/cmd/th-17/other", map[string]any{"con": "not for us"})
				northtest.Await(t, "the commands", func() bool { return len(d.Got()) >= len(want) })
				errs, ended := outcome(t, s, publications("a", 2))
				clean(t, errs, ended)
				var got []string
				for _, p := range d.Got() {
					got = append(got, string(p.Payload))
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

func TestWhatWasThereBeforeTheRouteIsNoCommand(t *testing.T) {
	t.Parallel()
	c := northtest.NewCSE(t)
	conn, _ := connector(t, c, c.ServeHTTP(), nil)
	northtest.Dial(t, conn, &northtest.Downlink{}).Close()
	c.Put("gw1/cmd/set", map[string]any{"con": "old"})
	d := &northtest.Downlink{Filters: []string{"cmd/set"}}
	s := northtest.Dial(t, conn, d)
	c.Put("gw1/cmd/set", map[string]any{"con": "new"})
	northtest.Await(t, "the command", func() bool { return len(d.Got()) > 0 })
	s.Close()
	c.Quirks(northtest.CSEQuirks{Silent: true})
	c.Put("gw1/cmd/set", map[string]any{"con": "while away"})
	northtest.Dial(t, conn, d)
	northtest.Await(t, "the command sent while away", func() bool { return len(d.Got()) > 1 })
	if got := d.Got(); string(got[0].Payload) != "new" || string(got[1].Payload) != "while away" || got[0].ID == got[1].ID {
		t.Errorf("got %+v", got)
	}
}

func TestTheCSEChoosesTheAEID(t *testing.T) {
	t.Parallel()
	c := northtest.NewCSE(t)
	conn, _ := connector(t, c, c.ServeHTTP(), func(_ *northbound.Env, cfg *onem2m.Config) {
		cfg.AEID, cfg.Labels, cfg.Allow, cfg.MNI, cfg.MIA = "C", []string{"plant7"}, []string{"Coperator"}, 100, config.Duration(time.Hour)
	})
	for range 2 { // the second time it is known
		s := northtest.Dial(t, conn, &northtest.Downlink{Filters: []string{"cmd/set"}})
		errs, ended := outcome(t, s, publications("a", 1))
		clean(t, errs, ended)
		s.Close()
	}
	if id := c.Attributes("cse-in/gw1")["aei"]; !strings.HasPrefix(id.(string), "Cid") {
		t.Errorf("AE-ID %v", id)
	}
	a := c.Attributes("cse-in/gw1/dt")
	if a["mni"] != 100.0 || a["mia"] != 3600.0 || fmt.Sprint(a["lbl"]) != "[plant7]" || fmt.Sprint(a["acpi"]) != "[/id-in/cse-in/gw1/drawbridge]" {
		t.Errorf("container: %v", a)
	}
	if acp := c.Attributes("cse-in/gw1/drawbridge"); !strings.Contains(fmt.Sprint(acp["pv"]), "acop:51 acor:[Coperator]") {
		t.Errorf("policy: %v", acp)
	}
}

func TestAnAEForEachDevice(t *testing.T) {
	eachWith(t, func(_ *northbound.Env, cfg *onem2m.Config) { cfg.PerDev = true }, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		d := &northtest.Downlink{Filters: []string{"+/cmd/set"}}
		s := northtest.Dial(t, conn, d)
		batch := publications("a", 2)
		batch[1].Device = "th-18"
		errs, ended := outcome(t, s, batch)
		clean(t, errs, ended)
		for _, name := range []string{"th-17", "th-18"} {
			if a := c.Attributes("cse-in/" + name); a == nil || a["aei"] != "C"+name {
				t.Errorf("AE %s: %v", name, a)
			}
			northtest.Await(t, "the container of commands", func() bool { return c.Has("cse-in/" + name + "/cmd/set/drawbridge") })
			c.Put(name+"/cmd/set", map[string]any{"con": "21"})
		}
		northtest.Await(t, "the commands", func() bool { return len(d.Got()) == 2 })
		topics := []string{d.Got()[0].Topic, d.Got()[1].Topic}
		slices.Sort(topics)
		if !slices.Equal(topics, []string{"th-17/cmd/set", "th-18/cmd/set"}) {
			t.Errorf("topics %q", topics)
		}
	})
}

func TestOneAEThatIsRefusedKeepsNobodyElseOut(t *testing.T) {
	eachWith(t, func(_ *northbound.Env, cfg *onem2m.Config) { cfg.PerDev = true }, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		batch := publications("a", 2)
		batch[1].Device = "th-18"
		s := northtest.Dial(t, conn, &northtest.Downlink{})
		errs, ended := outcome(t, s, batch)
		clean(t, errs, ended)
		s.Close()
		c.Remove("cse-in/th-17")
		c.Occupy("th-17")
		batch = publications("b", 2)
		batch[1].Device = "th-18"
		errs, ended = outcome(t, northtest.Dial(t, conn, &northtest.Downlink{}), batch)
		if ended != nil || !msg.IsPermanent(errs[0]) || errs[1] != nil {
			t.Errorf("ended %v, errors %v", ended, errs)
		}
	})
}

// issuer gives a new token after each one that was refused.
type issuer struct {
	mu sync.Mutex
	n  int
}

func (i *issuer) Token(context.Context, string) (string, time.Time, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return fmt.Sprintf("token%d", i.n), time.Time{}, nil
}

func (i *issuer) Reject(string, string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
}

func TestTokens(t *testing.T) {
	for name, b := range bindings {
		for _, as := range []string{"bearer", "tkns"} {
			if as == "bearer" && !strings.HasPrefix(name, "HTTP") {
				continue
			}
			t.Run(name+" "+as, func(t *testing.T) {
				t.Parallel()
				c := northtest.NewCSE(t)
				conn, _ := connector(t, c, b.serve(c), func(e *northbound.Env, cfg *onem2m.Config) {
					if b.change != nil {
						b.change(t, cfg)
					}
					e.Tokens, cfg.Token, cfg.TokenAs = &issuer{}, "plant", as
				})
				c.Quirks(northtest.CSEQuirks{WantToken: func(authorization string, tkns []string) bool {
					return as == "bearer" && authorization == "Bearer token1" || as == "tkns" && slices.Equal(tkns, []string{"token1"})
				}})
				if _, err := conn.Dial(t.Context(), &northtest.Downlink{}); err == nil || msg.IsPermanent(err) {
					t.Fatalf("the first token: %v", err)
				}
				errs, ended := outcome(t, northtest.Dial(t, conn, &northtest.Downlink{}), publications("a", 1))
				clean(t, errs, ended)
			})
		}
	}
}

func TestWhatAProxyAnswersIsNotWhatTheCSEMeans(t *testing.T) {
	for status, want := range map[int]string{502: "later", 503: "later", 429: "later", 413: "never"} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			conn, _ := connector(t, c, c.ServeHTTP(), nil)
			s := northtest.Dial(t, conn, &northtest.Downlink{})
			c.Quirks(northtest.CSEQuirks{StatusOf: status})
			errs, ended := outcome(t, s, publications("a", 1))
			if ended != nil || errs[0] == nil || msg.IsPermanent(errs[0]) != (want == "never") {
				t.Errorf("ended %v, error %v", ended, errs)
			}
		})
	}
}

func TestExamine(t *testing.T) {
	each(t, func(t *testing.T, _ *northtest.CSE, conn northbound.Connector) {
		s := northtest.Dial(t, conn, &northtest.Downlink{Filters: []string{"cmd/set"}})
		var steps []northbound.Step
		conn.(northbound.Examined).Examine(t.Context(), func(s northbound.Step) { steps = append(steps, s) })
		if len(steps) == 0 || steps[len(steps)-1].Err != nil || !strings.Contains(steps[len(steps)-1].Note, `CSEBase "cse-in" of "/id-in"`) {
			t.Errorf("steps: %+v", steps)
		}
		errs, ended := outcome(t, s, publications("a", 2)) // the session that was there still is
		clean(t, errs, ended)
	})
}

func TestPreSharedKeys(t *testing.T) {
	ke := northtest.HMAC("an enrolment key of 32 octets....")
	kpsa, err := onem2m.Kpsa(t.Context(), ke, "/id-in")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*onem2m.Config)
		good   bool
	}{
		"derived from the enrolment key": {func(c *onem2m.Config) { c.EnrolmentKey = "enrolment" }, true},
		"another key":                    {func(c *onem2m.Config) { c.PSK = "file:kpsa" }, false},
		"another identity":               {func(c *onem2m.Config) { c.EnrolmentKey, c.PSKID = "enrolment", "gw2@plant7.example" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			url := c.ServeCoAP(func(id string) []byte {
				if id == "gw1@plant7.example" {
					return kpsa
				}
				return nil
			})
			conn, _ := connector(t, c, url, func(e *northbound.Env, cfg *onem2m.Config) {
				e.Keys.(*northtest.Keys).MACs = map[string]hwcrypto.MACer{"enrolment": ke}
				cfg.Key, cfg.PSKID = "", "gw1@plant7.example"
				test.change(cfg)
			})
			patience := 30 * time.Second
			if !test.good {
				patience = 3 * time.Second // the CSE may only fall silent
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s, err := conn.Dial(ctx, &northtest.Downlink{})
			if (err == nil) != test.good {
				t.Fatalf("error %v", err)
			}
			if err == nil {
				s.Close()
			}
		})
	}
}

func TestACertificateOfAnotherAuthorityIsRefused(t *testing.T) {
	for name, b := range bindings {
		if strings.Contains(name, "pre-shared") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			conn, _ := connector(t, c, b.serve(c), func(_ *northbound.Env, cfg *onem2m.Config) {
				if b.change != nil {
					b.change(t, cfg)
				}
				cfg.CA = config.Path(northtest.NewCA(t).File(t))
			})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if s, err := conn.Dial(ctx, &northtest.Downlink{}); err == nil {
				s.Close()
				t.Fatal("dialled")
			} else if !msg.IsPermanent(err) {
				t.Errorf("a person has to mend it: %v", err)
			}
		})
	}
}
