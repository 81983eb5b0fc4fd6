package coap

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// TestNPMClient lets the client that Node's users take speak for itself.
func TestNPMClient(t *testing.T) {
	node, npm := needs.Program(t, "node"), needs.Program(t, "npm")
	const dir = "testdata/npm"
	if _, err := os.Stat(dir + "/node_modules/coap/package.json"); err != nil {
		install := exec.CommandContext(t.Context(), npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	b := southtest.Start(t, inTheClear(driver()))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	client := exec.CommandContext(ctx, node, "client.mjs", fmt.Sprint(b.Addr.(*net.UDPAddr).Port))
	client.Dir = dir
	if out, err := client.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	for _, m := range b.Up.Messages() {
		if m.Device != "npm-1" {
			t.Errorf("report of %q", m.Device)
		}
		got = append(got, fmt.Sprintf("%s %s %d", m.Method, m.Resource, len(m.Payload)))
	}
	want := []string{"PUT /sensors/temp 8", "POST /sensors/temp 2", "PUT /large 65536", "PUT /observed 3", "PUT /observed 3"}
	if !slices.Equal(got, want) {
		t.Errorf("reports %q\nwant    %q", got, want)
	}
}
