package main

import (
	"context"
	"encoding/pem"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/status"
)

// The main job with programs that are not ours at both ends: libcoap and mosquitto as devices, mosquitto as the cloud, and
// the gateway's key in each kind of chip.
func TestMainJob(t *testing.T) {
	for _, chip := range []struct {
		name string
		use  func(*testing.T, *site)
	}{
		{"with a file key", func(*testing.T, *site) {}},
		{"with keys in SoftHSM2", func(t *testing.T, s *site) {
			token := keytest.SoftHSM(t)
			s.write("pin", token.PIN)
			s.keyURI = "pkcs11:token=" + token.Label + ";object=identity?pin-source=file:pin"
			s.module = token.Module
			s.env = append(s.env, "SOFTHSM2_CONF="+token.Conf)
		}},
		{"with keys in a TPM", func(t *testing.T, s *site) {
			s.keyURI = "tpm:name=identity;device=" + keytest.SWTPM(t).Device()
		}},
	} {
		t.Run(chip.name, func(t *testing.T) {
			s := newSite(t)
			chip.use(t, s)
			s.configure()
			s.certify()
			s.startCloud()
			s.startGateway()
			cloud := s.watch("dt/#", "cmd/+/+/setpoint/reply")
			s.reports(cloud)
			s.commands(cloud)
			s.refusals()
			s.keysAreWhereTheyShouldBe(chip.name != "with a file key")
			s.gateway.stop()
		})
	}
}

// watch follows what reaches a person at the cloud, and returns once the subscription stands.
func (s *site) watch(filters ...string) *lines {
	s.t.Helper()
	args := []string{"-v", "-q", "1", "-t", "watching"}
	for _, f := range filters {
		args = append(args, "-t", f)
	}
	l := s.follow("mosquitto_sub", s.atCloud(args...)...)
	mustRun(s.t, "mosquitto_pub", s.atCloud("-q", "1", "-r", "-t", "watching", "-m", "yes")...)
	l.expect("watching yes")
	return l
}

// postings are the ways in which libcoap's clients show who they are.
func (s *site) postings(client string) map[string][]string {
	return map[string][]string{
		"th-1":    {client, "-B", "50", "-u", "th-1", "-k", "0123456789abcdef"},
		"meter-1": {client, "-B", "50", "-c", s.path("meter-1.crt"), "-j", s.path("meter-1.key"), "-R", s.path("ca.crt")},
	}
}

func (s *site) reports(cloud *lines) {
	s.t.Helper()
	for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		for device, args := range s.postings(client) {
			payload := `{"by":"` + client + `"}`
			out := mustRun(s.t, args[0], append(args[1:], "-m", "post", "-t", "json", "-e", payload, "coaps://"+s.coap+"/sensors/temp")...)
			if strings.Contains(out, "4.") || strings.Contains(out, "5.") {
				s.t.Errorf("%s as %s was answered %s", client, device, out)
			}
			cloud.expect("dt/gw/" + device + "/temp " + payload)
		}
	}
	mustRun(s.t, "mosquitto_pub", s.atGateway("-i", "press-1", "-u", "press-1", "-P", "correct horse", "-q", "1", "-t", "sensors/force", "-m", "12.5")...)
	cloud.expect("dt/gw/press-1/force 12.5")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		mustRun(s.t, "mosquitto_pub", s.atGateway("-V", version, "-i", "meter-1", "--cert", s.path("meter-1.crt"), "--key", s.path("meter-1.key"),
			"-q", "2", "-t", "sensors/energy", "-m", version)...)
		cloud.expect("dt/gw/meter-1/energy " + version)
	}
}

