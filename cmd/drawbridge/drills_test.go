package main

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// drill is a gateway with its key in a chip, with a device connected over TLS and one associated over DTLS.
type drill struct {
	*site
	cloud       *lines
	connected   *wireConn
	association *coapDevice
}

// startDrill starts it with the key that the site names.
func startDrill(s *site) *drill {
	t := s.t
	t.Helper()
	s.fleetOf(2)
	s.configure()
	s.certify()
	s.startCloud()
	s.startGateway()
	d := &drill{site: s, cloud: s.watch("dt/#"), connected: s.mqttDevice("m-0")}
	var err error
	d.association, err = dialCoAP(t.Context(), s.coap, "th-1", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.association.Close() })
	return d
}

// useToken names a key in a token.
func (s *site) useToken(token *keytest.Token) {
	s.write("pin", token.PIN)
	s.keyURI = "pkcs11:token=" + token.Label + ";object=identity?pin-source=file:pin"
	s.module = token.Module
}

// report sends a report by each session that is there.
func (d *drill) report(value string) {
	t := d.t
	t.Helper()
	n := 0
	err := d.connected.publishAll("sensors/force", 1, 1, 0, func(int) []byte { n++; return []byte(value) })
	if err != nil || n != 1 {
		t.Fatalf("a session that was there: %v", err)
	}
	d.cloud.expect("dt/gw/m-0/force " + value)
	if code, err := d.association.request(2, "/sensors/temp", []byte(value), 5*time.Second, 6); err != nil || code != 0x44 {
		t.Fatalf("an association that was there: %d.%02d, %v", code>>5, code&31, err)
	}
	d.cloud.expect("dt/gw/th-1/temp " + value)
}

// anew connects a device for which the chip has to sign.
func (d *drill) anew() error {
	c, err := dialMQTT(d.t.Context(), d.mqtt, d.clientTLS(), wireOptions{clientID: "m-1", user: "m-1", password: "secret-of-m-1"})
	if err == nil {
		c.Close()
	}
	return err
}

// again waits until devices connect once more, and reports go through.
func (d *drill) again() {
	t := d.t
	t.Helper()
	began := time.Now()
	eventually(t, "handshakes to go again", func() bool { return d.anew() == nil })
	t.Logf("handshakes go again after %v", time.Since(began).Round(time.Millisecond))
	d.report("with it again")
}

// logged waits for a line of the log with all the parts in it.
func (d *drill) logged(what string, parts ...string) {
	d.t.Helper()
	eventually(d.t, "the log to name "+what, func() bool {
		for line := range strings.Lines(d.gateway.output()) {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				return true
			}
		}
		return false
	})
}

