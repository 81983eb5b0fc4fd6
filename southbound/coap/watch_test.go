package coap

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

const watched = "/sensors/temp"

var ping = []byte{0x40, 0, 0, 1}

// watching makes a listener that observes a resource of a device which has just spoken, and gives the request for it.
func watching(t *testing.T, change func(*Config)) (*wire, packet) {
	t.Helper()
	w := newWire(t, func(c *Config) {
		c.Observe = []string{watched}
		if change != nil {
			change(c)
		}
	})
	list := w.feed(ping)
	if len(list) != 2 {
		t.Fatalf("sent %v, want a RST and a GET", list)
	}
	req := list[1]
	path, _ := req.path(nil)
	if n, there := req.number(message.Observe); req.typ != con || req.code != codes.GET || string(path) != watched || !there || n != 0 || len(req.token) == 0 {
		t.Fatalf("asked %+v", req)
	}
	return w, req
}

func observeOption(n uint32) message.Option { return uintOption(message.Observe, n) }

// payloads gives what has been submitted.
func (w *wire) payloads() (list []string) {
	for _, m := range w.up.Messages() {
		list = append(list, string(m.Payload))
	}
	return list
}

func (w *wire) wantPayloads(want ...string) {
	w.t.Helper()
	if got := w.payloads(); strings.Join(got, ",") != strings.Join(want, ",") {
		w.t.Errorf("submitted %q, want %q", got, want)
	}
}

func (w *wire) wantACK(list []packet, mid uint16) {
	w.t.Helper()
	if p := w.one(list); p.typ != ack || p.code != codes.Empty || p.mid != mid {
		w.t.Errorf("sent %+v, want an ACK of %d", p, mid)
	}
}

func TestNotificationsOfADeviceAreReports(t *testing.T) {
	w, req := watching(t, nil)
	if list := w.feed(w.answer(ack, codes.Content, req.mid, req.token, "20", observeOption(5), uintOption(message.ContentFormat, 50))); len(list) != 0 {
		t.Fatalf("sent %v", list)
	}
	if m := w.up.Messages()[0]; m.Method != "GET" || m.Resource != watched || m.Type != "application/json" || string(m.Payload) != "20" || m.Device != "anonymous" {
		t.Errorf("submitted %+v", m)
	}
	w.wantACK(w.feed(w.answer(con, codes.Content, 100, req.token, "21", observeOption(6))), 100)
	if list := w.feed(w.answer(non1, codes.Content, 101, req.token, "22", observeOption(7))); len(list) != 0 {
		t.Errorf("sent %v", list)
	}
	w.wantPayloads("20", "21", "22")
	// The newest is the last value.
	if p := w.one(w.feed(w.request(con, codes.GET, 102, "t", watched, nil))); string(p.payload) != "22" {
		t.Errorf("read %q", p.payload)
	}
}

func TestNotificationsThatAreNotNewAreAcknowledgedAlone(t *testing.T) {
	w, req := watching(t, nil)
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1<<24-2), uintOption(message.MaxAge, 3600)))
	mid := uint16(100)
	notify := func(seq uint32, payload string) {
		t.Helper()
		mid++
		w.wantACK(w.feed(w.answer(con, codes.Content, mid, req.token, payload, observeOption(seq))), mid)
	}
	notify(1<<24-1, "1")
	notify(3, "2")       // the number has wrapped
	notify(1<<24-1, "x") // overtaken by the one before
	notify(2, "x")
	notify(3, "x")
	w.wantACK(w.feed(w.answer(con, codes.Content, mid-3, req.token, "x", observeOption(9))), mid-3) // a message id that has been
	w.pass(129 * time.Second)
	notify(1, "3") // after 128 s the number says nothing
	w.wantPayloads("0", "1", "2", "3")
}

