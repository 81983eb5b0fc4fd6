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

	"github.com/drawbridge/drawbridge/internal/msg"
)

const (
	con  = message.Confirmable
	non1 = message.NonConfirmable
	ack  = message.Acknowledgement
	rst  = message.Reset
)

// The names of the ETSI plugtest cases (TD_COAP_CORE, TD_COAP_BLOCK, TD_COAP_OBS, TD_COAP_LINK) stand where a test does what a case asks.

func TestConfirmableReportIsAnsweredInItsACK_TD_COAP_CORE_02_03(t *testing.T) {
	for _, code := range []codes.Code{codes.POST, codes.PUT, patch, ipatch} {
		w := newWire(t, nil)
		p := w.one(w.feed(w.request(con, code, 7, "tok", "/a/b", []byte("21"))))
		if p.typ != ack || p.mid != 7 || string(p.token) != "tok" || p.code != codes.Changed || len(p.payload) > 0 {
			t.Errorf("%s: answered %+v", method(code), p)
		}
		if m := w.up.Messages()[0]; m.Method != method(code) || m.Resource != "/a/b" || string(m.Payload) != "21" || m.Type != "" || m.Device != "anonymous" {
			t.Errorf("submitted %+v", m)
		}
	}
}

func TestNonConfirmableReportIsAnsweredByNON_TD_COAP_CORE_06_07(t *testing.T) {
	w := newWire(t, nil)
	p := w.one(w.feed(w.request(non1, codes.POST, 7, "t", "/a", []byte("1"))))
	if p.typ != non1 || p.mid == 7 || string(p.token) != "t" || p.code != codes.Changed {
		t.Errorf("answered %+v", p)
	}
	if list := w.feed(w.request(non1, codes.POST, 7, "t", "/a", []byte("1"))); len(list) != 0 || len(w.up.Messages()) != 1 {
		t.Errorf("repeated: answered %v, %d submitted", list, len(w.up.Messages()))
	}
}

func TestSlowReportGetsASeparateAnswer_TD_COAP_CORE_09(t *testing.T) {
	w := newWire(t, nil)
	w.up.Hold()
	req := w.request(con, codes.POST, 7, "tok", "/a", []byte("1"))
	if list := w.feed(req); len(list) != 0 {
		t.Fatalf("answered at once: %v", list)
	}
	if list := w.feed(req); len(list) != 0 {
		t.Fatalf("repetition answered before the uplink: %v", list)
	}
	if p := w.one(w.pass(1200 * time.Millisecond)); p.typ != ack || p.code != codes.Empty || p.mid != 7 {
		t.Fatalf("want an empty ACK, got %+v", p)
	}
	if p := w.one(w.feed(req)); p.typ != ack || p.code != codes.Empty {
		t.Fatalf("repetition: want an empty ACK, got %+v", p)
	}
	w.up.Release()
	w.l.settle(w.now, nil)
	first := w.one(w.take())
	if first.typ != con || first.code != codes.Changed || string(first.token) != "tok" {
		t.Fatalf("want a separate 2.04, got %+v", first)
	}
	if again := w.one(w.pass(3100 * time.Millisecond)); again.mid != first.mid || again.typ != con {
		t.Fatalf("want the same again, got %+v", again)
	}
	if list := w.feed(appendShort(nil, ack, codes.Empty, first.mid, nil)); len(list) != 0 {
		t.Fatalf("ACK answered: %v", list)
	}
	if list := w.pass(2 * time.Minute); len(list) != 0 {
		t.Fatalf("repeated after the ACK: %v", list)
	}
	if n := len(w.up.Messages()); n != 1 {
		t.Errorf("%d submitted", n)
	}
}

func TestRepeatedRequestIsCarriedOutOnce(t *testing.T) {
	w := newWire(t, nil)
	req := w.request(con, codes.POST, 7, "tok", "/a", []byte("1"))
	first := w.one(w.feed(req))
	for i := range 100 {
		w.feed(w.request(con, codes.POST, uint16(1000+i), "x", "/a", nil))
	}
	w.pass(240 * time.Second)
	w.feed(w.request(con, codes.POST, 2000, "x", "/a", nil))
	again := w.one(w.feed(req))
	if again.typ != first.typ || again.code != first.code || again.mid != first.mid || !bytes.Equal(again.token, first.token) {
		t.Errorf("first %+v, again %+v", first, again)
	}
	if n := len(w.up.Messages()); n != 102 {
		t.Errorf("%d submitted, want 102", n)
	}
}

