package mqtt

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	packets3 "github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// peer is a client that keeps its half of every handshake by itself and notes what it hears, as the clients of applications do. It
// speaks both versions; whoever uses it only sees the packets of MQTT 5.
type peer struct {
	t       testing.TB
	nc      net.Conn
	version packet.Version
	b       *southtest.Bench // whose broker it is; nil: not ours

	mu      sync.Mutex
	mute    bool                                  // guarded by mu: it hears nothing and acknowledges nothing
	held    bool                                  // guarded by mu: it acknowledges nothing
	changed chan struct{}                         // guarded by mu: closed and replaced with each packet
	heard   []*packets5.Publish                   // guarded by mu
	acks    map[byte]map[uint16][]packets5.Packet // guarded by mu: by type and identifier
	begun   map[uint16]bool                       // guarded by mu: QoS 2 messages that wait for PUBREL
	pongs   int                                   // guarded by mu
	bye     *packets5.Disconnect                  // guarded by mu
	ended   bool                                  // guarded by mu
	lastID  uint16
}

// patience is for what must happen; it is long because the machine may be busy.
const patience = 30 * time.Second

// call connects and gives what the broker answered; a connection that ends without an answer gives nil.
func call(t testing.TB, addr string, version packet.Version, c *packets5.Connect) (*peer, *packets5.Connack) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	p := &peer{t: t, nc: nc, version: version, changed: make(chan struct{}), acks: map[byte]map[uint16][]packets5.Packet{}, begun: map[uint16]bool{}}
	p.send(c)
	nc.SetReadDeadline(time.Now().Add(patience))
	first, err := p.next()
	if err != nil {
		return p, nil
	}
	nc.SetReadDeadline(time.Time{})
	ack, ok := first.(*packets5.Connack)
	if !ok {
		t.Fatalf("CONNECT was answered with %T", first)
	}
	go p.listen()
	return p, ack
}

// send writes a packet in the peer's version.
func (p *peer) send(x packets5.Packet) {
	p.t.Helper()
	var err error
	if p.version == packet.V5 {
		_, err = x.WriteTo(p.nc)
	} else {
		err = older(x).Write(p.nc)
	}
	if err != nil {
		p.t.Logf("writing %T: %v", x, err)
	}
}

// older gives the packet of 3.1.1 that says the same.
func older(x packets5.Packet) packets3.ControlPacket {
	switch x := x.(type) {
	case *packets5.Connect:
		c := packets3.NewControlPacket(packets3.Connect).(*packets3.ConnectPacket)
		c.ProtocolName, c.ProtocolVersion, c.CleanSession, c.Keepalive, c.ClientIdentifier = x.ProtocolName, 4, x.CleanStart, x.KeepAlive, x.ClientID
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillQos, c.WillRetain = x.WillFlag, x.WillTopic, x.WillMessage, x.WillQOS, x.WillRetain
		return c
	case *packets5.Publish:
		c := packets3.NewControlPacket(packets3.Publish).(*packets3.PublishPacket)
		c.TopicName, c.Payload, c.Qos, c.Retain, c.Dup, c.MessageID = x.Topic, x.Payload, x.QoS, x.Retain, x.Duplicate, x.PacketID
		return c
	case *packets5.Subscribe:
		c := packets3.NewControlPacket(packets3.Subscribe).(*packets3.SubscribePacket)
		c.MessageID = x.PacketID
		for _, s := range x.Subscriptions {
			c.Topics, c.Qoss = append(c.Topics, s.Topic), append(c.Qoss, s.QoS)
		}
		return c
	case *packets5.Unsubscribe:
		c := packets3.NewControlPacket(packets3.Unsubscribe).(*packets3.UnsubscribePacket)
		c.MessageID, c.Topics = x.PacketID, x.Topics
		return c
	case *packets5.Puback:
		return olderAck(packets3.Puback, x.PacketID)
	case *packets5.Pubrec:
		return olderAck(packets3.Pubrec, x.PacketID)
	case *packets5.Pubrel:
		return olderAck(packets3.Pubrel, x.PacketID)
	case *packets5.Pubcomp:
		return olderAck(packets3.Pubcomp, x.PacketID)
	case *packets5.Pingreq:
		return packets3.NewControlPacket(packets3.Pingreq)
	case *packets5.Disconnect:
		return packets3.NewControlPacket(packets3.Disconnect)
	}
	panic(fmt.Sprintf("%T has no form in 3.1.1", x))
}

