package coap

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// rawDevice is a device that says what a test makes it say.
type rawDevice struct {
	t    *testing.T
	conn net.Conn
}

func dialRaw(ctx context.Context, t *testing.T, addr, device, secret string) *rawDevice {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.DialUDP("udp", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	conn, err := piondtls.ClientWithOptions(connected{udp}, to, piondtls.WithPSK(func([]byte) ([]byte, error) { return []byte(secret), nil }),
		piondtls.WithPSKIdentityHint([]byte(device)), piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		piondtls.WithConnectionIDGenerator(piondtls.OnlySendCIDGenerator()))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	return &rawDevice{t, conn}
}

func (d *rawDevice) send(m message.Message) {
	d.t.Helper()
	m.Options = sorted(m.Options)
	b, err := appendMessage(nil, &m)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.conn.Write(b); err != nil {
		d.t.Fatal(err)
	}
}

// await gives the next message that fits.
func (d *rawDevice) await(what string, fits func(*packet) bool) packet {
	d.t.Helper()
	d.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		b := make([]byte, 2048)
		n, err := d.conn.Read(b)
		if err != nil {
			d.t.Fatalf("%s has not come: %v", what, err)
		}
		var p packet
		if err := p.parse(b[:n]); err != nil {
			d.t.Fatalf("%x: %v", b[:n], err)
		}
		if fits(&p) {
			return p
		}
	}
}

// ask sends a confirmable request and gives what is piggybacked on its ACK.
func (d *rawDevice) ask(code codes.Code, mid uint16, token, path, payload string, opts ...message.Option) packet {
	d.t.Helper()
	d.send(message.Message{Type: con, Code: code, MessageID: int32(mid), Token: []byte(token), Options: append(pathOptions(nil, path), opts...), Payload: []byte(payload)})
	return d.await("the answer", func(p *packet) bool { return p.typ == ack && p.mid == mid })
}

