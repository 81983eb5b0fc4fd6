package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// envelopes are such that a test can read, with a knob for what the chip says.
type envelopes struct {
	mu   sync.Mutex
	err  error         // guarded by mu; nil: it works
	hang chan struct{} // guarded by mu; not nil: nothing is sealed until it is closed
}

func (e *envelopes) set(err error) { e.mu.Lock(); e.err = err; e.mu.Unlock() }

func (e *envelopes) Protect(ctx context.Context, key, form, cipher string, v msg.Envelope) ([]byte, string, error) {
	e.mu.Lock()
	err, hang := e.err, e.hang
	e.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		}
	}
	if err != nil {
		return nil, "", err
	}
	b, err := json.Marshal(v)
	return append([]byte(key+" "+form+" "+cipher+" "), b...), "application/" + form, err
}

func (e *envelopes) Unprotect(_ context.Context, key string, sealed []byte) (v msg.Envelope, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return v, e.err
	}
	text, ok := strings.CutPrefix(string(sealed), key+" ")
	if !ok || json.Unmarshal([]byte(text), &v) != nil {
		err = msg.Permanent(errors.New("not authentic"))
	}
	return v, err
}

func (e *envelopes) Verify(ctx context.Context, certificates string, sealed []byte) (msg.Envelope, error) {
	return e.Unprotect(ctx, certificates, sealed)
}

// sealed is a rig that runs, with routes that seal.
func sealed(t *testing.T, f func(t *testing.T, r *rig, c *cloud, e *envelopes)) {
	t.Helper()
	c := &cloud{}
	pumped(t, c, func(t *testing.T, r *rig) {
		e := &envelopes{}
		r.seal(e, c)
		time.Sleep(time.Minute) // there are other topics now, so the session was dialled anew
		synctest.Wait()
		f(t, r, c, e)
	})
}

func (r *rig) seal(e *envelopes, c *cloud) {
	cfg := standard()
	by := config.Sealing{Seal: "payload", SealAs: "jwe", SealCipher: "LEA-256-GCM"}
	cfg.Uplinks = append(cfg.Uplinks, &config.Uplink{Name: "secret", Resource: "/secret/{kind}", Topic: "s/{device}/{kind}", To: []string{"cloud"}, QoS: 1, Sealing: by},
		&config.Uplink{Name: "sealed-sure", Resource: "/sealed-sure", Topic: "ss/{device}", To: []string{"cloud"}, Ack: "cloud", Sealing: by})
	cfg.Downlinks = append(cfg.Downlinks,
		&config.Downlink{Name: "valve", From: "cloud", Topic: "valve/{device}", Method: "PUT", Resource: "/actuators/valve", Reply: "valve/{device}/reply",
			TTL: config.Duration(10 * time.Minute), Unseal: "payload", Sealing: by},
		&config.Downlink{Name: "lock", From: "cloud", Topic: "lock/{device}", Method: "PUT", Resource: "/actuators/lock", Reply: "lock/{device}/reply",
			TTL: config.Duration(10 * time.Minute), SignedBy: "/signers.pem"})
	r.o.Envelopes = e
	r.Swap(Setup{Table: r.table(cfg), Policy: rules{}, Listeners: map[string]southbound.Listener{"field": r.field}, Connectors: map[string]northbound.Connector{"cloud": c}})
}

