package coap

import (
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// plug is the gateway in a case of ETSI's plugtests (CoAP#4: CORE, BLOCK, OBS, LINK), with a test as the other side.
type plug struct {
	*wire
	mid uint16
}

// ask sends a request and gives the answer to it.
func (p *plug) ask(typ message.Type, code codes.Code, token, path, payload string, opts ...message.Option) packet {
	p.t.Helper()
	p.mid++
	list := p.feed(p.request(typ, code, p.mid, token, path, []byte(payload), opts...))
	for _, m := range list {
		if string(m.token) == token {
			return m
		}
	}
	p.t.Fatalf("%s %s: no answer among %v", method(code), path, list)
	return packet{}
}

// want holds an answer to what the cases ask of one: the message layer, code, token and payload.
func (p *plug) want(m packet, typ message.Type, code codes.Code, payload string) packet {
	p.t.Helper()
	if m.typ != typ || typ == ack && m.mid != p.mid || m.code != code || string(m.payload) != payload {
		p.t.Fatalf("answered %v %s %q, message id %d after %d; want %v %s %q", m.typ, codeText(m.code), m.payload, m.mid, p.mid, typ, codeText(code), payload)
	}
	return m
}

func (p *plug) wantNumber(m packet, id message.OptionID, n uint32) {
	p.t.Helper()
	if got, ok := m.number(id); !ok || got != n {
		p.t.Fatalf("option %d is %d, want %d", id, got, n)
	}
}

// blocks reads a resource in blocks, the first request with the option where szx is not negative.
func (p *plug) blocks(path string, szx int) (content string) {
	p.t.Helper()
	for b, first := (block{szx: uint8(max(szx, 0))}), true; ; first = false {
		var opts []message.Option
		if !first || szx >= 0 {
			opts = append(opts, b.option(message.Block2))
		}
		m := p.ask(con, codes.GET, "t", path, "", opts...)
		got, there, ok := m.block(message.Block2)
		if m.code != codes.Content || !there || !ok || got.num != b.num || szx >= 0 && got.szx != uint8(szx) || got.more && len(m.payload) != got.size() {
			p.t.Fatalf("block %+v is answered %s, %+v, %d octets", b, codeText(m.code), got, len(m.payload))
		}
		content += string(m.payload)
		if !got.more {
			return content
		}
		b = block{num: got.num + 1, szx: got.szx}
	}
}

// write sends a payload in blocks.
func (p *plug) write(code codes.Code, path, content string, szx uint8) (last packet) {
	p.t.Helper()
	for b := (block{szx: szx, more: true}); b.more; b.num++ {
		end := min(b.offset()+b.size(), len(content))
		b.more = end < len(content)
		last = p.ask(con, code, "t", path, content[b.offset():end], b.option(message.Block1))
		if got, there, _ := last.block(message.Block1); !there || got.num != b.num || b.more && last.code != codes.Continue {
			p.t.Fatalf("block %+v is answered %s, %+v", b, codeText(last.code), got)
		}
	}
	return last
}

// notified gives the notifications among what is sent.
func notified(list []packet, token string) (got []packet) {
	for _, m := range list {
		if string(m.token) == token {
			got = append(got, m)
		}
	}
	return got
}

var (
	textPlain = uintOption(message.ContentFormat, 0)
	register  = observeOption(0)
)

func (p *plug) put(payload string, opts ...message.Option) []packet {
	p.t.Helper()
	p.mid++
	return p.feed(p.request(con, codes.PUT, p.mid, "put", "/obs", []byte(payload), opts...))
}

// TestPlugtests are the cases of ETSI's CoAP plugtests, by their names, in which the gateway is the server, or, where it says so, the client.
//
// These do not apply: TD_COAP_CORE_18 and 19 (Location-Path and Location-Query: a report makes no resource elsewhere, it is answered 2.04 without a
// location) and 24 to 30 (reverse proxies: the gateway is none, and answers 5.05; TestOddRequests), TD_COAP_LINK_09 (nested link descriptions: the
// resources of a device are listed flat). There is no TD_COAP_OBS_03, and there are none of LINK after 09.
func TestPlugtests(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 200)
	answers := func(typ, want message.Type, code codes.Code, payload string, answer codes.Code, shown string) func(*plug) {
		return func(p *plug) {
			p.ask(con, codes.PUT, "x", "/test", "stored")
			p.want(p.ask(typ, code, "t", "/test", payload), want, answer, shown)
		}
	}
	separate := func(p *plug, token string) {
		p.up.Hold()
		p.mid++
		req := p.request(con, codes.POST, p.mid, token, "/separate", []byte("1"))
		if list := p.feed(req); len(list) != 0 {
			p.t.Fatalf("answered at once: %v", list)
		}
		p.want(p.one(p.pass(1200*time.Millisecond)), ack, codes.Empty, "")
		p.up.Release()
		p.l.settle(p.now, nil)
		m := p.one(p.take())
		if string(m.token) != token {
			p.t.Errorf("token %q", m.token)
		}
		p.want(m, con, codes.Changed, "")
		again := p.one(p.pass(3100 * time.Millisecond)) // the ACK was lost
		if again.mid != m.mid {
			p.t.Errorf("repeated as %d", again.mid)
		}
		p.feed(appendShort(nil, ack, codes.Empty, m.mid, nil))
		if list := p.pass(time.Minute); len(list) != 0 {
			p.t.Errorf("repeated after its ACK: %v", list)
		}
	}
	// observed registers an observation of /obs, whose value is "first".
	observed := func(p *plug) packet {
		p.put("first", textPlain)
		m := p.want(p.ask(con, codes.GET, "obs", "/obs", "", register), ack, codes.Content, "first")
		if _, ok := m.number(message.Observe); !ok {
			p.t.Fatal("it is not observed")
		}
		p.wantNumber(m, message.ContentFormat, 0)
		return m
	}
	lists := func(query, want string) func(*plug) {
		return func(p *plug) {
			p.ask(con, codes.PUT, "x", "/link1", "1", textPlain)
			p.ask(con, codes.PUT, "x", "/link2", "1", uintOption(message.ContentFormat, 50))
			p.write(codes.PUT, "/test", large, 6)
			m := p.want(p.ask(con, codes.GET, "t", "/.well-known/core", "", message.Option{ID: message.URIQuery, Value: []byte(query)}), ack, codes.Content, want)
			p.wantNumber(m, message.ContentFormat, 40)
		}
	}
	for _, c := range []struct {
		name, sentence string
		test           func(*plug)
	}{
		{"TD_COAP_CORE_01", "GET, confirmable", answers(con, ack, codes.GET, "", codes.Content, "stored")},
		{"TD_COAP_CORE_02", "DELETE, confirmable", answers(con, ack, codes.DELETE, "", codes.Deleted, "")},
		{"TD_COAP_CORE_03", "PUT, confirmable", answers(con, ack, codes.PUT, "21", codes.Changed, "")},
		{"TD_COAP_CORE_04", "POST, confirmable", answers(con, ack, codes.POST, "21", codes.Changed, "")},
		{"TD_COAP_CORE_05", "GET, non-confirmable", answers(non1, non1, codes.GET, "", codes.Content, "stored")},
		{"TD_COAP_CORE_06", "DELETE, non-confirmable", answers(non1, non1, codes.DELETE, "", codes.Deleted, "")},
		{"TD_COAP_CORE_07", "PUT, non-confirmable", answers(non1, non1, codes.PUT, "21", codes.Changed, "")},
		{"TD_COAP_CORE_08", "POST, non-confirmable", answers(non1, non1, codes.POST, "21", codes.Changed, "")},
		{"TD_COAP_CORE_09", "a separate response; it is a report that may take its time here, not a GET", func(p *plug) { separate(p, "t") }},
		{"TD_COAP_CORE_10", "GET with a token that is not empty", func(p *plug) { p.want(p.ask(con, codes.GET, "12345678", "/a", ""), ack, codes.Content, "") }},
		{"TD_COAP_CORE_11", "a separate response has the request's token", func(p *plug) { separate(p, "12345678") }},
		{"TD_COAP_CORE_12", "GET with an empty token", func(p *plug) { p.want(p.ask(con, codes.GET, "", "/a", ""), ack, codes.Content, "") }},
		{"TD_COAP_CORE_13", "GET with several Uri-Path options", func(p *plug) {
			p.ask(con, codes.PUT, "x", "/seg1/seg2/seg3", "deep")
			p.want(p.ask(con, codes.GET, "t", "/seg1/seg2/seg3", ""), ack, codes.Content, "deep")
		}},
		{"TD_COAP_CORE_14", "GET with several Uri-Query options", func(p *plug) {
			p.ask(con, codes.PUT, "x", "/query", "there")
			q := func(s string) message.Option { return message.Option{ID: message.URIQuery, Value: []byte(s)} }
			p.want(p.ask(con, codes.GET, "t", "/query", "", q("first=1"), q("second=2"), q("third=3")), ack, codes.Content, "there")
		}},
		{"TD_COAP_CORE_15", "a request whose piggybacked response was lost is answered again, and carried out once", func(p *plug) {
			req := p.request(con, codes.POST, 77, "t", "/test", []byte("1"))
			first := p.one(p.feed(req))
			again := p.one(p.feed(req))
			if again.typ != first.typ || again.code != first.code || again.mid != first.mid || len(p.up.Messages()) != 1 {
				p.t.Errorf("answered %+v, then %+v; carried out %d times", first, again, len(p.up.Messages()))
			}
		}},
		{"TD_COAP_CORE_16", "a separate response is repeated until it is acknowledged", func(p *plug) { separate(p, "t") }},
		{"TD_COAP_CORE_17", "a late response to a non-confirmable request", func(p *plug) {
			p.up.Hold()
			p.mid++
			p.feed(p.request(non1, codes.POST, p.mid, "t", "/separate", []byte("1")))
			if list := p.pass(2 * time.Second); len(list) != 0 {
				p.t.Fatalf("sent %v", list)
			}
			p.up.Release()
			p.l.settle(p.now, nil)
			p.want(p.one(p.take()), non1, codes.Changed, "")
		}},
		{"TD_COAP_CORE_20", "GET with Accept; a last value has one format", func(p *plug) {
			p.ask(con, codes.PUT, "x", "/a", "text", textPlain)
			p.wantNumber(p.want(p.ask(con, codes.GET, "t", "/a", "", uintOption(message.Accept, 0)), ack, codes.Content, "text"), message.ContentFormat, 0)
			p.want(p.ask(con, codes.GET, "t", "/a", "", uintOption(message.Accept, 41)), ack, codes.NotAcceptable, "")
		}},
		{"TD_COAP_CORE_21", "GET with ETag: 2.03 while it is valid", func(p *plug) {
			p.ask(con, codes.PUT, "x", "/validate", "one")
			m := p.ask(con, codes.GET, "t", "/validate", "")
			etag, _ := m.option(message.ETag)
			has := message.Option{ID: message.ETag, Value: etag}
			m = p.want(p.ask(con, codes.GET, "t", "/validate", "", has), ack, codes.Valid, "")
			if same, _ := m.option(message.ETag); string(same) != string(etag) {
				p.t.Errorf("ETag %x, then %x", etag, same)
			}
			p.ask(con, codes.PUT, "x", "/validate", "two")
			m = p.want(p.ask(con, codes.GET, "t", "/validate", "", has), ack, codes.Content, "two")
			if other, _ := m.option(message.ETag); string(other) == string(etag) {
				p.t.Error("the ETag is the same")
			}
		}},
		{"TD_COAP_CORE_22", "PUT with If-Match: 4.12 once another has written", func(p *plug) {
			p.ask(con, codes.PUT, "x", "/validate", "one")
			m := p.ask(con, codes.GET, "t", "/validate", "")
			etag, _ := m.option(message.ETag)
			has := message.Option{ID: message.IfMatch, Value: etag}
			p.want(p.ask(con, codes.PUT, "t", "/validate", "two", has), ack, codes.Changed, "")
			p.want(p.ask(con, codes.PUT, "t", "/validate", "three", has), ack, codes.PreconditionFailed, "")
			p.want(p.ask(con, codes.GET, "t", "/validate", ""), ack, codes.Content, "two")
		}},
		{"TD_COAP_CORE_23", "PUT with If-None-Match: 4.12 where there is something", func(p *plug) {
			p.want(p.ask(con, codes.PUT, "t", "/create1", "one", message.Option{ID: message.IfNoneMatch}), ack, codes.Changed, "")
			p.want(p.ask(con, codes.PUT, "t", "/create1", "two", message.Option{ID: message.IfNoneMatch}), ack, codes.PreconditionFailed, "")
		}},
		{"TD_COAP_CORE_31", "a ping is answered by a RST", func(p *plug) {
			if m := p.one(p.feed([]byte{0x40, 0, 0x12, 0x34})); m.typ != rst || m.mid != 0x1234 || m.code != codes.Empty {
				p.t.Errorf("answered %+v", m)
			}
		}},
		{"TD_COAP_BLOCK_01", "GET in blocks of the size that the client asks for at first", func(p *plug) {
			p.write(codes.PUT, "/large", large, 6)
			if got := p.blocks("/large", 2); got != large {
				p.t.Errorf("%d octets", len(got))
			}
		}},
		{"TD_COAP_BLOCK_02", "GET in blocks of the size that the server proposes", func(p *plug) {
			p.write(codes.PUT, "/large", large, 6)
			if got := p.blocks("/large", -1); got != large {
				p.t.Errorf("%d octets", len(got))
			}
		}},
		{"TD_COAP_BLOCK_03", "PUT in blocks", func(p *plug) {
			p.want(p.write(codes.PUT, "/large-update", large, 6), ack, codes.Changed, "")
			if m := p.up.Messages(); len(m) != 1 || string(m[0].Payload) != large || m[0].Method != "PUT" {
				p.t.Errorf("%d reports", len(m))
			}
		}},
		{"TD_COAP_BLOCK_04", "POST in blocks", func(p *plug) {
			p.want(p.write(codes.POST, "/large-create", large, 5), ack, codes.Changed, "")
			if m := p.up.Messages(); len(m) != 1 || string(m[0].Payload) != large || m[0].Method != "POST" {
				p.t.Errorf("%d reports", len(m))
			}
		}},
		{"TD_COAP_BLOCK_05", "POST with blocks both ways; as the client, for reports are answered without content", func(p *plug) {
			TestCommandInBlocks(p.t.(*testing.T))
		}},
		{"TD_COAP_BLOCK_06", "GET in blocks of 16 octets", func(p *plug) {
			p.write(codes.PUT, "/large", large, 6)
			if got := p.blocks("/large", 0); got != large {
				p.t.Errorf("%d octets", len(got))
			}
		}},
		{"TD_COAP_OBS_01", "an observation with confirmable messages; commands are such", func(p *plug) {
			TestCommandAsNotification(p.t.(*testing.T))
		}},
		{"TD_COAP_OBS_02", "an observation with non-confirmable messages", func(p *plug) {
			shown := observed(p)
			first, _ := shown.number(message.Observe)
			m := p.one(notified(p.put("second", textPlain), "obs"))
			p.want(m, non1, codes.Content, "second")
			if seq, _ := m.number(message.Observe); seq <= first {
				p.t.Errorf("%d after %d", seq, first)
			}
			p.wantNumber(m, message.ContentFormat, 0)
		}},
		{"TD_COAP_OBS_04", "the client finds out by Max-Age that the server has forgotten; as the client", func(p *plug) {
			TestObservationIsRenewed(p.t.(*testing.T))
		}},
		{"TD_COAP_OBS_05", "the server forgets a client that is off", func(p *plug) {
			observed(p)
			p.l.byAddr[deviceAddr].talk.observed[0].confirmed = p.now.Add(-confirmEvery)
			p.want(p.one(notified(p.put("second", textPlain), "obs")), con, codes.Content, "second")
			if n := len(notified(p.pass(100*time.Second), "obs")); n != p.l.cfg.MaxRetransmit {
				p.t.Errorf("repeated %d times", n)
			}
			if list := notified(p.put("third", textPlain), "obs"); len(list) != 0 {
				p.t.Errorf("notified %v", list)
			}
		}},
		{"TD_COAP_OBS_06", "the server forgets a client that answers by a RST", func(p *plug) {
			observed(p)
			m := p.one(notified(p.put("second", textPlain), "obs"))
			p.feed(appendShort(nil, rst, codes.Empty, m.mid, nil))
			if list := notified(p.put("third", textPlain), "obs"); len(list) != 0 {
				p.t.Errorf("notified %v", list)
			}
		}},
		{"TD_COAP_OBS_07", "a DELETE ends observations", func(p *plug) {
			observed(p)
			p.mid++
			list := notified(p.feed(p.request(con, codes.DELETE, p.mid, "del", "/obs", nil)), "obs")
			m := p.one(list)
			if _, there := m.number(message.Observe); m.code != codes.NotFound || there {
				p.t.Errorf("notified %+v", m)
			}
			if list := notified(p.put("second", textPlain), "obs"); len(list) != 0 {
				p.t.Errorf("then notified %v", list)
			}
		}},
		{"TD_COAP_OBS_08", "another Content-Format ends observations", func(p *plug) {
			observed(p)
			if m := p.one(notified(p.put("{}", uintOption(message.ContentFormat, 50)), "obs")); m.code != codes.NotAcceptable {
				p.t.Errorf("notified %+v", m)
			}
			if list := notified(p.put("{}", uintOption(message.ContentFormat, 50)), "obs"); len(list) != 0 {
				p.t.Errorf("then notified %v", list)
			}
		}},
		{"TD_COAP_OBS_09", "an update of the observed resource is notified", func(p *plug) {
			observed(p)
			for _, payload := range []string{"a", "b", "c"} {
				p.want(p.one(notified(p.put(payload, textPlain), "obs")), non1, codes.Content, payload)
			}
		}},
		{"TD_COAP_OBS_10", "a GET does not end an observation", func(p *plug) {
			observed(p)
			p.want(p.ask(con, codes.GET, "get", "/obs", ""), ack, codes.Content, "first")
			p.one(notified(p.put("second", textPlain), "obs"))
		}},
		{"TD_COAP_OBS_11", "a confirmable notification that is lost is repeated", func(p *plug) {
			observed(p)
			p.l.byAddr[deviceAddr].talk.observed[0].confirmed = p.now.Add(-confirmEvery)
			m := p.one(notified(p.put("second", textPlain), "obs"))
			if again := p.one(p.pass(3100 * time.Millisecond)); again.mid != m.mid || string(again.payload) != "second" {
				p.t.Errorf("repeated as %+v", again)
			}
			p.feed(appendShort(nil, ack, codes.Empty, m.mid, nil))
			if list := p.pass(100 * time.Second); len(list) != 0 {
				p.t.Errorf("repeated after its ACK: %v", list)
			}
		}},
		{"TD_COAP_OBS_12", "a GET with Observe 1 ends an observation", func(p *plug) {
			observed(p)
			m := p.want(p.ask(con, codes.GET, "obs", "/obs", "", observeOption(1)), ack, codes.Content, "first")
			if _, there := m.number(message.Observe); there {
				p.t.Error("the answer has Observe")
			}
			if list := notified(p.put("second", textPlain), "obs"); len(list) != 0 {
				p.t.Errorf("notified %v", list)
			}
		}},
		{"TD_COAP_OBS_13", "an observation of a large resource: a notification has the first block, the client asks for the rest", func(p *plug) {
			observed(p)
			for _, payload := range []string{large, strings.ToUpper(large)} {
				p.l.values.set("anonymous", "/obs", 0, nil)
				m := packet{}
				for b := (block{szx: 6, more: true}); b.more; b.num++ {
					end := min(b.offset()+1024, len(payload))
					b.more = end < len(payload)
					if list := notified(p.put(payload[b.offset():end], textPlain, b.option(message.Block1)), "obs"); len(list) > 0 {
						m = list[0]
					}
				}
				b, there, _ := m.block(message.Block2)
				if !there || !b.more || b.num != 0 || string(m.payload) != payload[:1024] {
					p.t.Fatalf("notified %+v", m)
				}
				if got := p.blocks("/obs", 6); got != payload {
					p.t.Errorf("read %d octets", len(got))
				}
			}
		}},
		{"TD_COAP_OBS_14", "an observation of a resource that is large now and then; as the client", func(p *plug) {
			TestLongNotificationIsFetched(p.t.(*testing.T))
		}},
		{"TD_COAP_LINK_01", "the list of all that there is", lists("device=anonymous", "</.well-known/core>;ct=40,</link1>;ct=0;obs,</link2>;ct=50;obs,</test>;sz=3200;obs")},
		{"TD_COAP_LINK_02", "the list by type; resources of devices are of no type", lists("rt=Type1", "")},
		{"TD_COAP_LINK_03", "the list of what has a type", lists("rt=*", "")},
		{"TD_COAP_LINK_04", "the list where there are several types", lists("rt=Type2", "")},
		{"TD_COAP_LINK_05", "the list by the beginning of an interface description", lists("if=If*", "")},
		{"TD_COAP_LINK_06", "the list of what has a size", lists("sz=*", "</test>;sz=3200;obs")},
		{"TD_COAP_LINK_07", "the list by href", lists("href=/link1", "</link1>;ct=0;obs")},
		{"TD_COAP_LINK_08", "the list by the beginning of href", lists("href=/link*", "</link1>;ct=0;obs,</link2>;ct=50;obs")},
	} {
		t.Run(c.name+" "+c.sentence, func(t *testing.T) {
			site := southtest.NewSite(t)
			site.Allow(func(_ *auth.Identity, op auth.Op, resource string) bool {
				return op != auth.Command || resource != "/obs"
			})
			c.test(&plug{wire: newWireAt(t, site, nil)})
		})
	}
}
