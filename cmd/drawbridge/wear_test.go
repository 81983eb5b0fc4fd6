package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// BenchmarkBesideWear tells how many octets a disk of its own, with ext4, is given to write for each message of 32: what flash wears out by. Each device waits for yes before it sends
// the next, so the more there are, the more messages share a write. Beside the gateway stands a mosquitto bridge that saves its database on every change, as
// often as its clock lets it: it has said yes before that.
func BenchmarkBesideWear(b *testing.B) {
	const keeping = "persistence true\npersistence_location %s/\nautosave_on_changes true\nautosave_interval 1"
	for _, load := range []struct{ devices, messages int }{{1, 500}, {32, 8_000}, {256, 25_600}} {
		b.Run(fmt.Sprintf("devices=%d", load.devices), func(b *testing.B) {
			var ours, theirs, ratios []float64
			for range benchRounds {
				// The bridge saves all that it has each time and takes as long: some messages tell enough.
				theirs = append(theirs, wear(b, load.devices, min(load.messages, 4*load.devices+500), func(s *site) {
					s.startBridgeWith(load.devices, fmt.Sprintf(keeping, s.path("state")))
				}))
				ours = append(ours, wear(b, load.devices, load.messages, (*site).startGateway))
				ratios = append(ratios, ours[len(ours)-1]/theirs[len(theirs)-1])
			}
			o, t, r := spreadOf(ours), spreadOf(theirs), spreadOf(ratios)
			fmt.Printf("bench: wear, %d devices: %.0f octets written per message (min %.0f, max %.0f), mosquitto bridge with persistence %.0f (min %.0f, max %.0f), ratio %.2f (min %.2f, max %.2f)\n",
				load.devices, o.median, o.min, o.max, t.median, t.min, t.max, r.median, r.min, r.max)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wear gives the octets per message that go to the disk under the state of the program that start starts, the file system's own among them.
func wear(b *testing.B, devices, messages int, start func(*site)) float64 {
	b.Helper()
	s := newSite(b)
	s.binary = released(b)
	s.fleetOf(devices)
	s.configure()
	s.certify()
	s.benchCloud()
	disk := s.diskForState()
	start(s)
	defer s.broker.kill()
	defer s.gateway.kill()
	watcher, err := dialMQTT(b.Context(), s.plain, nil, wireOptions{clientID: "watcher"})
	if err != nil {
		b.Fatal(err)
	}
	defer watcher.Close()
	var received atomic.Int64
	if err := watcher.subscribe("#", 0, func(string, []byte) { received.Add(1) }); err != nil {
		b.Fatal(err)
	}
	report := func(count int) {
		var wg sync.WaitGroup
		for i := range devices {
			wg.Go(func() {
				c, err := dialMQTT(b.Context(), s.mqtt, s.clientTLS(), wireOptions{clientID: fmt.Sprintf("m-%d", i), user: fmt.Sprintf("m-%d", i), password: fmt.Sprintf("secret-of-m-%d", i)})
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				if err := c.publishAll("sensors/count", count, 1, 0, func(int) []byte { return make([]byte, 32) }); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(b, "every message to arrive", func() bool { return received.Load() >= int64(count*devices) })
		received.Store(0)
	}
	report(2) // what is made once is made now
	before := s.writtenTo(disk)
	each := max(messages/devices, 1)
	report(each)
	return float64(s.writtenTo(disk)-before) / float64(each*devices)
}

// diskForState puts a file system of its own under the state directory and gives where the kernel counts what is written to it.
func (s *site) diskForState() (stat string) {
	s.t.Helper()
	needs.Root(s.t, "a disk of its own")
	image, state := s.path("disk"), s.path("state")
	s.write("disk", "")
	err := os.Truncate(image, 512<<20)
	if err == nil {
		err = os.MkdirAll(state, 0o700)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	mustRun(s.t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	device := strings.TrimSpace(mustRun(s.t, "losetup", "--find", "--show", image))
	s.t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() })
	mustRun(s.t, "mount", device, state)
	s.t.Cleanup(func() { exec.Command("umount", "--lazy", state).Run() })
	mustRun(s.t, "chmod", "0777", state) // mosquitto may have another user
	return "/sys/block/" + strings.TrimPrefix(device, "/dev/") + "/stat"
}

// writtenTo gives the octets that have been written to a disk, with all that waits in memory.
func (s *site) writtenTo(stat string) int64 {
	s.t.Helper()
	mustRun(s.t, "sync", "-f", s.path("state"))
	text, err := os.ReadFile(stat)
	if err != nil {
		s.t.Fatal(err)
	}
	sectors, err := strconv.ParseInt(strings.Fields(string(text))[6], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return sectors * 512
}
