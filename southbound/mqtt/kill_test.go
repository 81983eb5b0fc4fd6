package mqtt

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// TestProveKill kills the gateway at random under load. No message that was acknowledged may be lost, QoS 2 messages are heard
// exactly once, and sessions and what is retained are there again each time.
func TestProveKill(t *testing.T) {
	kills, publishers, subscribers := 6, 6, 3 // so many publishers with each QoS
	if prove() {
		kills, publishers, subscribers = 200, 64, 16
	}
	o := orders{Dir: t.TempDir(), Local: true}
	cmd, g := child(t, o)
	_, port, _ := net.SplitHostPort(g.Addr)
	o.Port, _ = strconv.Atoi(port)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var stop atomic.Bool
	var hearing, saying sync.WaitGroup
	subs := make([]*hearer, subscribers)
	ready := make(chan struct{}, subscribers)
	for i := range subs {
		subs[i] = &hearer{t: t, addr: g.Addr, id: fmt.Sprintf("sub-%d", i), heard: map[string]int{}, taken: map[uint16]bool{}, ready: ready}
		hearing.Go(func() { subs[i].run(ctx) })
	}
	for range subs {
		select {
		case <-ready:
		case <-ctx.Done():
			t.Fatal("subscribers do not get ready")
		}
	}
	pubs := make([]*sayer, 2*publishers)
	for i := range pubs {
		qos := byte(1 + i%2)
		pubs[i] = &sayer{t: t, addr: g.Addr, id: fmt.Sprintf("pub-%d", i), topic: fmt.Sprintf("k/%d/%d", qos, i), qos: qos, stop: &stop}
		saying.Go(func() { pubs[i].run(ctx) })
	}
	for range kills {
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) // the moment is to be random
		kill(cmd)
		cmd, _ = child(t, o)
	}
	stop.Store(true)
	saying.Wait()
	total := 0
	for _, p := range pubs {
		total += p.acked
	}
	// Everything acknowledged arrives at every subscriber.
	for _, s := range subs {
		for _, p := range pubs {
			for n := range p.acked {
				s.await(ctx, fmt.Sprintf("%s %d", p.topic, n), p.qos == 2)
			}
		}
	}
	late := (&interop{addr: g.Addr, version: packet.V5}).connect(t, "late")
	for _, p := range pubs {
		if p.qos != 1 || p.acked == 0 {
			continue
		}
		late.subscribe(nil, filterOf(p.topic, 1))
		if m := late.exactly(1)[0]; !m.Retain || !atLeast(string(m.Payload), p.acked-1) {
			t.Errorf("retained on %s is %q, acknowledged was %d", p.topic, m.Payload, p.acked-1)
		}
	}
	cancel()
	hearing.Wait()
	if !t.Failed() {
		t.Logf("prove: %d kills, %d + %d publishers of QoS 1 and 2, %d messages acknowledged: none lost for %d persistent subscribers, QoS 2 once, sessions and retained messages there",
			kills, publishers, publishers, total, subscribers)
	}
}

func atLeast(text string, n int) bool {
	m, err := strconv.Atoi(text)
	return err == nil && m >= n
}

// link connects with a session that must be there again.
func link(addr, id string, before bool) (nc net.Conn, present bool, err error) {
	nc, err = net.Dial("tcp", addr)
	if err != nil {
		return nil, false, err
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: id, Properties: &packets5.Properties{SessionExpiryInterval: ptr(uint32(3600))}}
	if _, err = c.WriteTo(nc); err == nil {
		var p *packets5.ControlPacket
		if p, err = packets5.ReadPacket(nc); err == nil {
			if ack, ok := p.Content.(*packets5.Connack); ok && ack.ReasonCode == 0 {
				return nc, ack.SessionPresent, nil
			}
			err = fmt.Errorf("heard %T", p.Content)
		}
	}
	nc.Close()
	return nil, false, err
}

// sayer publishes 0, 1, 2, ... and goes on only when a number is acknowledged to the end.
type sayer struct {
	t         *testing.T
	addr, id  string
	topic     string
	qos       byte
	stop      *atomic.Bool
	acked     int
	connected bool
	released  bool // QoS 2: PUBREC has come for the number at hand
}

