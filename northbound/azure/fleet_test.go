package azure_test

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func fleet(t testing.TB, rate float64) (*northtest.Hub, northbound.Connector) {
	t.Helper()
	h := northtest.NewHub(t, key)
	h.Group = true
	return h, connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		c.Group, c.Identities, c.ConnectRate = true, "device", rate
	})
}

// from makes n publications of each device, in turn.
func from(n int, devices ...string) (batch []msg.Publication) {
	for i := range n {
		for _, d := range devices {
			batch = append(batch, msg.Publication{ID: msg.NewID(time.Now()), Device: d, Topic: "dt/x", QoS: 1, Payload: fmt.Appendf(nil, "%s-%d", d, i)})
		}
	}
	return batch
}

func TestEachDeviceReportsAsItself(t *testing.T) {
	h, c := fleet(t, 1000)
	s := northtest.Dial(t, c, &northtest.Downlink{})
	batch := from(20, "th-1", "th-2", "stranger", "th-3")
	o := northtest.NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	for i := range batch {
		if _, err := o.Err(i); msg.IsPermanent(err) != (batch[i].Device == "stranger") || err != nil && !msg.IsPermanent(err) {
			t.Fatalf("%s: %v", batch[i].Payload, err)
		}
	}
	arrived := map[string][]string{}
	for _, m := range h.Messages() {
		device, _, _ := strings.Cut(strings.TrimPrefix(m.Topic, "devices/"), "/")
		if m.From != device {
			t.Fatalf("%s reported as %s", m.From, device)
		}
		arrived[device] = append(arrived[device], string(m.Payload))
	}
	for _, d := range []string{"th-1", "th-2", "th-3"} {
		var want []string
		for _, p := range from(20, d) {
			want = append(want, string(p.Payload))
		}
		if !slices.Equal(arrived[d], want) {
			t.Fatalf("%s: %q", d, arrived[d])
		}
	}
}

func TestCommandsReachTheDeviceTheyAreFor(t *testing.T) {
	h, c := fleet(t, 1000)
	d := &northtest.Downlink{Filters: []string{"devicebound/+", "methods/+/+"}}
	s := northtest.Dial(t, c, d)
	batch := from(1, "th-1", "th-2")
	o := northtest.NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	h.MessageTo("th-2", "", "b")
	northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
	if p := d.Got()[0]; p.Topic != "devicebound/th-2" || string(p.Payload) != "b" {
		t.Fatalf("%s %s", p.Topic, p.Payload)
	}
	// Devices that have reported before are connected at once: their commands wait in the hub.
	s.Close()
	h.MessageTo("th-1", "", "a")
	northtest.Dial(t, c, d)
	northtest.Await(t, "the command sent while away", func() bool { return len(d.Got()) == 2 })
	if p := d.Got()[1]; p.Topic != "devicebound/th-1" || string(p.Payload) != "a" {
		t.Fatalf("%s %s", p.Topic, p.Payload)
	}
}

func TestOneDevicesConnectionIsNothingToTheOthers(t *testing.T) {
	h, c := fleet(t, 1000)
	s := northtest.Dial(t, c, &northtest.Downlink{})
	for range 3 {
		batch := from(50, "th-1", "th-2")
		o := northtest.NewOutcome(len(batch))
		if err := s.Send(t.Context(), batch, o.Done); err != nil {
			t.Fatal(err)
		}
		h.Drop("th-1")
		o.Await(t)
		for i := range batch {
			if n, err := o.Err(i); err != nil || n != 1 {
				t.Fatalf("%s: %v, %d times", batch[i].Payload, err, n)
			}
		}
	}
	if s.Context().Err() != nil {
		t.Fatal("the fleet ended")
	}
}

func TestLoginsArePaced(t *testing.T) {
	h, c := fleet(t, 20)
	s := northtest.Dial(t, c, &northtest.Downlink{})
	var devices []string
	for i := range 11 {
		devices = append(devices, fmt.Sprintf("d-%d", i))
	}
	began := time.Now()
	o := northtest.NewOutcome(len(devices))
	if err := s.Send(t.Context(), from(1, devices...), o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Fatalf("11 log-ins in %s at 20 a second", took)
	}
	if n := len(h.Clients()); n != 11 {
		t.Fatalf("%d clients", n)
	}
}

// Each device shows a certificate of its own; one that the file names no key for is refused, and the others go on.
func TestEachDeviceHasItsOwnCertificate(t *testing.T) {
	h := northtest.NewHub(t, nil)
	h.Group = true
	ring := &northtest.Keys{Certificates: map[string]tls.Certificate{}}
	for _, device := range []string{"gw1", "th-1", "th-2"} {
		ring.Certificates["hub-"+device] = h.CA.Certificate(t, broker.Subject{Name: device})
	}
	env, _ := northtest.Env(t, ring)
	c := azure.Kind().Config().(*azure.Config)
	c.Endpoint, c.CA, c.DeviceKey, c.Identities, c.ConnectRate = local(h.Addr), config.Path(h.CA.File(t)), "hub-{device}", "device", 1000
	s := northtest.Dial(t, open(t, env, c), &northtest.Downlink{})
	batch := from(3, "th-1", "th-2", "th-9")
	o := northtest.NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	for i := range batch {
		if _, err := o.Err(i); msg.IsPermanent(err) != (batch[i].Device == "th-9") || err != nil && !strings.Contains(err.Error(), "key hub-th-9: ") {
			t.Errorf("%s: %v", batch[i].Payload, err)
		}
	}
	for _, m := range h.Messages() {
		if !strings.HasPrefix(m.Topic, "devices/"+m.From+"/") {
			t.Errorf("%s reported on %s", m.From, m.Topic)
		}
	}
	if n := len(h.Messages()); n != 6 {
		t.Errorf("%d reports arrived", n)
	}
}

// Somebody between us and the hub, such as a captive portal, is no refusal of a device.
func TestWhatStandsInTheWayKillsNoReport(t *testing.T) {
	h := northtest.NewHub(t, key)
	h.Group = true
	other := northtest.NewCA(t).Server(t)
	var between atomic.Bool
	var met atomic.Int32
	own := h.CA.Server(t)
	own.ClientAuth, other.ClientAuth = tls.NoClientCert, tls.NoClientCert
	own.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if !between.Load() {
			return nil, nil
		}
		met.Add(1)
		return other, nil
	}
	h.Listen(t, own)
	s := northtest.Dial(t, connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		c.Group, c.Identities, c.ConnectRate = true, "device", 1000
	}), &northtest.Downlink{})
	send := func(batch []msg.Publication) *northtest.Outcome {
		o := northtest.NewOutcome(len(batch))
		if err := s.Send(t.Context(), batch, o.Done); err != nil {
			t.Fatal(err)
		}
		return o
	}
	send(from(1, "th-1")).Await(t)
	between.Store(true)
	batch := from(5, "th-2", "th-3")
	o := send(batch)
	northtest.Await(t, "them to meet somebody else", func() bool { return met.Load() >= 2 })
	between.Store(false)
	o.Await(t)
	for i := range batch {
		if n, err := o.Err(i); n != 1 || err != nil {
			t.Errorf("%s: done %d times, %v", batch[i].Payload, n, err)
		}
	}
}