func TestMessageIDIsFreeAfterEXCHANGE_LIFETIME(t *testing.T) {
	w := newWire(t, nil)
	req := w.request(con, codes.POST, 7, "tok", "/a", []byte("1"))
	w.feed(req)
	for range 5 { // the session lives on
		w.pass(50 * time.Second)
		w.feed([]byte{0x40, 0, 0, 1})
	}
	w.feed(req)
	if n := len(w.up.Messages()); n != 2 {
		t.Errorf("%d submitted, want 2", n)
	}
}

func TestRefusalsHaveTheirCodes(t *testing.T) {
	for reason, want := range map[msg.Reason]codes.Code{
		msg.Denied: codes.Forbidden, msg.NoRoute: codes.NotFound, msg.BadPayload: codes.BadRequest, msg.TooLarge: codes.RequestEntityTooLarge,
		msg.Unavailable: codes.ServiceUnavailable, msg.Unconfirmed: codes.GatewayTimeout, msg.Unprocessable: codes.BadRequest,
	} {
		w := newWire(t, nil)
		w.up.Refuse(msg.Refuse(reason, "because"))
		if p := w.one(w.feed(w.request(con, codes.POST, 1, "t", "/a", nil))); p.code != want {
			t.Errorf("%v: %s, want %s", reason, codeText(p.code), codeText(want))
		}
	}
	w := newWire(t, nil)
	w.up.Refuse(&msg.Refusal{Reason: msg.Full, RetryAfter: 1500 * time.Millisecond})
	p := w.one(w.feed(w.request(con, codes.POST, 1, "t", "/a", nil)))
	if age, _ := p.number(message.MaxAge); p.code != codes.ServiceUnavailable || age != 2 {
		t.Errorf("full: %s, Max-Age %d", codeText(p.code), age)
	}
}

func TestOddRequests(t *testing.T) {
	opt := func(id message.OptionID, v string) message.Option { return message.Option{ID: id, Value: []byte(v)} }
	for name, c := range map[string]struct {
		code codes.Code
		path string
		opts []message.Option
		want codes.Code
	}{
		"unknown critical option":            {codes.POST, "/a", []message.Option{opt(2049, "x")}, codes.BadOption},
		"unknown elective option":            {codes.POST, "/a", []message.Option{opt(2050, "x")}, codes.Changed},
		"critical option of a bad length":    {codes.POST, "/a", []message.Option{opt(message.Block1, "xxxx")}, codes.BadOption},
		"elective option of a bad length":    {codes.POST, "/a", []message.Option{opt(message.ContentFormat, "xxx")}, codes.Changed},
		"critical option twice":              {codes.POST, "/a", []message.Option{opt(message.URIHost, "x"), opt(message.URIHost, "y")}, codes.BadOption},
		"Uri-Host and Uri-Port":              {codes.POST, "/a", []message.Option{opt(message.URIHost, "gw"), opt(message.URIPort, "\x16\x34")}, codes.Changed},
		"Proxy-Uri":                          {codes.POST, "/a", []message.Option{opt(message.ProxyURI, "coap://x/")}, codes.ProxyingNotSupported},
		"Proxy-Scheme":                       {codes.GET, "/a", []message.Option{opt(message.ProxyScheme, "coap")}, codes.ProxyingNotSupported},
		"empty segment":                      {codes.POST, "/a", []message.Option{opt(message.URIPath, "")}, codes.BadRequest},
		"slash in a segment":                 {codes.POST, "/a", []message.Option{opt(message.URIPath, "b/c")}, codes.BadRequest},
		"control character":                  {codes.POST, "/a", []message.Option{opt(message.URIPath, "b\n")}, codes.BadRequest},
		"not UTF-8":                          {codes.POST, "/a", []message.Option{opt(message.URIPath, "\xff")}, codes.BadRequest},
		"long path":                          {codes.POST, strings.Repeat("/"+strings.Repeat("x", 200), 6), nil, codes.BadRequest},
		"DELETE of what is not there":        {codes.DELETE, "/a", nil, codes.Deleted},
		"FETCH":                              {fetch, "/a", nil, codes.MethodNotAllowed},
		"unknown method":                     {31, "/a", nil, codes.MethodNotAllowed},
		"well-known in a format that is not": {codes.GET, "/.well-known/core", []message.Option{uintOption(message.Accept, 50)}, codes.NotAcceptable},
		"a device name that is none":         {codes.POST, "/a", []message.Option{opt(message.URIQuery, "device=a/b")}, codes.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, nil)
			p := w.one(w.feed(w.request(con, c.code, 9, "tk", c.path, nil, c.opts...)))
			if p.typ != ack || p.mid != 9 || string(p.token) != "tk" || p.code != c.want {
				t.Errorf("answered %v %s, want %s", p.typ, codeText(p.code), codeText(c.want))
			}
		})
	}
}

