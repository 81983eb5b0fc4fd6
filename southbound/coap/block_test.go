package coap

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

func TestBlock1(t *testing.T) {
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

func TestBlock2(t *testing.T) {
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
