package coap

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

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
