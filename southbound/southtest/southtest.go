// Package southtest is the suite that every listener passes, with the fakes that it needs.
//
// The suite holds a listener to the contract of package southbound through a [Driver], which knows how a device of
// the protocol speaks: yes is said only after the uplink has, each refusal has its code, commands and their replies
// find their way, a listener that stops lets go of its address and its goroutines, and one bad peer costs only itself.
//
// It speaks the real wire on loopback. It does not test what only one protocol has.
package southtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
)

// Device is a device at the far end of the wire.
type Device interface {
	// Report sends payload to resource and waits for the answer: the protocol's code in the words of Driver.Codes.
	// An error means that there was no answer.
	Report(ctx context.Context, resource, mediaType string, payload []byte) (code string, err error)
	// Expose makes the device ready for commands on resource. A nil answer acknowledges without a payload.
	// It returns once the gateway knows.
	Expose(ctx context.Context, resource string, answer func(payload []byte) []byte) error
	Close() error
}

// Driver tells the suite about one protocol.
type Driver struct {
	// Kind makes the kind under test anew.
	Kind func() southbound.Kind
	// Configure fills in what Kind().Config gave, for the address listen on loopback with the key "identity".
	Configure func(s *Site, cfg any, listen string)
	// Dial connects as device with its secret. A refused credential is an error.
	Dial func(ctx context.Context, s *Site, addr net.Addr, device string, secret []byte) (Device, error)
	// Method is that of a report.
	Method string
	// Codes gives the code that a report hears: under 0 that of a yes.
	Codes map[msg.Reason]string
	// Noise sends garbage to addr, several kinds of it; nil where there is nothing to send.
	Noise func(ctx context.Context, t *testing.T, s *Site, addr net.Addr)
	// NoMediaType tells that a report of the protocol says nothing of its media type.
	NoMediaType bool
	// NotReadyRefused tells that a command to a connected device without Expose is refused;
	// else it goes unanswered or the device says why itself.
	NotReadyRefused bool
}

// Bench is a listener that serves, and what surrounds it.
type Bench struct {
	*Site
	Up       *Uplink
	Listener southbound.Listener
	Addr     net.Addr
	driver   Driver
	socket   func() (net.Listener, net.PacketConn) // for Env.Socket; nil: none
	stop     func() error
}

// timeout is for what must happen; it is long because the machine may be slow.
const timeout = 30 * time.Second

// Start makes a site with a serving listener that stops when the test ends.
func Start(t testing.TB, d Driver) *Bench {
	t.Helper()
	return StartAt(t, d, NewSite(t))
}

// StartAt is Start at a site that is there already.
func StartAt(t testing.TB, d Driver, s *Site) *Bench {
	t.Helper()
	b := &Bench{Site: s, Up: NewUplink(), driver: d}
	b.Serve(t, "127.0.0.1:0")
	return b
}

// Serve opens a fresh listener at listen and waits until it is bound.
func (b *Bench) Serve(t testing.TB, listen string) {
	t.Helper()
	kind := b.driver.Kind()
	cfg := kind.Config()
	b.driver.Configure(b.Site, cfg, listen)
	bound := make(chan net.Addr, 1)
	env := b.Env(t, "field")
	env.Bound, env.Socket = func(a net.Addr) { bound <- a }, b.socket
	l, err := kind.Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx, b.Up) }()
	b.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(timeout):
			return errors.New("Serve did not return")
		}
	})
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Errorf("stopping the listener: %v", err)
		}
	})
	select {
	case b.Addr = <-bound:
	case err := <-ended:
		ended <- err
		t.Fatalf("Serve ended before it was bound: %v", err)
	case <-time.After(timeout):
		t.Fatal("the listener did not bind")
	}
	b.Listener = l
}

// Stop stops the listener and gives what Serve returned.
func (b *Bench) Stop() error { return b.stop() }

