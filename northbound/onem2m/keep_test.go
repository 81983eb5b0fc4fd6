package onem2m_test

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// pump brings a batch to the CSE as the bridge does: what was not done is sent again, in order, in one session after the other. between is
// called after each attempt.
func pump(t *testing.T, conn northbound.Connector, s northbound.Session, d *northtest.Downlink, batch []msg.Publication, between func()) northbound.Session {
	t.Helper()
	for attempts := 0; len(batch) > 0; attempts++ {
		if attempts == 1000 {
			t.Fatalf("%d publications are not done after %d attempts", len(batch), attempts)
		}
		if s == nil || s.Context().Err() != nil {
			if s != nil {
				s.Close()
			}
			var err error
			if s, err = conn.Dial(t.Context(), d); err != nil {
				if msg.IsPermanent(err) {
					t.Fatalf("a person would have to mend it: %v", err)
				}
				s = nil
				between()
				continue
			}
		}
		errs, ended := outcome(t, s, batch)
		var rest []msg.Publication
		for i := range batch {
			if ended == nil && errs[i] == nil {
				continue
			}
			if ended == nil && msg.IsPermanent(errs[i]) {
				t.Fatalf("given up: %v", errs[i])
			}
			rest = append(rest, batch[i])
		}
		batch = rest
		between()
	}
	return s
}

func TestTenMinutesOfServerErrors(t *testing.T) {
	for name, b := range bindings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var clock atomic.Int64
			clock.Store(time.Now().UnixNano())
			now := func() time.Time { return time.Unix(0, clock.Load()) }
			c := northtest.NewCSE(t)
			c.Clock(now)
			conn, _ := connector(t, c, b.serve(c), func(e *northbound.Env, cfg *onem2m.Config) {
				if b.change != nil {
					b.change(t, cfg)
				}
				e.Now, cfg.Lifetime = now, config.Duration(5*time.Minute)
			})
			d := &northtest.Downlink{Filters: []string{"cmd/+/set"}}
			s := pump(t, conn, nil, d, publications("before", 3), func() {})
			c.Quirks(northtest.CSEQuirks{Down: true})
			began, well := now(), false
			s = pump(t, conn, s, d, publications("during", 5), func() {
				clock.Add(int64(15 * time.Second))
				if !well && now().Sub(began) > 10*time.Minute {
					well = true
					c.Quirks(northtest.CSEQuirks{})
				}
			})
			defer s.Close()
			got := c.Received()
			slices.Sort(got)
			if want := []string{"before-0", "before-1", "before-2", "during-0", "during-1", "during-2", "during-3", "during-4"}; !slices.Equal(got, want) {
				t.Errorf("received %q", got)
			}
			northtest.Await(t, "the container of commands", func() bool { return c.Has("cse-in/gw1/cmd/drawbridge") })
			c.Put("gw1/cmd/th-17/set", map[string]any{"con": "21"})
			northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
		})
	}
}

func TestAnAEThatTheCSEHasLetExpireIsRegisteredAgain(t *testing.T) {
	each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		d := &northtest.Downlink{Filters: []string{"cmd/+/set"}}
		s := pump(t, conn, nil, d, publications("before", 2), func() {})
		c.Remove("cse-in/gw1") // and all below it
		s = pump(t, conn, s, d, publications("after", 2), func() {})
		defer s.Close()
		if got := c.Received(); !slices.Equal(got, []string{"before-0", "before-1", "after-0", "after-1"}) {
			t.Errorf("received %q", got)
		}
		c.Put("gw1/cmd/th-17/set", map[string]any{"con": "21"})
		northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
	})
}

func TestACSEThatAnswersTooLateTakesEachOnce(t *testing.T) {
	each(t, func(t *testing.T, c *northtest.CSE, conn northbound.Connector) {
		s := pump(t, conn, nil, &northtest.Downlink{}, publications("before", 1), func() {})
		c.Delay(time.Hour)
		batch := publications("a", 1)
		o := northtest.NewOutcome(1)
		if err := s.Send(t.Context(), batch, o.Done); err != nil {
			t.Fatal(err)
		}
		northtest.Await(t, "the contentInstance", func() bool { return len(c.Received()) == 2 })
		s.Close() // its answer is not waited for any longer
		c.Delay(0)
		pump(t, conn, nil, &northtest.Downlink{}, batch, func() {}).Close()
		if got := c.Received(); !slices.Equal(got, []string{"before-0", "a-0"}) {
			t.Errorf("received %q", got)
		}
	})
}

// names is a DNS server for one name, whose address changes.
type names struct{ address atomic.Pointer[net.IP] }

// serve answers until the connection is closed: questions for A with the address, others with nothing.
func (n *names) serve(conn net.PacketConn) {
	buf := make([]byte, 512)
	for {
		size, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if size < 17 {
			continue
		}
		q := buf[12:size]
		end := 0
		for end < len(q) && q[end] != 0 {
			end += int(q[end]) + 1
		}
		if end+5 > len(q) {
			continue
		}
		answer := slices.Concat(buf[:2], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[:end+5])
		if binary.BigEndian.Uint16(q[end+1:]) == 1 {
			answer[7] = 1
			answer = slices.Concat(answer, []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4}, n.address.Load().To4())
		}
		conn.WriteTo(answer, from)
	}
}

func TestACSEThatMovesToAnotherAddressIsFound(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n names
	var served sync.WaitGroup
	served.Go(func() { n.serve(conn) })
	defer served.Wait()
	defer conn.Close()
	before := net.DefaultResolver
	defer func() { net.DefaultResolver = before }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}

	here, there := net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)
	n.address.Store(&here)
	c := northtest.NewCSE(t)
	c.Hosts = []string{"cse.plant7.example"}
	url, move := c.ServeHTTPAndMove()
	cse, _ := connector(t, c, url, nil)
	d := &northtest.Downlink{Filters: []string{"cmd/+/set"}}
	s := pump(t, cse, nil, d, publications("here", 2), func() {})
	move()
	n.address.Store(&there)
	s = pump(t, cse, s, d, publications("there", 2), func() {})
	defer s.Close()
	if got := c.Received(); !slices.Equal(got, []string{"here-0", "here-1", "there-0", "there-1"}) {
		t.Errorf("received %q", got)
	}
	c.Put("gw1/cmd/th-17/set", map[string]any{"con": "21"})
	northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
}

// A CSE whose clock is ahead finds each poll out of date, and says so at once. It is not asked without a pause.
func TestACSEThatHoldsNoPollIsNotFlooded(t *testing.T) {
	c := northtest.NewCSE(t)
	c.Clock(func() time.Time { return time.Now().Add(time.Minute) })
	conn, _ := connector(t, c, c.ServeHTTP(), nil)
	s, err := conn.Dial(t.Context(), &northtest.Downlink{Filters: []string{"cmd/x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	requests := func() int64 { return conn.(northbound.Counters).Counters()["requests"] }
	began := time.Now()
	for asked := requests(); requests() < asked+20 && time.Since(began) < 2*time.Second; {
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("20 requests in %v", took)
	}
}
