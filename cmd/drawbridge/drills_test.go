package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// A chip that goes away and comes back under a running gateway: what is connected stays so and reports go through, who comes anew is
// let in again once the chip is back, and the gateway is not restarted for it.
func TestChipsComeBackUnderTheGateway(t *testing.T) {
	for _, drill := range []struct {
		name string
		use  func(*testing.T, *site) (gone, back func())
	}{
		{"the TPM is killed and started again", func(t *testing.T, s *site) (gone, back func()) {
			chip := keytest.SWTPM(t)
			s.keyURI = chip.URI("identity")
			return chip.Kill, chip.Start
		}},
		{"the token is removed and put back", func(t *testing.T, s *site) (gone, back func()) {
			token := keytest.SoftHSM(t)
			s.write("pin", token.PIN)
			s.keyURI = "pkcs11:token=" + token.Label + ";object=identity?pin-source=file:pin"
			s.module = token.Module
			move := func(from, to string) func() {
				return func() {
					if err := os.Rename(from, to); err != nil {
						t.Fatal(err)
					}
				}
			}
			return move(token.Dir, token.Dir+".away"), move(token.Dir+".away", token.Dir)
		}},
	} {
		t.Run(drill.name, func(t *testing.T) {
			s := newSite(t)
			gone, back := drill.use(t, s)
			s.fleetOf(2)
			s.configure()
			s.certify()
			s.startCloud()
			s.startGateway()
			cloud := s.watch("dt/#")
			pid := s.gateway.Process.Pid
			connected := s.mqttDevice("m-0")
			association, err := dialCoAP(t.Context(), s.coap, "th-1", []byte("0123456789abcdef"))
			if err != nil {
				t.Fatal(err)
			}
			defer association.Close()
			report := func(value string) {
				t.Helper()
				n := 0
				err := connected.publishAll("sensors/force", 1, 1, 0, func(int) []byte { n++; return []byte(value) })
				if err != nil || n != 1 {
					t.Fatalf("a session that was there: %v", err)
				}
				cloud.expect("dt/gw/m-0/force " + value)
				if code, err := association.request(2, "/sensors/temp", []byte(value), 5*time.Second, 6); err != nil || code != 0x44 {
					t.Fatalf("an association that was there: %d.%02d, %v", code>>5, code&31, err)
				}
				cloud.expect("dt/gw/th-1/temp " + value)
			}
			anew := func() error {
				c, err := dialMQTT(t.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: "m-1", user: "m-1", password: "secret-of-m-1"})
				if err == nil {
					c.Close()
				}
				return err
			}
			report("with it")
			if err := anew(); err != nil {
				t.Fatal(err)
			}
			gone()
			if err := anew(); err == nil {
				t.Error("a handshake without the chip")
			}
			report("without it")
			back()
			began := time.Now()
			eventually(t, "handshakes to go again", func() bool { return anew() == nil })
			t.Logf("handshakes go again after %v", time.Since(began).Round(time.Millisecond))
			report("with it again")
			if out := s.gateway.output(); s.gateway.Process.Pid != pid || strings.Contains(out, "panic") {
				t.Errorf("the gateway was restarted or panicked:\n%s", out)
			}
		})
	}
}
