package northtest

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// patience is how long the suite waits for what has to happen. Nothing passes by waiting it out.
const patience = 30 * time.Second

// Cloud is the other side as the suite needs it.
type Cloud interface {
	// Received gives the payloads of the publications that the cloud took, in order, repeats included.
	Received() []string
	// Command publishes to the gateway, on a topic that Setup.Filter matches.
	Command(payload string)
	// Drop breaks every connection without a word. The cloud can be dialled again at once.
	Drop()
}

// Faulty is a cloud that can be told how to misbehave.
type Faulty interface {
	Cloud
	CutAfter(n int)        // drops the connection at the nth publication from now
	Delay(d time.Duration) // confirms that late from now on
	Refuse(payload string) // refuses publications with that payload for good
	Busy(payload string)   // refuses the next publication with that payload, for now
	Unconfirmed() int      // commands that the gateway has not acknowledged
}

// Setup is one connector against one cloud, both fresh.
type Setup struct {
	Connector northbound.Connector
	Cloud     Cloud
	Topic     string // one that the platform lets the gateway publish to
	Filter    string // of commands
	TooLarge  int    // octets of a payload that the platform does not take; 0: it takes any
	// Reload makes the connector anew on the same state, as a reload with a changed file does; nil: the connector stays, as where nothing has changed.
	Reload func(t *testing.T) northbound.Connector
	// Issuer gives the tokens with which the connector logs in; nil: it does so without.
	Issuer *Issuer
	// NoRefusals says that the platform cannot refuse one publication, as in MQTT 3.1.1.
	NoRefusals bool
	// Mends says that the session is made of several and mends its parts: it does not end when a connection does.
	Mends bool
	// PerDevice says that publications of one device wait for each other, as in protocols of requests and responses.
	PerDevice bool
	// NoCommands says that the platform sends none.
	NoCommands bool
	// NoMailbox says that commands which are sent while the gateway is away are lost.
	NoMailbox bool
}

// TestConnector is the suite. fresh is called once for each part.
func TestConnector(t *testing.T, fresh func(t *testing.T) Setup) {
	parts := map[string]func(*testing.T, *run){
		"publications arrive in order, each done once":            inOrder,
		"a session that is lost while idle ends and is replaced":  lostIdle,
		"a session lost in a batch loses nothing and keeps order": lostInBatch,
		"late confirmations do not hold up what follows":          slowly,
		"a publication refused for good is permanent, alone":      refused,
		"a publication refused for now is not permanent":          busy,
		"a publication over the limit is permanent, alone":        tooLarge,
		"a topic that cannot be is permanent, alone":              badTopic,
		"closing twice leaves nothing behind":                     closeTwice,
		"sending after the end is an error and does nothing":      sendAfterEnd,
		"sending gives up with its context":                       sendGivesUp,
		"dialling gives up with its context":                      dialGivesUp,
		"commands arrive in order":                                commands,
		"a command is acknowledged once it is settled":            settledFirst,
		"commands sent while away arrive":                         whileAway,
		"an unsettled command comes again":                        unsettled,
		"a reload in a batch loses nothing and keeps order":       reload,
		"a token that ends in a batch costs nothing":              tokenEnds,
		"an issuer that is away costs a log-in, not a session":    issuerAway,
	}
	for name, part := range parts {
		t.Run(name, func(t *testing.T) {
			// The label is inherited by what the connector starts, and tells it from other suites that run at the same time.
			pprof.Do(t.Context(), pprof.Labels("northtest", t.Name()), func(context.Context) { part(t, &run{Setup: fresh(t)}) })
		})
	}
}

type run struct {
	Setup
}

func (r *run) faulty(t *testing.T) Faulty {
	t.Helper()
	f, ok := r.Cloud.(Faulty)
	if !ok {
		t.Skip("a real program cannot be told to misbehave")
	}
	return f
}

func (r *run) dial(t *testing.T, d *Downlink) northbound.Session {
	t.Helper()
	return Dial(t, r.Connector, d)
}