func TestMessageLayer(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want message.Type // -1: silence
	}{
		"ping":                             {[]byte{0x40, 0, 1, 2}, rst},
		"empty with a token":               {[]byte{0x41, 0, 1, 2, 9}, rst},
		"NON ping":                         {[]byte{0x50, 0, 1, 2}, -1},
		"token of 9":                       {[]byte{0x49, 2, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9}, rst},
		"payload marker without a payload": {[]byte{0x40, 2, 1, 2, 0xff}, rst},
		"option ends in 0xff":              {[]byte{0x50, 2, 1, 2, 0xb1, 0xff}, -1},
		"truncated option":                 {[]byte{0x40, 2, 1, 2, 0xb5, 'a'}, rst},
		"reserved option nibble":           {[]byte{0x40, 2, 1, 2, 0xf0}, rst},
		"reserved class":                   {[]byte{0x40, 0x20, 1, 2}, rst},
		"unexpected confirmable response":  {[]byte{0x40, 0x45, 1, 2}, rst},
		"unexpected response":              {[]byte{0x50, 0x45, 1, 2}, -1},
		"unexpected ACK":                   {[]byte{0x60, 0, 1, 2}, -1},
		"unexpected RST":                   {[]byte{0x70, 0, 1, 2}, -1},
		"request in an ACK":                {[]byte{0x60, 2, 1, 2}, -1},
		"version 2":                        {[]byte{0x80, 2, 1, 2}, -1},
		"three octets":                     {[]byte{0x40, 2, 1}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, nil)
			list := w.feed(c.in)
			if c.want < 0 {
				if len(list) != 0 && !(list[0].typ == non1 && list[0].code == codes.BadRequest) {
					t.Errorf("answered %v", list)
				}
			} else if p := w.one(list); p.typ != c.want || p.code != codes.Empty || p.mid != 0x102 || len(p.token) != 0 {
				t.Errorf("answered %+v", p)
			}
			if n := len(w.up.Messages()); n > 0 {
				t.Errorf("%d submitted", n)
			}
		})
	}
}

func TestNoResponse(t *testing.T) {
	w := newWire(t, nil)
	if list := w.feed(w.request(non1, codes.POST, 1, "t", "/a", nil, uintOption(message.NoResponse, 2))); len(list) != 0 {
		t.Errorf("NON answered: %v", list)
	}
	if p := w.one(w.feed(w.request(con, codes.POST, 2, "t", "/a", nil, uintOption(message.NoResponse, 2)))); p.code != codes.Empty || p.typ != ack || p.mid != 2 {
		t.Errorf("CON answered %+v", p)
	}
	w.up.Refuse(msg.Refuse(msg.Denied, ""))
	if p := w.one(w.feed(w.request(non1, codes.POST, 3, "t", "/a", nil, uintOption(message.NoResponse, 2)))); p.code != codes.Forbidden {
		t.Errorf("refusal: %+v", p)
	}
	if n := len(w.up.Messages()); n != 3 {
		t.Errorf("%d submitted", n)
	}
}

func TestWellKnownCore_TD_COAP_LINK_01(t *testing.T) {
	w := newWire(t, nil)
	p := w.one(w.feed(w.request(con, codes.GET, 1, "t", "/.well-known/core", nil)))
	if f, _ := p.number(message.ContentFormat); p.code != codes.Content || f != 40 || !strings.HasPrefix(string(p.payload), "</.well-known/core>") {
		t.Errorf("%s, format %d, %q", codeText(p.code), f, p.payload)
	}
}

