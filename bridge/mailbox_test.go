package bridge

import (
	"context"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// TestACommandThatComesAsTheLastOneLeavesIsNotLeftBehind: it was to wait behind others, and they are gone before it is stored.
func TestACommandThatComesAsTheLastOneLeavesIsNotLeftBehind(t *testing.T) {
	r := newRig(t)
	r.use(map[string]northbound.Connector{"cloud": &cloud{}})
	defer r.run()()
	down := &downlink{b: r.Bridge, connector: "cloud"}
	deliver := func(payload string) (msg.Reply, error) {
		return down.Deliver(t.Context(), msg.Publication{Topic: "quiet/bed-1/x", Payload: []byte(payload)})
	}
	if reply, err := deliver("1"); err != nil || reply.Status != msg.Queued {
		t.Fatal(reply, err)
	}
	told, release := make(chan string, 2), make(chan struct{})
	r.field.connect("bed-1", func(_ context.Context, m msg.Message) (msg.Reply, error) {
		told <- string(m.Payload)
		<-release
		return msg.Reply{Status: msg.Done}, nil
	})
	r.Awake("bed-1")
	hear := func(want string) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Fatalf("told %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q is left behind", want)
		}
	}
	hear("1")
	tx, err := r.store.db.Begin(true) // the disk is busy
	if err != nil {
		t.Fatal(err)
	}
	pause := func() { time.Sleep(50 * time.Millisecond) } // it is no test of this where that is too short
	close(release)
	pause() // the first is about to be removed
	second := make(chan error, 1)
	go func() {
		_, err := deliver("2")
		second <- err
	}()
	pause() // the second is about to be put behind it
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	hear("2")
}
