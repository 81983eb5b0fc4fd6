package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/northbound/northtest"
)

// A gateway whose TPM the provisioning service knows is told its hub, and a key that it alone can open; one that it does not know says
// what to enrol.
func TestEnrollByTPM(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	hub := northtest.NewHub(t, northtest.HMAC("the key of the device, 32 octets"))
	service := hub.TPMService(t)
	s := newSite(t)
	s.write("drawbridge.toml", fmt.Sprintf(`
[gateway]
id = "gw1"
state = "state"
[key.dps]
uri = "tpm:name=dps;device=%s"
[connector.hub]
type = "azure"
auth = "tpm"
key = "dps"
id_scope = "0ne00000A0A"
provisioning = %q
ca = %q
`, chip.Device(), strings.Replace(service.Addr, "127.0.0.1", "localhost", 1), hub.CA.File(t)))
	out, err := s.drawbridge("enroll", "hub")
	ek := regexp.MustCompile(`(?s)error: provisioning: .*hint: enrol registration "gw1" .*endorsement key: (\S+)`).FindStringSubmatch(out)
	if err == nil || ek == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	service.Enrol(ek[1])
	if out, err = s.drawbridge("enroll", "hub"); err != nil || !strings.HasPrefix(out, "hub: device gw1 of localhost:") {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err = s.drawbridge("doctor", "hub"); !strings.Contains(out, "log-in") {
		t.Fatalf("%v\n%s", err, out)
	}
}