func (p *sayer) run(ctx context.Context) {
	for ctx.Err() == nil && !p.stop.Load() {
		nc, present, err := link(p.addr, p.id, p.connected)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if p.connected && !present && p.released {
			p.t.Errorf("%s: the session is gone in the middle of QoS 2", p.id)
		}
		p.connected = true
		_ = p.talk(ctx, nc)
		nc.Close()
	}
}

func (p *sayer) talk(ctx context.Context, nc net.Conn) error {
	again := true
	for ctx.Err() == nil && !p.stop.Load() {
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		id := uint16(p.acked%1000 + 1)
		if !p.released {
			m := &packets5.Publish{Topic: p.topic, Payload: []byte(strconv.Itoa(p.acked)), QoS: p.qos, PacketID: id, Duplicate: again, Retain: p.qos == 1, Properties: &packets5.Properties{}}
			if err := write(nc, m); err != nil {
				return err
			}
			r, err := packets5.ReadPacket(nc)
			if err != nil {
				return err
			}
			if rec, ok := r.Content.(*packets5.Pubrec); ok && rec.ReasonCode < 0x80 {
				p.released = true
			} else if ack, ok := r.Content.(*packets5.Puback); !ok || ack.ReasonCode >= 0x80 {
				return fmt.Errorf("refused: %v", r)
			}
		}
		if p.qos == 2 {
			if err := write(nc, &packets5.Pubrel{PacketID: id, Properties: &packets5.Properties{}}); err != nil {
				return err
			}
			if _, err := packets5.ReadPacket(nc); err != nil {
				return err
			}
		}
		p.released, again = false, false
		p.acked++
	}
	return nil
}

func write(w io.Writer, p packets5.Packet) error {
	_, err := p.WriteTo(w)
	return err
}

// hearer is a subscriber that keeps its half of QoS 2 across connections.
type hearer struct {
	t        *testing.T
	addr, id string
	ready    chan struct{}
	taken    map[uint16]bool // QoS 2 identifiers that wait for PUBREL
	began    bool

	mu    sync.Mutex
	heard map[string]int // guarded by mu
}

func (s *hearer) run(ctx context.Context) {
	for ctx.Err() == nil {
		nc, present, err := link(s.addr, s.id, s.began)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if s.began && !present {
			s.t.Errorf("%s: the session is gone", s.id)
		}
		end := context.AfterFunc(ctx, func() { nc.Close() })
		_ = s.listen(nc)
		end()
		nc.Close()
	}
}

func (s *hearer) listen(nc net.Conn) error {
	if !s.began {
		if err := write(nc, &packets5.Subscribe{PacketID: 1, Properties: &packets5.Properties{}, Subscriptions: []packets5.SubOptions{{Topic: "k/#", QoS: 2}}}); err != nil {
			return err
		}
	}
	for {
		nc.SetDeadline(time.Now().Add(time.Minute))
		p, err := packets5.ReadPacket(nc)
		if err != nil {
			return err
		}
		switch m := p.Content.(type) {
		case *packets5.Suback:
			s.began = true
			s.ready <- struct{}{}
		case *packets5.Publish:
			if m.QoS < 2 || !s.taken[m.PacketID] {
				s.mu.Lock()
				s.heard[m.Topic+" "+string(m.Payload)]++
				s.mu.Unlock()
			}
			if m.QoS == 2 {
				s.taken[m.PacketID] = true
				err = write(nc, &packets5.Pubrec{PacketID: m.PacketID, Properties: &packets5.Properties{}})
			} else {
				err = write(nc, &packets5.Puback{PacketID: m.PacketID, Properties: &packets5.Properties{}})
			}
		case *packets5.Pubrel:
			delete(s.taken, m.PacketID)
			err = write(nc, &packets5.Pubcomp{PacketID: m.PacketID, Properties: &packets5.Properties{}})
		}
		if err != nil {
			return err
		}
	}
}

// await waits until what has been heard holds the message, and with QoS 2 holds it once.
func (s *hearer) await(ctx context.Context, what string, once bool) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		s.mu.Lock()
		n := s.heard[what]
		s.mu.Unlock()
		switch {
		case n == 1 || n > 1 && !once:
			return
		case n > 1:
			s.t.Errorf("%s heard %q %d times", s.id, what, n)
			return
		case time.Now().After(deadline) || ctx.Err() != nil:
			s.t.Errorf("%s has not heard %q", s.id, what)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
