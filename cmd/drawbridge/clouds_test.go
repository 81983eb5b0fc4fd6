package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/status"
)

// threeClouds is the file of a gateway to AWS IoT, to IoT Hub and to a broker at once.
const threeClouds = `
[gateway]
id = "gw1"
state = "state"
[status]
listen = %q
socket = "drawbridge.sock"
[key.listen]
uri = "file:localhost.key"
cert = "localhost.crt"
[key.aws]
uri = "file:%s"
cert = %q
[key.hub]
uri = "file:%s"
cert = %q
[key.plant]
uri = "file:person.key"
cert = "person.crt"
[listener.shop]
type = "mqtt"
listen = %q
security = ["tls"]
key = "listen"
auth = ["password"]
[device.press-1]
password = "file:press-1.password"
[[allow]]
op = "report"
resources = ["/sensors/{rest...}"]
[[uplink]]
name = "sensors"
resource = "/sensors/{kind}"
to = ["aws", "hub", "plant"]
topic = "dt/{gateway}/{device}/{kind}"
[connector.aws]
type = "aws"
endpoint = %q
key = "aws"
ca = %q
rate = 5000
[connector.hub]
type = "azure"
endpoint = %q
key = "hub"
ca = %q
[connector.plant]
type = "mqtt"
url = "mqtts://%s"
key = "plant"
ca = "ca.crt"
`

// TestProveThreeClouds sends what one device reports to three clouds, one of which is away for the backlog of an hour: the others get
// everything meanwhile, the queue's figures say what waits, and nothing is lost.
func TestProveThreeClouds(t *testing.T) {
	reports := 500
	if os.Getenv("DRAWBRIDGE_PROVE") != "" {
		reports = 3600 // an hour of one a second
	}
	s := newSite(t)
	aws, hub := northtest.NewAWS(t, "x-amzn-mqtt-ca"), northtest.NewHub(t, nil)
	awsCert, awsKey := northtest.Files(t, aws.CA.Certificate(t, broker.Subject{Name: "gw1"}))
	hubCert, hubKey := northtest.Files(t, hub.CA.Certificate(t, broker.Subject{Name: "gw1"}))
	onLocalhost := strings.NewReplacer("127.0.0.1", "localhost")
	s.write("drawbridge.toml", fmt.Sprintf(threeClouds, s.page, awsKey, awsCert, hubKey, hubCert, s.mqtt,
		onLocalhost.Replace(aws.Addr), aws.CA.File(t), onLocalhost.Replace(hub.Addr), hub.CA.File(t), onLocalhost.Replace(s.cloud)))
	s.plain = vacant(t)
	_, port, _ := net.SplitHostPort(s.plain)
	s.startCloud("max_queued_messages 0", "listener "+port+" 127.0.0.1", "allow_anonymous true")
	s.startGateway()

	var mu sync.Mutex
	plant := map[string]bool{}
	watcher, err := dialMQTT(t.Context(), s.plain, nil, wireOptions{clientID: "watcher"})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.subscribe("dt/#", 1, func(_ string, payload []byte) {
		mu.Lock()
		defer mu.Unlock()
		plant[string(payload)] = true
	}); err != nil {
		t.Fatal(err)
	}
	arrived := map[string]func() int{
		"aws": counter(aws.Messages), "hub": counter(hub.Messages),
		"plant": func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(plant)
		},
	}
	var serial atomic.Int64
	// report has the device say something n times, and waits until the named clouds have had all that was ever said.
	report := func(n int, names ...string) time.Duration {
		t.Helper()
		began := time.Now()
		device, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "press-1", user: "press-1", password: "correct horse"})
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		if err := device.publishAll("sensors/temp", n, 100, 0, func(int) []byte { return fmt.Append(nil, serial.Add(1)) }); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			eventually(t, name+" to have everything", func() bool { return arrived[name]() == int(serial.Load()) })
		}
		return time.Since(began)
	}

	all := report(reports, "aws", "hub", "plant")
	hub.Away(true)
	others := report(reports, "aws", "plant")
	if n := arrived["hub"](); n != reports {
		t.Errorf("%d reports reached the hub that is away", n-reports)
	}
	pending := func() (n uint64) {
		for _, line := range s.snapshot(t).Ledger {
			if line.Connector == "hub" {
				n += line.Pending
			} else if line.Accepted != line.Delivered {
				t.Errorf("%+v", line)
			}
		}
		return n
	}
	eventually(t, "the others to be confirmed", func() bool {
		for _, line := range s.snapshot(t).Ledger {
			if line.Connector != "hub" && line.Pending > 0 {
				return false
			}
		}
		return true
	})
	if n := pending(); n != uint64(reports) {
		t.Errorf("the queue says that %d wait for the hub, not %d", n, reports)
	}
	if out, err := s.drawbridge("status"); !strings.Contains(out, fmt.Sprint(reports)) || !strings.Contains(out, "hub") {
		t.Errorf("status: %v\n%s", err, out)
	}
	hub.Away(false)
	resp, err := http.Post("http://"+s.page+"/v1/connectors/resume", "application/json", strings.NewReader(`{"name":"hub"}`)) // else the next attempt may be minutes away
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("resume: %s", resp.Status)
	}
	eventually(t, "the hub to have everything", func() bool { return arrived["hub"]() == 2*reports })
	eventually(t, "the queue to be empty", func() bool { return pending() == 0 })
	for _, line := range s.snapshot(t).Ledger {
		if line.Dead+line.Expired > 0 || line.Delivered != uint64(2*reports) {
			t.Errorf("%+v", line)
		}
	}
	for _, c := range s.snapshot(t).Connectors {
		if c.Counters["wire_sent"] < int64(20*reports) || c.Counters["wire_received"] == 0 || c.Counters["route_octets sensors"] < int64(20*reports) {
			t.Errorf("%s: %v", c.Name, c.Counters)
		}
	}
	t.Logf("prove: three clouds, one away for a backlog of %d reports: the other two had all %d in %.1f s (%.1f s with all three up); nothing was lost", reports, reports, others.Seconds(), all.Seconds())
	s.gateway.stop()
}

// counter counts different payloads.
func counter(messages func() []broker.Message) func() int {
	return func() int {
		seen := map[string]bool{}
		for _, m := range messages() {
			seen[string(m.Payload)] = true
		}
		return len(seen)
	}
}

// snapshot asks the gateway how it is.
func (s *site) snapshot(t testing.TB) (v status.Snapshot) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.page+"/status.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}