// problems is the list of problems on the status page.
func (d *drill) problems() string {
	resp, err := http.Get("http://" + d.page + "/healthz")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

// reload has the gateway look at its keys.
func (d *drill) reload() {
	d.t.Helper()
	if out, err := d.drawbridge("reload"); err != nil || strings.Contains(out, "restarted") {
		d.t.Fatalf("reload: %v\n%s", err, out)
	}
}

// end holds the gateway to not having been restarted.
func (d *drill) end() {
	d.t.Helper()
	out := d.gateway.output()
	select {
	case <-d.gateway.ended:
		d.t.Errorf("the gateway ended:\n%s", out)
	default:
	}
	if strings.Contains(out, "panic") {
		d.t.Errorf("the gateway panicked:\n%s", out)
	}
}

// A chip that goes away and comes back under a running gateway, or does what chips do: what is connected stays so and reports go through,
// who comes anew is let in again once the chip works, and the gateway is not restarted for it.
func TestChipsComeBackUnderTheGateway(t *testing.T) {
	goneAndBack := func(d *drill, gone, back func()) {
		t := d.t
		d.report("with it")
		if err := d.anew(); err != nil {
			t.Fatal(err)
		}
		gone()
		if err := d.anew(); err == nil {
			t.Error("a handshake without the chip")
		}
		d.report("without it")
		back()
		d.again()
	}
	type play struct {
		name string
		do   func()
	}
	chips := []struct {
		name string
		// set starts a gateway; the plays are what is done then, one after another.
		set func(*testing.T, *site) (*drill, []play)
	}{
		{"a TPM", func(t *testing.T, s *site) (*drill, []play) {
			chip := keytest.SWTPM(t)
			s.keyURI = chip.URI("identity")
			d := startDrill(s)
			return d, []play{
				// First: the log tells of devices that are turned away at once, and then every minute.
				{"does not answer", func() {
					goneAndBack(d, func() {
						chip.Freeze()
						// Whose key does not live in the chip does not wait for it.
						a, err := dialCoAP(d.t.Context(), d.coap, "th-1", []byte("0123456789abcdef"))
						if err != nil {
							d.t.Fatalf("an association by a pre-shared key: %v", err)
						}
						a.Close()
					}, func() {
						d.logged("the TPM that takes too long", chip.Socket, "took more than 10s")
						chip.Thaw()
					})
				}},
				{"is killed and started again", func() { goneAndBack(d, chip.Kill, chip.Start) }},
				{"is locked", func() {
					d.lock(chip)
					// Our keys are not protected by passwords that one could guess, so the lock is none for them.
					goneAndBack(d, chip.Kill, chip.Start)
				}},
			}
		}},
		{"a token", func(t *testing.T, s *site) (*drill, []play) {
			token := keytest.Faulty(t)
			s.useToken(token.Token)
			d := startDrill(s)
			other := newSite(t)
			other.useToken(token.Token)
			beside := startDrill(other)
			return d, []play{
				{"serves two gateways", func() {
					var wg sync.WaitGroup
					for _, one := range []*drill{d, beside} {
						wg.Go(func() {
							for range 10 {
								if err := one.anew(); err != nil {
									d.t.Error(err)
								}
							}
						})
					}
					wg.Wait()
					beside.report("beside the other")
					beside.gateway.kill()
					d.report("after the other has gone")
					d.again()
				}},
				{"is removed and put back", func() {
					goneAndBack(d, d.move(token.Dir, token.Dir+".away"), d.move(token.Dir+".away", token.Dir))
				}},
				{"signs for five seconds", func() {
					token.Set("sleep", "5")
					var wg sync.WaitGroup
					wg.Go(func() {
						if err := d.anew(); err != nil {
							d.t.Errorf("slow is no fault: %v", err)
						}
					})
					d.report("beside a slow signature")
					wg.Wait()
					token.Set("sleep", "")
					d.again()
				}},
			}
		}},
		{"another token", func(t *testing.T, s *site) (*drill, []play) {
			token := keytest.Faulty(t)
			s.useToken(token.Token)
			d := startDrill(s)
			return d, []play{
				{"does not come to the end of a signature", func() {
					goneAndBack(d, func() { token.Set("hang", "1") }, func() {
						d.logged("the token that takes too long", token.Label, "took more than 10s")
						token.Set("hang", "")
					})
				}},
				{"comes back with another PIN", func() {
					logins := token.Logins()
					goneAndBack(d, func() {
						d.move(token.Dir, token.Dir+".away")()
						if err := d.anew(); err == nil {
							d.t.Error("a handshake without the token")
						}
						d.write("pin", "0000")
						d.move(token.Dir+".away", token.Dir)()
						d.reload()
						eventually(d.t, "the wrong PIN to be a problem", func() bool { return strings.Contains(d.problems(), " key-unavailable ") })
						d.logged("the token that refuses the PIN", "problem=key-unavailable", token.Label, "refuses the PIN")
					}, func() {
						for range 5 {
							if err := d.anew(); err == nil {
								d.t.Error("a handshake without the PIN")
							}
						}
						if n := token.Logins() - logins; n != 1 {
							d.t.Errorf("the token was asked %d times to log in by a wrong PIN", n)
						}
						d.write("pin", token.PIN)
						d.reload()
						eventually(d.t, "the problem to be gone", func() bool { return !strings.Contains(d.problems(), " key-unavailable ") })
					})
					if n := token.Logins() - logins; n != 2 {
						d.t.Errorf("%d log-ins, want one by each PIN", n)
					}
				}},
			}
		}},
	}
	// The chips at once, for they wait more than they work; but one after another until all gateways have bound their ports.
	var turn sync.Mutex
	var ready, over sync.WaitGroup
	ready.Add(len(chips))
	for _, x := range chips {
		over.Go(func() {
			bound := sync.OnceFunc(ready.Done)
			defer bound() // where this chip is not asked for
			t.Run(x.name, func(t *testing.T) {
				d, plays := func() (*drill, []play) {
					turn.Lock()
					defer turn.Unlock()
					defer bound()
					return x.set(t, newSite(t))
				}()
				ready.Wait()
				for _, p := range plays {
					t.Run(p.name, func(t *testing.T) {
						d.t, d.cloud.t = t, t
						p.do()
						d.end()
					})
				}
			})
		})
	}
	over.Wait()
}

func (d *drill) move(from, to string) func() {
	return func() {
		d.t.Helper()
		if err := os.Rename(from, to); err != nil {
			d.t.Fatal(err)
		}
	}
}

// lock has the TPM lock itself, by a wrong password for a key of somebody else's.
func (d *drill) lock(chip *keytest.TPM) {
	t := d.t
	t.Helper()
	tool := func(name string, args ...string) (string, error) {
		return run(t, name, append([]string{"-T", "swtpm:path=" + chip.Socket}, args...)...)
	}
	d.write("foreign", "x")
	pub, priv, loaded := d.path("foreign.pub"), d.path("foreign.priv"), d.path("foreign.ctx")
	for _, args := range [][]string{
		{"tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=1000", "--lockout-recovery-time=1000"},
		{"tpm2_create", "-C", "0x81000001", "-p", "right", "-i", d.path("foreign"), "-u", pub, "-r", priv},
		{"tpm2_load", "-C", "0x81000001", "-u", pub, "-r", priv, "-c", loaded},
	} {
		if out, err := tool(args[0], args[1:]...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if out, err := tool("tpm2_unseal", "-c", loaded, "-p", "wrong"); err == nil {
		t.Fatalf("a wrong password opened it: %s", out)
	}
	out, err := tool("tpm2_getcap", "properties-variable")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "inLockout: 1") {
		t.Fatalf("the TPM did not lock (%v):\n%s", err, out)
	}
}