func TestTooManyReportsAtATimeAreRefused(t *testing.T) {
	w := newWire(t, nil)
	w.up.Hold()
	for i := range maxPending {
		w.feed(w.request(con, codes.POST, uint16(i), "t", "/a", nil))
	}
	p := w.one(w.feed(w.request(con, codes.POST, 999, "t", "/a", nil)))
	if p.code != codes.ServiceUnavailable {
		t.Errorf("answered %s", codeText(p.code))
	}
	w.up.Release()
	w.l.settle(w.now, nil)
	if n := len(w.take()); n != maxPending {
		t.Errorf("%d answers, want %d", n, maxPending)
	}
	if p := w.one(w.feed(w.request(con, codes.POST, 999, "t", "/a", nil))); p.code != codes.Changed {
		t.Errorf("then answered %s", codeText(p.code))
	}
}

func TestBlock1_TD_COAP_BLOCK_03_04(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 10)
	part := func(w *wire, mid uint16, token string, num uint32, szx uint8, opts ...message.Option) packet {
		b := block{num: num, szx: szx}
		end := min(b.offset()+b.size(), len(content))
		b.more = end < len(content)
		return w.one(w.feed(w.request(con, codes.PUT, mid, token, "/a", content[b.offset():end], append(opts, b.option(message.Block1))...)))
	}
	t.Run("the token may change", func(t *testing.T) {
		w := newWire(t, nil)
		for i := range uint32(3) {
			p := part(w, uint16(i), string(rune('a'+i)), i, 2)
			want := codes.Continue
			if i == 2 {
				want = codes.Changed
			}
			if b, there, _ := p.block(message.Block1); p.code != want || !there || b.num != i {
				t.Fatalf("block %d: %s, %+v", i, codeText(p.code), b)
			}
		}
		if m := w.up.Messages(); len(m) != 1 || !bytes.Equal(m[0].Payload, content) {
			t.Errorf("submitted %v", m)
		}
		if w.l.assembling != 0 {
			t.Errorf("%d octets are kept", w.l.assembling)
		}
	})
	t.Run("a repeated block is taken once", func(t *testing.T) {
		w := newWire(t, nil)
		for _, n := range []uint32{0, 0, 1, 1, 2, 2} {
			if p := part(w, uint16(n), "t", n, 2); p.code>>5 != 2 {
				t.Fatalf("block %d: %s", n, codeText(p.code))
			}
		}
		if m := w.up.Messages(); len(m) != 1 || !bytes.Equal(m[0].Payload, content) {
			t.Errorf("submitted %v", m)
		}
	})
	t.Run("a missing block is 4.08", func(t *testing.T) {
		w := newWire(t, nil)
		part(w, 1, "t", 0, 1)
		if p := part(w, 2, "t", 2, 1); p.code != codes.RequestEntityIncomplete {
			t.Errorf("answered %s", codeText(p.code))
		}
		if p := part(w, 3, "t", 1, 1); p.code != codes.RequestEntityIncomplete {
			t.Errorf("then %s", codeText(p.code))
		}
	})
	t.Run("smaller blocks may follow", func(t *testing.T) {
		w := newWire(t, nil)
		part(w, 1, "t", 0, 2)
		for i := range uint32(6) {
			part(w, uint16(10+i), "t", 4+i, 0)
		}
		if m := w.up.Messages(); len(m) != 1 || !bytes.Equal(m[0].Payload, content) {
			t.Errorf("submitted %v", m)
		}
	})
	t.Run("request tags keep transfers apart", func(t *testing.T) {
		w := newWire(t, nil)
		for i := range uint32(3) {
			part(w, uint16(i), "t", i, 2, message.Option{ID: requestTag, Value: []byte("a")})
			part(w, uint16(100+i), "t", i, 2, message.Option{ID: requestTag, Value: []byte("b")})
		}
		if m := w.up.Messages(); len(m) != 2 || !bytes.Equal(m[1].Payload, content) {
			t.Errorf("submitted %v", m)
		}
	})
	t.Run("too large is 4.13 and says how much may come", func(t *testing.T) {
		w := newWire(t, func(c *Config) { c.MaxPayload = 100 })
		part(w, 1, "t", 0, 2)
		p := part(w, 2, "t", 1, 2)
		if n, _ := p.number(message.Size1); p.code != codes.RequestEntityTooLarge || n != 100 {
			t.Errorf("answered %s, Size1 %d", codeText(p.code), n)
		}
	})
	t.Run("what nobody finishes is forgotten", func(t *testing.T) {
		w := newWire(t, nil)
		part(w, 1, "t", 0, 2)
		for range 3 {
			w.pass(100 * time.Second)
			w.feed([]byte{0x40, 0, 0, 1})
		}
		if w.l.assembling != 0 {
			t.Errorf("%d octets are kept", w.l.assembling)
		}
	})
	t.Run("szx 7 and short blocks are 4.00", func(t *testing.T) {
		w := newWire(t, nil)
		if p := w.one(w.feed(w.request(con, codes.PUT, 1, "t", "/a", content, uintOption(message.Block1, 7)))); p.code != codes.BadRequest {
			t.Errorf("szx 7: %s", codeText(p.code))
		}
		if p := w.one(w.feed(w.request(con, codes.PUT, 2, "t", "/a", content[:10], uintOption(message.Block1, 8)))); p.code != codes.BadRequest {
			t.Errorf("short: %s", codeText(p.code))
		}
	})
}

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
		case <-time.After(10 * time.Second):
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