// batch makes publications whose payloads are prefix-0, prefix-1, ...
func (r *run) batch(prefix string, n int) []msg.Publication {
	list := make([]msg.Publication, n)
	for i := range list {
		list[i] = msg.Publication{ID: msg.NewID(time.Now()), Time: time.Now(), Topic: r.Topic, QoS: 1, Payload: fmt.Appendf(nil, "%s-%d", prefix, i)}
	}
	return list
}

func (r *run) wellDone(t *testing.T, o *Outcome, except ...int) {
	t.Helper()
	o.Await(t)
	for i := range o.count {
		if n, err := o.Err(i); n != 1 || err != nil && !slices.Contains(except, i) {
			t.Fatalf("publication %d: done %d times, error %v", i, n, err)
		}
	}
}

// firsts gives list without repeats.
func firsts(list []string) (once []string) {
	seen := map[string]bool{}
	for _, p := range list {
		if !seen[p] {
			seen[p] = true
			once = append(once, p)
		}
	}
	return once
}

func payloads(batch []msg.Publication) (list []string) {
	for _, p := range batch {
		list = append(list, string(p.Payload))
	}
	return list
}

func (r *run) arrived(t *testing.T, want []string) {
	t.Helper()
	Await(t, "all publications at the cloud", func() bool { return len(firsts(r.Cloud.Received())) >= len(want) })
	if got := firsts(r.Cloud.Received()); !slices.Equal(got, want) {
		t.Fatalf("arrived out of order:\n got %q\nwant %q", got, want)
	}
}

