package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// openWhole opens a bridge on a real spool in dir.
func openWhole(t testing.TB, dir string, clouds map[string]northbound.Connector) (*Bridge, func()) {
	t.Helper()
	q, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{MaxSize: 64 << 20, Segment: 1 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b, err := Open(Options{Spool: q, Dir: dir, Log: log, Health: health.New(log, time.Now), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	table, err := Compile(standard())
	if err != nil {
		t.Fatal(err)
	}
	b.Swap(Setup{Table: table, Policy: rules{}, Connectors: clouds})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	for name := range clouds {
		wg.Go(func() { _ = b.RunConnector(ctx, name, stillness{}) })
	}
	return b, func() {
		cancel()
		wg.Wait()
		if err := errors.Join(b.Close(), q.Close()); err != nil {
			t.Error(err)
		}
	}
}

// With the real spool, over restarts and breaking sessions, every report that was answered yes arrives at both clouds, the
// first arrivals of each device in order, and the ledger says so.
func TestNothingIsLostOverRestartsAndBreaks(t *testing.T) {
	dir := t.TempDir()
	const devices, each, lives = 4, 200, 4
	clouds := map[string]*cloud{"cloud": {}, "plant": {}}
	for name, c := range clouds {
		n := 0
		c.breaks = func(msg.Publication) bool { n++; return name == "plant" && n%301 == 0 }
	}
	accepted := make([][]string, devices)
	for life := range lives {
		b, stop := openWhole(t, dir, map[string]northbound.Connector{"cloud": clouds["cloud"], "plant": clouds["plant"]})
		var wg sync.WaitGroup
		for d := range devices {
			wg.Go(func() {
				for i := range each {
					payload := fmt.Sprint(life*each + i)
					answer := make(chan error, 1)
					b.Submit(&msg.Message{Device: fmt.Sprint("d", d), Resource: "/both/n", Payload: []byte(payload)}, func(err error) { answer <- err })
					if err := <-answer; err != nil {
						t.Errorf("%v", err)
						return
					}
					accepted[d] = append(accepted[d], payload)
				}
			})
		}
		wg.Wait()
		if life == lives-1 {
			settle(t, b)
			for _, l := range b.Snapshot().Ledger {
				if l.Accepted != devices*each*lives || l.Delivered != l.Accepted {
					t.Errorf("got %+v", l)
				}
			}
		}
		stop() // with whatever is still under way
	}
	for name, c := range clouds {
		arrived := map[string][]string{}
		seen := map[string]bool{}
		for _, p := range c.all() {
			if k := p.Device + "/" + string(p.Payload); !seen[k] {
				seen[k] = true
				arrived[p.Device] = append(arrived[p.Device], string(p.Payload))
			}
		}
		for d := range devices {
			got, want := arrived[fmt.Sprint("d", d)], accepted[d]
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: d%d: %d arrived, %d accepted, or out of order", name, d, len(got), len(want))
			}
		}
	}
}

// settle waits until nothing is pending, without waiting for pauses between sessions.
func settle(t *testing.T, b *Bridge) {
	t.Helper()
	for range 2000 {
		pending := uint64(0)
		for _, c := range b.Snapshot().Connectors {
			pending += c.Pending
			b.Resume(c.Name)
		}
		if pending == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("something stays pending")
}

// BenchmarkWhole is accept, spool on this disk, pump and a cloud that takes everything at once, with 1024 reports under way.
func BenchmarkWhole(b *testing.B) {
	br, stop := openWhole(b, b.TempDir(), map[string]northbound.Connector{"cloud": taker{}})
	defer stop()
	room := make(chan struct{}, 1024)
	var failed atomic.Int64
	payload := make([]byte, 256)
	b.ReportAllocs()
	for b.Loop() {
		room <- struct{}{}
		br.Submit(&msg.Message{Device: "th-17", Resource: "/sensors/temp", Payload: payload}, func(err error) {
			if err != nil {
				failed.Add(1)
			}
			<-room
		})
	}
	if n := failed.Load(); n > 0 {
		b.Errorf("%d refused", n)
	}
}

// taker is a cloud that confirms everything at once.
type taker struct{}

func (taker) Dial(ctx context.Context, _ northbound.Downlink) (northbound.Session, error) {
	s := &cloudSession{}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return takerSession{s}, nil
}

type takerSession struct{ *cloudSession }

func (takerSession) Send(_ context.Context, batch []msg.Publication, done func(int, error)) error {
	for i := range batch {
		done(i, nil)
	}
	return nil
}