// order is a command in its envelope.
func order(by string, change func(*msg.Envelope)) []byte {
	e := msg.Envelope{ID: "c-1", Issuer: "plant", Subject: "th-17/actuators/valve", Audience: "gw", Time: time.Now(), Type: "text/plain", Payload: []byte("open")}
	if change != nil {
		change(&e)
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return append([]byte(by+" "), b...)
}

func TestReportsAreSealedInTheirOrder(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Add(1)
			r.Submit(&msg.Message{Device: "th-17", Resource: "/secret/temp", Type: "text/plain", Payload: fmt.Append(nil, i)}, func(err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			})
		}
		wg.Wait()
		synctest.Wait()
		all := c.all()
		if len(all) != 50 {
			t.Fatalf("%d arrived", len(all))
		}
		for i, p := range all {
			text, ok := strings.CutPrefix(string(p.Payload), "payload jwe LEA-256-GCM ")
			var v msg.Envelope
			if !ok || json.Unmarshal([]byte(text), &v) != nil {
				t.Fatalf("%s", p.Payload)
			}
			if string(v.Payload) != fmt.Sprint(i) || v.ID != p.ID.String() || v.Issuer != "gw" || v.Subject != "th-17/secret/temp" || v.Type != "text/plain" || v.Audience != "" ||
				v.Time.Sub(p.Time).Abs() > time.Second || p.Type != "application/jwe" {
				t.Errorf("%d: %+v of type %s", i, v, p.Type)
			}
		}
		if err := r.report("th-17", "/sealed-sure", "x"); err != nil {
			t.Errorf("confirmed by the cloud: %v", err)
		}
	})
}

func TestWhatCannotBeSealedIsRefusedForNow(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		e.set(errors.New("the chip is not there"))
		err := r.report("th-17", "/secret/temp", "open sesame")
		refusal, ok := errors.AsType[*msg.Refusal](err)
		if !ok || refusal.Reason != msg.Full || refusal.RetryAfter <= 0 || !strings.Contains(err.Error(), "the chip is not there") {
			t.Errorf("refused: %v", err)
		}
		if !slices.Contains(r.problems(), PayloadKeyFailing.Name) {
			t.Errorf("problems: %v", r.problems())
		}
		if err := r.report("th-17", "/sensors/temp", "1"); err != nil {
			t.Errorf("a route that seals nothing: %v", err)
		}
		synctest.Wait()
		for _, got := range c.payloads() {
			if got != "1" {
				t.Errorf("%q has gone out", got)
			}
		}
		e.set(nil)
		time.Sleep(sealRetry + time.Second)
		synctest.Wait()
		if slices.Contains(r.problems(), PayloadKeyFailing.Name) {
			t.Errorf("the chip is back, problems: %v", r.problems())
		}
		if err := r.report("th-17", "/secret/temp", "1"); err != nil {
			t.Error(err)
		}
	})
}