// Device connects a device of the site with its own secret.
func (b *Bench) Device(ctx context.Context, t testing.TB, name string) Device {
	t.Helper()
	d, err := b.driver.Dial(ctx, b.Site, b.Addr, name, b.Secret(name))
	if err != nil {
		t.Fatalf("device %s: %v", name, err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Run holds the driver's listener to the contract.
func Run(t *testing.T, d Driver) {
	for name, check := range map[string]func(context.Context, *testing.T, *Bench){
		"a report carries who, what and when":                       checkReport,
		"yes is said only after the uplink has said it":             checkYesAfterUplink,
		"each refusal has its code and the next report is taken":    checkRefusals,
		"reports of one device arrive in order":                     checkOrder,
		"a device that waits does not hold up another":              checkIndependence,
		"a command reaches the device and its reply comes back":     checkCommand,
		"a command reaches only the addressed device":               checkCommandAddressee,
		"a command to a device that is not here says so":            checkNotHere,
		"a command to a device that is not ready ends with ctx":     checkNotReady,
		"a device that may have commands waiting is called awake":   checkAwake,
		"a wrong secret is refused":                                 checkWrongSecret,
		"garbage costs only the connection that sent it":            checkNoise,
		"an address in use is an error at once":                     checkAddressInUse,
		"commands and reports of two devices at once":               checkCommandsAtOnce,
		"a command ends with its context":                           checkEndOfCommand,
		"a device that goes before its yes does no harm":            checkDeviceGone,
		"a reload reaches the devices that are connected":           checkPolicyChanged,
		"a socket that is handed over is served":                    checkSocket,
		"devices are listed and can be disconnected":                checkInventory,
		"figures are kept":                                          checkCounters,
		"stopping lets go of the address, devices and goroutines":   checkStop,
		"stopping while the uplink holds a report does not say yes": checkStopWhileHeld,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			check(ctx, t, Start(t, d))
		})
	}
}

func checkReport(ctx context.Context, t *testing.T, b *Bench) {
	before := time.Now().Add(-time.Second)
	dev := b.Device(ctx, t, "th-1")
	mustReport(ctx, t, b, dev, "/sensors/temp", "application/json", `{"t":21.5}`)
	m := b.Up.Await(ctx, t, 1)[0]
	if b.driver.NoMediaType {
		m.Type = "application/json"
	}
	if m.Device != "th-1" || m.Listener != "field" || m.Method != b.driver.Method || m.Resource != "/sensors/temp" ||
		m.Type != "application/json" || string(m.Payload) != `{"t":21.5}` || !slices.Equal(m.Groups, []string{"thermostat"}) {
		t.Errorf("submitted %+v", m)
	}
	if m.ID == (msg.ID{}) || m.Time.Before(before) || m.Time.After(time.Now().Add(time.Second)) {
		t.Errorf("submitted with id %v at %v", m.ID, m.Time)
	}
}

func mustReport(ctx context.Context, t *testing.T, b *Bench, dev Device, resource, mediaType, payload string) {
	t.Helper()
	code, err := dev.Report(ctx, resource, mediaType, []byte(payload))
	if err != nil || code != b.driver.Codes[0] {
		t.Fatalf("report on %s: heard %q (%v), want %q", resource, code, err, b.driver.Codes[0])
	}
}

func checkYesAfterUplink(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	b.Up.Hold()
	heard := make(chan string, 1)
	go func() {
		code, err := dev.Report(ctx, "/sensors/temp", "", []byte("1"))
		heard <- fmt.Sprint(code, err)
	}()
	b.Up.Await(ctx, t, 1)
	select {
	case what := <-heard:
		t.Fatalf("the device heard %s before the uplink had answered", what)
	case <-time.After(300 * time.Millisecond): // long enough for an answer that should not be there
	}
	b.Up.Release()
	if what := <-heard; what != fmt.Sprint(b.driver.Codes[0], error(nil)) {
		t.Fatalf("the device heard %s", what)
	}
}

func checkRefusals(ctx context.Context, t *testing.T, b *Bench) {
	for reason, want := range b.driver.Codes {
		if reason == 0 {
			continue
		}
		dev := b.Device(ctx, t, "th-1")
		b.Up.Refuse(&msg.Refusal{Reason: reason, RetryAfter: time.Second, Why: "southtest"})
		code, err := dev.Report(ctx, "/sensors/temp", "", []byte("1"))
		if err != nil || code != want {
			t.Errorf("%v: heard %q (%v), want %q", reason, code, err, want)
		}
		b.Up.Refuse(nil)
		mustReport(ctx, t, b, dev, "/sensors/temp", "", "2")
		dev.Close()
	}
}

func checkOrder(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	for i := range 50 {
		mustReport(ctx, t, b, dev, "/sensors/temp", "", fmt.Sprint(i))
	}
	for i, m := range b.Up.Await(ctx, t, 50) {
		if string(m.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d says %q", i, m.Payload)
		}
	}
}

func checkIndependence(ctx context.Context, t *testing.T, b *Bench) {
	held := make(chan func(error), 1) // Await may return before the outcome is in our hands
	b.Up.HandOver("th-1", func(_ *msg.Message, done func(error)) { held <- done })
	slow, quick := b.Device(ctx, t, "th-1"), b.Device(ctx, t, "th-2")
	heard := make(chan error, 1)
	go func() {
		_, err := slow.Report(ctx, "/sensors/temp", "", []byte("slow"))
		heard <- err
	}()
	var done func(error)
	select {
	case done = <-held:
	case <-ctx.Done():
		t.Fatal("the slow device's report was not submitted")
	}
	for range 10 {
		mustReport(ctx, t, b, quick, "/sensors/temp", "", "quick")
	}
	done(nil)
	if err := <-heard; err != nil {
		t.Errorf("the slow device: %v", err)
	}
}

func command(device, payload string, wantReply bool) msg.Message {
	now := time.Now()
	return msg.Message{ID: msg.NewID(now), Time: now, Device: device, Method: "PUT", Resource: "/actuators/setpoint",
		Type: "text/plain", Payload: []byte(payload), WantReply: wantReply}
}

func checkCommand(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	got := make(chan string, 10)
	must(t, dev.Expose(ctx, "/actuators/setpoint", func(p []byte) []byte {
		got <- string(p)
		if string(p) == "silent" {
			return nil
		}
		return []byte("ok:" + string(p))
	}))
	r, err := b.Listener.Deliver(ctx, command("th-1", "21", true))
	if err != nil || r.Status != msg.Done || string(r.Payload) != "ok:21" {
		t.Errorf("reply %+v, %v", r, err)
	}
	r, err = b.Listener.Deliver(ctx, command("th-1", "silent", false))
	if err != nil || r.Status != msg.Done || len(r.Payload) != 0 {
		t.Errorf("reply without payload: %+v, %v", r, err)
	}
	for _, want := range []string{"21", "silent"} {
		select {
		case p := <-got:
			if p != want {
				t.Errorf("the device was told %q, want %q", p, want)
			}
		case <-ctx.Done():
			t.Fatalf("the device was not told %q", want)
		}
	}
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "after")
}

