package coap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
)

// child is a test of this binary as a process in a network namespace, which does what it reads and answers by lines.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

func (n *network) child(t *testing.T, ns, test string, env ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(n.ip, "netns", "exec", ns, os.Args[0], "-test.run=^"+test+"$")}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stderr = t.Output()
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	t.Cleanup(func() { c.stdin.Close(); c.cmd.Process.Kill(); c.cmd.Wait() })
	return c
}

func (c *child) say(format string, args ...any) { fmt.Fprintf(c.stdin, format+"\n", args...) }

// hear gives the numbers of the next answer.
func (c *child) hear() (list []float64) {
	c.t.Helper()
	for c.lines.Scan() {
		if rest, ok := strings.CutPrefix(c.lines.Text(), "answer"); ok {
			for _, f := range strings.Fields(rest) {
				v, err := strconv.ParseFloat(f, 64)
				if err != nil {
					c.t.Fatalf("%q", c.lines.Text())
				}
				list = append(list, v)
			}
			return list
		}
	}
	c.t.Fatal("a process of the test has ended")
	return nil
}

// TestDevicesForFlood are devices of another test: "rate MILLISECONDS REPORTS" has all of them together report so often in a second, but each only when it
// has been answered (0: as fast as that), and is answered by reports and misses; "join" is one more device, answered by the milliseconds until its report is.
func TestDevicesForFlood(t *testing.T) {
	server := os.Getenv("DRAWBRIDGE_TEST_FLOODED")
	if server == "" {
		t.Skip("it serves another test")
	}
	var devices []*lightDevice
	dial := func(i int) *lightDevice {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		d, err := dialLight(ctx, server, fmt.Sprintf("dev-%d", i), dtlstest.Options{Suite: "TLS_PSK_WITH_AES_128_CCM_8", CID: i%2 == 0, Retransmit: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i := range 16 {
		devices = append(devices, dial(i))
	}
	fmt.Printf("\nanswer\n")
	next := 16
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var ms, pace int
		began := time.Now()
		if n, _ := fmt.Sscanf(lines.Text(), "rate %d %d", &ms, &pace); n != 2 {
			d := dial(next)
			next++
			for ok := false; !ok; {
				var err error
				if ok, err = d.report(time.Second); err != nil {
					t.Fatal(err)
				}
			}
			d.c.Close()
			fmt.Printf("\nanswer %d\n", time.Since(began).Milliseconds())
			continue
		}
		var reports, misses atomic.Int64
		var wg sync.WaitGroup
		for _, d := range devices {
			wg.Go(func() {
				for own := 0; time.Since(began) < time.Duration(ms)*time.Millisecond; own++ {
					if pace > 0 {
						time.Sleep(time.Until(began.Add(time.Duration(own) * time.Second * time.Duration(len(devices)) / time.Duration(pace))))
					}
					ok, err := d.report(time.Second)
					switch {
					case err != nil:
						t.Error(err)
						return
					case ok:
						reports.Add(1)
					default:
						misses.Add(1)
					}
				}
			})
		}
		wg.Wait()
		fmt.Printf("\nanswer %d %d\n", reports.Load(), misses.Load())
	}
}

// TestFloodForAnother floods for another test. "flood ADDRESS HELLOS COOKIES MILLISECONDS" sends so many ClientHellos a second, a quarter as many malformed
// records, and answers so many of the cookies that come back, then is silent; it answers by hellos, malformed and cookies sent.
func TestFloodForAnother(t *testing.T) {
	if os.Getenv("DRAWBRIDGE_TEST_FLOOD") == "" {
		t.Skip("it serves another test")
	}
	hello, err := hex.DecodeString(helloWithoutCookie)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\nanswer\n")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var to string
		var rate, cookies, ms int
		if _, err := fmt.Sscanf(lines.Text(), "flood %s %d %d %d", &to, &rate, &cookies, &ms); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nanswer %s\n", flood(t, to, hello, rate, cookies, time.Duration(ms)*time.Millisecond))
	}
}

// flood sends from some thousands of addresses, each with a few ports.
func flood(t *testing.T, to string, hello []byte, rate, cookies int, lasts time.Duration) string {
	addr, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		t.Fatal(err)
	}
	const ports, batch, every = 4, 100, 4096
	var conns []*ipv4.PacketConn
	var returned atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	for i := range ports {
		c, err := net.ListenPacket("udp4", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p := ipv4.NewPacketConn(c)
		if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, p)
		if i > 0 {
			continue // one that listens finds cookies enough; for the others the kernel drops what comes back
		}
		wg.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, cm, _, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				if float64(returned.Load()) >= time.Since(began).Seconds()*float64(cookies) || n != 13+12+3+20 || cm == nil {
					continue
				}
				returned.Add(1)
				p.WriteTo(withCookie(hello, buf[n-20:n]), &ipv4.ControlMessage{Src: cm.Dst}, addr)
			}
		})
	}
	malformed := [][]byte{{22, 0xfe, 0xfd, 0, 0}, append([]byte{25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1}, make([]byte, 60)...)}
	for range 62 {
		malformed = append(malformed, mutate(rand.New(rand.NewPCG(7, uint64(len(malformed)))), hello))
	}
	var sources [every][]byte
	for i := range sources {
		sources[i] = (&ipv4.ControlMessage{Src: net.IPv4(10, 7, byte(i>>8), byte(i))}).Marshal()
	}
	hellos, broken := 0, 0
	messages := make([]ipv4.Message, batch+batch/4)
	for at := 0; time.Since(began) < lasts; {
		if due := int(time.Since(began).Seconds() * float64(rate)); hellos >= due {
			time.Sleep(time.Millisecond)
			continue
		}
		for i := range messages {
			b := hello
			if i >= batch {
				b = malformed[(at+i)%len(malformed)]
			}
			messages[i] = ipv4.Message{Buffers: [][]byte{b}, OOB: sources[(at*7+i*13)%every], Addr: addr}
		}
		for rest := messages; len(rest) > 0; {
			n, err := conns[at%ports].WriteBatch(rest, 0)
			if err != nil {
				n = 1 // that a port is closed is what the last datagram has met
			}
			rest = rest[n:]
		}
		at++
		hellos += batch
		broken += batch / 4
	}
	for _, c := range conns {
		c.Close()
	}
	wg.Wait()
	return fmt.Sprintf("%d %d %d", hellos, broken, returned.Load())
}

