package coap

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
)

// deliver hands a command over and gives the outcome later.
func (w *wire) deliver(m msg.Message) func() (msg.Reply, error) {
	w.t.Helper()
	type result struct {
		r   msg.Reply
		err error
	}
	c := make(chan result, 1)
	before, sends := w.queued(m.Device), w.sends()
	go func() {
		r, err := w.l.Deliver(w.t.Context(), m)
		c <- result{r, err}
	}()
	for w.queued(m.Device) == before || before == 0 && w.sends() == sends {
		select {
		case r := <-c:
			c <- r
			return func() (msg.Reply, error) { r := <-c; return r.r, r.err }
		case <-time.After(time.Millisecond):
		}
	}
	return func() (msg.Reply, error) {
		select {
		case r := <-c:
			return r.r, r.err
		case <-time.After(30 * time.Second):
			return msg.Reply{}, errors.New("Deliver does not return")
		}
	}
}

func (w *wire) queued(device string) (n int) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	for _, s := range w.l.byDevice[device] {
		if s.talk != nil {
			n += len(s.talk.commands)
		}
	}
	return n
}

func setpoint(payload string) msg.Message {
	return msg.Message{Device: "anonymous", Method: "PUT", Resource: "/actuators/setpoint", Type: "text/plain", Payload: []byte(payload)}
}

func TestCommandAsRequest(t *testing.T) {
	w := newWire(t, nil)
	if _, err := w.l.Deliver(t.Context(), setpoint("21")); err == nil {
		t.Fatal("delivered to nobody")
	}
	w.feed([]byte{0x40, 0, 0, 1})
	reply := w.deliver(setpoint("21"))
	req := w.one(w.take())
	path, _ := req.path(nil)
	if f, _ := req.number(message.ContentFormat); req.typ != con || req.code != codes.PUT || string(path) != "/actuators/setpoint" || string(req.payload) != "21" || f != 0 {
		t.Fatalf("sent %+v", req)
	}
	second := w.deliver(setpoint("22"))
	if list := w.take(); len(list) != 0 {
		t.Fatalf("a second one is under way: %v", list)
	}
	again := w.one(w.pass(3100 * time.Millisecond))
	if again.mid != req.mid {
		t.Fatalf("repeated as %+v", again)
	}
	next := w.one(w.feed(w.answer(ack, codes.Changed, req.mid, req.token, "done")))
	if r, err := reply(); err != nil || r.Status != msg.Done || r.Code != "2.04" || string(r.Payload) != "done" {
		t.Errorf("reply %+v, %v", r, err)
	}
	// The second is answered on its own, after an empty ACK.
	if string(next.payload) != "22" || next.mid == req.mid || bytes.Equal(next.token, req.token) {
		t.Fatalf("then sent %+v", next)
	}
	if list := w.feed(appendShort(nil, ack, codes.Empty, next.mid, nil)); len(list) != 0 {
		t.Fatalf("answered %v", list)
	}
	if list := w.pass(time.Minute); len(list) != 0 {
		t.Fatalf("repeated after the ACK: %v", list)
	}
	w.feed([]byte{0x40, 0, 0, 1})
	if p := w.one(w.feed(w.answer(con, codes.NotFound, 77, next.token, ""))); p.typ != ack || p.mid != 77 {
		t.Errorf("separate answer answered by %+v", p)
	}
	if r, err := second(); err != nil || r.Status != msg.Refused || r.Code != "4.04" {
		t.Errorf("second reply %+v, %v", r, err)
	}
}