func TestTroubleWithAKeyShowsBeforeTheFirstReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.seal(&envelopes{err: errors.New("it is a key pair")}, &cloud{})
		stop := r.run()
		defer stop()
		synctest.Wait()
		if got := r.log.Problems(); len(got) != 1 || got[0].Code != PayloadKeyFailing.Name || got[0].Subject != "key payload" || got[0].Detail != "it is a key pair" {
			t.Errorf("%+v", got)
		}
		// Routes without it: its trouble is nobody's.
		r.use(map[string]northbound.Connector{})
		time.Sleep(sealRetry + time.Second)
		synctest.Wait()
		if got := r.log.Problems(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestAChipThatHangsHoldsUpItsOwnAlone(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		synctest.Wait() // the key has been tried
		e.mu.Lock()
		e.hang = make(chan struct{})
		e.mu.Unlock()
		var mu sync.Mutex
		var taken, full int
		for range laneDepth + 11 {
			r.Submit(&msg.Message{Device: "th-17", Resource: "/secret/temp", Payload: []byte("1")}, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					taken++
				case msg.ReasonOf(err) == msg.Full:
					full++
				default:
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if err := r.report("th-17", "/sensors/temp", "1"); err != nil {
			t.Errorf("beside it: %v", err)
		}
		close(e.hang)
		synctest.Wait()
		if taken != laneDepth+1 || full != 10 {
			t.Errorf("%d taken, %d refused", taken, full)
		}
	})
}

func TestReportsAreRefusedWhileNothingRuns(t *testing.T) {
	r := newRig(t)
	r.seal(&envelopes{}, &cloud{})
	if err := r.report("th-17", "/secret/temp", "1"); msg.ReasonOf(err) != msg.Unavailable {
		t.Error(err)
	}
}

func TestASealedCommandIsCarriedOutOnce(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done, Code: "2.04", Type: "text/plain", Payload: []byte("it is open")}, &told))
		give := func(topic string, b []byte) msg.Reply {
			t.Helper()
			reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: topic, Type: "application/jose", Payload: b})
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}
		first := order("payload", nil)
		if reply := give("valve/th-17", first); reply.Status != msg.Done || len(told) != 1 || string(told[0].Payload) != "open" || told[0].Type != "text/plain" {
			t.Fatalf("%+v, %+v", reply, told)
		}
		synctest.Wait()
		if all := c.all(); len(all) != 1 || !strings.HasPrefix(string(all[0].Payload), "payload jwe LEA-256-GCM {") || all[0].Type != "application/jwe" || all[0].Properties["code"] != "2.04" {
			t.Fatalf("the reply: %+v", all)
		}
		for what, refused := range map[string]struct {
			b    []byte
			code string
		}{
			"the same again":         {first, "replayed"},
			"by another key":         {order("other", func(e *msg.Envelope) { e.ID = "c-2" }), "bad-seal"},
			"as it is":               {[]byte("open"), "bad-seal"},
			"for another gateway":    {order("payload", func(e *msg.Envelope) { e.ID, e.Audience = "c-3", "gw2" }), "bad-seal"},
			"for another device":     {order("payload", func(e *msg.Envelope) { e.ID, e.Subject = "c-4", "th-18/actuators/valve" }), "bad-seal"},
			"without an id":          {order("payload", func(e *msg.Envelope) { e.ID = "" }), "bad-seal"},
			"without a time":         {order("payload", func(e *msg.Envelope) { e.ID, e.Time = "c-5", time.Time{} }), "bad-seal"},
			"from the future":        {order("payload", func(e *msg.Envelope) { e.ID, e.Time = "c-6", time.Now().Add(time.Hour) }), "bad-seal"},
			"older than the route's": {order("payload", func(e *msg.Envelope) { e.ID, e.Time = "c-7", time.Now().Add(-11*time.Minute) }), "expired"},
			"past its own end":       {order("payload", func(e *msg.Envelope) { e.ID, e.Expires = "c-8", time.Now() }), "expired"},
		} {
			if reply := give("valve/th-17", refused.b); reply.Status != msg.Refused || reply.Code != refused.code {
				t.Errorf("%s: %+v, want %s", what, reply, refused.code)
			}
		}
		if reply := give("lock/th-17", order("/signers.pem", func(e *msg.Envelope) { e.Subject = "th-17/actuators/lock" })); reply.Status != msg.Done || len(told) != 2 {
			t.Errorf("a signed command: %+v, %d carried out", reply, len(told))
		}
		// What is too old to come again is forgotten.
		time.Sleep(13 * time.Minute)
		synctest.Wait()
		if n := len(r.opened.m); n != 0 {
			t.Errorf("%d are remembered", n)
		}
		again, err := openOpened(r.store.db)
		if err != nil || len(again.m) != 0 {
			t.Errorf("%d are remembered on disk, %v", len(again.m), err)
		}
	})
}

func TestAReplayIsKnownAfterARestart(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done}, &told))
		if reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/th-17", Payload: order("payload", nil)}); err != nil || reply.Status != msg.Done {
			t.Fatal(reply, err)
		}
		again, err := openOpened(r.store.db)
		if err != nil || len(again.m) != 1 {
			t.Fatal(again, err)
		}
		r.opened.mu.Lock()
		r.opened.m = again.m
		r.opened.mu.Unlock()
		if reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/th-17", Payload: order("payload", nil)}); err != nil || reply.Code != "replayed" {
			t.Error(reply, err)
		}
	})
}