func inOrder(t *testing.T, r *run) {
	s := r.dial(t, &Downlink{})
	batch := r.batch("p", 300)
	o := NewOutcome(len(batch))
	for i := range batch {
		if i%100 == 0 {
			err := s.Send(t.Context(), batch[i:i+100], func(k int, err error) { o.Done(i+k, err) })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	r.wellDone(t, o)
	r.arrived(t, payloads(batch))
	if got := r.Cloud.Received(); len(got) != len(batch) {
		t.Fatalf("repeated in one session: %q", got)
	}
}

func ended(t *testing.T, s northbound.Session) error {
	t.Helper()
	select {
	case <-s.Context().Done():
	case <-time.After(patience):
		t.Fatal("the session does not end")
	}
	err := context.Cause(s.Context())
	if err == nil || errors.Is(err, context.Canceled) {
		t.Fatalf("the session's context does not say why it ended: %v", err)
	}
	return err
}

func lostIdle(t *testing.T, r *run) {
	s := r.dial(t, &Downlink{})
	r.Cloud.Drop()
	if !r.Mends {
		ended(t, s)
		s = r.dial(t, &Downlink{})
	}
	batch := r.batch("p", 10)
	o := NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o)
}

func lostInBatch(t *testing.T, r *run) {
	batch := r.batch("p", 500)
	o := NewOutcome(len(batch))
	s := r.dial(t, &Downlink{})
	if f, ok := r.Cloud.(Faulty); ok {
		f.CutAfter(137)
	} else {
		go func() {
			for len(r.Cloud.Received()) == 0 && t.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			r.Cloud.Drop()
		}()
	}
	r.untilDone(t, s, batch, o)
	r.wellDone(t, o)
	r.arrived(t, payloads(batch))
}

// untilDone sends what is not done, in one session after the other, as the pump does.
func (r *run) untilDone(t *testing.T, s northbound.Session, batch []msg.Publication, o *Outcome) {
	t.Helper()
	for sessions := 0; o.done() < len(batch); sessions++ {
		if sessions == 20 {
			t.Fatal("twenty sessions were not enough")
		}
		var rest []msg.Publication
		var index []int
		for i := range batch {
			if n, _ := o.Err(i); n == 0 {
				rest, index = append(rest, batch[i]), append(index, i)
			}
		}
		if err := s.Send(t.Context(), rest, func(i int, err error) { o.Done(index[i], err) }); err == nil {
			for o.done() < len(batch) && s.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
		if o.done() < len(batch) {
			ended(t, s)
			s.Close()
			s = r.dial(t, &Downlink{})
		}
	}
}

func slowly(t *testing.T, r *run) {
	f := r.faulty(t)
	s := r.dial(t, &Downlink{})
	f.Delay(200 * time.Millisecond)
	batch := r.batch("p", 50)
	if r.PerDevice {
		for i := range batch {
			batch[i].Device = fmt.Sprintf("d-%d", i)
		}
	}
	o := NewOutcome(len(batch))
	var mu sync.Mutex
	ahead, finished := 0, 0 // ahead: the most that had arrived without being done
	err := s.Send(t.Context(), batch, func(i int, err error) {
		arrived := len(firsts(r.Cloud.Received()))
		mu.Lock()
		ahead = max(ahead, arrived-finished)
		finished++
		mu.Unlock()
		o.Done(i, err)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o)
	if ahead < 2 {
		t.Fatal("the publications went out one by one")
	}
	if r.PerDevice {
		return // each has come, in no order
	}
	r.arrived(t, payloads(batch))
}

func refused(t *testing.T, r *run) {
	if r.NoRefusals {
		t.Skip("the platform cannot refuse a publication")
	}
	f := r.faulty(t)
	f.Refuse("p-3")
	s := r.dial(t, &Downlink{})
	batch := r.batch("p", 10)
	o := NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o, 3)
	if _, err := o.Err(3); !msg.IsPermanent(err) {
		t.Fatalf("refused for good, but not permanent: %v", err)
	}
	if s.Context().Err() != nil {
		t.Fatalf("the session ended: %v", context.Cause(s.Context()))
	}
	r.arrived(t, slices.Delete(payloads(batch), 3, 4))
}

func busy(t *testing.T, r *run) {
	if r.NoRefusals {
		t.Skip("the platform cannot refuse a publication")
	}
	f := r.faulty(t)
	f.Busy("p-3")
	s := r.dial(t, &Downlink{})
	batch := r.batch("p", 10)
	o := NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o, 3)
	if _, err := o.Err(3); err == nil || msg.IsPermanent(err) {
		t.Fatalf("refused for now: %v", err)
	}
	again := NewOutcome(1)
	if err := s.Send(t.Context(), batch[3:4], again.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, again)
}

// oddOne sends a batch in which one publication cannot be taken.
func oddOne(t *testing.T, r *run, spoil func(p *msg.Publication)) {
	s := r.dial(t, &Downlink{})
	batch := r.batch("p", 5)
	want := slices.Delete(payloads(batch), 2, 3)
	spoil(&batch[2])
	o := NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o, 2)
	if _, err := o.Err(2); !msg.IsPermanent(err) {
		t.Fatalf("not permanent: %v", err)
	}
	if s.Context().Err() != nil {
		t.Fatalf("the session ended: %v", context.Cause(s.Context()))
	}
	r.arrived(t, want)
}

func tooLarge(t *testing.T, r *run) {
	if r.TooLarge == 0 {
		t.Skip("the platform takes any size")
	}
	oddOne(t, r, func(p *msg.Publication) { p.Payload = make([]byte, r.TooLarge) })
}

func badTopic(t *testing.T, r *run) {
	oddOne(t, r, func(p *msg.Publication) { p.Topic = "a/+/b" })
}

// goroutines counts those of the test that run code of a connector.
func goroutines(t *testing.T) (n int) {
	var profile strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		t.Fatal(err)
	}
	for g := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(g, strconv.Quote(t.Name())) && strings.Contains(g, "/northbound/") &&
			!strings.Contains(g, "/northbound/northtest") && !strings.Contains(g, "testing.tRunner") {
			n++
		}
	}
	return n
}

func closeTwice(t *testing.T, r *run) {
	s := r.dial(t, &Downlink{Filters: []string{r.Filter}})
	batch := r.batch("p", 20)
	o := NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal("close: ", err)
		}
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Fatalf("closing took %s", took)
	}
	ended(t, s)
	r.wellDone(t, o) // Close waits a little for what is in flight
	Await(t, "no goroutine left", func() bool { return goroutines(t) == 0 })
}

