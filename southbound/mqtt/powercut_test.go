package mqtt

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	packets5 "github.com/eclipse/paho.golang/packets"
	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// prove says whether the long forms of the crash tests are asked for.
func prove() bool { return os.Getenv("DRAWBRIDGE_PROVE") == "1" }

// blotter keeps what a disk would hold of the session store's file if the power went now. For each transaction bbolt writes pages,
// flushes, writes one of the two meta pages (0 and 1), and flushes.
type blotter struct {
	page  int64
	write func([]byte, int64) (int, error) // to the file itself
	full  atomic.Bool                      // there is no room on the disk

	mu      sync.Mutex
	safe    []byte        // guarded by mu: what was flushed
	pending []blotted     // guarded by mu: what was not
	writes  int           // guarded by mu
	written chan struct{} // guarded by mu: closed and replaced with each write
}

type blotted struct {
	off  int64
	data []byte
}

// blot records from here on what is written to the store of b's listener, which nobody has used yet.
func blot(t *testing.T, b *southtest.Bench) *blotter {
	t.Helper()
	s := b.Listener.(*listener).store
	if s.db.NoSync || s.db.NoGrowSync {
		t.Fatal("the store does not flush")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	safe, err := os.ReadFile(s.db.Path())
	if err != nil {
		t.Fatal(err)
	}
	r := &blotter{page: int64(s.db.Info().PageSize), safe: safe, written: make(chan struct{})}
	field := reflect.ValueOf(s.db).Elem().FieldByName("ops").FieldByName("writeAt")
	hook := (*func([]byte, int64) (int, error))(unsafe.Pointer(field.UnsafeAddr()))
	r.write = *hook
	*hook = r.writeAt
	return r
}

func (r *blotter) writeAt(p []byte, off int64) (int, error) {
	if r.full.Load() {
		return 0, unix.ENOSPC
	}
	meta := off < 2*r.page
	r.mu.Lock()
	if meta {
		r.flush()
	}
	r.pending = append(r.pending, blotted{off, slices.Clone(p)})
	r.writes++
	close(r.written)
	r.written = make(chan struct{})
	r.mu.Unlock()
	n, err := r.write(p, off)
	if meta {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond) // the flush that follows takes its time
		r.mu.Lock()
		r.flush()
		r.mu.Unlock()
	}
	return n, err
}

// flush takes over what is pending. r.mu is held.
func (r *blotter) flush() {
	for _, w := range r.pending {
		r.safe = onto(r.safe, w.off, w.data)
	}
	r.pending = nil
}

func onto(b []byte, off int64, p []byte) []byte {
	if n := int(off) + len(p); n > len(b) {
		b = append(b, make([]byte, n-len(b))...)
	}
	copy(b[off:], p)
	return b
}

// await waits for n more writes.
func (r *blotter) await(t *testing.T, n int) {
	t.Helper()
	r.mu.Lock()
	n += r.writes
	r.mu.Unlock()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		done, written := r.writes >= n, r.written
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-written:
		case <-deadline:
			t.Fatal("nothing more is written")
		}
	}
}

// fates are what may become of what was not flushed when the power goes.
var fates = []string{"nothing of it", "all of it", "some of it", "sectors of it"}

const sector = 512

// image gives the file after a power cut.
func (r *blotter) image(fate string, rnd *rand.Rand) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	img := slices.Clone(r.safe)
	for _, w := range r.pending {
		switch fate {
		case "all of it":
			img = onto(img, w.off, w.data)
		case "some of it":
			if rnd.IntN(2) == 0 {
				img = onto(img, w.off, w.data)
			}
		case "sectors of it":
			for i := 0; i < len(w.data); i += sector {
				if rnd.IntN(2) == 0 {
					img = onto(img, w.off+int64(i), w.data[i:min(i+sector, len(w.data))])
				}
			}
		}
	}
	if rest := len(img) % int(r.page); rest > 0 { // the file had been made longer before
		img = append(img, make([]byte, int(r.page)-rest)...)
	}
	return img
}

// teller publishes 0, 1, 2, ... to its topic, the next when the one before is acknowledged to the end.
type teller struct {
	id, topic string
	qos       byte
	retain    bool

	mu    sync.Mutex
	state told // guarded by mu
}

// told is how far a teller has got.
type told struct {
	acked    int  // numbers below are acknowledged to the end
	released bool // PUBREC has come for acked
}

func (x *teller) look() told {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state
}

