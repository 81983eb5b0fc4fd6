package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// prove tells whether the heavy form of a proof is asked for.
func prove() bool { return os.Getenv("DRAWBRIDGE_PROVE") != "" }

// claim prints what a proof has found, for `make prove`.
func claim(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf("prove: "+format, args...)
}

// release builds the gateway as it is shipped, beside the commands of the scripts, with which it is deleted.
var release = sync.OnceValues(func() (string, error) {
	planted, err := exec.LookPath("drawbridge-planted")
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(planted), "drawbridge-release")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func released(t testing.TB) string {
	t.Helper()
	path, err := release()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// recorder is the cloud of the proofs: a broker in this process that comes and goes, and notes what it has confirmed.
type recorder struct {
	t       testing.TB
	site    *site
	conf    *tls.Config
	session atomic.Int64 // counts connections of the gateway

	mu       sync.Mutex
	arrived  map[string][]arrival // guarded by mu; by device
	received int                  // guarded by mu
	stopped  func()               // guarded by mu
}

type arrival struct {
	n       int
	session int64
}

func newRecorder(s *site) *recorder {
	conf := s.clientTLS()
	cert := s.issue("localhost")
	return &recorder{t: s.t, site: s, arrived: map[string][]arrival{},
		conf: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: conf.RootCAs}}
}

// serve starts the gateway by the file that the site makes, with a cloud that records.
func (s *site) serve() *recorder {
	s.t.Helper()
	s.configure()
	s.certify()
	cloud := newRecorder(s)
	cloud.up()
	s.startGateway()
	return cloud
}

// up opens the broker at the cloud's address; down closes it together with every connection.
func (r *recorder) up() {
	r.t.Helper()
	var l net.Listener
	eventually(r.t, "the cloud's port to be free", func() bool {
		var err error
		l, err = tls.Listen("tcp", r.site.cloud, r.conf)
		return err == nil
	})
	b := broker.New(broker.Options{
		Admit: func(*broker.Login) broker.Answer {
			r.session.Add(1)
			return broker.Answer{Limits: broker.Limits{ReceiveMaximum: 1000}}
		},
		Published: func(_ string, m broker.Message) broker.Verdict {
			r.note(m)
			return broker.Verdict{}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		b.Serve(ctx, l)
		close(ended)
	}()
	r.mu.Lock()
	r.stopped = func() { cancel(); <-ended }
	r.mu.Unlock()
}

func (r *recorder) down() {
	r.mu.Lock()
	stop := r.stopped
	r.stopped = nil
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (r *recorder) note(m broker.Message) {
	parts := strings.Split(m.Topic, "/") // dt/gw/DEVICE/KIND
	text, _, _ := strings.Cut(string(m.Payload), " ")
	n, err := strconv.Atoi(text)
	if len(parts) != 4 || err != nil {
		r.t.Errorf("the cloud received %q on %q", m.Payload, m.Topic)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received++
	r.arrived[parts[2]] = append(r.arrived[parts[2]], arrival{n, r.session.Load()})
}

// fleet are devices that count: device D reports 1, 2, 3, ... and goes on to the next number only after yes.
type fleet struct {
	s     *site
	names []string       // those with an even index speak MQTT, the others CoAP
	yes   []atomic.Int64 // by device: the last number answered yes
	sent  []atomic.Int64 // by device: how often a number was sent, repeats and retransmissions included

	keep  bool           // devices stay what they are through an outage: MQTT sessions persist, CoAP keeps its association
	fresh []atomic.Int64 // by device: connections without a stored session, or handshakes
	at    []atomic.Int64 // by device: when it was answered yes last, Unix nanoseconds
	gap   []atomic.Int64 // by device: the longest time between one yes and the next
}

// newFleet lets devices in, half of them on each protocol.
func newFleet(s *site, devices int) *fleet {
	counts := func() []atomic.Int64 { return make([]atomic.Int64, devices) }
	f := &fleet{s: s, names: make([]string, devices), yes: counts(), sent: counts(), fresh: counts(), at: counts(), gap: counts()}
	var extra strings.Builder
	for i := range devices {
		if i%2 == 0 {
			f.names[i] = fmt.Sprintf("m-%d", i)
			s.write(f.names[i]+".password", "secret-of-"+f.names[i])
			fmt.Fprintf(&extra, "[device.%s]\ngroups = [\"press\"]\npassword = \"file:%s.password\"\n", f.names[i], f.names[i])
		} else {
			f.names[i] = fmt.Sprintf("c-%d", i)
			s.write(f.names[i]+".psk", "psk-of-"+f.names[i]+"-16-bytes")
			fmt.Fprintf(&extra, "[device.%s]\ngroups = [\"thermostat\"]\npsk = \"file:%s.psk\"\n", f.names[i], f.names[i])
		}
	}
	s.extra = extra.String()
	return f
}

// run lets every device live until ctx ends.
func (f *fleet) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range f.names {
		if i%2 == 0 {
			wg.Go(func() { f.mqttDevice(ctx, i) })
		} else {
			wg.Go(func() { f.coapDevice(ctx, i) })
		}
	}
	wg.Wait()
}

// answered notes that number n of device i was answered yes.
func (f *fleet) answered(i int, n int64) {
	now := time.Now().UnixNano()
	if was := f.at[i].Swap(now); was != 0 {
		f.gap[i].Store(max(f.gap[i].Load(), now-was))
	}
	f.yes[i].Store(n)
}

// arrived tells whether everything that was answered yes has come to the cloud.
func (f *fleet) arrived(cloud *recorder) bool {
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	for i, name := range f.names {
		if missing(cloud.arrived[name], int(f.yes[i].Load())) > 0 {
			return false
		}
	}
	return true
}

func (f *fleet) total() (n int64) {
	for i := range f.yes {
		n += f.yes[i].Load()
	}
	return n
}

func (f *fleet) mqttDevice(ctx context.Context, i int) {
	name := f.names[i]
	conf := f.s.clientTLS()
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for n := int64(1); ctx.Err() == nil; {
		c, err := dialMQTT(ctx, f.s.mqtt, conf, wireOptions{clientID: name, user: name, password: "secret-of-" + name, persistent: f.keep})
		if err != nil {
			pause(ctx)
			continue
		}
		if !c.present {
			f.fresh[i].Add(1)
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		for {
			c.SetDeadline(time.Now().Add(20 * time.Second))
			f.sent[i].Add(1)
			if _, err := c.Write(publishPacket("sensors/count", uint16(n%65535)+1, []byte(strconv.FormatInt(n, 10)))); err != nil {
				break
			}
			kind, _, err := c.readPacket(nil)
			if err != nil || kind != 0x40 {
				break
			}
			f.answered(i, n)
			n++
		}
		stop()
		c.Close()
	}
}

func (f *fleet) coapDevice(ctx context.Context, i int) {
	name, wait, tries := f.names[i], time.Second, 3
	if f.keep {
		wait, tries = 200*time.Millisecond, 300
	}
	for n := int64(1); ctx.Err() == nil; {
		dial, cancel := context.WithTimeout(ctx, 10*time.Second)
		c, err := dialCoAP(dial, f.s.coap, name, []byte("psk-of-"+name+"-16-bytes"))
		cancel()
		if err != nil {
			pause(ctx)
			continue
		}
		f.fresh[i].Add(1)
		c.udp.deaf.Store(f.keep)
		for ctx.Err() == nil {
			before := c.sent
			code, err := c.request(2, "/sensors/count", []byte(strconv.FormatInt(n, 10)), wait, tries)
			f.sent[i].Add(c.sent - before)
			if err != nil {
				break
			}
			if code == 0x44 { // 2.04
				f.answered(i, n)
				n++
			}
		}
		c.Close()
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
	}
}

// TestProveKill kills the gateway at random while 64 devices on both protocols report and the cloud comes and goes.
// Every message answered yes has to arrive, first arrivals in order for each device, and nothing twice within one session of the cloud
// unless the device itself has sent it twice.
func TestProveKill(t *testing.T) {
	kills, devices := 6, 64
	if prove() {
		kills = 60
	}
	s := newSite(t)
	s.binary = released(t)
	f := newFleet(s, devices)
	cloud := s.serve()
	defer cloud.down()

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx) })
	for kill := range kills {
		time.Sleep(300*time.Millisecond + rand.N(900*time.Millisecond))
		if kill%3 == 1 {
			cloud.down()
			time.Sleep(rand.N(300 * time.Millisecond))
		}
		s.gateway.kill()
		s.startGateway()
		if kill%3 == 1 {
			cloud.up()
		}
	}
	eventually(t, "each device to be answered yes", func() bool {
		for i := range f.yes {
			if f.yes[i].Load() == 0 {
				return false
			}
		}
		return true
	})
	cancel()
	wg.Wait()

	eventually(t, "everything answered yes to arrive", func() bool { return f.arrived(cloud) })
	s.gateway.stop()
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	repeats, resent := 0, 0
	for i, name := range f.names {
		again, err := inOrder(cloud.arrived[name])
		if err != nil {
			t.Errorf("device %s: %v", name, err)
		}
		own := int(f.sent[i].Load() - f.yes[i].Load())
		if again > own {
			t.Errorf("device %s: %d messages came twice in one session of the cloud, but the device repeated only %d", name, again, own)
		}
		repeats += len(cloud.arrived[name]) - int(f.yes[i].Load())
		resent += own
	}
	claim(t, "kill -9: %d kills, %d devices, %d messages answered yes, 0 lost, order kept; %d arrivals beyond those (sent again after a kill, or never answered), devices repeated %d",
		kills, devices, f.total(), repeats, resent)
}

// missing counts the numbers up to yes that have not arrived.
func missing(arrived []arrival, yes int) int {
	seen := make([]bool, yes+1)
	n := yes
	for _, a := range arrived {
		if a.n >= 1 && a.n <= yes && !seen[a.n] {
			seen[a.n] = true
			n--
		}
	}
	return n
}

// inOrder checks that numbers arrive for the first time in ascending order, and that within one session of the cloud a number
// never follows a higher one. It counts the numbers that came again within one session.
func inOrder(arrived []arrival) (again int, err error) {
	highest, inSession, session := 0, 0, int64(0)
	for _, a := range arrived {
		if a.session != session {
			inSession, session = 0, a.session
		}
		if a.n > highest+1 {
			return again, fmt.Errorf("%d arrived after %d", a.n, highest)
		}
		if a.n < inSession {
			return again, fmt.Errorf("in one session %d arrived after %d", a.n, inSession)
		}
		if a.n == inSession {
			again++
		}
		highest, inSession = max(highest, a.n), a.n
	}
	return again, nil
}
