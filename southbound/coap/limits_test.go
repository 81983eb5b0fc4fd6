package coap

import (
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

func TestAddressesAreLimited(t *testing.T) {
	now := time.Now()
	m := limiter{}
	from := netip.MustParseAddr("2001:db8::1")
	n := 0
	for m.allow(from, now) {
		n++
	}
	if n < burstHandshakes || n > burstHandshakes+1 {
		t.Errorf("%d handshakes at once", n)
	}
	if m.allow(netip.MustParseAddr("2001:db8::2"), now) {
		t.Error("another address of the same /64 is another one")
	}
	if !m.allow(netip.MustParseAddr("2001:db8:0:1::2"), now) || !m.allow(netip.MustParseAddr("192.0.2.1"), now) {
		t.Error("others suffer")
	}
	if !m.allow(from, now.Add(time.Second)) {
		t.Error("it does not leak")
	}
	for range burstRefusals + 1 {
		m.refused(from, now)
	}
	if m.allow(from, now.Add(time.Second)) {
		t.Error("refusals do not count")
	}
	if m.sweep(now.Add(time.Hour)); len(m) != 0 {
		t.Errorf("%d are kept", len(m))
	}
}

func TestDeviceRate(t *testing.T) {
	w := newWire(t, func(c *Config) { c.DeviceRate = 10 })
	var last codes.Code
	n := uint16(0)
	for ; n < 100; n++ {
		if last = w.one(w.feed(w.request(con, codes.POST, n, "t", "/a", nil))).code; last != codes.Changed {
			break
		}
	}
	if last != codes.TooManyRequests || n < 20 || n > 22 {
		t.Errorf("%s after %d", codeText(last), n)
	}
	w.pass(time.Second)
	if p := w.one(w.feed(w.request(con, codes.POST, 1000, "t", "/a", nil))); p.code != codes.Changed {
		t.Errorf("a second later: %s", codeText(p.code))
	}
}

// helloWithoutCookie is a ClientHello that offers TLS_PSK_WITH_AES_128_CCM_8 and a connection id.
const helloWithoutCookie = "16feff0000000000000000004b010000" + "3f000000000000003f" + "fefd" +
	"0000000000000000000000000000000000000000000000000000000000000000" + "00" + "00" + "0004c0a800ff" + "0100" + "0011" + "00170000" + "0036000100" + "000a00040002001d"

func TestSpoofedHellosLeaveNothing(t *testing.T) {
	l := dtlsListener(t)
	hellos := spoofed(t, l)
	began := time.Now()
	hellos(20_000)
	t.Logf("20,000 hellos took %v", time.Since(began))
	if f := l.Counters(); f["handshakes_open"] != 0 || f["sessions"] != 0 || f["challenges"] < 20_000 {
		t.Errorf("%v", f)
	}
}

// spoofed gives a flood of n ClientHellos, each from an address of its own.
func spoofed(t *testing.T, l *listener) func(n int) {
	t.Helper()
	hello, err := hex.DecodeString(helloWithoutCookie)
	if err != nil {
		t.Fatal(err)
	}
	return func(n int) {
		for i := 0; i < n; i += batchLen {
			turn := l.begin(time.Now())
			for j := range batchLen {
				k := i + j
				turn.datagram(hello, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}), 5684))
			}
			l.end(turn)
		}
	}
}
