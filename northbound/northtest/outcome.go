package northtest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// Downlink records what is delivered. Before, where not nil, decides on each.
type Downlink struct {
	Filters []string
	Before  func(ctx context.Context, p msg.Publication) error

	mu  sync.Mutex
	got []msg.Publication
}

// Topics is northbound.Downlink's.
func (d *Downlink) Topics() []string { return d.Filters }

// Deliver is northbound.Downlink's.
func (d *Downlink) Deliver(ctx context.Context, p msg.Publication) (msg.Reply, error) {
	if d.Before != nil {
		if err := d.Before(ctx, p); err != nil {
			return msg.Reply{}, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, p)
	return msg.Reply{Status: msg.Done}, nil
}

// Got gives what was delivered.
func (d *Downlink) Got() []msg.Publication {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.got)
}

func (d *Downlink) payloads() (list []string) {
	for _, p := range d.Got() {
		list = append(list, string(p.Payload))
	}
	return list
}

// Outcome gathers what Send reports.
type Outcome struct {
	mu     sync.Mutex
	errs   []error
	count  []int
	change chan struct{}
}

// NewOutcome makes one for a batch of n.
func NewOutcome(n int) *Outcome {
	return &Outcome{errs: make([]error, n), count: make([]int, n), change: make(chan struct{}, 1)}
}

// Done is for Send.
func (o *Outcome) Done(i int, err error) {
	o.mu.Lock()
	o.errs[i] = err
	o.count[i]++
	o.mu.Unlock()
	select {
	case o.change <- struct{}{}:
	default:
	}
}

// Err tells how often the outcome of one was reported, and what it was.
func (o *Outcome) Err(i int) (times int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count[i], o.errs[i]
}

func (o *Outcome) done() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.count {
		if c > 0 {
			n++
		}
	}
	return n
}

// Await waits until all are done.
func (o *Outcome) Await(t testing.TB) {
	t.Helper()
	late := time.After(patience)
	for o.done() < len(o.count) {
		select {
		case <-o.change:
		case <-late:
			t.Fatalf("%d of %d publications done", o.done(), len(o.count))
		}
	}
}

// Dial opens a session that lasts as long as the test.
func Dial(t testing.TB, c northbound.Connector, down northbound.Downlink) northbound.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := c.Dial(ctx, down)
	if err != nil {
		t.Fatal("dial: ", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Send sends one publication with QoS 1 and gives what became of it.
func Send(t testing.TB, s northbound.Session, p msg.Publication) error {
	t.Helper()
	o := NewOutcome(1)
	p.ID, p.QoS = msg.NewID(time.Now()), 1
	if err := s.Send(t.Context(), []msg.Publication{p}, o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	_, err := o.Err(0)
	return err
}

// Await waits until ok holds.
func Await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}
