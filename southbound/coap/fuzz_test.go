package coap

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// FuzzDatagram feeds what follows one another from one address; the listener must neither fall over nor send a malformed message,
// and it must go on to serve.
func FuzzDatagram(f *testing.F) {
	site := southtest.NewSite(f)
	w := newWireAt(f, site, nil)
	f.Add(w.request(con, codes.POST, 1, "t", "/a/b", []byte("1")), []byte{0x40, 0, 1, 2})
	f.Add(w.request(con, codes.PUT, 1, "t", "/a", []byte("0123456789abcdef"), block{more: true}.option(message.Block1)),
		w.request(con, codes.PUT, 2, "u", "/a", []byte("01"), block{num: 1}.option(message.Block1)))
	f.Add(w.request(con, codes.GET, 1, "t", "/.well-known/core", nil, block{szx: 0}.option(message.Block2)), []byte{0x60, 0, 0, 1})
	f.Add(w.request(con, codes.GET, 1, "o", "/x", nil, uintOption(message.Observe, 0)), w.request(non1, codes.POST, 3, "", "/a", nil, uintOption(message.NoResponse, 2)))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		w := newWireAt(t, site, nil)
		w.feed(first)
		w.feed(second)
		w.feed(first)
		w.pass(tick)
		if p := w.one(w.feed(w.request(con, codes.POST, 0xfff0, "last", "/ok", nil))); p.code != codes.Changed && p.mid == 0xfff0 {
			// A duplicate of a message id that the fuzzer has used is answered as it was then.
			if w.l.count.duplicates.Load() == 0 {
				t.Errorf("then answered %s", codeText(p.code))
			}
		}
	})
}

// FuzzNotification feeds what a device that is observed may answer and notify: two messages with the token of the observation, the first with the
// message id of the request. What is submitted is bounded, and the gateway asks again in the end.
func FuzzNotification(f *testing.F) {
	site := southtest.NewSite(f)
	body := func(payload string, opts ...message.Option) []byte {
		b, err := appendMessage(nil, &message.Message{Options: sorted(opts), Payload: []byte(payload)})
		if err != nil {
			f.Fatal(err)
		}
		return b[4:]
	}
	f.Add(byte(ack), byte(codes.Content), body("1", observeOption(1)), byte(con), byte(codes.Content), body("2", observeOption(2)))
	f.Add(byte(ack), byte(codes.Content), body("0123456789abcdef", observeOption(1), block{more: true}.option(message.Block2)), byte(non1), byte(codes.Content), body("x", block{num: 1}.option(message.Block2)))
	f.Add(byte(ack), byte(codes.Valid), body(""), byte(con), byte(codes.NotFound), body("", uintOption(message.MaxAge, 1<<32-1)))
	f.Fuzz(func(t *testing.T, typ1, code1 byte, rest1 []byte, typ2, code2 byte, rest2 []byte) {
		w := newWireAt(t, site, func(c *Config) { c.Observe = []string{watched} })
		req := w.feed(ping)[1]
		say := func(typ, code byte, mid uint16, rest []byte) {
			b := appendShort(nil, message.Type(typ&3), codes.Code(code), mid, req.token)
			w.feed(append(b, rest...))
		}
		say(typ1, code1, req.mid, rest1)
		say(typ2, code2, req.mid+1, rest2)
		w.pass(2 * time.Second)
		if n := len(w.up.Messages()); n > 2 {
			t.Errorf("%d reports", n)
		}
		s := w.l.byAddr[deviceAddr]
		if s == nil || s.dead {
			t.Fatal("the session has ended")
		}
		if o := s.talk.watches[0]; !o.asking && o.due.IsZero() {
			t.Error("it is never asked for again")
		}
	})
}

// script is a connection that has been written to already.
type script struct {
	net.Conn
	r *bytes.Reader
}

func (s script) Read(b []byte) (int, error) { return s.r.Read(b) }

// FuzzStream feeds what may come over a stream; what goes out must be well formed.
func FuzzStream(f *testing.F) {
	site := southtest.NewSite(f)
	f.Add([]byte{0x00, 0xe1, 0x01, 0xe2, 0x77, 0x00, 0xe4})
	f.Add([]byte{0x30, 0xe1, 0x22, 0x27, 0x10, 0x11, 0xe2, 0x77, 0x20, 0x40, 0x02, 0xb1, 'a', 0xff, '1', 0x20, 0x01, 0xb1, 'a'})
	f.Add([]byte{0x20, 0xe1, 0x10, 0x00})
	f.Fuzz(func(t *testing.T, in []byte) {
		w := newWireAt(t, site, func(c *Config) { c.Transport, c.MaxPayload = "tcp", 2000 })
		s := &session{
			stream: &stream{conn: script{r: bytes.NewReader(in)}, kick: make(chan struct{}, 1), peerMax: defaultMessage, drained: make(chan struct{})},
			id:     &auth.Identity{Device: "anonymous", Method: "none"}, addr: deviceAddr, credit: unlimited, slot: noSlot, since: w.now, seen: w.now,
		}
		turn := w.l.begin(w.now)
		w.l.add(turn, s)
		w.l.end(turn)
		if err := w.l.readStream(s); err == nil {
			t.Fatal("it has no end")
		}
		w.l.settle(w.now, nil)
		out := streamPeer{r: bufio.NewReader(bytes.NewReader(s.stream.out))}
		for {
			if _, err := out.next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%x was answered by %x: %v", in, s.stream.out, err)
			}
		}
	})
}
