package mqtt

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// plain is the driver of a listener without TLS for devices that are named by their client id. All tests that start it
// anew in one site share its kind where kind is given.
func plain(change func(*Config)) southtest.Driver {
	d := driver5
	kind := NewKind()
	d.Kind = func() southbound.Kind { return kind }
	d.Configure = func(_ *southtest.Site, cfg any, listen string) {
		c := cfg.(*Config)
		c.Listen, c.Security, c.Auth = listen, []string{"none"}, []string{"anonymous"}
		if change != nil {
			change(c)
		}
	}
	return d
}

// wire is a client that says what the test tells it to, octet by octet if need be. It reads with a codec that is not ours.
type wire struct {
	t     *testing.T
	b     *southtest.Bench
	nc    net.Conn
	early []*packets5.Publish // came while an acknowledgement was awaited
}

func ptr[T any](v T) *T { return &v }

// open connects without a CONNECT.
func open(t *testing.T, b *southtest.Bench) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &wire{t: t, b: b, nc: nc}
}

// connect5 connects with MQTT 5 and gives what CONNACK said.
func connect5(t *testing.T, b *southtest.Bench, id string, change func(*packets5.Connect)) (*wire, *packets5.Connack) {
	t.Helper()
	c := &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: id, CleanStart: true, Properties: &packets5.Properties{}}
	if change != nil {
		change(c)
	}
	w := open(t, b)
	w.send(c)
	return w, expect[*packets5.Connack](w)
}

// durable makes a session that outlives its connection.
func durable(c *packets5.Connect) {
	c.CleanStart = false
	c.Properties.SessionExpiryInterval = ptr(uint32(3600))
}

func (w *wire) send(p packets5.Packet) {
	w.t.Helper()
	if _, err := p.WriteTo(w.nc); err != nil {
		w.t.Fatalf("writing %T: %v", p, err)
	}
}

func (w *wire) raw(octets string) {
	w.t.Helper()
	if _, err := io.WriteString(w.nc, octets); err != nil {
		w.t.Fatal(err)
	}
}

// read gives the next packet; an error where there is none in time.
func (w *wire) read(wait time.Duration) (packets5.Packet, error) {
	w.nc.SetReadDeadline(time.Now().Add(wait))
	p, err := packets5.ReadPacket(w.nc)
	if err != nil {
		return nil, err
	}
	return p.Content, nil
}

// expect reads the next packet, which must be a P.
func expect[P packets5.Packet](w *wire) P {
	w.t.Helper()
	p, err := w.read(patience)
	if err != nil {
		w.t.Fatalf("waiting for a %T: %v", *new(P), err)
	}
	want, ok := p.(P)
	if !ok {
		w.t.Fatalf("heard %T %+v, want a %T", p, p, *new(P))
	}
	return want
}

// next reads the next packet that is not part of a QoS 2 handshake which this side is to complete.
func (w *wire) next(wait time.Duration) (packets5.Packet, error) {
	w.t.Helper()
	for {
		p, err := w.read(wait)
		rel, ok := p.(*packets5.Pubrel)
		if err != nil || !ok {
			return p, err
		}
		w.send(&packets5.Pubcomp{PacketID: rel.PacketID, Properties: &packets5.Properties{}})
	}
}

// silence asserts that nothing comes.
func (w *wire) silence() {
	w.t.Helper()
	if len(w.early) > 0 {
		w.t.Fatalf("heard %+v, want nothing", w.early[0])
	}
	if p, err := w.next(200 * time.Millisecond); err == nil {
		w.t.Fatalf("heard %T %+v, want nothing", p, p)
	}
}

// closed asserts that the connection is closed, after a DISCONNECT with the code unless that is 0.
func (w *wire) closed(code byte) {
	w.t.Helper()
	if code != 0 {
		if d := expect[*packets5.Disconnect](w); d.ReasonCode != code {
			w.t.Errorf("DISCONNECT 0x%02x %q, want 0x%02x", d.ReasonCode, d.Properties.ReasonString, code)
		}
	}
	w.nc.SetReadDeadline(time.Now().Add(patience))
	if n, err := io.Copy(io.Discard, w.nc); n != 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		w.t.Errorf("%d more octets, %v; want the end of the connection", n, err)
	}
}

