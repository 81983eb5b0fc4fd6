package coap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// program finds a peer's program. Where tests must not be skipped it is an error that it is missing.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// run runs a program and gives what it writes.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, name), args...).CombinedOutput()
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
				program(t, client)
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
			})
		}
	}
}

func TestLibcoapClientWithoutDTLS(t *testing.T) {
	d := driver()
	with := d.Configure
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		with(s, cfg, listen)
		cfg.(*Config).Security = []string{"none"}
	}
	b := southtest.Start(t, d)
	for query, device := range map[string]string{"": "anonymous", "?device=th-9&x=1": "th-9"} {
		out := run(t, "coap-client-notls", "-v", "6", "-m", "post", "-e", "1", fmt.Sprintf("coap://%s/a/b%s", b.Addr, query))
		got := b.Up.Messages()
		if m := got[len(got)-1]; !strings.Contains(out, "2.04") || m.Device != device || m.Resource != "/a/b" {
			t.Errorf("%q: %s; %+v", query, out, m)
		}
	}
}