func TestNotificationIsAcknowledgedWhenItIsStored(t *testing.T) {
	w, req := watching(t, nil)
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1), uintOption(message.MaxAge, 3600)))
	w.up.Hold()
	n := w.answer(con, codes.Content, 100, req.token, "1", observeOption(2))
	for range 2 {
		if list := w.feed(n); len(list) != 0 {
			t.Fatalf("before the uplink has decided: %v", list)
		}
	}
	if list := w.pass(3 * time.Second); len(list) != 0 {
		t.Fatalf("while the uplink decides: %v", list)
	}
	w.up.Release()
	w.l.settle(w.now, nil)
	w.wantACK(w.take(), 100)
	w.wantACK(w.feed(n), 100)
	// What cannot be stored now is not acknowledged; its repetition is.
	w.up.Refuse(msg.Refuse(msg.Full, "no room"))
	n = w.answer(con, codes.Content, 101, req.token, "2", observeOption(3))
	if list := w.feed(n); len(list) != 0 {
		t.Fatalf("refused: %v", list)
	}
	w.up.Refuse(nil)
	w.wantACK(w.feed(n), 101)
	w.wantPayloads("0", "1", "2", "2")
	// What will never be is rejected.
	w.up.Refuse(msg.Refuse(msg.NoRoute, ""))
	if p := w.one(w.feed(w.answer(con, codes.Content, 102, req.token, "3", observeOption(4)))); p.typ != rst || p.mid != 102 {
		t.Errorf("without a route: %+v", p)
	}
}

func TestLongNotificationIsFetched(t *testing.T) {
	w, req := watching(t, nil)
	content := strings.Repeat("0123456789abcdef", 10)
	etag := message.Option{ID: message.ETag, Value: []byte("v1")}
	part := func(num uint32) (string, block) {
		b := block{num: num, szx: 2}
		end := min(b.offset()+b.size(), len(content))
		b.more = end < len(content)
		return content[b.offset():end], b
	}
	// Both the first answer and a notification are in blocks.
	for i, seq := range []uint32{1, 2} {
		payload, b := part(0)
		var list []packet
		if i == 0 {
			list = w.feed(w.answer(ack, codes.Content, req.mid, req.token, payload, etag, observeOption(seq), b.option(message.Block2)))
		} else {
			list = w.feed(w.answer(con, codes.Content, 100, req.token, payload, etag, observeOption(seq), b.option(message.Block2)))
			w.wantACK(list[:1], 100)
			list = list[1:]
		}
		for num := uint32(1); num <= 2; num++ {
			next := w.one(list)
			b, there, _ := next.block(message.Block2)
			_, observed := next.number(message.Observe)
			if !there || b.num != num || observed || bytes.Equal(next.token, req.token) {
				t.Fatalf("asked %+v", next)
			}
			payload, b := part(num)
			list = w.feed(w.answer(ack, codes.Content, next.mid, next.token, payload, etag, b.option(message.Block2)))
		}
	}
	w.wantPayloads(content, content)
	// Another representation between two blocks: the whole is asked for again.
	payload, b := part(0)
	list := w.feed(w.answer(con, codes.Content, 101, req.token, payload, etag, observeOption(3), b.option(message.Block2)))
	next := list[1]
	payload, b = part(1)
	w.feed(w.answer(ack, codes.Content, next.mid, next.token, payload, message.Option{ID: message.ETag, Value: []byte("v2")}, b.option(message.Block2)))
	if again := w.one(w.pass(75 * time.Second)[:1]); !bytes.Equal(again.token, req.token) {
		t.Errorf("then asked %+v", again)
	}
	w.wantPayloads(content, content)
}