func sendAfterEnd(t *testing.T, r *run) {
	s := r.dial(t, &Downlink{})
	if r.Mends {
		s.Close()
	} else {
		r.Cloud.Drop()
	}
	ended(t, s)
	o := NewOutcome(5)
	if err := s.Send(t.Context(), r.batch("p", 5), o.Done); err == nil {
		t.Fatal("no error")
	}
	s.Close()
	if n := o.done(); n != 0 {
		t.Fatalf("%d publications done in a session that had ended", n)
	}
}

func sendGivesUp(t *testing.T, r *run) {
	f := r.faulty(t)
	s := r.dial(t, &Downlink{})
	f.Delay(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for ctx.Err() == nil {
		err := s.Send(ctx, r.batch("p", 1000), func(int, error) {})
		if err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
	}
	f.Delay(0)
	if !r.Mends {
		f.Drop() // else closing waits for confirmations that will not come
	}
}

func dialGivesUp(t *testing.T, r *run) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := r.Connector.Dial(ctx, &Downlink{}); err == nil {
		s.Close()
		t.Fatal("dialled with a context that had ended")
	}
	Await(t, "no goroutine left", func() bool { return goroutines(t) == 0 })
}

func commands(t *testing.T, r *run) {
	if r.NoCommands {
		t.Skip("the platform sends no commands")
	}
	d := &Downlink{Filters: []string{r.Filter}}
	r.dial(t, d)
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprintf("c-%d", i))
		r.Cloud.Command(want[i])
	}
	Await(t, "commands", func() bool { return len(d.Got()) >= len(want) })
	if got := d.payloads(); !slices.Equal(got, want) {
		t.Fatalf("commands: %q", got)
	}
}

func settledFirst(t *testing.T, r *run) {
	if r.NoCommands {
		t.Skip("the platform sends no commands")
	}
	f := r.faulty(t)
	hold := make(chan struct{})
	d := &Downlink{Filters: []string{r.Filter}, Before: func(ctx context.Context, _ msg.Publication) error {
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	s := r.dial(t, d)
	f.Command("c-0")
	Await(t, "the command to be on its way", func() bool { return f.Unconfirmed() == 1 })
	// Reports go on while a command waits for its device.
	o := NewOutcome(20)
	if err := s.Send(t.Context(), r.batch("p", 20), o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o)
	if f.Unconfirmed() != 1 {
		t.Fatal("acknowledged before it was settled")
	}
	close(hold)
	Await(t, "the acknowledgement", func() bool { return f.Unconfirmed() == 0 })
}

func whileAway(t *testing.T, r *run) {
	if r.NoMailbox || r.NoCommands {
		t.Skip("the platform keeps no commands")
	}
	r.dial(t, &Downlink{Filters: []string{r.Filter}}).Close()
	r.Cloud.Command("c-0")
	r.Cloud.Command("c-1")
	d := &Downlink{Filters: []string{r.Filter}}
	r.dial(t, d)
	Await(t, "the commands sent while away", func() bool { return slices.Equal(firsts(d.payloads()), []string{"c-0", "c-1"}) })
}

func unsettled(t *testing.T, r *run) {
	if r.NoMailbox || r.NoCommands {
		t.Skip("the platform keeps no commands")
	}
	tried := make(chan struct{}, 100)
	s := r.dial(t, &Downlink{Filters: []string{r.Filter}, Before: func(context.Context, msg.Publication) error {
		tried <- struct{}{}
		return errors.New("the mailbox's disk is full")
	}})
	r.Cloud.Command("c-0")
	Await(t, "the command to be tried", func() bool { return len(tried) > 0 })
	s.Close()
	d := &Downlink{Filters: []string{r.Filter}}
	r.dial(t, d)
	Await(t, "the command again", func() bool { return slices.Equal(d.payloads(), []string{"c-0"}) })
}
