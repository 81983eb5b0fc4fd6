package coap

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// streamPeer is a device over TCP that says what a test makes it say.
type streamPeer struct {
	t    *testing.T
	b    *southtest.Bench
	conn net.Conn
	r    *bufio.Reader
}

// dialStream connects over TCP and tells its capabilities.
func dialStream(t *testing.T, csm ...message.Option) *streamPeer {
	t.Helper()
	b, c := rawStream(t)
	p := &streamPeer{t, b, c, bufio.NewReader(c)}
	p.send(message.Message{Code: codes.CSM, Options: csm})
	if m := p.receive(); m.code != codes.CSM {
		t.Fatalf("first comes %+v", m)
	} else if _, ok := m.option(optBlockWise); !ok {
		t.Errorf("the CSM is %+v", m)
	}
	return p
}

func (p *streamPeer) send(m message.Message) {
	p.t.Helper()
	b, err := appendMessage(nil, &m)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.conn.Write(appendFrame(nil, b)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *streamPeer) receive() packet {
	p.t.Helper()
	m, err := p.next()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

func (p *streamPeer) next() (m packet, err error) {
	head, err := p.r.ReadByte()
	if err != nil {
		return m, err
	}
	n, err := frameLength(p.r, head>>4)
	if err != nil {
		return m, err
	}
	b := make([]byte, 1+int(head&15)+int(n))
	if _, err := io.ReadFull(p.r, b); err != nil {
		return m, err
	}
	m.code, m.token = codes.Code(b[0]), b[1:1+head&15]
	m.bert = true
	return m, m.parseRest(b[1+head&15:])
}

func (p *streamPeer) ask(code codes.Code, path string, payload []byte, opts ...message.Option) packet {
	p.t.Helper()
	p.send(message.Message{Code: code, Token: []byte("t"), Options: sorted(append(pathOptions(nil, path), opts...)), Payload: payload})
	return p.receive()
}

var capable = []message.Option{uintOption(optMaxMessageSize, 10_000), {ID: optBlockWise}}

func TestBERT(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1900) // 30,400 octets
	p := dialStream(t, capable...)
	// Block1: any number of 1024 octets at a time.
	for at, more := 0, true; more; {
		end := min(at+5*1024, len(content))
		more = end < len(content)
		b := block{num: uint32(at / 1024), more: more, szx: bertSZX}
		m := p.ask(codes.PUT, "/a", content[at:end], b.option(message.Block1))
		if echoed, _, _ := m.block(message.Block1); echoed != b || more && m.code != codes.Continue || !more && m.code != codes.Changed {
			t.Fatalf("%+v is answered %s, %+v", b, codeText(m.code), echoed)
		}
		at = end
	}
	if m := p.b.Up.Messages(); len(m) != 1 || !bytes.Equal(m[0].Payload, content) {
		t.Fatalf("%d reports", len(m))
	}
	// Block2: as much as the peer's Max-Message-Size has room for.
	var got []byte
	for n := 0; ; n++ {
		var opts []message.Option
		if n > 0 {
			opts = append(opts, block{num: uint32(len(got) / 1024), szx: bertSZX}.option(message.Block2))
		}
		m := p.ask(codes.GET, "/a", nil, opts...)
		b, there, _ := m.block(message.Block2)
		if m.code != codes.Content || !there || b.szx != bertSZX || b.offset() != len(got) || b.more && len(m.payload) != 9*1024 {
			t.Fatalf("answered %s, %+v, %d octets", codeText(m.code), b, len(m.payload))
		}
		if got = append(got, m.payload...); !b.more {
			break
		}
	}
	if !bytes.Equal(got, content) {
		t.Errorf("read %d octets", len(got))
	}
	// Who asks for smaller blocks gets them, and what fits goes whole.
	if m := p.ask(codes.GET, "/a", nil, block{num: 3, szx: 2}.option(message.Block2)); len(m.payload) != 64 || !bytes.Equal(m.payload, content[3*64:4*64]) {
		t.Errorf("%d octets", len(m.payload))
	}
	p.ask(codes.PUT, "/b", content[:9000])
	if m := p.ask(codes.GET, "/b", nil); len(m.payload) != 9000 {
		t.Errorf("%d octets at once", len(m.payload))
	}
	// A block that is not of whole 1024 octets is none.
	if m := p.ask(codes.PUT, "/c", content[:1500], block{more: true, szx: bertSZX}.option(message.Block1)); m.code != codes.BadRequest {
		t.Errorf("answered %s", codeText(m.code))
	}
}

func TestCommandInBERT(t *testing.T) {
	for name, c := range map[string]struct {
		csm   []message.Option
		sizes []int
	}{
		"with a peer that knows it":       {capable, []int{9 * 1024, 20_000 - 9*1024 - 9*1024, 0}},
		"in one message where it fits":    {[]message.Option{uintOption(optMaxMessageSize, 30_000)}, []int{20_000}},
		"in plain blocks to a small peer": {[]message.Option{uintOption(optMaxMessageSize, 500), {ID: optBlockWise}}, []int{256}},
	} {
		t.Run(name, func(t *testing.T) {
			p := dialStream(t, c.csm...)
			p.ask(codes.POST, "/hello", nil) // so that its CSM has been taken
			content := strings.Repeat("0123456789", 2000)
			reply := make(chan msg.Reply, 1)
			go func() {
				r, err := p.b.Listener.Deliver(t.Context(), msg.Message{Device: "anonymous", Method: "PUT", Resource: "/x", Payload: []byte(content)})
				if err != nil {
					t.Error(err)
				}
				reply <- r
			}()
			var got []byte
			for n := 0; ; n++ {
				m := p.receive()
				if n == 0 && len(m.payload) != c.sizes[0] {
					t.Errorf("the first message has %d octets, want %d", len(m.payload), c.sizes[0])
				}
				got = append(got, m.payload...)
				b, there, _ := m.block(message.Block1)
				if !there || !b.more {
					p.send(message.Message{Code: codes.Changed, Token: m.token})
					break
				}
				p.send(message.Message{Code: codes.Continue, Token: m.token, Options: message.Options{b.option(message.Block1)}})
			}
			if r := <-reply; r.Status != msg.Done || string(got) != content {
				t.Errorf("reply %+v, %d octets", r, len(got))
			}
		})
	}
}

func TestCustodyAndReleaseWaitForAnswers(t *testing.T) {
	p := dialStream(t, capable...)
	p.b.Up.Hold()
	post := func(token string) {
		p.send(message.Message{Code: codes.POST, Token: []byte(token), Options: pathOptions(nil, "/a")})
	}
	post("one")
	p.send(message.Message{Code: codes.Ping, Token: []byte("c"), Options: message.Options{{ID: optCustody}}})
	p.send(message.Message{Code: codes.Ping, Token: []byte("p")})
	post("two")
	if m := p.receive(); m.code != codes.Pong || string(m.token) != "p" {
		t.Errorf("first comes %+v", m)
	}
	p.send(message.Message{Code: codes.Release})
	eventually(t, "the requests are not submitted", func() bool { return len(p.b.Up.Messages()) == 2 })
	p.b.Up.Release()
	var order []string
	for {
		m, err := p.next()
		if err != nil {
			break
		}
		if _, custody := m.option(optCustody); m.code == codes.Pong && !custody {
			t.Error("the Pong has no Custody")
		}
		order = append(order, string(m.token))
	}
	if s := strings.Join(order, " "); s != "one c two" && s != "one two c" && s != "two one c" {
		t.Errorf("then come %q", s)
	}
}

func TestStreamIsReleasedWhenTheListenerStops(t *testing.T) {
	p := dialStream(t, capable...)
	if err := p.b.Stop(); err != nil {
		t.Fatal(err)
	}
	if m := p.receive(); m.code != codes.Release {
		t.Errorf("the last message is %+v", m)
	}
	if _, err := p.next(); err != io.EOF {
		t.Errorf("then %v", err)
	}
}

// What the gateway says last arrives, though it has not read all that was said to it.
func TestTheLastWordArrives(t *testing.T) {
	much := bytes.Repeat([]byte{0x00, 0xe2}, 10_000) // pings
	t.Run("Release", func(t *testing.T) {
		p := dialStream(t, capable...)
		if _, err := p.conn.Write(much); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error, 1)
		go func() { stopped <- p.b.Stop() }()
		var last packet
		for {
			m, err := p.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = m
		}
		p.conn.Close()
		if last.code != codes.Release {
			t.Errorf("the last message is %+v", last)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	t.Run("Abort", func(t *testing.T) {
		p := dialStream(t, capable...)
		if _, err := p.conn.Write(append([]byte{0xf0, 0xff, 0xff, 0xff, 0xff, 0x02}, much...)); err != nil {
			t.Fatal(err)
		}
		if m := p.receive(); m.code != codes.Abort || string(m.payload) != "message too large" {
			t.Errorf("the last message is %+v", m)
		}
		if _, err := p.next(); err != io.EOF {
			t.Errorf("then %v", err)
		}
	})
}

func TestFrameLengths(t *testing.T) {
	for _, n := range []int{0, 12, 13, 268, 269, 65804, 65805, 100_000} {
		b := appendFrame(nil, append([]byte{0x40, 2, 0, 0}, make([]byte, n)...))
		r := bytes.NewReader(b[1:])
		if got, err := frameLength(r, b[0]>>4); err != nil || got != int64(n) || r.Len() != 1+n {
			t.Errorf("%d octets are read as %d, %v, %d left", n, got, err, r.Len())
		}
	}
	if n, _ := frameLength(bytes.NewReader(binary.BigEndian.AppendUint32(nil, 1<<32-1)), 15); n != 1<<32-1+65805 {
		t.Errorf("the greatest length is %d", n)
	}
}
