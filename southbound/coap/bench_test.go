package coap

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"golang.org/x/net/ipv4"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// yes is an uplink that stores nothing.
type yes struct{}

func (yes) Submit(_ *msg.Message, done func(error)) { done(nil) }

// sink is a socket that loses everything.
type sink struct{}

func (sink) ReadBatch([]ipv4.Message, int) (int, error)         { return 0, nil }
func (sink) WriteBatch(list []ipv4.Message, _ int) (int, error) { return len(list), nil }

// pairs makes associations with the suite, the device's end of each with it.
func pairs(t testing.TB, l *listener, suite string, n int) (devices []*dtls.Conn) {
	t.Helper()
	s := dtls.SuiteByName(suite)
	keyLen := 16
	if bytes.Contains([]byte(suite), []byte("256_")) {
		keyLen = 32
	}
	turn := l.begin(time.Now())
	defer l.end(turn)
	for i := range n {
		half := bytes.Repeat([]byte{byte(i), byte(i >> 8), 3, 4}, (keyLen+4)/4+1)
		client, server := half[:keyLen], half[1:][:keyLen]
		cid := dtls.NewCID()
		state := dtls.State{Suite: s.ID, Keys: append(append(append(append([]byte(nil), client...), server...), 1, 2, 3, 4), 5, 6, 7, 8), CID: cid[:],
			Verify: fmt.Appendf(nil, "%012d", i)}
		conn, err := dtls.Restore(state, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		conn.Reserve(1 << 48)
		// The device's end has the halves the other way round, and sends with the connection id.
		state.Keys = append(append(append(append([]byte(nil), server...), client...), 5, 6, 7, 8), 1, 2, 3, 4)
		state.OutCID, state.CID = cid[:], nil
		dev, err := dtls.Restore(state, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		dev.Reserve(1 << 48)
		devices = append(devices, dev)
		l.add(turn, &session{
			conn: conn, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5684), since: time.Now(), seen: time.Now(),
			id: &auth.Identity{Device: fmt.Sprintf("dev-%d", i), Method: "psk"}, credit: unlimited, slot: noSlot,
		})
	}
	return devices
}

func dtlsListener(t testing.TB) *listener {
	t.Helper()
	site := southtest.NewSite(t)
	cfg := Kind().Config().(*Config)
	cfg.Security = []string{"psk"}
	l, err := open(site.Env(t, "field"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.up, l.sock, l.serving, l.gate, l.ctx = yes{}, sink{}, true, dtls.NewGate(time.Now()), context.WithoutCancel(t.Context())
	return l
}

// BenchmarkRequests measures what a confirmable report costs from the datagram to its answer, without system calls and storage.
func BenchmarkRequests(b *testing.B) {
	for _, suite := range []string{"TLS_PSK_WITH_AES_128_GCM_SHA256", "TLS_PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_ARIA_128_GCM_SHA256"} {
		for _, n := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("%s/%d", suite, n), func(b *testing.B) {
				l := dtlsListener(b)
				devices := pairs(b, l, suite, n)
				records := make([][]byte, batchLen)
				b.ReportAllocs()
				b.ResetTimer()
				var spare []*pending
				for i := 0; i < b.N; i += batchLen {
					b.StopTimer()
					for j := range records {
						k := i + j
						m := appendShort(nil, message.Confirmable, codes.POST, uint16(k/n), []byte{1, 2, 3, 4})
						m = append(m, 0xb7, 's', 'e', 'n', 's', 'o', 'r', 's', 0x04, 't', 'e', 'm', 'p', 0xff, '2', '1', '.', '5')
						records[j], _ = devices[k%n].Seal(records[j][:0], dtls.TypeApplication, m)
					}
					b.StartTimer()
					t := l.begin(time.Now())
					for j, r := range records {
						t.datagram(r, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte((i + j) % n)}), 5684))
					}
					l.end(t)
					spare = l.settle(time.Now(), spare)
				}
				b.StopTimer()
				if got := l.count.success.Load(); got < int64(b.N) {
					b.Fatalf("%d of %d answered: %v", got, b.N, l.Counters())
				}
			})
		}
	}
}

// TestMemoryPerAssociation holds an idle association to 5 KiB.
func TestMemoryPerAssociation(t *testing.T) {
	l := dtlsListener(t)
	heap := func() int64 {
		for range 3 { // pools and finalizers let go of what other tests have left only in the next one
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n = 5000
	before := heap()
	devices := pairs(t, l, "TLS_PSK_WITH_AES_128_GCM_SHA256", n)
	var spare []*pending
	for round := range 4 { // each has reported
		turn := l.begin(time.Now())
		for i, d := range devices {
			m := append(appendShort(nil, message.Confirmable, codes.POST, uint16(round), []byte{1, 2}), 0xb1, 'a')
			r, _ := d.Seal(nil, dtls.TypeApplication, m)
			turn.datagram(r, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5684))
		}
		l.end(turn)
		spare = l.settle(time.Now(), spare)
	}
	clear(devices)
	devices = nil
	spare = nil
	l.done = nil
	l.turns.Get()
	per := (heap() - before) / n
	turn := l.begin(time.Now().Add(2 * coolAfter))
	l.sweep(turn)
	l.end(turn)
	idle := (heap() - before) / n
	t.Logf("%d octets per association, %d while it is silent", per, idle)
	if per > 5<<10 || idle > 2<<10 {
		t.Errorf("%d octets per association, %d while it is silent", per, idle)
	}
	runtime.KeepAlive(l)
}