func TestAChipInTroubleHoldsCommandsBack(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		var told []msg.Message
		r.field.connect("th-17", answers(msg.Reply{Status: msg.Done, Code: "2.04", Payload: []byte("secret")}, &told))
		e.set(errors.New("the chip is not there"))
		time.AfterFunc(20*time.Second, func() { e.set(nil) })
		if reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/th-17", Payload: order("payload", nil)}); err != nil || reply.Status != msg.Done {
			t.Errorf("%+v, %v", reply, err)
		}
		r.field.connect("th-17", func(context.Context, msg.Message) (msg.Reply, error) {
			e.set(errors.New("the chip is not there"))
			return msg.Reply{Status: msg.Done, Code: "2.04", Payload: []byte("secret")}, nil
		})
		if reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/th-17", Payload: order("payload", func(e *msg.Envelope) { e.ID = "c-1b" })}); err != nil || reply.Status != msg.Done || reply.Code != "not-sealed" || len(reply.Payload) > 0 {
			t.Errorf("%+v, %v", reply, err)
		}
		synctest.Wait()
		if all := c.all(); len(all) == 0 || all[len(all)-1].Properties["code"] != "not-sealed" || len(all[len(all)-1].Payload) > 0 {
			t.Errorf("the reply that could not be sealed: %+v", all)
		}
		if reply, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/th-17", Payload: order("payload", func(e *msg.Envelope) { e.ID = "c-2" })}); err != nil || reply.Code != "key-unavailable" {
			t.Errorf("%+v, %v", reply, err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.down.Deliver(ctx, msg.Publication{Topic: "valve/th-17", Payload: order("payload", func(e *msg.Envelope) { e.ID = "c-3" })}); err == nil {
			t.Error("settled though nothing has become of it")
		}
		for _, p := range c.all() {
			if strings.Contains(string(p.Payload), "secret") {
				t.Errorf("a reply in the clear: %s", p.Payload)
			}
		}
		if len(told) != 1 {
			t.Errorf("%d carried out", len(told))
		}
	})
}

func TestARouteSaysHowItSeals(t *testing.T) {
	r := newRig(t)
	r.seal(&envelopes{}, &cloud{})
	table := r.state.Load().s.Table
	tr := table.Test(rules{}, "th-17", nil, "/secret/temp", "", []byte("1"), time.Now())
	if tr.Seal != `jwe by key "payload", LEA-256-GCM` || string(tr.Payload) != "1" {
		t.Errorf("%+v", tr)
	}
	how := map[string]string{}
	for _, route := range table.Routes() {
		how[route.Name] = route.Seal + "; " + route.Unseal
	}
	if how["valve"] != `jwe by key "payload", LEA-256-GCM; encrypted by key "payload"` || how["lock"] != "; signed by a certificate of /signers.pem" || how["sensors"] != "; " {
		t.Errorf("%q", how)
	}
}

func TestASealedCommandWaitsInItsMailboxAsItCame(t *testing.T) {
	sealed(t, func(t *testing.T, r *rig, c *cloud, e *envelopes) {
		came := order("payload", func(v *msg.Envelope) { v.Subject = "bed-1/actuators/valve" })
		deliver := func() (msg.Reply, error) {
			return c.down.Deliver(t.Context(), msg.Publication{Topic: "valve/bed-1", Payload: came})
		}
		if reply, err := deliver(); err != nil || reply.Status != msg.Queued {
			t.Fatal(reply, err)
		}
		kept, err := r.mail.read("bed-1", 1)
		if err != nil || len(kept.Message.Payload) != 0 || kept.Message.Type != "" || !bytes.Equal(kept.Sealed, came) {
			t.Errorf("the mailbox has %+v, %v", kept, err)
		}
		if reply, err := deliver(); err != nil || reply.Code != "replayed" {
			t.Errorf("again: %+v, %v", reply, err)
		}
		var told []msg.Message
		synctest.Wait() // for whoever looks at the mailbox since
		e.set(errors.New("the chip is away"))
		r.field.connect("bed-1", answers(msg.Reply{Status: msg.Done, Code: "2.04"}, &told))
		r.Awake("bed-1")
		time.Sleep(2 * reopenTime)
		synctest.Wait()
		if len(told) != 0 || r.Snapshot().Mailboxes["bed-1"] != 1 {
			t.Errorf("without the chip %d were sent, %d wait", len(told), r.Snapshot().Mailboxes["bed-1"])
		}
		e.set(nil)
		r.Awake("bed-1")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(told) != 1 || string(told[0].Payload) != "open" || told[0].Type != "text/plain" || told[0].Method != "PUT" || r.Snapshot().Mailboxes["bed-1"] != 0 {
			t.Errorf("the device was told %+v", told)
		}
	})
}
