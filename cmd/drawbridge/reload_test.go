package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
)

// A reload takes a good file over, restarts only what changed, and leaves everything alone where the file is bad.
func TestReload(t *testing.T) {
	s := newSite(t)
	s.fleetOf(1)
	s.configure()
	s.certify()
	s.startCloud()
	s.startGateway()
	cloud := s.watch("dt/#")
	device := s.mqttDevice("m-0")
	report := func(topic string) {
		t.Helper()
		if err := device.publishAll(topic, 1, 1, 0, func(int) []byte { return []byte("1") }); err != nil {
			t.Fatal(err)
		}
	}
	report("sensors/a")
	cloud.expect("dt/gw/m-0/a 1")
	good, err := os.ReadFile(s.path("drawbridge.toml"))
	if err != nil {
		t.Fatal(err)
	}

	// A typo: exit status 2, the mistake in place, nothing changed.
	s.write("drawbridge.toml", strings.Replace(string(good), `resource = "/sensors/{kind}"`, `resouce = "/sensors/{kind}"`, 1))
	out, err := s.drawbridge("reload")
	if err == nil || !strings.Contains(out, `unknown key "resouce"`) || !strings.Contains(out, "drawbridge.toml:") {
		t.Errorf("reload of a bad file: %v\n%s", err, out)
	}
	report("sensors/b")
	cloud.expect("dt/gw/m-0/b 1")

	// Another topic: the routes change under the connected device, and no component restarts.
	s.write("drawbridge.toml", strings.Replace(string(good), `topic = "dt/{gateway}/{device}/{kind}"`, `topic = "dt/new/{kind}"`, 1))
	out, err = s.drawbridge("reload")
	if err != nil || strings.Contains(out, "restarted") {
		t.Errorf("reload of other routes: %v\n%s", err, out)
	}
	report("sensors/c")
	cloud.expect("dt/new/c 1")

	// Another listener starts, and goes again.
	s.write("drawbridge.toml", string(good)+"\n[listener.local]\ntype = \"coap\"\nlisten = \"127.0.0.1:0\"\nsecurity = [\"none\"]\n")
	if out, err = s.drawbridge("reload"); err != nil || !strings.Contains(out, "started: listener local") {
		t.Errorf("reload with another listener: %v\n%s", err, out)
	}
	s.write("drawbridge.toml", string(good))
	if out, err = s.drawbridge("reload"); err != nil || !strings.Contains(out, "stopped: listener local") {
		t.Errorf("reload without the listener: %v\n%s", err, out)
	}

	// A key that is there now is shown at once.
	s.write("drawbridge.toml", string(good)+"\n[key.late]\nuri = \"file:late.key\"\n")
	for _, want := range []string{"no such key", "file " + s.path("late.key")} {
		if out, err = s.drawbridge("reload"); err != nil {
			t.Errorf("reload with another key: %v\n%s", err, out)
		}
		if out, _ = s.drawbridge("status"); !strings.Contains(out, want) {
			t.Errorf("the status does not show %q:\n%s", want, out)
		}
		if out, err = s.drawbridge("keys", "new", "late"); err != nil {
			t.Fatalf("keys new: %v\n%s", err, out)
		}
	}

	// An address that another program has is said to who asked.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s.write("drawbridge.toml", string(good)+"\n[listener.local]\ntype = \"mqtt\"\nlisten = \""+taken.Addr().String()+"\"\nsecurity = [\"none\"]\nauth = [\"password\"]\n")
	if out, err = s.drawbridge("reload"); err == nil || !strings.Contains(out, "error: reload: listener local: listen on") || !strings.Contains(out, "address already in use") {
		t.Errorf("reload with a listener whose address is taken: %v\n%s", err, out)
	}
	s.write("drawbridge.toml", string(good))
	if out, err = s.drawbridge("reload"); err != nil || !strings.Contains(out, "stopped: listener local") {
		t.Errorf("reload without that listener: %v\n%s", err, out)
	}

	// What is read once is refused, with a hint.
	s.write("drawbridge.toml", strings.Replace(string(good), `state = "state"`, `state = "elsewhere"`, 1))
	if out, err = s.drawbridge("reload"); err == nil || !strings.Contains(out, "gateway.state") || !strings.Contains(out, "restart the gateway") {
		t.Errorf("reload of another state directory: %v\n%s", err, out)
	}
	s.write("drawbridge.toml", string(good))

	// A device that is taken out of the file is out.
	s.write("drawbridge.toml", strings.Replace(string(good), "[device.m-0]", "[device.m-1]", 1))
	if out, err = s.drawbridge("reload"); err != nil {
		t.Errorf("reload without the device: %v\n%s", err, out)
	}
	device.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, _, err := device.readPacket(nil); err == nil {
		t.Error("a device that is not in the file any more was not disconnected")
	}
	report2, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "m-0", user: "m-0", password: "secret-of-m-0"})
	if err == nil {
		report2.Close()
		t.Error("a device that is not in the file any more was let in")
	}
}

// A reload that comes while the gateway starts waits until all is there that it could replace.
func TestReloadWaitsForTheStart(t *testing.T) {
	h := newHouse(t)
	h.configure(shop)
	g, err := openGateway(t.Context(), h.path("drawbridge.toml"), parts{log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	defer g.end()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := g.plan
	if _, err := g.reload(ctx); !errors.Is(err, context.Canceled) || g.plan != before {
		t.Errorf("before the start: %v, and another plan: %v", err, g.plan != before)
	}
}

// The page goes on with the issuer that it was started with, so a reload must not say that it has taken over another.
func TestReloadLeavesThePagesIssuer(t *testing.T) {
	read := func(issuer string) *config.Config {
		c, err := config.Parse("drawbridge.toml", []byte("[gateway]\nid = \"gw\"\n[status]\nissuer = \"plant\"\nclient_id = \"gw\"\n"+issuer), kinds().config())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const plant = "[issuer.plant]\nurl = \"https://id.example\"\naudience = \"a\"\n"
	for issuers, want := range map[string]int{
		plant:        0,
		"\n" + plant: 0,
		plant + "[issuer.other]\nurl = \"https://b.example\"\naudience = \"a\"\n": 0,
		strings.Replace(plant, "id.", "evil.", 1):                                 1,
	} {
		if got := needsRestart(read(plant), read(issuers)); len(got) != want {
			t.Errorf("%q: %q", issuers, got)
		}
	}
}