func (g *gateway) taken(what string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.took[what]
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// What a device has under way goes on after a kill -9, or begins anew in the way that the protocol has for it.
func TestWhatIsUnderWaySurvivesKill(t *testing.T) {
	g := &gateway{dir: t.TempDir(), listen: "127.0.0.1:0", observe: watched, took: map[string]int{}}
	g.start(t)
	defer func() { g.kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	d := dialRaw(ctx, t, g.listen, "th-1", "southtest-secret-of-th-1")
	isWatch := func(p *packet) bool { _, there := p.number(message.Observe); return p.code == codes.GET && there }
	want := func(p packet, code codes.Code, payload string) packet {
		t.Helper()
		if p.code != code || string(p.payload) != payload {
			t.Fatalf("answered %s %q, want %s %q", codeText(p.code), p.payload, codeText(code), payload)
		}
		return p
	}
	req := d.await("the gateway's observation", isWatch)
	d.send(message.Message{Type: ack, Code: codes.Content, MessageID: int32(req.mid), Token: bytes.Clone(req.token), Options: message.Options{observeOption(1)}, Payload: []byte("w1")})
	want(d.ask(codes.POST, 1, "t", "/a", "one"), codes.Changed, "")
	shown := want(d.ask(codes.GET, 2, "obs", "/a", "", observeOption(0)), codes.Content, "one")
	first, _ := shown.number(message.Observe)
	part := strings.Repeat("x", 64)
	want(d.ask(codes.PUT, 3, "t", "/big", part, block{more: true, szx: 2}.option(message.Block1)), codes.Continue, "")
	eventually(t, "the last value is not written", func() bool {
		b, err := os.ReadFile(filepath.Join(g.dir, valuesFile))
		return err == nil && bytes.Contains(b, []byte("one"))
	})
	eventually(t, "the first notification is not taken", func() bool { return g.taken("w1") == 1 })

	notify := func(mid uint16, seq uint32, payload string) {
		d.send(message.Message{Type: con, Code: codes.Content, MessageID: int32(mid), Token: watchToken(watched), Options: message.Options{observeOption(seq)}, Payload: []byte(payload)})
		d.await("the ACK of a notification", func(p *packet) bool { return p.typ == ack && p.mid == mid })
	}
	notify(20, 2, "w2")

	g.kill()
	g.start(t)

	// A request that was answered is not carried out again, but answered again.
	want(d.ask(codes.POST, 1, "t", "/a", "one"), codes.Changed, "")
	if n := g.taken("one"); n != 1 {
		t.Errorf("the repetition was taken %d times", n)
	}
	// The last value is there.
	want(d.ask(codes.GET, 4, "t", "/a", ""), codes.Content, "one")
	// Blocks begin anew.
	want(d.ask(codes.PUT, 5, "t", "/big", part, block{num: 1, szx: 2}.option(message.Block1)), codes.RequestEntityIncomplete, "")
	want(d.ask(codes.PUT, 6, "t", "/big", part, block{more: true, szx: 2}.option(message.Block1)), codes.Continue, "")
	want(d.ask(codes.PUT, 7, "t", "/big", part, block{num: 1, szx: 2}.option(message.Block1)), codes.Changed, "")
	// The device's observation of its last value goes on, with a later number.
	d.send(message.Message{Type: con, Code: codes.PUT, MessageID: 8, Token: []byte("t"), Options: pathOptions(nil, "/a"), Payload: []byte("two")})
	n := d.await("the notification", func(p *packet) bool { return string(p.token) == "obs" })
	if seq, _ := n.number(message.Observe); string(n.payload) != "two" || seq <= first {
		t.Errorf("notified %q, %d after %d", n.payload, seq, first)
	}
	// The gateway's observation of the device's resource goes on.
	notify(20, 2, "w2") // once more
	notify(21, 3, "w3")
	eventually(t, "the third notification is not taken", func() bool { return g.taken("w3") == 1 })
	if n := g.taken("w2"); n != 1 {
		t.Errorf("the second notification was taken %d times", n)
	}
}

func TestTheLastAnswersAreRecalled(t *testing.T) {
	l := dtlsListener(t)
	l.env.Keys, l.cfg.Key = sealingKeys{l.env.Keys}, "identity"
	file, err := l.openKept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l.file = file
	pairs(t, l, "TLS_PSK_WITH_AES_128_GCM_SHA256", 1)
	s := l.byDevice["dev-0"][0]
	l.keep(s)
	now := time.Now()
	for i := range 3 * keptExchanges {
		l.noteAnswered(s, &exchange{mid: uint16(100 + i), code: uint8(codes.Changed)}, now.Add(time.Duration(i-3*keptExchanges)*time.Minute))
	}
	fresh := &session{slot: s.slot}
	l.recall(fresh, now)
	var mids []uint16
	for _, e := range fresh.recent {
		mids = append(mids, e.mid)
	}
	slices.Sort(mids)
	// Of the last eight those of the last EXCHANGE_LIFETIME.
	if want := []uint16{120, 121, 122, 123}; !slices.Equal(mids, want) {
		t.Errorf("recalled %d, want %d", mids, want)
	}
	if e := fresh.find(123, l.seconds(now)); e == nil || e.state != answered || codes.Code(e.code) != codes.Changed {
		t.Errorf("the last one is %+v", e)
	}
	if int(fresh.keptAt) != int(s.keptAt) {
		t.Errorf("goes on at %d, want %d", fresh.keptAt, s.keptAt)
	}
}

func TestValuesFile(t *testing.T) {
	fill := func(vs *values, n int) {
		for i := range n {
			vs.set("dev", "/"+string(rune('a'+i%26)), i, bytes.Repeat([]byte{byte(i)}, i%100))
		}
	}
	open := func(dir string) (*listener, *valueLog) {
		w := newWire(t, nil)
		w.l.env.State = dir
		v, err := w.l.openValues()
		if err != nil {
			t.Fatal(err)
		}
		return w.l, v
	}
	same := func(t *testing.T, a, b *values) {
		t.Helper()
		if a.size != b.size || a.order.Len() != b.order.Len() {
			t.Fatalf("%d values of %d octets, want %d of %d", b.order.Len(), b.size, a.order.Len(), a.size)
		}
		for e := a.order.Front(); e != nil; e = e.Next() {
			v := e.Value.(*value)
			if w := b.get(v.device, v.resource); w == nil || w.format != v.format || !bytes.Equal(w.payload, v.payload) {
				t.Errorf("%s is %+v, want %+v", v.resource, w, v)
			}
		}
	}
	dir := t.TempDir()
	l, v := open(dir)
	for n := range 30 {
		fill(&l.values, n)
		l.values.remove(l.values.byDevice["dev"]["/a"])
		if err := l.flushValues(v); err != nil {
			t.Fatal(err)
		}
	}
	v.close()
	again, v := open(dir)
	same(t, &l.values, &again.values)
	v.close()
	// A change that is cut off is dropped, and the next one stands in its place.
	file := filepath.Join(dir, valuesFile)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, data[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	again, v = open(dir)
	same(t, &l.values, &again.values)
	again.values.set("dev", "/new", 50, []byte("1"))
	if err := again.flushValues(v); err != nil {
		t.Fatal(err)
	}
	v.close()
	third, v := open(dir)
	same(t, &again.values, &third.values)
	// What is of the past does not fill the disk. A write that has failed is made good.
	v.size += 10 << 20
	if err := third.flushValues(v); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != int64(v.size) || v.size > 2*third.values.size {
		t.Errorf("the file has %v octets, %v", info.Size(), err)
	}
	third.values.set("dev", "/later", 50, []byte("2"))
	v.f.Close()
	if err := third.flushValues(v); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v", err)
	}
	if err := third.flushValues(v); !errors.Is(err, os.ErrClosed) { // of closing the old one
		t.Errorf("error %v", err)
	}
	v.close()
	fourth, v := open(dir)
	defer v.close()
	same(t, &third.values, &fourth.values)
}

func FuzzValuesFile(f *testing.F) {
	k := keptValue{Device: "d", Resource: "/a", Format: 50, Payload: []byte("21")}
	b, err := k.appendFrame(nil)
	if err != nil {
		f.Fatal(err)
	}
	gone, err := (&keptValue{Device: "d", Resource: "/a", Gone: true}).appendFrame(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(gone)
	f.Fuzz(func(t *testing.T, data []byte) {
		vs := values{limit: 10_000}
		n := vs.replay(data)
		if n > len(data) || vs.size > vs.limit || vs.size < 0 {
			t.Fatalf("%d of %d octets are sound; %d octets of values", n, len(data), vs.size)
		}
		if again := (&values{limit: 10_000}).replay(data[:n]); again != n {
			t.Errorf("%d octets are sound, then %d", n, again)
		}
	})
}