func (w *wire) subscribe(filter string, qos byte) byte {
	w.t.Helper()
	return w.subscribeWith(packets5.SubOptions{Topic: filter, QoS: qos}, nil)
}

func (w *wire) subscribeWith(o packets5.SubOptions, p *packets5.Properties) byte {
	w.t.Helper()
	w.send(&packets5.Subscribe{PacketID: 1, Properties: orNone(p), Subscriptions: []packets5.SubOptions{o}})
	return expect[*packets5.Suback](w).Reasons[0]
}

func orNone(p *packets5.Properties) *packets5.Properties {
	if p == nil {
		return &packets5.Properties{}
	}
	return p
}

// publish sends a PUBLISH and, where it asks for one, awaits the PUBACK or PUBREC; it gives the code.
func (w *wire) publish(topic, payload string, qos byte, id uint16, p *packets5.Properties) byte {
	w.t.Helper()
	w.send(&packets5.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, PacketID: id, Properties: orNone(p)})
	for qos > 0 {
		p, err := w.next(patience)
		switch p := p.(type) {
		case *packets5.Puback:
			return p.ReasonCode
		case *packets5.Pubrec:
			return p.ReasonCode
		case *packets5.Publish:
			w.early = append(w.early, p)
		default:
			w.t.Fatalf("heard %T %+v, %v; want an acknowledgement", p, p, err)
		}
	}
	return 0
}

// release completes a QoS 2 publish.
func (w *wire) release(id uint16) byte {
	w.t.Helper()
	w.send(&packets5.Pubrel{PacketID: id, Properties: &packets5.Properties{}})
	return expect[*packets5.Pubcomp](w).ReasonCode
}

// take reads a PUBLISH and acknowledges it.
func (w *wire) take() *packets5.Publish {
	w.t.Helper()
	var m *packets5.Publish
	if len(w.early) > 0 {
		m, w.early = w.early[0], w.early[1:]
	} else {
		p, err := w.next(patience)
		var ok bool
		if m, ok = p.(*packets5.Publish); err != nil || !ok {
			w.t.Fatalf("heard %T %+v, %v; want a PUBLISH", p, p, err)
		}
	}
	switch m.QoS {
	case 1:
		w.send(&packets5.Puback{PacketID: m.PacketID, Properties: &packets5.Properties{}})
	case 2:
		w.send(&packets5.Pubrec{PacketID: m.PacketID, Properties: &packets5.Properties{}})
	}
	return m
}

// hears asserts that the next message is this one.
func (w *wire) hears(topic, payload string) *packets5.Publish {
	w.t.Helper()
	p := w.take()
	if p.Topic != topic || string(p.Payload) != payload {
		w.t.Fatalf("heard %s %q, want %s %q", p.Topic, p.Payload, topic, payload)
	}
	return p
}

// goodbye sends DISCONNECT and waits until the broker has let go of the connection.
func (w *wire) goodbye() {
	w.t.Helper()
	w.send(&packets5.Disconnect{Properties: &packets5.Properties{}})
	w.drop()
}

// drop ends the connection without a word and waits until the broker has noticed.
func (w *wire) drop() {
	w.t.Helper()
	w.nc.Close()
	letGo(w.t, w.b, w.nc)
}

// letGo waits until the broker has taken a connection that has ended from its session. What is published before would still go to it.
func letGo(t testing.TB, b *southtest.Bench, nc net.Conn) {
	t.Helper()
	from := nc.LocalAddr().String()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		attached := slices.ContainsFunc(b.Listener.(*listener).broker.all(), func(s *session) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.conn != nil && s.conn.remote == from
		})
		if !attached {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the broker does not let go of the connection")
		}
	}
}

// restart stops the listener and serves anew on another port, as a gateway that is started again does.
func restart(t *testing.T, b *southtest.Bench) {
	t.Helper()
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	b.Serve(t, "127.0.0.1:0")
}

func numbered(i int) string { return fmt.Sprintf("%03d", i) }
