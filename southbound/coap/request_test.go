package coap

import (
	"bytes"
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

func TestConfirmableReportIsAnsweredInItsACK(t *testing.T) {
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

func TestNonConfirmableReportIsAnsweredByNON(t *testing.T) {
	w := newWire(t, nil)
	p := w.one(w.feed(w.request(non1, codes.POST, 7, "t", "/a", []byte("1"))))
	if p.typ != non1 || p.mid == 7 || string(p.token) != "t" || p.code != codes.Changed {
		t.Errorf("answered %+v", p)
	}
	if list := w.feed(w.request(non1, codes.POST, 7, "t", "/a", []byte("1"))); len(list) != 0 || len(w.up.Messages()) != 1 {
		t.Errorf("repeated: answered %v, %d submitted", list, len(w.up.Messages()))
	}
}

func TestSlowReportGetsASeparateAnswer(t *testing.T) {
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
		"FETCH in no format":                 {fetch, "/a", nil, codes.UnsupportedMediaType},
		"FETCH of what is not there":         {fetch, "/a", []message.Option{uintOption(message.ContentFormat, formatEtch)}, codes.NotFound},
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

func TestWellKnownCore(t *testing.T) {
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

func TestLastValueIsRead(t *testing.T) {
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

func TestLastValueIsObserved(t *testing.T) {
	w := newWire(t, nil)
	w.feed(w.request(con, codes.GET, 1, "obs", "/a", nil, uintOption(message.Observe, 0)))
	list := w.feed(w.request(con, codes.PUT, 2, "t", "/a", []byte("21")))
	if len(list) != 2 || string(list[0].token) != "obs" || list[0].code != codes.Content || string(list[0].payload) != "21" {
		t.Errorf("sent %+v", list)
	}
}

func TestWellKnownCoreIsFiltered(t *testing.T) {
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