// olderAck gives an acknowledgement of 3.1.1: all four kinds have one form.
func olderAck(kind byte, id uint16) packets3.ControlPacket {
	a := &packets3.PubackPacket{FixedHeader: packets3.FixedHeader{MessageType: kind, RemainingLength: 2}, MessageID: id}
	if kind == packets3.Pubrel {
		a.Qos = 1 // the flags that belong to it
	}
	return a
}

// newer gives the packet of MQTT 5 that says the same.
func newer(x packets3.ControlPacket) packets5.Packet {
	none := &packets5.Properties{}
	switch x := x.(type) {
	case *packets3.ConnackPacket:
		return &packets5.Connack{SessionPresent: x.SessionPresent, ReasonCode: x.ReturnCode, Properties: none}
	case *packets3.PublishPacket:
		return &packets5.Publish{Topic: x.TopicName, Payload: x.Payload, QoS: x.Qos, Retain: x.Retain, Duplicate: x.Dup, PacketID: x.MessageID, Properties: none}
	case *packets3.PubackPacket:
		return &packets5.Puback{PacketID: x.MessageID, Properties: none}
	case *packets3.PubrecPacket:
		return &packets5.Pubrec{PacketID: x.MessageID, Properties: none}
	case *packets3.PubrelPacket:
		return &packets5.Pubrel{PacketID: x.MessageID, Properties: none}
	case *packets3.PubcompPacket:
		return &packets5.Pubcomp{PacketID: x.MessageID, Properties: none}
	case *packets3.SubackPacket:
		return &packets5.Suback{PacketID: x.MessageID, Reasons: x.ReturnCodes, Properties: none}
	case *packets3.UnsubackPacket:
		return &packets5.Unsuback{PacketID: x.MessageID, Properties: none}
	case *packets3.PingrespPacket:
		return &packets5.Pingresp{}
	}
	panic(fmt.Sprintf("%T from a broker", x))
}

func (p *peer) next() (packets5.Packet, error) {
	if p.version != packet.V5 {
		x, err := packets3.ReadPacket(p.nc)
		if err != nil {
			return nil, err
		}
		return newer(x), nil
	}
	x, err := packets5.ReadPacket(p.nc)
	if err != nil {
		return nil, err
	}
	return x.Content, nil
}