func checkCommandAddressee(ctx context.Context, t *testing.T, b *Bench) {
	dev, other := b.Device(ctx, t, "th-1"), b.Device(ctx, t, "th-2")
	overheard := make(chan string, 10)
	must(t, dev.Expose(ctx, "/actuators/setpoint", func(p []byte) []byte { return p }))
	must(t, other.Expose(ctx, "/actuators/setpoint", func(p []byte) []byte { overheard <- string(p); return p }))
	if r, err := b.Listener.Deliver(ctx, command("th-1", "21", true)); err != nil || string(r.Payload) != "21" {
		t.Errorf("reply %+v, %v", r, err)
	}
	mustReport(ctx, t, b, other, "/sensors/temp", "", "still here")
	if len(overheard) > 0 {
		t.Errorf("the other device was told %q", <-overheard)
	}
}

func checkNotHere(ctx context.Context, t *testing.T, b *Bench) {
	if r, err := b.Listener.Deliver(ctx, command("th-1", "21", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("before it connected: %+v, %v", r, err)
	}
	dev := b.Device(ctx, t, "th-1")
	must(t, dev.Expose(ctx, "/actuators/setpoint", func([]byte) []byte { return nil }))
	if r, err := b.Listener.Deliver(ctx, command("th-2", "21", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("another device: %+v, %v", r, err)
	}
}

func checkNotReady(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "1")
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r, err := b.Listener.Deliver(short, command("th-1", "21", false))
	if b.driver.NotReadyRefused {
		if err != nil || r.Status != msg.Refused || r.Code == "" {
			t.Errorf("reply %+v, %v; want it refused with a code", r, err)
		}
	} else if err == nil && r.Status == msg.Done {
		t.Errorf("reply %+v: a device that is not ready has done it", r)
	}
}

func checkAwake(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	must(t, dev.Expose(ctx, "/actuators/setpoint", func([]byte) []byte { return nil }))
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "1")
	if !slices.Contains(b.Awoken(), "th-1") {
		t.Errorf("awoken: %q", b.Awoken())
	}
}

func checkWrongSecret(ctx context.Context, t *testing.T, b *Bench) {
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if dev, err := b.driver.Dial(short, b.Site, b.Addr, "th-1", []byte("not the secret of th-1")); err == nil {
		dev.Close()
		t.Error("a wrong secret was let in")
	}
	if len(b.Up.Messages()) > 0 {
		t.Error("a device with a wrong secret was heard")
	}
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "1")
}