func (w *wire) answer(typ message.Type, code codes.Code, mid uint16, token []byte, payload string, opts ...message.Option) []byte {
	w.t.Helper()
	b, err := appendMessage(nil, &message.Message{Type: typ, Code: code, MessageID: int32(mid), Token: token, Payload: []byte(payload), Options: opts})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func TestCommandThatNobodyAnswersIsGivenUp(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	reply := w.deliver(setpoint("21"))
	if list := append(w.take(), w.pass(95*time.Second)...); len(list) != 5 {
		t.Errorf("sent %d times, want 1 + MAX_RETRANSMIT", len(list))
	}
	if r, err := reply(); !errors.Is(err, errSilent) {
		t.Errorf("reply %+v, %v", r, err)
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.l.Deliver(ctx, setpoint("21")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	w.take()
	if list := w.pass(100 * time.Second); len(list) != 0 {
		t.Errorf("repeated after its end: %v", list)
	}
}

// A sleepy device hears commands for a while after it has spoken; then the mailbox is to keep them.
func TestCommandToASleepyDevice(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	w.l.mu.Lock()
	s := w.l.byDevice["anonymous"][0]
	s.id = &auth.Identity{Device: "anonymous", Sleepy: true}
	s.seen = time.Now().Add(-2 * wakeful)
	w.l.mu.Unlock()
	if _, err := w.l.Deliver(t.Context(), setpoint("21")); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("asleep: %v", err)
	}
	w.l.mu.Lock()
	s.seen = time.Now()
	w.l.mu.Unlock()
	w.deliver(setpoint("21"))
	if list := w.take(); len(list) != 1 {
		t.Errorf("awake: sent %v", list)
	}
}

func TestCommandInBlocks(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	content, answer := strings.Repeat("0123456789abcdef", 150), strings.Repeat("x", 100)
	reply := w.deliver(setpoint(content))
	var got []byte
	list := w.take()
	for {
		req := w.one(list)
		b, there, ok := req.block(message.Block1)
		if !there || !ok || b.offset() != len(got) {
			t.Fatalf("block %+v after %d octets", b, len(got))
		}
		got = append(got, req.payload...)
		if b.num == 0 {
			b.szx = 5 // the device would rather have 512 octets
		}
		if !b.more {
			first := block{num: 0, more: true, szx: 2}
			list = w.feed(w.answer(ack, codes.Changed, req.mid, req.token, answer[:64], first.option(message.Block2), b.option(message.Block1)))
			break
		}
		list = w.feed(w.answer(ack, codes.Continue, req.mid, req.token, "", b.option(message.Block1)))
	}
	req := w.one(list)
	b, there, _ := req.block(message.Block2)
	if string(got) != content || !there || b.num != 1 || len(req.payload) != 0 {
		t.Fatalf("%d octets arrived; then %+v, %+v", len(got), req, b)
	}
	w.feed(w.answer(ack, codes.Changed, req.mid, req.token, answer[64:], block{num: 1, szx: 2}.option(message.Block2)))
	if r, err := reply(); err != nil || r.Status != msg.Done || string(r.Payload) != answer {
		t.Errorf("reply %+v, %v", r, err)
	}
}

func TestCommandAsNotification(t *testing.T) {
	w := newWire(t, nil)
	p := w.one(w.feed(w.request(con, codes.GET, 1, "obs", "/actuators/setpoint", nil, uintOption(message.Observe, 0))))
	first, there := p.number(message.Observe)
	if p.code != codes.Content || !there {
		t.Fatalf("answered %+v", p)
	}
	reply := w.deliver(setpoint("21"))
	n := w.one(w.take())
	if seq, _ := n.number(message.Observe); n.typ != con || n.code != codes.Content || string(n.token) != "obs" || string(n.payload) != "21" || seq <= first {
		t.Fatalf("notified %+v", n)
	}
	w.feed(appendShort(nil, ack, codes.Empty, n.mid, nil))
	if r, err := reply(); err != nil || r.Status != msg.Done {
		t.Errorf("reply %+v, %v", r, err)
	}
	// A device that has forgotten its observation gets the command as a request.
	reply = w.deliver(setpoint("22"))
	n = w.one(w.take())
	req := w.one(w.feed(appendShort(nil, rst, codes.Empty, n.mid, nil)))
	if req.code != codes.PUT || string(req.payload) != "22" {
		t.Fatalf("after RST sent %+v", req)
	}
	w.feed(w.answer(ack, codes.Changed, req.mid, req.token, ""))
	if r, err := reply(); err != nil || r.Code != "2.04" {
		t.Errorf("reply %+v, %v", r, err)
	}
}

func TestObservationEndsWhenTheDeviceSaysSo(t *testing.T) {
	w := newWire(t, nil)
	w.feed(w.request(con, codes.GET, 1, "obs", "/actuators/setpoint", nil, uintOption(message.Observe, 0)))
	w.feed(w.request(con, codes.GET, 2, "obs", "/actuators/setpoint", nil, uintOption(message.Observe, 1)))
	w.deliver(setpoint("21"))
	if req := w.one(w.take()); req.code != codes.PUT {
		t.Errorf("sent %+v", req)
	}
}

func TestCommandBehindOneThatIsTakenBackGoesAtOnce(t *testing.T) {
	w := newWire(t, nil)
	w.feed([]byte{0x40, 0, 0, 1})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := w.l.Deliver(ctx, setpoint("21"))
		ended <- err
	}()
	for w.queued("anonymous") == 0 {
		time.Sleep(time.Millisecond)
	}
	second := w.deliver(setpoint("22"))
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("the first was delivered")
	}
	list := w.take()
	last := list[len(list)-1]
	if string(last.payload) != "22" {
		t.Fatalf("sent %q last", last.payload)
	}
	w.feed(w.answer(ack, 2<<5|4, last.mid, last.token, ""))
	if r, err := second(); err != nil || r.Status != msg.Done {
		t.Errorf("second reply %+v, %v", r, err)
	}
}
