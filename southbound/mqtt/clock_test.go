package mqtt

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// batteryless starts a listener on a machine whose clock stands ten days back until it is set.
func batteryless(t *testing.T) (b *southtest.Bench, set func()) {
	var behind atomic.Int64
	behind.Store(int64(240 * time.Hour))
	system := func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	clock, err := auth.OpenClock(filepath.Join(t.TempDir(), "clock"), system().Add(time.Hour), system)
	if err != nil {
		t.Fatal(err)
	}
	b = southtest.Start(t, within(plain(nil), func(env *southbound.Env) { env.Now, env.Correct = clock.Now, clock.Correct }))
	return b, func() { behind.Store(0) }
}

func lasting(seconds uint32) *packets5.Properties {
	return &packets5.Properties{MessageExpiry: ptr(seconds)}
}

func TestNothingEndsBecauseTheClockIsSet(t *testing.T) {
	for name, again := range map[string]func(*testing.T, *southtest.Bench){
		"while it runs": func(*testing.T, *southtest.Bench) {},
		"and restarts":  restart,
	} {
		t.Run(name, func(t *testing.T) {
			b, set := batteryless(t)
			sub, _ := connect5(t, b, "sub", durable)
			sub.subscribe("queued", 1)
			sub.goodbye()
			w, _ := connect5(t, b, "w", nil)
			w.publish("queued", "q", 1, 1, lasting(600))
			w.send(&packets5.Publish{Topic: "retained", Payload: []byte("r"), QoS: 1, PacketID: 2, Retain: true, Properties: lasting(600)})
			expect[*packets5.Puback](w)
			set()
			again(t, b)
			b.Listener.(*listener).broker.sweep(b.Listener.(*listener))
			sub, ack := connect5(t, b, "sub", durable)
			if !ack.SessionPresent {
				t.Fatal("the session has expired")
			}
			if p := sub.hears("queued", "q"); *p.Properties.MessageExpiry > 600 || *p.Properties.MessageExpiry < 300 {
				t.Errorf("it lasts %d s more", *p.Properties.MessageExpiry)
			}
			sub.subscribe("retained", 1)
			sub.hears("retained", "r")
		})
	}
}

func TestWhatHasEndedEndsAfterTheClockIsSet(t *testing.T) {
	b, set := batteryless(t)
	short := func(c *packets5.Connect) { c.CleanStart, c.Properties.SessionExpiryInterval = false, ptr(uint32(1)) }
	sub, _ := connect5(t, b, "sub", short)
	sub.goodbye()
	set()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		gone := true
		b.Listener.(southbound.Inventory).Devices(func(southbound.DeviceInfo) bool {
			gone = false
			return true
		})
		if gone {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the session does not end")
		}
	}
}

// TestWillLastsFromWhenItIsPublished: MQTT 5 section 3.1.3.2.4.
func TestWillLastsFromWhenItIsPublished(t *testing.T) {
	var later atomic.Int64
	b := southtest.Start(t, within(plain(nil), func(env *southbound.Env) {
		env.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	}))
	sub, _ := connect5(t, b, "sub", nil)
	sub.subscribe("gone", 1)
	w := open(t, b)
	connect := "\x00\x04MQTT\x05\x0e\x00\x00\x00\x00\x01w" + "\x05\x02\x00\x00\x00\x3c" + "\x00\x04gone\x00\x01w" // a will for 60 s
	w.raw("\x10" + string(rune(len(connect))) + connect)
	expect[*packets5.Connack](w)
	later.Store(int64(time.Hour))
	w.nc.Close()
	if p := sub.hears("gone", "w"); *p.Properties.MessageExpiry < 50 {
		t.Errorf("it lasts %d s", *p.Properties.MessageExpiry)
	}
	if m := reported(t, b, 1); time.Until(m[0].Expires) < time.Hour {
		t.Errorf("the report ends %v", m[0].Expires)
	}
}
