package coap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// run runs a program and gives what it writes.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, needs.Program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// credentials gives the options of coap-client for a device.
func credentials(t *testing.T, b *southtest.Bench, security, device string) []string {
	if security == "psk" {
		return []string{"-u", device, "-k", string(b.Secret(device))}
	}
	cert, key := b.IssueFiles(t, device)
	return []string{"-c", cert, "-j", key, "-C", b.CAFile}
}

func TestLibcoapClients(t *testing.T) {
	for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		for _, security := range []string{"psk", "x509"} {
			t.Run(client+" with "+security, func(t *testing.T) {
				t.Parallel()
				needs.Program(t, client)
				b := southtest.Start(t, driver())
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				uri := fmt.Sprintf("coaps://%s", b.Addr)
				cred := credentials(t, b, security, "th-1")
				call := func(args ...string) string {
					t.Helper()
					return run(t, client, append(append([]string{"-v", "6", "-B", "10"}, cred...), args...)...)
				}
				if out := call("-m", "post", "-t", "50", "-e", `{"t":21}`, uri+"/sensors/temp"); !strings.Contains(out, "2.04") {
					t.Errorf("POST: %s", out)
				}
				if out := call("-m", "put", "-t", "60", "-e", "%A1%61%74%15", uri+"/sensors/temp%20two"); !strings.Contains(out, "2.04") {
					t.Errorf("PUT: %s", out)
				}
				got := b.Up.Await(ctx, t, 2)
				if m := got[0]; m.Device != "th-1" || m.Method != "POST" || m.Resource != "/sensors/temp" || m.Type != "application/json" || string(m.Payload) != `{"t":21}` {
					t.Errorf("POST gave %+v", m)
				}
				if m := got[1]; m.Method != "PUT" || m.Resource != "/sensors/temp two" || m.Type != "application/cbor" || string(m.Payload) != "\xa1at\x15" {
					t.Errorf("PUT gave %+v", m)
				}
				if out := call("-m", "get", uri+"/.well-known/core"); !strings.Contains(out, "</.well-known/core>;ct=40") {
					t.Errorf("GET: %s", out)
				}
				if out := call("-m", "post", "-N", "-e", "1", uri+"/non"); strings.Contains(out, "c:4.") {
					t.Errorf("NON: %s", out)
				}
				b.Up.Await(ctx, t, 3)
				if out := call("-m", "post", "-O", "2049,x", "-e", "1", uri+"/x"); !strings.Contains(out, "4.02") {
					t.Errorf("critical option: %s", out)
				}
				if out := call("-m", "post", "-O", "2050,x", "-e", "1", uri+"/elective"); !strings.Contains(out, "2.04") {
					t.Errorf("elective option: %s", out)
				}
				big := filepath.Join(b.Dir, "big")
				content := strings.Repeat("0123456789abcdef", 4096)
				if err := os.WriteFile(big, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				if out := call("-m", "put", "-b", "1024", "-f", big, uri+"/big"); !strings.Contains(out, "2.04") {
					t.Errorf("Block1: %s", out)
				}
				if got := b.Up.Await(ctx, t, 5); len(got) != 5 || string(got[4].Payload) != content || got[4].Resource != "/big" {
					t.Errorf("Block1 gave %d messages, the last with %d octets", len(got), len(got[4].Payload))
				}
				out := filepath.Join(b.Dir, "out")
				call("-m", "get", "-o", out, uri+"/big")
				if back, err := os.ReadFile(out); err != nil || string(back) != content {
					t.Errorf("Block2 gave %d octets, %v", len(back), err)
				}
				if out := call("-m", "delete", uri+"/big"); !strings.Contains(out, "2.02") {
					t.Errorf("DELETE: %s", out)
				}
				if out := call("-m", "get", uri+"/sensors/temp"); !strings.Contains(out, `{"t":21}`) {
					t.Errorf("GET: %s", out)
				}
			})
		}
	}
}