// withCookie makes of a hello without a cookie the one that returns it.
func withCookie(hello, cookie []byte) []byte {
	const at = 13 + 12 + 2 + 32 + 1 // the cookie's length, after an empty session id
	b := append(bytes.Clone(hello[:at]), byte(len(cookie)))
	b = append(append(b, cookie...), hello[at+1:]...)
	b[10] = 1 // the record's number
	binary.BigEndian.PutUint16(b[11:], uint16(len(b)-13))
	for _, i := range []int{13 + 1, 13 + 9} { // the message's length, and the fragment's
		b[i], b[i+1], b[i+2] = 0, byte((len(b)-25)>>8), byte(len(b)-25)
	}
	b[13+5] = 1 // message_seq
	return b
}

// TestProveFlood floods the listener with ClientHellos, and malformed records, from thousands of addresses in a network namespace of
// their own. Some of the flooders return the cookie and leave a handshake open.
//
// Sender, devices and listener share the machine's processors. What the sender takes is kept out of the comparison: the rate without
// a flood of the listener is measured while the same flood goes to a socket beside it that reads and drops. The devices' own rate is the
// half of that.
func TestProveFlood(t *testing.T) {
	seconds, rate, cookies := 1.8, 20_000, 200
	if prove() {
		seconds = 60
	}
	n := newNetwork(t)
	srv, atk, dev := n.namespace("s"), n.namespace("a"), n.namespace("d")
	n.link(atk, "10.6.0.1/24", srv, "10.6.0.2/24", "out", "flood")
	n.link(dev, "10.8.0.1/24", srv, "10.8.0.2/24", "lan", "field")
	n.in(atk, n.ip, "route", "add", "local", "10.7.0.0/16", "dev", "lo") // every address of it is the sender's
	n.in(srv, n.ip, "route", "add", "10.7.0.0/16", "via", "10.6.0.1")

	t.Setenv("DRAWBRIDGE_TEST_SILENT", "1")
	g := &gateway{dir: t.TempDir(), listen: "0.0.0.0:5684", took: map[string]int{}, within: []string{n.ip, "netns", "exec", srv}}
	g.start(t)
	defer g.kill()
	devices := n.child(t, dev, "TestDevicesForFlood", "DRAWBRIDGE_TEST_FLOODED=10.8.0.2:5684")
	devices.hear()
	flooder := n.child(t, atk, "TestFloodForAnother", "DRAWBRIDGE_TEST_FLOOD=1")
	flooder.hear()
	n.child(t, srv, "TestSinkForAnother", "DRAWBRIDGE_TEST_SINK=10.6.0.2:5685").hear()

	window := seconds / 6
	missed := 0.0
	measure := func(pace float64) float64 {
		devices.say("rate %.0f %.0f", window*1000, pace)
		got := devices.hear()
		missed += got[1]
		return got[0] / window
	}
	measure(0) // warm
	flooder.say("flood 10.6.0.2:5685 %d %d %d", rate, cookies, int(window*1000))
	most := measure(0)
	flooder.hear()
	quiet := measure(most / 2)
	before := memory(t, g.cmd.Process.Pid)
	missed = 0

	flooder.say("flood 10.6.0.2:5684 %d %d %d", rate, cookies, int(seconds*1000))
	began := time.Now()
	var during []float64
	for len(during) == 0 || time.Since(began).Seconds() < seconds*4/6 {
		during = append(during, measure(most/2))
	}
	mostDuring := measure(0)
	sent := flooder.hear()
	after := memory(t, g.cmd.Process.Pid)
	devices.say("join")
	joined := devices.hear()[0]
	back := measure(most / 2)

	if sent[0] == 0 || sent[1] == 0 || sent[2] == 0 {
		t.Errorf("the flood was %v hellos, %v malformed records and %v cookies", sent[0], sent[1], sent[2])
	}
	mean := 0.0
	for _, r := range during {
		mean += r / float64(len(during))
	}
	claim(t, "flood: %.0f ClientHellos/s and %.0f malformed records/s from 16384 addresses and ports for %.0f s, %.0f of them with their cookie: "+
		"16 established devices make %.0f reports/s without, %.0f (%.2f) during, %.0f after, %.0f unanswered within a second; with nothing to wait for but answers "+
		"%.0f while the flood goes to a socket beside the listener, %.0f (%.2f) while it goes to the listener; a new device is in after %.0f ms; resident memory %.1f MB before, %.1f MB at most",
		sent[0]/seconds, sent[1]/seconds, seconds, sent[2], quiet, mean, mean/quiet, back, missed, most, mostDuring, mostDuring/most, joined, float64(before)/1e6, float64(after)/1e6)
	if prove() && (mean < 0.8*quiet || joined > 5000 || after-before > 64<<20) {
		t.Error("that is less than it should hold")
	}
}

// TestSinkForAnother reads and drops, for another test.
func TestSinkForAnother(t *testing.T) {
	addr := os.Getenv("DRAWBRIDGE_TEST_SINK")
	if addr == "" {
		t.Skip("it serves another test")
	}
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\nanswer\n")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		c.Close()
	}()
	in := make([]ipv4.Message, batchLen)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	for p := ipv4.NewPacketConn(c); ; {
		if _, err := p.ReadBatch(in, 0); err != nil {
			return
		}
	}
}

// memory gives the most that a process has had resident, in octets.
func memory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
