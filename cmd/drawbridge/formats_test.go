package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTheStateOfEveryReleaseOpens starts the gateway on what each format of the state directory looked like when it was written: messages that
// wait for the cloud, an MQTT session, a DTLS association, a command for a device that sleeps. None of it may be lost. A release that raises
// stateFormat records another: RECORD_STATE=1 go test -run TestTheStateOfEveryReleaseOpens .
func TestTheStateOfEveryReleaseOpens(t *testing.T) {
	if os.Getenv("RECORD_STATE") != "" {
		recordState(t)
	}
	recorded, err := filepath.Glob("testdata/state/*.tgz")
	if err != nil || len(recorded) != stateFormat {
		t.Fatalf("%d formats and %d recordings (%v)", stateFormat, len(recorded), err)
	}
	for _, recording := range recorded {
		t.Run(filepath.Base(recording), func(t *testing.T) {
			s := newStatefulSite(t)
			mustRun(t, "tar", "-xzf", recording, "-C", s.dir)
			s.certify()
			s.startCloud()
			cloud := s.watch("dt/#")
			s.startGateway()
			for n := range 10 {
				cloud.expect("dt/gw/m-0/count " + strconv.Itoa(n))
			}
			if log := s.gateway.output(); !strings.Contains(log, `msg="associations restored" listener=field count=1 dropped=0`) {
				t.Errorf("the association was not restored:\n%s", log)
			}
			if out, err := s.drawbridge("status", "--json"); err != nil || !strings.Contains(out, `"queued": 1`) {
				t.Errorf("the command was not kept: %v\n%s", err, out)
			}
			device, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "m-0", user: "m-0", password: "secret-of-m-0", persistent: true})
			if err != nil {
				t.Fatal(err)
			}
			defer device.Close()
			if !device.present {
				t.Error("the MQTT session was not kept")
			}
			s.gateway.stop()
		})
	}
}

// newStatefulSite is a site where nothing grows old.
func newStatefulSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.fleetOf(1)
	s.write("sleeper.psk", "0123456789abcdef")
	s.extra += `
[spool]
max_age = "876000h"

[device.sleeper]
groups = ["thermostat"]
psk    = "file:sleeper.psk"
sleepy = true

[[allow]]
connectors = ["cloud"]
op         = "command"
resources  = ["/actuators/later"]

[[downlink]]
name     = "later"
from     = "cloud"
topic    = "cmd/{gateway}/{device}/later"
resource = "/actuators/later"
ttl      = "876000h"
`
	s.configure()
	file, err := os.ReadFile(s.path("drawbridge.toml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("drawbridge.toml", strings.Replace(string(file), "[listener.field]\n", "[listener.field]\nidle_timeout = \"876000h\"\n", 1))
	return s
}

// recordState writes down the state that this program leaves behind.
func recordState(t *testing.T) {
	t.Helper()
	s := newStatefulSite(t)
	s.certify()
	s.startCloud()
	s.startGateway()
	eventually(t, "the cloud to be reached", func() bool {
		out, _ := s.drawbridge("status")
		return strings.Contains(out, " up ")
	})
	mustRun(t, "mosquitto_pub", s.atCloud("-q", "1", "-t", "cmd/gw/sleeper/later", "-m", "21.5")...)
	eventually(t, "the command to wait", func() bool {
		out, _ := s.drawbridge("status", "--json")
		return strings.Contains(out, `"queued": 1`)
	})
	s.broker.kill()
	device, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "m-0", user: "m-0", password: "secret-of-m-0", persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := device.publishAll("sensors/count", 10, 1, 0, func(n int) []byte { return []byte(strconv.Itoa(n)) }); err != nil {
		t.Fatal(err)
	}
	thermostat, err := dialCoAP(t.Context(), s.coap, "th-1", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := thermostat.request(1, "/.well-known/core", nil, time.Second, 30); err != nil {
		t.Fatal(err)
	}
	s.gateway.stop()
	if err := os.MkdirAll("testdata/state", 0o755); err != nil {
		t.Fatal(err)
	}
	// The time that is known to have passed is left out: the machine that opens it may go by another.
	mustRun(t, "tar", "--exclude", "state/clock", "-czf", "testdata/state/"+strconv.Itoa(stateFormat)+".tgz", "--owner=0", "--group=0", "-C", s.dir, "identity.key", "state")
}
