package southtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound"
)

// The checks of what goes on at once, and of what changes while a listener serves.

func checkCommandsAtOnce(ctx context.Context, t *testing.T, b *Bench) {
	var wg sync.WaitGroup
	for _, name := range []string{"th-1", "th-2"} {
		dev := b.Device(ctx, t, name)
		must(t, dev.Expose(ctx, "/actuators/setpoint", func(p []byte) []byte { return []byte(name + " has heard " + string(p)) }))
		wg.Go(func() {
			for i := range 5 {
				r, err := b.Listener.Deliver(ctx, command(name, fmt.Sprint(i), true))
				if want := fmt.Sprintf("%s has heard %d", name, i); err != nil || string(r.Payload) != want {
					t.Errorf("reply %+v, %v; want %q", r, err, want)
				}
			}
		})
		wg.Go(func() {
			for i := range 5 {
				if code, err := dev.Report(ctx, "/sensors/temp", "", []byte(fmt.Sprint(i))); err != nil || code != b.driver.Codes[0] {
					t.Errorf("%s: report %d heard %q (%v)", name, i, code, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(b.Up.Messages()); n != 10 {
		t.Errorf("%d messages were submitted, want 10", n)
	}
}

func checkDeviceGone(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	b.Up.Hold()
	left := make(chan struct{})
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(left)
		_, _ = dev.Report(short, "/sensors/temp", "", []byte("last words"))
	}()
	b.Up.Await(ctx, t, 1)
	cancel()
	dev.Close()
	b.Up.Release() // the outcome finds nobody
	<-left
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "back")
}

func checkPolicyChanged(ctx context.Context, t *testing.T, b *Bench) {
	l, ok := b.Listener.(southbound.PolicyChanged)
	if !ok {
		t.Fatal("the listener takes no notice of a reload")
	}
	gone, stays := b.Device(ctx, t, "th-1"), b.Device(ctx, t, "th-2")
	mustReport(ctx, t, b, gone, "/sensors/temp", "", "1")
	mustReport(ctx, t, b, stays, "/sensors/temp", "", "2")
	l.PolicyChanged() // nothing has changed for either
	mustReport(ctx, t, b, gone, "/sensors/temp", "", "3")
	b.RemoveDevice("th-1")
	b.AddDevice("th-2", Account{Secret: b.Secret("th-2"), Groups: []string{"other"}})
	l.PolicyChanged()
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if code, err := gone.Report(short, "/sensors/temp", "", []byte("4")); err == nil && code == b.driver.Codes[0] {
		t.Error("a device that is no more was told yes")
	}
	mustReport(ctx, t, b, stays, "/sensors/temp", "", "5")
	all := b.Up.Messages()
	last := all[len(all)-1]
	if len(all) != 4 || last.Device != "th-2" || len(last.Groups) != 1 || last.Groups[0] != "other" {
		t.Errorf("%d messages were submitted, want 4; the last is %+v", len(all), last)
	}
	if r, err := b.Listener.Deliver(ctx, command("th-1", "21", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("a command to a device that is no more: %+v, %v", r, err)
	}
}

// checkSocket serves on a socket that systemd would hand over.
func checkSocket(ctx context.Context, t *testing.T, b *Bench) {
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	ln, pc := socketPair(t)
	b.socket = func() (net.Listener, net.PacketConn) { return ln, pc }
	b.Serve(t, "127.0.0.1:0")
	if b.Addr.String() != ln.Addr().String() {
		t.Errorf("serves at %v, was handed %v", b.Addr, ln.Addr())
	}
	mustReport(ctx, t, b, b.Device(ctx, t, "th-1"), "/sensors/temp", "", "1")
}

// socketPair gives sockets of both kinds on one port.
func socketPair(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err != nil { // another has the port
			ln.Close()
			continue
		}
		t.Cleanup(func() {
			ln.Close()
			pc.Close()
		})
		return ln, pc
	}
	t.Fatal("there is no port that is free for both TCP and UDP")
	return nil, nil
}

func checkEndOfCommand(ctx context.Context, t *testing.T, b *Bench) {
	dev := b.Device(ctx, t, "th-1")
	asked := make(chan struct{}, 10)
	release := make(chan struct{})
	must(t, dev.Expose(ctx, "/actuators/setpoint", func([]byte) []byte {
		asked <- struct{}{}
		<-release
		return []byte("late")
	}))
	short, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		r, err := b.Listener.Deliver(short, command("th-1", "21", true))
		if err == nil && len(r.Payload) > 0 {
			err = fmt.Errorf("reply %+v", r)
		} else {
			err = nil
		}
		ended <- err
	}()
	select {
	case <-asked:
	case <-ctx.Done():
		t.Fatal("the device was not told")
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("a command that was given up: %v", err)
		}
	case <-ctx.Done():
		t.Error("Deliver does not end with its context")
	}
	close(release)
	mustReport(ctx, t, b, b.Device(ctx, t, "th-2"), "/sensors/temp", "", "after")
}
