package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// The main job with a oneM2M CSE as the cloud: libcoap's clients as devices, the gateway a process of its own, the key of the security
// association in a chip, on each binding.
func TestOneM2M(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(*northtest.CSE) string
		use   func(t *testing.T, s *site) (uri, module string)
	}{
		{"HTTP, the key in SoftHSM2", (*northtest.CSE).ServeHTTP, inSoftHSM},
		{"MQTT, the key in a TPM", (*northtest.CSE).ServeMQTT, inTPM},
		{"CoAP, the key in a TPM", func(c *northtest.CSE) string { return c.ServeCoAP(nil) }, inTPM},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, cse := newSite(t), northtest.NewCSE(t)
			url := c.serve(cse)
			uri, module := c.use(t, s)
			s.configureOneM2M(cse, url, uri, module)
			s.certifyFor(cse)
			s.startGateway()

			for i, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
				payload := fmt.Sprintf(`{"c":2%d.5}`, i)
				mustRun(t, client, "-B", "50", "-u", "th-1", "-k", "0123456789abcdef", "-m", "post", "-t", "json", "-e", payload, "coaps://"+s.coap+"/sensors/temp")
				s.instance(cse, "gw/dt/th-1/temp", payload)
			}
			s.commandsOf(cse)

			cse.Reset() // restarted with an empty store
			mustRun(t, "coap-client-openssl", "-B", "50", "-u", "th-1", "-k", "0123456789abcdef", "-m", "post", "-e", "after", "coaps://"+s.coap+"/sensors/temp")
			s.instance(cse, "gw/dt/th-1/temp", "after")
			s.keysAreWhereTheyShouldBe(true)
			s.gateway.stop()
		})
	}
}

// inSoftHSM makes a token and tells where a key in it lies.
func inSoftHSM(t *testing.T, s *site) (uri, module string) {
	token := keytest.SoftHSM(t)
	s.write("pin", token.PIN)
	s.env = append(s.env, "SOFTHSM2_CONF="+token.Conf)
	return "pkcs11:token=" + token.Label + ";object=m2m?pin-source=file:pin", token.Module
}

// inTPM is inSoftHSM for a TPM.
func inTPM(t *testing.T, _ *site) (uri, module string) { return keytest.SWTPM(t).URI("m2m"), "" }

// configureOneM2M writes the file of a gateway whose only cloud is a CSE.
func (s *site) configureOneM2M(cse *northtest.CSE, url, uri, module string) {
	s.t.Helper()
	s.write("cse.crt", string(cse.CA.PEM()))
	if module != "" {
		module = fmt.Sprintf("module = %q", module)
	}
	s.write("drawbridge.toml", fmt.Sprintf(`
[gateway]
id = "gw"
state = "state"

[status]
listen = %q
socket = "drawbridge.sock"

[key.m2m]
uri = %q
cert = "m2m.crt"
%s

[listener.field]
type = "coap"
listen = %q
security = ["psk"]

[device.th-1]
groups = ["thermostat"]
psk = "file:th-1.psk"

[[allow]]
groups = ["thermostat"]
op = "report"
resources = ["/sensors/{rest...}"]

[[allow]]
connectors = ["cse"]
groups = ["thermostat"]
op = "command"
resources = ["/actuators/setpoint"]

[[uplink]]
name = "sensors"
resource = "/sensors/{kind}"
to = ["cse"]
topic = "dt/{device}/{kind}"

[[downlink]]
name = "setpoint"
from = "cse"
topic = "cmd/{device}/setpoint"
resource = "/actuators/setpoint"
reply = "reply/{device}/setpoint"

[connector.cse]
type = "onem2m"
url = %q
cse = "/id-in/cse-in"
key = "m2m"
ca = "cse.crt"
`, s.page, uri, module, s.coap, url))
}

// certifyFor has the gateway make its key in the chip and the CSE's authority certify it.
func (s *site) certifyFor(cse *northtest.CSE) {
	s.t.Helper()
	if out, err := s.drawbridge("keys", "new", "m2m"); err != nil {
		s.t.Fatalf("keys new: %v\n%s", err, out)
	}
	out, err := s.drawbridge("keys", "csr", "m2m")
	if err != nil {
		s.t.Fatalf("keys csr: %v\n%s", err, out)
	}
	block, _ := pem.Decode([]byte(out))
	if block == nil {
		s.t.Fatalf("keys csr printed no PEM:\n%s", out)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := cse.CA.Sign(csr.PublicKey, broker.Subject{Name: "gw"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("m2m.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// instance waits until a container has a contentInstance, once.
func (s *site) instance(cse *northtest.CSE, container, content string) {
	s.t.Helper()
	eventually(s.t, content+" in "+container, func() bool { return slices.Contains(cse.Contents(container), content) })
	if n := len(slices.DeleteFunc(cse.Contents(container), func(c string) bool { return c != content })); n != 1 {
		s.t.Errorf("%s is %d times in %s", content, n, container)
	}
}

// commandsOf has another AE command the device, whose reply becomes a contentInstance.
func (s *site) commandsOf(cse *northtest.CSE) {
	s.t.Helper()
	observer := s.follow("stdbuf", "-oL", "coap-client-openssl", "-v", "6", "-s", "600", "-w", "-u", "th-1", "-k", "0123456789abcdef", "coaps://"+s.coap+"/actuators/setpoint")
	observer.expectContaining("c:2.05")
	cse.Put("gw/cmd/th-1/setpoint", map[string]any{"con": "21.5"})
	observer.expect("21.5")
	observer.kill()

	// A device that answers with words of its own.
	ctx, cancel := context.WithCancel(s.t.Context())
	var device sync.WaitGroup
	defer device.Wait()
	defer cancel()
	device.Go(func() {
		live(ctx, &thermostat{name: "th-1", address: s.coap, psk: []byte("0123456789abcdef")}, time.Minute, func(s1 saying) {
			if s1.err != nil {
				s.t.Logf("%s: %v", s1.device, s1.err)
			}
		})
	})
	s.connected("th-1")
	cse.Put("gw/cmd/th-1/setpoint", map[string]any{"con": "19"})
	s.instance(cse, "gw/reply/th-1/setpoint", "set to 19.0")
}
