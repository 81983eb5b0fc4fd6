package northtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// send sends a batch in a session that is to take all of it.
func (r *run) send(t *testing.T, d *Downlink, batch []msg.Publication) {
	t.Helper()
	o := NewOutcome(len(batch))
	if err := r.dial(t, d).Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	r.wellDone(t, o)
}

func reload(t *testing.T, r *run) {
	batch := r.batch("p", 500)
	o := NewOutcome(len(batch))
	s := r.dial(t, &Downlink{Filters: []string{r.Filter}})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s.Send(t.Context(), batch, o.Done) // what is not done says how it ended
	}()
	Await(t, "the first publication", func() bool { return len(r.Cloud.Received()) > 0 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-sent
	if r.Reload != nil {
		r.Connector = r.Reload(t)
	}
	r.untilDone(t, r.dial(t, &Downlink{Filters: []string{r.Filter}}), batch, o)
	r.wellDone(t, o)
	r.arrived(t, payloads(batch))
}

// tokenEnds lets the token end that the session was opened with, and the cloud end the session for that, as clouds do.
func tokenEnds(t *testing.T, r *run) {
	if r.Issuer == nil {
		t.Skip("the connector logs in without tokens")
	}
	batch := r.batch("p", 500)
	o := NewOutcome(len(batch))
	s := r.dial(t, &Downlink{})
	_, before := r.Issuer.Counts()
	r.Issuer.Advance(r.Issuer.Life + time.Second)
	r.faulty(t).CutAfter(137)
	r.untilDone(t, s, batch, o)
	r.wellDone(t, o)
	r.arrived(t, payloads(batch))
	if _, after := r.Issuer.Counts(); after != before+1 {
		t.Fatalf("%d tokens were given after the first had ended", after-before)
	}
}

func issuerAway(t *testing.T, r *run) {
	if r.Issuer == nil {
		t.Skip("the connector logs in without tokens")
	}
	s := r.dial(t, &Downlink{})
	r.Issuer.Down(true)
	r.Issuer.Advance(r.Issuer.Life + time.Second)
	o := NewOutcome(10)
	if err := s.Send(t.Context(), r.batch("p", 10), o.Done); err != nil { // a session is not the issuer's
		t.Fatal(err)
	}
	r.wellDone(t, o)
	s.Close()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		s, err := r.Connector.Dial(ctx, &Downlink{})
		if err == nil {
			s.Close()
			t.Fatal("logged in with a token that has ended")
		}
		if msg.IsPermanent(err) || !strings.Contains(err.Error(), "token") {
			t.Fatalf("the issuer is away: %v", err)
		}
	}
	r.Issuer.Down(false)
	r.Issuer.Advance(10 * time.Minute) // longer than any pause between two requests
	r.send(t, &Downlink{}, r.batch("q", 10))
}
