package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestProveUpgrade puts a new binary in the place of the running one, as the package's script does, while 64 devices on both protocols
// report. No message that was answered yes is lost, no DTLS association and no MQTT session begins anew. The aim is at most two seconds
// without service.
func TestProveUpgrade(t *testing.T) {
	upgrades, devices := 1, 16
	if prove() {
		upgrades, devices = 7, 64
	}
	s := newSite(t)
	s.binary = released(t)
	newer := s.binary
	if prove() {
		newer = filepath.Join(t.TempDir(), "drawbridge")
		if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=newer", "-o", newer, ".").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	f := newFleet(s, devices)
	f.keep = true
	cloud := s.serve()
	defer cloud.down()

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { f.run(ctx) })
	progress := func(what string) {
		t.Helper()
		before := make([]int64, devices)
		for i := range before {
			before[i] = f.yes[i].Load()
		}
		eventually(t, what, func() bool {
			for i := range before {
				if f.yes[i].Load() < before[i]+5 {
					return false
				}
			}
			return true
		})
	}
	var worst []float64
	for range upgrades {
		progress("every device to be served")
		for i := range devices {
			f.gap[i].Store(0)
		}
		s.gateway.stop()
		s.binary, newer = newer, s.binary
		s.startGateway()
		progress("every device to be served by the new one")
		longest := int64(0)
		for i := range devices {
			longest = max(longest, f.gap[i].Load())
		}
		worst = append(worst, time.Duration(longest).Seconds())
	}
	cancel()
	wg.Wait()
	eventually(t, "everything answered yes to arrive", func() bool { return f.arrived(cloud) })
	for i, name := range f.names {
		if n := f.fresh[i].Load(); n > 1 {
			t.Errorf("device %s began %d times anew", name, n-1)
		}
	}
	gap := spreadOf(worst)
	if prove() && gap.median > 2 {
		t.Errorf("the device that waited longest was without service for %.2f s, want at most 2", gap.median)
	}
	claim(t, "upgrade: %d times under %d devices, %d messages answered yes, 0 lost, every association and session kept; the longest that any device was without service: median %.2f s (min %.2f, max %.2f)",
		upgrades, devices, f.total(), gap.median, gap.min, gap.max)
}