func TestCommandAsNotification_TD_COAP_OBS_01_02(t *testing.T) {
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

func TestObservationEndsWhenTheDeviceSaysSo_TD_COAP_OBS_03(t *testing.T) {
	w := newWire(t, nil)
	w.feed(w.request(con, codes.GET, 1, "obs", "/actuators/setpoint", nil, uintOption(message.Observe, 0)))
	w.feed(w.request(con, codes.GET, 2, "obs", "/actuators/setpoint", nil, uintOption(message.Observe, 1)))
	w.deliver(setpoint("21"))
	if req := w.one(w.take()); req.code != codes.PUT {
		t.Errorf("sent %+v", req)
	}
}

func TestLastValueIsRead_TD_COAP_CORE_01_04_21_22(t *testing.T) {
	w := newWire(t, nil)
	mid := uint16(0)
	ask := func(code codes.Code, payload string, opts ...message.Option) packet {
		t.Helper()
		mid++
		return w.one(w.feed(w.request(con, code, mid, "t", "/sensors/temp", []byte(payload), opts...)))
	}
	if p := ask(codes.GET, ""); p.code != codes.Content || len(p.payload) != 0 {
		t.Errorf("before a report: %s", codeText(p.code))
	}
	ask(codes.PUT, "21", uintOption(message.ContentFormat, 50))
	p := ask(codes.GET, "")
	etag, _ := p.option(message.ETag)
	if f, _ := p.number(message.ContentFormat); p.code != codes.Content || string(p.payload) != "21" || f != 50 || len(etag) == 0 {
		t.Errorf("after a report: %+v", p)
	}
	if age, ok := p.number(message.MaxAge); !ok || age != 60 {
		t.Errorf("Max-Age %d", age)
	}
	if p := ask(codes.GET, "", message.Option{ID: message.ETag, Value: etag}); p.code != codes.Valid || len(p.payload) != 0 {
		t.Errorf("validation: %s", codeText(p.code))
	}
	if p := ask(codes.GET, "", uintOption(message.Accept, 60)); p.code != codes.NotAcceptable {
		t.Errorf("Accept: %s", codeText(p.code))
	}
	if p := ask(codes.PUT, "22", message.Option{ID: message.IfNoneMatch}); p.code != codes.PreconditionFailed {
		t.Errorf("If-None-Match: %s", codeText(p.code))
	}
	if p := ask(codes.PUT, "22", message.Option{ID: message.IfMatch, Value: []byte("other")}); p.code != codes.PreconditionFailed {
		t.Errorf("If-Match of another: %s", codeText(p.code))
	}
	if p := ask(codes.PUT, "22", message.Option{ID: message.IfMatch, Value: etag}); p.code != codes.Changed {
		t.Errorf("If-Match: %s", codeText(p.code))
	}
	w.up.Refuse(msg.Refuse(msg.Denied, ""))
	ask(codes.PUT, "23")
	if p := ask(codes.GET, ""); string(p.payload) != "22" {
		t.Errorf("after a report that was refused: %q", p.payload)
	}
	if p := ask(codes.DELETE, ""); p.code != codes.Deleted {
		t.Errorf("DELETE: %s", codeText(p.code))
	}
	if p := ask(codes.GET, ""); len(p.payload) != 0 {
		t.Errorf("after DELETE: %q", p.payload)
	}
}

func TestLastValueIsObserved_TD_COAP_OBS(t *testing.T) {
	w := newWire(t, nil)
	w.feed(w.request(con, codes.GET, 1, "obs", "/a", nil, uintOption(message.Observe, 0)))
	list := w.feed(w.request(con, codes.PUT, 2, "t", "/a", []byte("21")))
	if len(list) != 2 || string(list[0].token) != "obs" || list[0].code != codes.Content || string(list[0].payload) != "21" {
		t.Errorf("sent %+v", list)
	}
}

func TestBlock2_TD_COAP_BLOCK_01_02(t *testing.T) {
	w := newWire(t, nil)
	content := strings.Repeat("0123456789abcdef", 200)
	for i := range uint32(4) {
		b := block{num: i, szx: 6}
		end := min(b.offset()+b.size(), len(content))
		b.more = end < len(content)
		w.feed(w.request(con, codes.PUT, uint16(i), "t", "/a", []byte(content[b.offset():end]), b.option(message.Block1)))
	}
	for _, szx := range []uint8{6, 2} {
		var got []byte
		for b := (block{szx: szx}); ; b.num++ {
			var opts []message.Option
			if b.num > 0 || szx < 6 {
				opts = append(opts, b.option(message.Block2))
			}
			p := w.one(w.feed(w.request(con, codes.GET, uint16(1000*int(szx)+int(b.num)), "t", "/a", nil, opts...)))
			answer, there, ok := p.block(message.Block2)
			if p.code != codes.Content || !there || !ok || answer.num != b.num || answer.szx != szx {
				t.Fatalf("block %d: %s, %+v", b.num, codeText(p.code), answer)
			}
			if got = append(got, p.payload...); !answer.more {
				break
			}
		}
		if string(got) != content {
			t.Errorf("szx %d: %d octets", szx, len(got))
		}
	}
}

func TestWellKnownCoreIsFiltered_TD_COAP_LINK_02(t *testing.T) {
	w := newWire(t, nil)
	w.feed(w.request(con, codes.PUT, 1, "t", "/sensors/temp", []byte("1"), uintOption(message.ContentFormat, 50)))
	w.feed(w.request(con, codes.PUT, 2, "t", "/sensors/a b", []byte("1")))
	for query, want := range map[string]string{
		"href=/sensors/*":    "</sensors/a%20b>;obs,</sensors/temp>;ct=50;obs",
		"href=/sensors/temp": "</sensors/temp>;ct=50;obs",
		"rt=nothing":         "",
	} {
		p := w.one(w.feed(w.request(con, codes.GET, uint16(100+len(query)), "t", "/.well-known/core", nil, message.Option{ID: message.URIQuery, Value: []byte(query)})))
		if p.code != codes.Content || string(p.payload) != want {
			t.Errorf("%s: %s %q", query, codeText(p.code), p.payload)
		}
	}
}

func TestLastValuesStayWithinTheirRoom(t *testing.T) {
	vs := values{limit: 10_000}
	for i := range 100 {
		vs.set("dev", "/"+strings.Repeat("x", i), -1, make([]byte, 100))
	}
	if vs.size > vs.limit || vs.get("dev", "/"+strings.Repeat("x", 99)) == nil || vs.get("dev", "/") != nil {
		t.Errorf("%d octets", vs.size)
	}
	vs.set("dev", "/big", -1, make([]byte, 5000))
	if vs.get("dev", "/big") != nil {
		t.Error("one value takes it all")
	}
	for e := vs.order.Front(); e != nil; e = vs.order.Front() {
		vs.remove(e)
	}
	if vs.size != 0 || len(vs.byDevice) != 0 {
		t.Errorf("%d octets left", vs.size)
	}
}
