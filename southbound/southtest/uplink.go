package southtest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Uplink is a fake bridge. Each knob may be turned at any time; what was submitted before keeps what it met.
type Uplink struct {
	mu       sync.Mutex
	holding  bool                                       // guarded by mu
	held     []func()                                   // guarded by mu: outcomes that wait for Release
	verdict  func(*msg.Message) error                   // guarded by mu; nil: yes to all
	messages []msg.Message                              // guarded by mu: everything submitted, in order
	changed  chan struct{}                              // guarded by mu; closed and replaced at each Submit
	own      map[string]func(*msg.Message, func(error)) // guarded by mu, by device
}

// NewUplink makes an Uplink that says yes at once.
func NewUplink() *Uplink { return &Uplink{changed: make(chan struct{})} }

// Submit implements southbound.Uplink.
func (u *Uplink) Submit(m *msg.Message, done func(error)) {
	kept := *m
	kept.Payload = bytes.Clone(m.Payload)
	kept.Groups = slices.Clone(m.Groups)
	u.mu.Lock()
	u.messages = append(u.messages, kept)
	close(u.changed)
	u.changed = make(chan struct{})
	if own := u.own[m.Device]; own != nil {
		u.mu.Unlock()
		own(&kept, done)
		return
	}
	var err error
	if u.verdict != nil {
		err = u.verdict(&kept)
	}
	if u.holding {
		u.held = append(u.held, func() { done(err) })
		u.mu.Unlock()
		return
	}
	u.mu.Unlock()
	done(err)
}

// Refuse makes every later outcome err; nil is yes.
func (u *Uplink) Refuse(err error) {
	u.Decide(func(*msg.Message) error { return err })
}

// Decide makes every later outcome what verdict says.
func (u *Uplink) Decide(verdict func(*msg.Message) error) {
	u.mu.Lock()
	u.verdict = verdict
	u.mu.Unlock()
}

// HandOver gives the messages of one device to take, which calls done itself; nil takes that back.
func (u *Uplink) HandOver(device string, take func(m *msg.Message, done func(error))) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.own == nil {
		u.own = map[string]func(*msg.Message, func(error)){}
	}
	u.own[device] = take
}

// Hold keeps back every later outcome until Release.
func (u *Uplink) Hold() {
	u.mu.Lock()
	u.holding = true
	u.mu.Unlock()
}

// Release lets go of the outcomes that are held, in order, and holds no more.
func (u *Uplink) Release() {
	u.mu.Lock()
	held := u.held
	u.held, u.holding = nil, false
	u.mu.Unlock()
	for _, f := range held {
		f()
	}
}

// Messages gives what has been submitted so far.
func (u *Uplink) Messages() []msg.Message {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.messages)
}

// Await waits until n messages have been submitted and gives all there are.
func (u *Uplink) Await(ctx context.Context, t testing.TB, n int) []msg.Message {
	t.Helper()
	for {
		u.mu.Lock()
		have, changed := slices.Clone(u.messages), u.changed
		u.mu.Unlock()
		if len(have) >= n {
			return have
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%d messages were submitted, want %d: %v", len(have), n, context.Cause(ctx))
		}
	}
}