// tell sends the number at hand, or what is left of its handshake, and waits for the end of it.
func (x *teller) tell(nc net.Conn, again bool) error {
	s := x.look()
	id := uint16(s.acked%1000 + 1)
	if !s.released {
		err := write(nc, &packets5.Publish{
			Topic: x.topic, Payload: []byte(strconv.Itoa(s.acked)), QoS: x.qos, PacketID: id, Duplicate: again, Retain: x.retain, Properties: &packets5.Properties{},
		})
		if err != nil {
			return err
		}
		p, err := packets5.ReadPacket(nc)
		if err != nil {
			return err
		}
		switch p := p.Content.(type) {
		case *packets5.Puback:
			if p.ReasonCode >= 0x80 {
				return fmt.Errorf("PUBACK 0x%02x", p.ReasonCode)
			}
		case *packets5.Pubrec:
			if p.ReasonCode >= 0x80 {
				return fmt.Errorf("PUBREC 0x%02x", p.ReasonCode)
			}
			x.mu.Lock()
			x.state.released = true
			x.mu.Unlock()
		default:
			return fmt.Errorf("heard %T", p)
		}
	}
	if x.qos == 2 {
		if err := write(nc, &packets5.Pubrel{PacketID: id, Properties: &packets5.Properties{}}); err != nil {
			return err
		}
		if _, err := packets5.ReadPacket(nc); err != nil {
			return err
		}
	}
	x.mu.Lock()
	x.state = told{acked: s.acked + 1}
	x.mu.Unlock()
	return nil
}

// attentive is a subscriber of QoS 2 that notes what it need not hear again.
type attentive struct {
	mu       sync.Mutex
	heard    map[uint16]string // guarded by mu: by identifier, until PUBREL
	finished map[string]bool   // guarded by mu: PUBREL has come
}

func (a *attentive) run(nc net.Conn) {
	for {
		p, err := packets5.ReadPacket(nc)
		if err != nil {
			return
		}
		switch m := p.Content.(type) {
		case *packets5.Publish:
			if m.QoS == 2 {
				a.mu.Lock()
				a.heard[m.PacketID] = m.Topic + " " + string(m.Payload)
				a.mu.Unlock()
				err = write(nc, &packets5.Pubrec{PacketID: m.PacketID, Properties: &packets5.Properties{}})
			} else {
				err = write(nc, &packets5.Puback{PacketID: m.PacketID, Properties: &packets5.Properties{}})
			}
		case *packets5.Pubrel:
			a.mu.Lock()
			if what := a.heard[m.PacketID]; what != "" {
				a.finished[what] = true
			}
			delete(a.heard, m.PacketID)
			a.mu.Unlock()
			err = write(nc, &packets5.Pubcomp{PacketID: m.PacketID, Properties: &packets5.Properties{}})
		}
		if err != nil {
			return
		}
	}
}

func (a *attentive) look() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.finished)
}

// shot is a power cut: what was on the disk, and what had been promised before it.
type shot struct {
	fate     string
	img      []byte
	before   []told // of each teller, before the cut
	after    []told // and just after it: where both agree, this is what it knows at the cut
	finished map[string]bool
}

// TestProvePowerCut lets the power go at any moment while devices talk to each other. What was acknowledged is there when the gateway
// starts on what the disk holds: messages for those who are away, retained messages, wills, and what QoS 2 has got to.
func TestProvePowerCut(t *testing.T) {
	runs, cuts := 2, 4
	if prove() {
		runs, cuts = 25, 12
	}
	for run := range runs {
		t.Run(fmt.Sprint("run ", run), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(11, uint64(run)))
			for i, s := range shoot(t, cuts, rnd) {
				s.examine(t)
				if t.Failed() {
					t.Fatalf("cut %d; of what was not flushed, the disk has %s", i, s.fate)
				}
			}
		})
	}
	if !t.Failed() {
		t.Logf("prove: %d images of the session store after power cuts, each opens, nothing acknowledged is lost, QoS 2 once", runs*cuts)
	}
}

func tellers() []*teller {
	list := []*teller{{id: "keeper", topic: "r/x", qos: 1, retain: true}}
	for i := range 6 {
		qos := byte(1 + i%2)
		list = append(list, &teller{id: fmt.Sprintf("pub-%d", i), topic: fmt.Sprintf("k/%d/%d", qos, i), qos: qos})
	}
	return list
}

// roomy is a listener whose queues do not fill in a test.
func roomy(c *Config) { c.MaxQueued, c.MaxQueuedBytes, c.MaxQueuedTotal = 50000, 1<<28, 1<<30 }

// shoot has devices talk and takes images.
func shoot(t *testing.T, cuts int, rnd *rand.Rand) (shots []shot) {
	b := southtest.Start(t, plain(roomy))
	r := blot(t, b)
	addr := b.Addr.String()
	away, _ := connect5(t, b, "away", durable)
	away.subscribe("k/#", 2)
	away.subscribe("w/#", 1)
	away.goodbye()
	_, _ = connect5(t, b, "mortal", func(c *packets5.Connect) {
		durable(c)
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillQOS, c.WillProperties = true, "w/mortal", []byte("gone"), 1, &packets5.Properties{}
	})
	near, _ := connect5(t, b, "near", durable)
	near.subscribe("k/#", 2)
	var wg sync.WaitGroup
	var open []net.Conn
	ear := &attentive{heard: map[uint16]string{}, finished: map[string]bool{}}
	near.nc.SetReadDeadline(time.Time{})
	wg.Go(func() { ear.run(near.nc) })
	open = append(open, near.nc)
	all := tellers()
	for _, x := range all {
		nc, _, err := link(addr, x.id, false)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Time{})
		open = append(open, nc)
		wg.Go(func() {
			for x.tell(nc, false) == nil {
			}
		})
	}
	look := func() (list []told) {
		for _, x := range all {
			list = append(list, x.look())
		}
		return list
	}
	for i := range cuts {
		r.await(t, 3+rnd.IntN(40))
		s := shot{fate: fates[i%len(fates)], before: look(), finished: ear.look()}
		s.img = r.image(s.fate, rnd)
		s.after = look()
		shots = append(shots, s)
	}
	for _, nc := range open {
		nc.Close()
	}
	wg.Wait()
	if err := b.Stop(); err != nil {
		t.Error(err)
	}
	return shots
}

