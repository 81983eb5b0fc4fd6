package azure_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
)

const peerVariable = "DRAWBRIDGE_TEST_HUB"

// TestHubProcess is no test: it is the hub of BenchmarkFleet, in a process of its own.
func TestHubProcess(t *testing.T) {
	if os.Getenv(peerVariable) == "" {
		t.Skip("only as a process of BenchmarkFleet")
	}
	h := northtest.NewHub(t, key)
	h.Group = true
	fmt.Println("hub", local(h.Addr), h.CA.File(t))
	io.Copy(io.Discard, os.Stdin)
}

// BenchmarkFleet connects 1,000 devices over TLS to a hub in another process, has each report once, and tells what a connection costs.
func BenchmarkFleet(b *testing.B) {
	const devices = 1000
	for b.Loop() {
		addr, ca := hubProcess(b)
		env, _ := northtest.Env(b, &northtest.Keys{MACs: map[string]hwcrypto.MACer{"hmac": key}})
		cfg := azure.Kind().Config().(*azure.Config)
		cfg.Endpoint, cfg.CA, cfg.Group, cfg.Identities, cfg.ConnectRate = addr, config.Path(ca), true, "device", 1e6
		bySAS(cfg)
		c, err := azure.Kind().Open(env, cfg)
		if err != nil {
			b.Fatal(err)
		}
		s, err := c.Dial(b.Context(), &northtest.Downlink{})
		if err != nil {
			b.Fatal(err)
		}
		names := make([]string, devices)
		for i := range names {
			names[i] = fmt.Sprintf("d-%d", i)
		}
		before := rss(b)
		o := northtest.NewOutcome(devices)
		if err := s.Send(b.Context(), from(1, names...), o.Done); err != nil {
			b.Fatal(err)
		}
		o.Await(b)
		b.ReportMetric(float64(rss(b)-before)/devices, "KiB-RSS/connection")
		s.Close()
	}
}

func hubProcess(b *testing.B) (addr, ca string) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHubProcess$", "-test.v")
	cmd.Env = append(os.Environ(), peerVariable+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "hub" {
			return f[1], f[2]
		}
	}
	b.Fatal("the hub says nothing")
	return "", ""
}

// rss is the resident set of this process in KiB, after what is free has been given back.
func rss(b *testing.B) int {
	b.Helper()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return n
}
