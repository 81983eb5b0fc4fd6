package azure_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
)

const (
	sideVariable = "DRAWBRIDGE_TEST_FLEET" // which side of the benchmark a process is: "hub", or "SIDE HOST:PORT CA"
	benchDevices = 1000
	benchRate    = 200 // log-ins per second
	benchRounds  = 3
)

// TestFleetProcess is no test: it is one side of BenchmarkBesideBareClient, in a process of its own.
func TestFleetProcess(t *testing.T) {
	f := strings.Fields(os.Getenv(sideVariable))
	switch {
	case len(f) == 0:
		t.Skip("only as a process of BenchmarkBesideBareClient")
	case f[0] == "hub":
		h := northtest.NewHub(t, key)
		h.Group = true
		fmt.Println("ready", local(h.Addr), h.CA.File(t))
	case f[0] == "drawbridge":
		connectFleet(t, f[1], f[2])
	default:
		connectBare(t, f[1], f[2])
	}
	io.Copy(io.Discard, os.Stdin)
}

// BenchmarkBesideBareClient connects 1,000 devices over TLS to a hub in another process, has each report once, and tells what a connection costs,
// beside as many clients of paho.mqtt.golang that do the same.
func BenchmarkBesideBareClient(b *testing.B) {
	hub := side(b, "hub")
	cost := map[string][]float64{}
	for range benchRounds {
		for _, name := range []string{"drawbridge", "bare paho client"} {
			said := side(b, strings.ReplaceAll(name, " ", "-")+" "+hub[1]+" "+hub[2])
			kib, err := strconv.ParseFloat(said[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			cost[name] = append(cost[name], kib)
			if name == "drawbridge" {
				fmt.Printf("bench: IoT Hub, %d devices as themselves: connected at most %d a second, all had reported after %s s\n", benchDevices, benchRate, said[2])
			}
		}
	}
	for name, v := range cost {
		slices.Sort(v)
		fmt.Printf("bench: IoT Hub, %d devices as themselves: %-16s %.1f KiB RSS each connection (min %.1f, max %.1f)\n", benchDevices, name, v[len(v)/2], v[0], v[len(v)-1])
	}
	ours, theirs := cost["drawbridge"], cost["bare paho client"]
	fmt.Printf("bench: IoT Hub, %d devices as themselves: drawbridge / bare paho client = %.2f (%.1f KiB of 60)\n", benchDevices, ours[len(ours)/2]/theirs[len(theirs)/2], ours[len(ours)/2])
	b.ReportMetric(ours[len(ours)/2], "KiB-RSS/connection")
	b.ReportMetric(0, "ns/op")
}

// side runs a process until the benchmark ends, and gives the words of the line in which it says that it is ready.
func side(b *testing.B, what string) []string {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestFleetProcess$", "-test.v")
	cmd.Env = append(os.Environ(), sideVariable+"="+what)
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
	stop := func() {
		in.Close()
		io.Copy(io.Discard, out)
		cmd.Wait()
	}
	var said bytes.Buffer
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "ready" {
			if what != "hub" {
				stop()
			} else {
				b.Cleanup(stop)
			}
			return f
		}
	}
	b.Fatalf("%s: %s", what, said.String())
	return nil
}

// connectFleet connects the devices through the connector.
func connectFleet(t *testing.T, addr, ca string) {
	env, _ := northtest.Env(t, &northtest.Keys{MACs: map[string]hwcrypto.MACer{"hmac": key}})
	cfg := azure.Kind().Config().(*azure.Config)
	cfg.Endpoint, cfg.CA, cfg.Group, cfg.Identities, cfg.ConnectRate = addr, config.Path(ca), true, "device", benchRate
	bySAS(cfg)
	s, err := open(t, env, cfg).Dial(t.Context(), &northtest.Downlink{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	names := make([]string, benchDevices)
	for i := range names {
		names[i] = fmt.Sprintf("d-%d", i)
	}
	before, began := rss(t), time.Now()
	o := northtest.NewOutcome(benchDevices)
	if err := s.Send(t.Context(), from(1, names...), o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	fmt.Printf("ready %.1f %.1f\n", float64(rss(t)-before)/benchDevices, time.Since(began).Seconds())
}

// connectBare connects as many clients of a library, each with its own signature.
func connectBare(t *testing.T, addr, ca string) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	before, began := rss(t), time.Now()
	for i := range benchDevices {
		device := fmt.Sprintf("d-%d", i)
		own, err := auth.DeviceKey(t.Context(), key, device)
		if err != nil {
			t.Fatal(err)
		}
		token, err := auth.SharedAccessSignature(t.Context(), own, "localhost/devices/"+device, "", time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		o := paho.NewClientOptions().AddBroker("tls://" + addr).SetClientID(device).SetUsername("localhost/" + device + "/?api-version=2021-04-12").
			SetPassword(token).SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: "localhost"}).SetProtocolVersion(4)
		c := paho.NewClient(o)
		if wait := c.Connect(); wait.Wait() && wait.Error() != nil {
			t.Fatal(wait.Error())
		}
		t.Cleanup(func() { c.Disconnect(0) })
		if wait := c.Publish("devices/"+device+"/messages/events/topic=dt%2Fx", 1, false, device); wait.Wait() && wait.Error() != nil {
			t.Fatal(wait.Error())
		}
	}
	fmt.Printf("ready %.1f %.1f\n", float64(rss(t)-before)/benchDevices, time.Since(began).Seconds())
}

// rss is the resident set of this process in KiB, after what is free has been given back.
func rss(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
