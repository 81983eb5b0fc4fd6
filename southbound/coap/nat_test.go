package coap

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// TestDeviceForAnother is a device in a process of its own: each line that it reads is a report; it answers with the code and how many handshakes
// it has made.
func TestDeviceForAnother(t *testing.T) {
	server := os.Getenv("DRAWBRIDGE_TEST_SERVER")
	if server == "" {
		t.Skip("it serves another test")
	}
	addr, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	dial, patience := dialGoCoAP, 30*time.Second
	if os.Getenv("DRAWBRIDGE_TEST_CID") == "" {
		dial, patience = dialWithoutCID, 1500*time.Millisecond
	}
	handshakes := 0
	var dev southtest.Device
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for {
			code, err := func() (string, error) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if dev == nil {
					handshakes++
					var err error
					if dev, err = dial(ctx, nil, addr, "th-1", []byte("southtest-secret-of-th-1")); err != nil {
						return "", err
					}
				}
				return dev.Report(ctx, "/sensors/temp", "", []byte(lines.Text()))
			}()
			if err == nil {
				fmt.Printf("\nanswer %s %d\n", code, handshakes)
				break
			}
			if handshakes > 100 {
				t.Fatal(err)
			}
			dev = nil // without a connection id a new address needs a new handshake
		}
	}
}

// network is made of namespaces, which go when the test ends.
type network struct {
	t  *testing.T
	ip string // the program
	id string
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	ip := needs.Program(t, "ip")
	needs.Root(t, "a network namespace")
	return &network{t, ip, "db" + strings.ToLower(rand.Text()[:8])}
}

func (n *network) run(args ...string) {
	n.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// in runs a program in a namespace.
func (n *network) in(ns string, args ...string) {
	n.t.Helper()
	n.run(append([]string{n.ip, "netns", "exec", ns}, args...)...)
}

func (n *network) namespace(name string) string {
	n.t.Helper()
	ns := n.id + name
	if out, err := exec.Command(n.ip, "netns", "add", ns).CombinedOutput(); err != nil {
		needs.Missing(n.t, "the right to make a network namespace is missing:", strings.TrimSpace(string(out)))
	}
	n.t.Cleanup(func() { exec.Command(n.ip, "netns", "del", ns).Run() })
	n.in(ns, n.ip, "link", "set", "lo", "up")
	return ns
}

// link ties two namespaces by a pair of interfaces.
func (n *network) link(a, aAddr, b, bAddr, aName, bName string) {
	n.t.Helper()
	n.run(n.ip, "-n", a, "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b)
	n.run(n.ip, "-n", a, "addr", "add", aAddr, "dev", aName)
	n.run(n.ip, "-n", b, "addr", "add", bAddr, "dev", bName)
	n.run(n.ip, "-n", a, "link", "set", aName, "up")
	n.run(n.ip, "-n", b, "link", "set", bName, "up")
}

// TestDevicesBehindNAT puts a device behind a real NAT that forgets its mapping before each report. The device is TestDeviceForAnother, and
// the program that $DRAWBRIDGE_TEST_DEVICE names, where one does: of another DTLS stack, and in all else like TestDeviceForAnother.
func TestDevicesBehindNAT(t *testing.T) {
	iptables := needs.Program(t, "iptables")
	n := newNetwork(t)
	srv, nat, dev := n.namespace("s"), n.namespace("n"), n.namespace("d")
	n.link(nat, "198.51.100.1/24", srv, "198.51.100.2/24", "out", "in")
	n.link(nat, "10.9.0.1/24", dev, "10.9.0.2/24", "lan", "wan")
	n.run(n.ip, "-n", dev, "route", "add", "default", "via", "10.9.0.1")
	n.in(nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	n.in(nat, iptables, "-t", "nat", "-A", "POSTROUTING", "-o", "out", "-p", "udp", "-j", "MASQUERADE", "--random-fully")

	type device struct {
		args []string
		cid  bool
	}
	own := []string{os.Args[0], "-test.run=^TestDeviceForAnother$"}
	devices := map[string]device{"with a connection id": {own, true}, "without": {own, false}}
	if other := os.Getenv("DRAWBRIDGE_TEST_DEVICE"); other != "" {
		devices["another stack, with a connection id"] = device{[]string{other}, true}
		devices["another stack, without"] = device{[]string{other}, false}
	}
	for name, d := range devices {
		t.Run(name, func(t *testing.T) {
			cid := d.cid
			g := &gateway{dir: t.TempDir(), listen: "198.51.100.2:5684", took: map[string]int{}, within: []string{n.ip, "netns", "exec", srv}}
			g.start(t)
			defer g.kill()
			cmd := exec.Command(n.ip, append([]string{"netns", "exec", dev}, d.args...)...)
			cmd.Env = append(os.Environ(), "DRAWBRIDGE_TEST_SERVER="+g.listen)
			if cid {
				cmd.Env = append(cmd.Env, "DRAWBRIDGE_TEST_CID=1")
			}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() }()
			lines := bufio.NewScanner(stdout)
			// enough tells whether there were rebindings enough. The NAT forgets in its own time, so some rounds make none.
			enough := func(handshakes int) bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return cid && g.rebound >= 20 || !cid && handshakes >= 4
			}
			reports, handshakes := 0, 0
			for ; !enough(handshakes); reports++ {
				if reports == 200 {
					t.Fatalf("after %d rounds there were not rebindings enough: %d handshakes", reports, handshakes)
				}
				i := reports
				io.WriteString(stdin, fmt.Sprintf("%d\n", i))
				var code string
				for lines.Scan() {
					if rest, ok := strings.CutPrefix(lines.Text(), "answer "); ok {
						fmt.Sscan(rest, &code, &handshakes)
						break
					}
				}
				if code != "2.04" || cid && handshakes != 1 {
					t.Fatalf("report %d: %q, %d handshakes", i, code, handshakes)
				}
				// MASQUERADE forgets its mappings when the link goes down; the next one gets another port.
				n.run(n.ip, "-n", nat, "link", "set", "out", "down")
				n.run(n.ip, "-n", nat, "link", "set", "out", "up")
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			for i := range reports {
				if n := g.took[fmt.Sprint(i)]; n == 0 || cid && n != 1 {
					t.Errorf("report %d was taken %d times", i, n)
				}
			}
		})
	}
}