func TestObservationIsRenewed(t *testing.T) {
	t.Run("when Max-Age is over, and an ETag spares the content", func(t *testing.T) {
		w, req := watching(t, nil)
		w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", message.Option{ID: message.ETag, Value: []byte("v1")}, observeOption(1), uintOption(message.MaxAge, 100)))
		if list := w.pass(100 * time.Second); len(list) != 0 {
			t.Fatalf("before Max-Age is over: %v", list)
		}
		again := w.pass(30 * time.Second)[0]
		etag, _ := again.option(message.ETag)
		if n, there := again.number(message.Observe); !bytes.Equal(again.token, req.token) || !there || n != 0 || string(etag) != "v1" {
			t.Fatalf("asked %+v", again)
		}
		w.feed(w.answer(ack, codes.Valid, again.mid, again.token, "", message.Option{ID: message.ETag, Value: []byte("v1")}, observeOption(2), uintOption(message.MaxAge, 100)))
		w.wantPayloads("0")
		if list := w.pass(100 * time.Second); len(list) != 0 {
			t.Errorf("2.03 does not prolong it: %v", list)
		}
	})
	t.Run("when a notification ends it", func(t *testing.T) {
		w, req := watching(t, nil)
		w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1), uintOption(message.MaxAge, 3600)))
		w.wantACK(w.feed(w.answer(con, codes.NotFound, 100, req.token, "")), 100)
		if list := w.pass(90 * time.Second); len(list) == 0 || !bytes.Equal(list[0].token, req.token) {
			t.Errorf("then sent %v", list)
		}
		w.wantPayloads("0")
	})
	t.Run("after a refusal, with a pause that grows", func(t *testing.T) {
		w, req := watching(t, nil)
		for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			w.feed(w.answer(ack, codes.NotFound, req.mid, req.token, ""))
			for left := pause - time.Second; left > 0; left -= time.Minute { // the session lives on
				if list := w.pass(min(left, time.Minute)); len(list) != 0 {
					t.Fatalf("before %v: %v", pause, list)
				}
				w.feed(ping)
			}
			req = w.pass(15 * time.Second)[0]
		}
	})
	t.Run("when a silent device is heard again", func(t *testing.T) {
		w, req := watching(t, nil)
		if n := len(w.pass(100 * time.Second)); n != 4 {
			t.Errorf("repeated %d times", n)
		}
		if list := w.pass(100 * time.Second); len(list) != 0 {
			t.Errorf("then sent %v", list)
		}
		if list := w.feed(ping); len(list) != 2 || !bytes.Equal(list[1].token, req.token) {
			t.Errorf("heard again, sent %v", list)
		}
	})
}

func TestObservationFollowsTheRules(t *testing.T) {
	site := southtest.NewSite(t)
	site.Allow(func(_ *auth.Identity, _ auth.Op, resource string) bool { return resource != "/secret" })
	w := newWireAt(t, site, func(c *Config) { c.Observe = []string{"/secret", watched} })
	req := w.feed(ping)[1]
	if path, _ := req.path(nil); string(path) != watched {
		t.Fatalf("asked for %s", path)
	}
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1)))
	// A reload takes the right away: the observation is ended.
	site.Allow(func(*auth.Identity, auth.Op, string) bool { return false })
	s := w.l.byAddr[deviceAddr]
	turn := w.l.begin(w.now)
	turn.rewatch(s)
	w.l.end(turn)
	end := w.one(w.take())
	if n, there := end.number(message.Observe); !there || n != 1 || !bytes.Equal(end.token, req.token) {
		t.Fatalf("sent %+v", end)
	}
	w.feed(w.answer(ack, codes.Content, end.mid, end.token, "x"))
	// Should it go on nevertheless, it is rejected, as it is after a restart with another configuration.
	for _, typ := range []message.Type{con, non1} {
		if p := w.one(w.feed(w.answer(typ, codes.Content, 200+uint16(typ), req.token, "x", observeOption(2)))); p.typ != rst {
			t.Errorf("answered by %+v", p)
		}
	}
	w.wantPayloads("0")
}

func TestCommandsGoAheadOfObservations(t *testing.T) {
	w, req := watching(t, func(c *Config) { c.Observe = []string{watched, "/b", "/c"} })
	w.deliver(setpoint("21"))
	if next := w.one(w.feed(w.answer(ack, codes.NotFound, req.mid, req.token, ""))); next.code != codes.PUT {
		t.Errorf("then sent %+v", next)
	}
}

