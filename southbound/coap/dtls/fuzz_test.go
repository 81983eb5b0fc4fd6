package dtls

import (
	"encoding/hex"
	"net/netip"
	"testing"
	"time"
)

// a ClientHello of pion's client, for PSK with a connection id, and the same with a cookie would follow.
const helloHex = "16feff0000000000000000004f010000430000000000000043fefd" +
	"0000000000000000000000000000000000000000000000000000000000000000" + "00" + "00" + "0004c0a800ff" + "0100" + "0015" + "00170000" + "0036000100" + "000a00080006001d00170018"

func FuzzRecords(f *testing.F) {
	hello, err := hex.DecodeString(helloHex)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Add([]byte{25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0})
	gate := NewGate(time.Unix(0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; ; {
			r, next, ok := NextRecord(rest)
			if !ok {
				return
			}
			if len(next) >= len(rest) {
				t.Fatal("a record without a length")
			}
			rest = next
			if h, ok := ParseHello(r); ok {
				if admitted, challenge := gate.Admit(&h, netip.MustParseAddrPort("192.0.2.1:1"), time.Unix(0, 0), nil); !admitted && len(challenge) > 100 {
					t.Errorf("a challenge of %d octets", len(challenge))
				}
				h.offer()
			}
		}
	})
}

// FuzzHandshake feeds datagrams to a handshake that has answered a hello.
func FuzzHandshake(f *testing.F) {
	p := newPKI(f)
	cfg := testConfig(p)
	hello, _ := hex.DecodeString(helloHex)
	f.Add([]byte{}, hello)
	f.Add([]byte{16, 0, 0, 6, 0, 1, 0, 0, 0, 0, 0, 6, 0, 4, 'd', 'e', 'v', '1'}, []byte{20, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1})
	f.Fuzz(func(t *testing.T, message, datagram []byte) {
		r, _, ok := NextRecord(hello)
		h, ok2 := ParseHello(r)
		if !ok || !ok2 {
			t.Fatal("the hello does not parse")
		}
		hs := NewHandshake(cfg, &h, NewCID())
		if _, err := hs.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(message) > 1<<14 {
			return
		}
		if _, err := hs.Step(t.Context(), appendPlain(nil, typeHandshake, 1, message)); err != nil {
			return
		}
		hs.Step(t.Context(), datagram)
		if c, _ := hs.Conn(); c != nil {
			t.Error("a handshake was completed without the key")
		}
	})
}

// FuzzOpen feeds records to an association of each kind of cipher.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), uint8(0))
	f.Fuzz(func(t *testing.T, body []byte, kind uint8) {
		s := Suites()[int(kind)%len(Suites())]
		c, err := newConn(s, make([]byte, 2*(s.macLen+s.keyLen+s.ivLen)))
		if err != nil {
			t.Fatal(err)
		}
		c.hasCID = kind&0x80 != 0
		r := Record{Type: TypeApplication, Epoch: 1, Seq: 1, body: body}
		if c.hasCID {
			r.Type, r.CID = typeCID, make([]byte, CIDLen)
		}
		if _, _, _, err := c.Open(r); err == nil {
			t.Error("noise authenticates")
		}
	})
}