// examine starts a gateway on the image.
func (s *shot) examine(t *testing.T) {
	t.Helper()
	site := southtest.NewSite(t)
	dir := filepath.Join(site.State, "field")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sessions.db"), s.img, 0o600); err != nil {
		t.Fatal(err)
	}
	b := southtest.StartAt(t, plain(roomy), site)
	defer func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}()
	here := &interop{addr: b.Addr.String(), version: packet.V5}
	same := func(i int) bool { return s.before[i] == s.after[i] }
	// Those who were in the middle of something go on where they know to be.
	all := tellers()
	for i, x := range all {
		nc, present, err := link(here.addr, x.id, true)
		if err != nil || !present && s.before[i] != (told{}) { // nothing was acknowledged yet, and nothing is lost
			t.Fatalf("%s: session present %v, %v", x.id, present, err)
		}
		if x.state = s.before[i]; same(i) {
			if err := x.tell(nc, true); err != nil {
				t.Errorf("%s: %v", x.id, err)
			}
		}
		nc.Close()
	}
	away, ack := here.dial(t, "away", stays)
	near, ack2 := here.dial(t, "near", stays)
	if !ack.SessionPresent || !ack2.SessionPresent {
		t.Fatal("a subscriber's session is gone")
	}
	away.await("the will", func() bool {
		return slices.ContainsFunc(away.heard, func(m *packets5.Publish) bool { return m.Topic == "w/mortal" })
	})
	end := here.connect(t, "end")
	end.publish(packets5.Publish{Topic: "k/end", QoS: 1})
	last := func(p *peer) func() bool {
		return func() bool { return len(p.heard) > 0 && p.heard[len(p.heard)-1].Topic == "k/end" }
	}
	away.await("the end", last(away))
	near.await("the end", last(near))
	heard := map[string]int{}
	for _, m := range away.heard {
		heard[m.Topic+" "+string(m.Payload)]++
	}
	for i, x := range all[1:] {
		for n := range x.state.acked {
			what := fmt.Sprintf("%s %d", x.topic, n)
			if c := heard[what]; c == 0 || c > 1 && x.qos == 2 && same(i+1) {
				t.Errorf("%q, which was acknowledged, was heard %d times", what, c)
			}
		}
	}
	for _, m := range near.heard {
		if what := m.Topic + " " + string(m.Payload); s.finished[what] {
			t.Errorf("%q came again after PUBREL", what)
		}
	}
	if s.before[0].acked > 0 {
		end.subscribe(nil, filterOf("r/x", 1))
		end.await("what is retained", func() bool { return len(end.heard) > 0 })
		if !atLeast(string(end.heard[0].Payload), s.before[0].acked-1) {
			t.Errorf("retained is %q, acknowledged was %d", end.heard[0].Payload, s.before[0].acked-1)
		}
	}
	for _, p := range []*peer{away, near, end} {
		p.drop()
	}
}

// TestDiskIsFull: what cannot be stored is refused, nobody is told an untrue yes, and it goes on once there is room again.
func TestDiskIsFull(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	disk := blot(t, b)
	sub, _ := connect5(t, b, "sub", durable)
	sub.subscribe("a", 2)
	sub.goodbye()
	pub, _ := connect5(t, b, "pub", nil)
	if code := pub.publish("a", "before", 1, 1, nil); code != 0 {
		t.Fatalf("PUBACK 0x%02x", code)
	}
	other, _ := connect5(t, b, "other", durable)
	disk.full.Store(true)
	for qos := byte(1); qos < 3; qos++ {
		if code := pub.publish("a", "in vain", qos, 2, nil); code != 0x97 {
			t.Errorf("QoS %d: 0x%02x, want 0x97", qos, code)
		}
	}
	if code := other.subscribe("b", 1); code != 0x80 {
		t.Errorf("SUBACK 0x%02x, want 0x80", code)
	}
	pub.publish("b", "x", 1, 3, nil)
	other.silence() // it was told that it does not hear this
	// The uplink has a disk of its own.
	if code := pub.publish("nobody/keeps/this", "x", 1, 3, nil); code >= 0x80 {
		t.Errorf("PUBACK 0x%02x", code)
	}
	disk.full.Store(false)
	if code := pub.publish("a", "after", 1, 4, nil); code != 0 {
		t.Errorf("PUBACK 0x%02x", code)
	}
	sub, ack := connect5(t, b, "sub", durable)
	if !ack.SessionPresent {
		t.Error("the session is gone")
	}
	sub.hears("a", "before")
	for string(sub.take().Payload) != "after" { // what was refused may come nevertheless
	}
}