func TestObservationWaitsForASleepyDevice(t *testing.T) {
	w, req := watching(t, nil)
	w.l.byAddr[deviceAddr].id = &auth.Identity{Device: "anonymous", Sleepy: true, Method: "none"}
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1), uintOption(message.MaxAge, 30)))
	if list := w.pass(100 * time.Second); len(list) != 0 {
		t.Errorf("asked while it sleeps: %v", list)
	}
	if list := w.feed(ping); len(list) != 2 {
		t.Errorf("it is heard: %v", list)
	}
}

// After a power cut a notification may be a replay. An answer to a request with a new token is not.
func TestNotificationAfterAPowerCut(t *testing.T) {
	w, req := watching(t, nil)
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1), uintOption(message.MaxAge, 1)))
	s := w.l.byAddr[deviceAddr]
	s.doubted = true
	s.talk.watches[0].due = w.now
	asked := w.one(w.feed(w.answer(con, codes.Content, 100, req.token, "replay", observeOption(2))))
	if _, observed := asked.number(message.Observe); asked.code != codes.GET || observed || bytes.Equal(asked.token, req.token) {
		t.Fatalf("asked %+v", asked)
	}
	again := w.one(w.feed(w.answer(ack, codes.Content, asked.mid, asked.token, "1")))
	if _, observed := again.number(message.Observe); s.doubted || !observed {
		t.Errorf("doubted %v, then asked %+v", s.doubted, again)
	}
	w.wantPayloads("0", "1")
}

func TestDeviceIsObservedThroughRestarts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d := sealing(driver())
	with := d.Configure
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		with(s, cfg, listen)
		cfg.(*Config).Observe = []string{watched}
	}
	b := southtest.Start(t, d)
	dev := &goCoAP{router: mux.NewRouter()}
	r := &observable{d: dev, value: "first"}
	if err := dev.router.Handle(watched, r); err != nil {
		t.Fatal(err)
	}
	if err := dev.dial(ctx, b.Addr, "th-1", b.Secret("th-1"), piondtls.WithConnectionIDGenerator(piondtls.OnlySendCIDGenerator())); err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	taken := func(what string) {
		t.Helper()
		for {
			for _, m := range b.Up.Messages() {
				if m.Resource == watched && string(m.Payload) == what && m.Device == "th-1" {
					return
				}
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%q has not come: %v", what, figures(b))
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	taken("first")
	r.set(ctx, "second")
	taken("second")
	b.Stop()
	b.Serve(t, b.Addr.String())
	r.set(ctx, "third") // known by its token
	taken("third")
	if f := b.Listener.(southbound.Counters).Counters(); f["handshakes_ok"] != 0 || f["restored"] != 1 {
		t.Errorf("%v", f)
	}
}

// A notification that comes while the gateway renews its observation has the same token as the answer.
func TestNotificationDuringARenewal(t *testing.T) {
	w, req := watching(t, nil)
	w.feed(w.answer(ack, codes.Content, req.mid, req.token, "0", observeOption(1), uintOption(message.MaxAge, 1)))
	again := w.pass(30 * time.Second)[0]
	w.up.Hold()
	if list := w.feed(w.answer(con, codes.Content, 100, req.token, "1", observeOption(2))); len(list) != 0 {
		t.Fatalf("before it is stored: %v", list)
	}
	w.up.Release()
	w.l.settle(w.now, nil)
	w.wantACK(w.take(), 100)
	w.feed(w.answer(ack, codes.Content, again.mid, req.token, "2", observeOption(3), uintOption(message.MaxAge, 3600)))
	if list := w.pass(time.Minute); len(list) != 0 {
		t.Errorf("then sent %v", list)
	}
	w.wantPayloads("0", "1", "2")
}