func checkNoise(ctx context.Context, t *testing.T, b *Bench) {
	if b.driver.Noise == nil {
		t.Skip("the driver makes no noise")
	}
	dev := b.Device(ctx, t, "th-1")
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "before")
	b.driver.Noise(ctx, t, b.Site, b.Addr)
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "after")
	mustReport(ctx, t, b, b.Device(ctx, t, "th-2"), "/sensors/temp", "", "a new one")
	if n := len(b.Up.Messages()); n != 3 {
		t.Errorf("%d messages were submitted, want 3", n)
	}
}

func checkAddressInUse(ctx context.Context, t *testing.T, b *Bench) {
	kind := b.driver.Kind()
	cfg := kind.Config()
	b.driver.Configure(b.Site, cfg, b.Addr.String())
	l, err := kind.Open(b.Env(t, "second"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Serve(ctx, b.Up); err == nil {
		t.Error("two listeners serve one address")
	}
}

func checkInventory(ctx context.Context, t *testing.T, b *Bench) {
	inv, ok := b.Listener.(southbound.Inventory)
	if !ok {
		t.Fatal("the listener lists no devices")
	}
	dev := b.Device(ctx, t, "th-1")
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "1")
	var all []southbound.DeviceInfo
	for d := range inv.Devices {
		all = append(all, d)
	}
	if len(all) != 1 || all[0].Device != "th-1" || all[0].Listener != "field" || !all[0].Connected || all[0].Auth == "" ||
		all[0].Address == "" || all[0].Protocol == "" || all[0].Since.IsZero() || all[0].LastSeen.IsZero() {
		t.Errorf("devices: %+v", all)
	}
	b.Device(ctx, t, "th-2").Report(ctx, "/sensors/temp", "", []byte("1"))
	for range inv.Devices {
		break // nothing follows a false
	}
	if n := inv.Disconnect("nobody"); n != 0 {
		t.Errorf("%d sessions of a device that has none were ended", n)
	}
	if n := inv.Disconnect("th-1"); n != 1 {
		t.Errorf("%d sessions were ended, want 1", n)
	}
	if r, err := b.Listener.Deliver(ctx, command("th-1", "21", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("after Disconnect: %+v, %v", r, err)
	}
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "again")
}

func checkCounters(ctx context.Context, t *testing.T, b *Bench) {
	c, ok := b.Listener.(southbound.Counters)
	if !ok {
		t.Fatal("the listener keeps no figures")
	}
	before := c.Counters()
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "1")
	after := c.Counters()
	grown := 0
	for name, n := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s was not there from the start", name)
		}
		if n > before[name] {
			grown++
		}
	}
	if grown == 0 || after["sessions"] != 1 {
		t.Errorf("after one report: %v", after)
	}
}

func checkStop(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	mustReport(ctx, t, b, dev, "/sensors/temp", "", "1")
	old := b.Listener
	if err := b.Stop(); err != nil {
		t.Fatalf("Serve returned %v", err)
	}
	if _, err := old.Deliver(ctx, command("th-1", "21", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("a command after the stop: %v", err)
	}
	dev.Close()
	if left := listenerGoroutines(); left != "" {
		t.Errorf("goroutines are left:\n%s", left)
	}
	b.Serve(t, b.Addr.String())
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "2")
}

func checkStopWhileHeld(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	b.Up.Hold()
	heard := make(chan string, 1)
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		code, _ := dev.Report(short, "/sensors/temp", "", []byte("1"))
		heard <- code
	}()
	b.Up.Await(ctx, t, 1)
	if err := b.Stop(); err != nil {
		t.Fatalf("Serve returned %v", err)
	}
	time.AfterFunc(time.Second, cancel) // it may hear nothing at all
	if code := <-heard; code == b.driver.Codes[0] {
		t.Errorf("the device heard %q although nothing is stored", code)
	}
	b.Up.Release() // a late outcome finds nobody and does no harm
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listenerGoroutines gives the stacks of goroutines that a listener's Serve has started and that do not end.
func listenerGoroutines() (left string) {
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		buf := make([]byte, 1<<20)
		left = ""
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "created by github.com/drawbridge/drawbridge/southbound/") &&
				!strings.Contains(stack, "_test.go") && !strings.Contains(stack, "southtest") {
				left += stack + "\n\n"
			}
		}
		if left == "" {
			break
		}
		time.Sleep(20 * time.Millisecond) // a goroutine that has let go may still have to end
	}
	return left
}
