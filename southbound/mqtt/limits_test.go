package mqtt

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func dropped(b *southtest.Bench) int64 {
	return b.Listener.(southbound.Counters).Counters()["messages_dropped"]
}

func TestPropertiesHaveWeight(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxRetainedSize = 8 << 10 }))
	w, _ := connect5(t, b, "w", nil)
	props := &packets5.Properties{User: []packets5.User{{Key: "k", Value: strings.Repeat("v", 10<<10)}}}
	w.send(&packets5.Publish{Topic: "a", QoS: 1, PacketID: 1, Retain: true, Payload: []byte("x"), Properties: props})
	expect[*packets5.Puback](w)
	if dropped(b) != 1 {
		t.Error("10 KiB of properties were retained in 8 KiB")
	}
}

func TestWhatWaitsForAllSessionsIsBounded(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxQueuedTotal = 8 << 10 }))
	for _, id := range []string{"sub-1", "sub-2", "sub-3"} {
		sub, _ := connect5(t, b, id, durable)
		sub.subscribe("a", 1)
		sub.goodbye()
	}
	w, _ := connect5(t, b, "w", nil)
	w.publish("a", strings.Repeat("x", 3<<10), 1, 1, nil)
	if n := dropped(b); n != 1 {
		t.Errorf("%d of three messages of 3 KiB dropped, want 1: 8 KiB may wait for all", n)
	}
}

// timed is a connection that only knows until when it is read.
type timed struct {
	net.Conn
	deadline time.Time
}

func (c *timed) SetReadDeadline(t time.Time) error { c.deadline = t; return nil }
func (c *timed) Read(b []byte) (int, error)        { return 1, nil }

func TestShortKeepAliveIsCountedFromTheLastPacket(t *testing.T) {
	nc := &timed{}
	c := &conn{nc: nc, keepAlive: time.Second, stopped: make(chan struct{})}
	for range 2 {
		if _, err := c.fill(make([]byte, 0, 1), false); err != nil {
			t.Fatal(err)
		}
		c.deadlineSet = c.deadlineSet.Add(-900 * time.Millisecond) // so long ago
		nc.deadline = nc.deadline.Add(-900 * time.Millisecond)
	}
	if left := time.Until(nc.deadline.Add(900 * time.Millisecond)); left < time.Second/2 {
		t.Errorf("a client that spoke just now has %v left of a keep-alive of a second", left)
	}
}

func TestOnePacketSubscribesNoMoreThanASessionMay(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxSubscriptions = 3 }))
	w, _ := connect5(t, b, "w", nil)
	p := &packets5.Subscribe{PacketID: 1, Properties: &packets5.Properties{}}
	for range 5 {
		p.Subscriptions = append(p.Subscriptions, packets5.SubOptions{Topic: "a", QoS: 1})
	}
	w.send(p)
	if codes := expect[*packets5.Suback](w).Reasons; !bytes.Equal(codes, []byte{1, 1, 1, 0x97, 0x97}) {
		t.Errorf("SUBACK % x", codes)
	}
}

func TestPublishesWithoutPUBRELAreBounded(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.ReceiveMaximum = 2 }))
	w, _ := connect5(t, b, "w", durable)
	for id := uint16(1); id <= 8; id++ {
		w.publish("a", "", 2, id, nil)
		w.release(1000) // of another
	}
	w.send(&packets5.Publish{Topic: "a", QoS: 2, PacketID: 9, Properties: &packets5.Properties{}})
	w.closed(0x93)
}

// TestWhoDoesNotReadIsNotRead: answers are never dropped, so a client that asks without end and does not read is left waiting.
func TestWhoDoesNotReadIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := &conn{l: &listener{cfg: defaults()}, nc: ours, stopped: make(chan struct{})}
		c.out.init(ours, &c.l.chunks, nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.read(nil)
			c.out.finish(nil)
		}()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			for range 1024 {
				if _, err := theirs.Write(bytes.Repeat([]byte{0xc0, 0}, 8<<10)); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		c.out.mu.Lock()
		if n := len(c.out.buf); n < mostUnread || n > mostUnread+64<<10 {
			t.Errorf("%d octets wait for a client that does not read, want %d", n, mostUnread)
		}
		c.out.mu.Unlock()
		<-asked // for want of a reader the connection ends
		<-ended
	})
}

// TestWhatIsNotAcknowledgedIsBounded: a client that reads and does not acknowledge is sent no more than so many octets.
func TestWhatIsNotAcknowledgedIsBounded(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxQueuedBytes = 8 << 10 }))
	sub, _ := connect5(t, b, "sub", nil)
	sub.subscribe("a", 1)
	w, _ := connect5(t, b, "w", nil)
	for i := range uint16(5) {
		w.publish("a", strings.Repeat("x", 3<<10), 1, i+1, nil)
	}
	var ids []uint16
	for range 3 { // as much as may wait, and one that goes beyond
		ids = append(ids, expect[*packets5.Publish](sub).PacketID)
	}
	sub.silence()
	for _, id := range ids {
		sub.send(&packets5.Puback{PacketID: id, Properties: &packets5.Properties{}})
	}
	sub.take()
	sub.take()
}

func TestWhoHasLittleWaitingLosesNothingToOthers(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxQueuedTotal, c.QueueFull = 8<<10, "drop-old" }))
	for id, topics := range map[string][]string{"little": {"little", "both"}, "much": {"much"}} {
		sub, _ := connect5(t, b, id, durable)
		for _, topic := range topics {
			sub.subscribe(topic, 1)
		}
		sub.goodbye()
	}
	w, _ := connect5(t, b, "w", nil)
	w.publish("little", "l", 1, 1, nil)
	w.publish("much", strings.Repeat("x", 7<<10), 1, 2, nil)
	w.publish("both", strings.Repeat("x", 3<<10), 1, 3, nil)
	sub, _ := connect5(t, b, "little", durable)
	sub.hears("little", "l")
}

func TestRetainedMessagesThatHaveEndedMakeRoom(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.MaxRetained = 1 }))
	w, _ := connect5(t, b, "w", nil)
	retain := func(topic string, p *packets5.Properties) {
		w.send(&packets5.Publish{Topic: topic, QoS: 1, PacketID: 1, Retain: true, Payload: []byte("x"), Properties: orNone(p)})
		expect[*packets5.Puback](w)
	}
	retain("a", &packets5.Properties{MessageExpiry: ptr(uint32(1))})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		was := dropped(b)
		retain("b", nil)
		if dropped(b) == was {
			return
		}
	}
	t.Error("a retained message that has ended takes the place of others")
}

// TestLargestMaximumPacketSize: what clients say that bear any packet does not fit into an int of 32 bits.
func TestLargestMaximumPacketSize(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	w, _ := connect5(t, b, "w", func(c *packets5.Connect) { c.Properties.MaximumPacketSize = ptr(uint32(0xffffffff)) })
	w.subscribe("a", 1)
	w.publish("a", "x", 1, 1, nil)
	w.hears("a", "x")
}