// commands sends one to a device of each kind and awaits the reply.
func (s *site) commands(cloud *lines) {
	s.t.Helper()
	observer := s.follow("stdbuf", "-oL", "coap-client-openssl", "-v", "6", "-s", "600", "-w", "-u", "th-1", "-k", "0123456789abcdef", "coaps://"+s.coap+"/actuators/setpoint")
	subscriber := s.follow("stdbuf", append([]string{"-oL", "mosquitto_sub"}, s.atGateway("-i", "press-1", "-u", "press-1", "-P", "correct horse", "-q", "1", "-v", "-d", "-t", "actuators/setpoint")...)...)
	observer.expectContaining("c:2.05")
	subscriber.expectContaining("Subscribed")
	for device, want := range map[string]struct {
		peer *lines
		line string
	}{"th-1": {observer, "21.5"}, "press-1": {subscriber, "actuators/setpoint 21.5"}} {
		mustRun(s.t, "mosquitto_pub", s.atCloud("-q", "1", "-t", "cmd/gw/"+device+"/setpoint", "-m", "21.5")...)
		want.peer.expect(want.line)
		cloud.expect("cmd/gw/" + device + "/setpoint/reply (null)")
	}
	observer.kill()
	subscriber.kill()

	// Devices that answer with words of their own.
	ctx, cancel := context.WithCancel(s.t.Context())
	var devices sync.WaitGroup
	defer devices.Wait()
	defer cancel()
	for _, d := range []demoDevice{
		&thermostat{name: "th-1", address: s.coap, psk: []byte("0123456789abcdef")},
		&press{name: "press-1", address: s.mqtt, password: "correct horse", tls: s.clientTLS()},
	} {
		devices.Go(func() {
			live(ctx, d, time.Minute, func(s1 saying) {
				if s1.err != nil {
					s.t.Logf("%s on %s: %v", s1.device, s1.protocol, s1.err)
				}
			})
		})
	}
	for _, device := range []string{"th-1", "press-1"} {
		s.connected(device)
		mustRun(s.t, "mosquitto_pub", s.atCloud("-q", "1", "-t", "cmd/gw/"+device+"/setpoint", "-m", "19")...)
		cloud.expect("cmd/gw/" + device + "/setpoint/reply set to 19.0")
	}
}

// follows waits until the connector has its session, and with it its subscriptions: a command that comes before is lost on a broker.
func (s *site) follows(connector string) {
	s.t.Helper()
	eventually(s.t, connector+" to be up", func() bool {
		return slices.ContainsFunc(s.snapshot(s.t).Connectors, func(c status.Connector) bool { return c.Name == connector && c.State == status.ConnectorUp })
	})
}

// connected waits until the status lists the device, with its subscription or observation in place.
func (s *site) connected(device string) {
	s.t.Helper()
	eventually(s.t, device+" to be connected", func() bool {
		resp, err := http.Get("http://" + s.page + "/v1/devices?search=" + device)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(body), `"connected": true`)
	})
}

// refusals are answered as the contract says, and reach no cloud.
func (s *site) refusals() {
	s.t.Helper()
	out, _ := run(s.t, "coap-client-openssl", "-B", "50", "-u", "th-1", "-k", "0123456789abcdef", "-m", "post", "-e", "1", "coaps://"+s.coap+"/secrets")
	if !strings.Contains(out, "4.03") {
		s.t.Errorf("a report that no rule allows was answered %q, not 4.03", out)
	}
	out, err := run(s.t, "mosquitto_pub", s.atGateway("-i", "press-1", "-u", "press-1", "-P", "wrong", "-q", "1", "-t", "sensors/force", "-m", "1")...)
	if err == nil {
		s.t.Errorf("a wrong password was let in: %s", out)
	}
	out, err = run(s.t, "mosquitto_pub", s.atGateway("-V", "mqttv5", "-d", "-i", "press-1", "-u", "press-1", "-P", "correct horse", "-q", "1", "-t", "secrets", "-m", "1")...)
	if !strings.Contains(out, "135") && !strings.Contains(strings.ToLower(out), "not authorized") {
		s.t.Errorf("a publish that no rule allows was answered %q (%v)", out, err)
	}
}

// keysAreWhereTheyShouldBe looks at the key from outside the gateway.
func (s *site) keysAreWhereTheyShouldBe(chip bool) {
	s.t.Helper()
	out, err := s.drawbridge("keys", "list")
	if err != nil {
		s.t.Fatalf("keys list: %v\n%s", err, out)
	}
	if chip && !strings.Contains(out, " no ") {
		s.t.Errorf("keys list does not say that the key cannot leave:\n%s", out)
	}
	if !chip {
		return
	}
	peers := map[string]bool{"localhost.key": true, "person.key": true, "meter-1.key": true}
	filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || peers[d.Name()] {
			return err
		}
		b, err := os.ReadFile(path)
		for block, rest := pem.Decode(b); err == nil && block != nil; block, rest = pem.Decode(rest) {
			// A TSS2 PRIVATE KEY is a blob that only the TPM that made it can open.
			if strings.HasSuffix(block.Type, "PRIVATE KEY") && block.Type != "TSS2 PRIVATE KEY" {
				s.t.Errorf("%s holds a %s", path, block.Type)
			}
		}
		return nil
	})
}
