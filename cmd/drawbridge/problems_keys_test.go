package main

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// look has the keys looked at, as happens every minute, until the problem is there or is not.
func (h *house) look(code string, there bool) {
	h.Helper()
	eventually(h, fmt.Sprintf("the keys to be looked at: %s %v", code, there), func() bool {
		seen := false
		h.again(h.gateway.keys.Run, func() {
			// Run has looked once when it waits; a problem may take until then.
			for range 20 {
				if seen = strings.Contains(h.get("/healthz"), " "+code+" "); seen == there {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		return seen == there
	})
}

func (h *house) keysFail() {
	ca := northtest.NewCA(h)
	chip := keytest.SWTPM(h)
	inFile := h.identity(ca)
	inChip := fmt.Sprintf("[key.identity]\nuri = %q\n", chip.URI("identity"))
	h.configure(shop, inFile)
	h.start()
	h.brings("key-in-software", "key identity", func() {}, func() {
		h.configure(shop, inChip)
		if out, code := h.verb("keys", "new", "identity"); code != exitYes {
			h.Fatal(out)
		}
		h.reload(shop, inChip)
		h.look("key-in-software", false)
	})
	h.brings("key-unavailable", "key identity", func() {
		chip.Kill()
		h.look("key-unavailable", true)
	}, func() {
		chip.Start()
		h.look("key-unavailable", false)
	})
	// A key that the TPM stops when it is locked by wrong passwords for others.
	for _, args := range [][]string{
		{"tpm2_createprimary", "-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign", "-c", h.path("ctx")},
		{"tpm2_evictcontrol", "-C", "o", "-c", h.path("ctx"), "0x81010009"},
		{"tpm2_flushcontext", "-t"},
	} {
		if out, err := exec.Command(needs.Program(h, args[0]), append([]string{"-T", "swtpm:path=" + chip.Socket}, args[1:]...)...).CombinedOutput(); err != nil {
			h.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	weak := fmt.Sprintf("[key.weak]\nuri = \"tpm:handle=0x81010009;device=%s\"\n", chip.Device())
	h.brings("key-weak", "key weak", func() {
		h.reload(shop, inChip, weak)
		h.look("key-weak", true)
	}, func() {
		h.reload(shop, inChip)
		h.look("key-weak", false)
	})
}

func (h *house) payloadKeyFails() {
	b := northtest.NewBroker(h, broker.Options{})
	identity := h.identity(b.CA)
	good, err := os.ReadFile(h.path("identity.key"))
	if err != nil {
		h.Fatal(err)
	}
	h.configure(identity, shop, "[key.sealer]\nuri = \"file:sealer.key\"\n", toCloud+"seal = \"sealer\"\nseal_as = \"jws\"\n", connectorTo("cloud", b.CA, h, b.Addr))
	h.start()
	device := h.device("th-1")
	defer device.Close()
	defer h.meanwhile(func() { device.publish5("sensors/x", []byte("1")) })()
	h.brings("payload-key-failing", "key sealer", func() {}, func() { h.write("sealer.key", good) })
}

func (h *house) certificatesFail() {
	ca := northtest.NewCA(h)
	section := h.identity(ca)
	other := ca.Certificate(h, broker.Subject{Name: "another"})
	pair, err := tls.LoadX509KeyPair(h.path("identity.crt"), h.path("identity.key"))
	if err != nil {
		h.Fatal(err)
	}
	certify := func(from, until time.Duration) {
		h.Helper()
		der, err := ca.Sign(pair.Leaf.PublicKey, broker.Subject{Name: "gw1", From: h.gateway.now().Add(from), Until: h.gateway.now().Add(until)})
		if err != nil {
			h.Fatal(err)
		}
		h.write("identity.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	h.configure(shop, section)
	h.start()
	day := 24 * time.Hour
	renewed := func(code string) func() {
		return func() {
			certify(-time.Hour, 9*day)
			h.look(code, false)
		}
	}
	for _, c := range []struct {
		code  string
		cause func()
	}{
		{"certificate-missing", func() { os.Remove(h.path("identity.crt")) }},
		{"certificate-mismatch", func() {
			h.write("identity.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]}))
		}},
		{"certificate-expiring", func() { h.pass(8 * day) }},
		{"certificate-expired", func() {
			certify(-time.Hour, day)
			h.pass(day)
		}},
	} {
		h.brings(c.code, "key identity", func() {
			c.cause()
			h.look(c.code, true)
		}, renewed(c.code))
		certify(-time.Hour, 9*day)
	}
}

func (h *house) renewalFails() {
	ca := keytest.NewEST(h, "gw1", "once")
	h.write("est.pem", ca.CA.PEM)
	h.write("once", []byte("once"))
	h.configure(shop, fmt.Sprintf("[key.identity]\nuri = \"file:identity.key\"\ncert = \"identity.crt\"\nest = %q\nest_ca = \"est.pem\"\nest_user = \"gw1\"\nest_password = \"file:once\"\n", ca.URL))
	if out, code := h.verb("enroll", "identity"); code != exitYes {
		h.Fatal(out)
	}
	h.start()
	h.brings("renewal-failed", "key identity", func() {
		ca.Refuse("ask again tomorrow")
		h.pass(50 * time.Minute) // of an hour
		h.look("renewal-failed", true)
	}, func() {
		ca.Refuse("")
		h.look("renewal-failed", false)
	})
}