func TestLibcoapClientWithoutDTLS(t *testing.T) {
	b := southtest.Start(t, inTheClear(driver()))
	// th-1 is a device that the file knows, and puts into a group.
	for query, device := range map[string]string{"": "anonymous", "?device=th-9&x=1": "th-9", "?device=th-1": "th-1"} {
		out := run(t, "coap-client-notls", "-v", "6", "-m", "post", "-e", "1", fmt.Sprintf("coap://%s/a/b%s", b.Addr, query))
		got := b.Up.Messages()
		if m := got[len(got)-1]; !strings.Contains(out, "2.04") || m.Device != device || m.Resource != "/a/b" || slices.Contains(m.Groups, "thermostat") != (device == "th-1") {
			t.Errorf("%q: %s; %+v", query, out, m)
		}
	}
}

// inTheClear takes security from a driver's listener.
func inTheClear(d southtest.Driver) southtest.Driver {
	with := d.Configure
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		with(s, cfg, listen)
		cfg.(*Config).Security = []string{"none"}
	}
	return d
}

func TestLibcoapClientOverTCP(t *testing.T) {
	needs.Program(t, "coap-client-notls")
	b := southtest.Start(t, inTheClear(tlsDriver(t)))
	big, out := filepath.Join(b.Dir, "big"), filepath.Join(b.Dir, "out")
	content := strings.Repeat("0123456789abcdef", 4096)
	if err := os.WriteFile(big, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) string {
		t.Helper()
		last := len(args) - 1
		args[last] = "coap+tcp://" + b.Addr.String() + args[last]
		return run(t, "coap-client-notls", append([]string{"-v", "6", "-B", "10"}, args...)...)
	}
	for _, c := range [][]string{{"2.04", "-m", "put", "-f", big, "/big"}, {"2.04", "-m", "post", "-e", "21", "/small"}, {"21", "-m", "get", "/small"}, {"2.02", "-m", "delete", "/small"}} {
		if said := call(c[1:]...); !strings.Contains(said, c[0]) {
			t.Errorf("%s: %s", c[2], said)
		}
	}
	call("-m", "get", "-o", out, "/big")
	if back, err := os.ReadFile(out); err != nil || string(back) != content {
		t.Errorf("read back %d octets, %v", len(back), err)
	}
}

// observing runs a client that observes a resource until it has been notified by a command.
func observing(t *testing.T, d southtest.Driver, client, scheme, device string, credentials func(b *southtest.Bench) []string) {
	needs.Program(t, client)
	b := southtest.Start(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, client, append(credentials(b), "-v", "6", "-B", "30", "-m", "get", "-s", "30", scheme+"://"+b.Addr.String()+"/actuators/setpoint")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		r, err := b.Listener.Deliver(ctx, msg.Message{Device: device, Method: "PUT", Resource: "/actuators/setpoint", Type: "text/plain", Payload: []byte("21.5")})
		if err == nil && r.Status == msg.Done && r.Code == "" {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(r, err)
		}
		time.Sleep(50 * time.Millisecond) // it has not connected, or does not observe yet
	}
	var said strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(said.String(), "21.5"); {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Errorf("%v: %s", err, said.String())
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
}

func TestLibcoapClientsObserve(t *testing.T) {
	for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		for _, security := range []string{"psk", "x509"} {
			t.Run(client+" with "+security, func(t *testing.T) {
				t.Parallel()
				observing(t, driver(), client, "coaps", "th-1", func(b *southtest.Bench) []string { return credentials(t, b, security, "th-1") })
			})
		}
		t.Run(client+" over TLS", func(t *testing.T) {
			t.Parallel()
			observing(t, tlsDriver(t), client, "coaps+tcp", "th-1", func(b *southtest.Bench) []string { return credentials(t, b, "x509", "th-1") })
		})
	}
	t.Run("coap-client-notls over TCP", func(t *testing.T) {
		t.Parallel()
		observing(t, inTheClear(tlsDriver(t)), "coap-client-notls", "coap+tcp", "anonymous", func(*southtest.Bench) []string { return nil })
	})
}