// listen reads until the connection ends.
func (p *peer) listen() {
	for {
		x, err := p.next()
		p.mu.Lock()
		if err != nil {
			p.ended = true
		} else if !p.mute {
			p.take(x)
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *peer) take(x packets5.Packet) { // p.mu held
	none := &packets5.Properties{}
	note := func(kind byte, id uint16) {
		if p.acks[kind] == nil {
			p.acks[kind] = map[uint16][]packets5.Packet{}
		}
		p.acks[kind][id] = append(p.acks[kind][id], x)
	}
	switch x := x.(type) {
	case *packets5.Publish:
		if x.QoS < 2 || !p.begun[x.PacketID] {
			p.heard = append(p.heard, x)
		}
		switch {
		case p.held:
		case x.QoS == 1:
			p.send(&packets5.Puback{PacketID: x.PacketID, Properties: none})
		case x.QoS == 2:
			p.begun[x.PacketID] = true
			p.send(&packets5.Pubrec{PacketID: x.PacketID, Properties: none})
		}
	case *packets5.Pubrel:
		delete(p.begun, x.PacketID)
		p.send(&packets5.Pubcomp{PacketID: x.PacketID, Properties: none})
	case *packets5.Pubrec:
		if p.held {
			return
		}
		if x.ReasonCode < 0x80 {
			p.send(&packets5.Pubrel{PacketID: x.PacketID, Properties: none})
		} else {
			note(packets5.PUBCOMP, x.PacketID)
		}
	case *packets5.Puback:
		note(packets5.PUBACK, x.PacketID)
	case *packets5.Pubcomp:
		note(packets5.PUBCOMP, x.PacketID)
	case *packets5.Suback:
		note(packets5.SUBACK, x.PacketID)
	case *packets5.Unsuback:
		note(packets5.UNSUBACK, x.PacketID)
	case *packets5.Pingresp:
		p.pongs++
	case *packets5.Disconnect:
		p.bye = x
	}
}

// await waits until cond, which is called with p.mu held, is true.
func (p *peer) await(what string, cond func() bool) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		ok, changed, ended := cond(), p.changed, p.ended
		p.mu.Unlock()
		if ok {
			return
		}
		if ended {
			p.t.Fatalf("the connection has ended; wanted %s", what)
		}
		select {
		case <-changed:
		case <-deadline:
			p.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// answer waits for the acknowledgement of kind to the packet id.
func (p *peer) answer(kind byte, id uint16) (x packets5.Packet) {
	p.t.Helper()
	p.await(fmt.Sprintf("an acknowledgement of type %d", kind), func() bool {
		list := p.acks[kind][id]
		if len(list) == 0 {
			return false
		}
		x, p.acks[kind][id] = list[0], list[1:]
		return true
	})
	return x
}

func (p *peer) id() uint16 {
	p.lastID++
	return p.lastID
}

// post sends a PUBLISH and does not wait. It gives the identifier.
func (p *peer) post(m packets5.Publish) uint16 {
	p.t.Helper()
	m.Properties = orNone(m.Properties)
	if m.QoS > 0 {
		m.PacketID = p.id()
	}
	p.send(&m)
	return m.PacketID
}

// publish sends a PUBLISH and waits until the broker has taken it.
func (p *peer) publish(m packets5.Publish) {
	p.t.Helper()
	switch id := p.post(m); m.QoS {
	case 0:
		p.ping()
	case 1:
		p.answer(packets5.PUBACK, id)
	case 2:
		p.answer(packets5.PUBCOMP, id)
	}
}

// subscribe gives the codes of SUBACK.
func (p *peer) subscribe(props *packets5.Properties, filters ...packets5.SubOptions) []byte {
	p.t.Helper()
	s := &packets5.Subscribe{PacketID: p.id(), Properties: orNone(props), Subscriptions: filters}
	p.send(s)
	return p.answer(packets5.SUBACK, s.PacketID).(*packets5.Suback).Reasons
}

// ping makes sure that everything sent before has been handled, and that everything that had been queued for p has been heard.
func (p *peer) ping() {
	p.t.Helper()
	p.mu.Lock()
	want := p.pongs + 1
	p.mu.Unlock()
	p.send(&packets5.Pingreq{})
	p.await("PINGRESP", func() bool { return p.pongs >= want })
}

// exactly waits for n messages, makes sure that there are no more, and gives and forgets them.
func (p *peer) exactly(n int) (list []*packets5.Publish) {
	p.t.Helper()
	p.await(fmt.Sprintf("%d messages", n), func() bool { return len(p.heard) >= n })
	p.ping()
	p.mu.Lock()
	defer p.mu.Unlock()
	list, p.heard = p.heard, nil
	if len(list) != n {
		p.t.Fatalf("heard %d messages, want %d; the last is %+v", len(list), n, list[len(list)-1])
	}
	return list
}

// count tells how many messages have been heard.
func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.heard)
}

// gone waits until the broker has closed the connection and gives its DISCONNECT, if there was one.
func (p *peer) gone() *packets5.Disconnect {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		ended, bye, changed := p.ended, p.bye, p.changed
		p.mu.Unlock()
		if ended {
			return bye
		}
		select {
		case <-changed:
		case <-deadline:
			p.t.Fatal("the connection stays open")
		}
	}
}

// leave says goodbye and waits until the broker has let go.
func (p *peer) leave(props *packets5.Properties) {
	p.t.Helper()
	p.send(&packets5.Disconnect{Properties: orNone(props)})
	p.gone()
	p.nc.Close()
	if p.b != nil {
		letGo(p.t, p.b, p.nc)
	}
}

// drop ends the connection without a word.
func (p *peer) drop() { p.nc.Close() }
