package lanes_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/lanes"
)

// record notes what was posted, by device, and how many at the same time.
type record struct {
	mu         sync.Mutex
	got        map[string][]string
	busy, most int
}

func (r *record) post(batch []*msg.Publication) []error {
	r.mu.Lock()
	r.busy++
	r.most = max(r.most, r.busy)
	r.mu.Unlock()
	time.Sleep(time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy--
	for _, p := range batch {
		r.got[p.Device] = append(r.got[p.Device], string(p.Payload))
	}
	return make([]error, len(batch))
}

func batch(devices, each int) (list []msg.Publication) {
	for i := range each {
		for d := range devices {
			list = append(list, msg.Publication{Device: fmt.Sprint("d", d), Payload: fmt.Append(nil, i)})
		}
	}
	return list
}

func byDevice(p *msg.Publication) string { return p.Device }

func TestOrderIsKeptInALaneAndLanesRunAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &record{got: map[string][]string{}}
		l := lanes.New(ctx, lanes.Options{Parallel: 4, Batch: 1, Lane: byDevice, Post: r.post})
		began, done := time.Now(), 0
		if err := l.Send(t.Context(), batch(8, 5), func(int, error) { r.mu.Lock(); done++; r.mu.Unlock() }); err != nil {
			t.Fatal(err)
		}
		l.Drain(time.Hour)
		if took := time.Since(began); took != 10*time.Second || r.most != 4 || done != 40 {
			t.Errorf("took %s, %d at once, %d done", took, r.most, done)
		}
		for d, got := range r.got {
			if !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
				t.Errorf("%s: %q", d, got)
			}
		}
		if err := l.Send(t.Context(), batch(1, 1), nil); !errors.Is(err, lanes.ErrClosed) {
			t.Errorf("after Drain: %v", err)
		}
		cancel(errors.New("over"))
		l.Wait()
	})
}

func TestNothingIsDoneAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &record{got: map[string][]string{}}
		l := lanes.New(ctx, lanes.Options{Parallel: 1, Batch: 10, Lane: byDevice, Post: r.post})
		if err := l.Send(t.Context(), batch(3, 2), func(i int, _ error) { t.Errorf("%d is done", i) }); err != nil {
			t.Fatal(err)
		}
		over := errors.New("over")
		cancel(over)
		if err := l.Send(t.Context(), batch(1, 1), nil); !errors.Is(err, over) {
			t.Errorf("after the end: %v", err)
		}
		began := time.Now()
		l.Drain(time.Hour)
		l.Wait()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the end took %s", took)
		}
	})
}

func TestSendGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &record{got: map[string][]string{}}
		l := lanes.New(ctx, lanes.Options{Parallel: 1, Batch: 1, Lane: byDevice, Post: r.post})
		short, stop := context.WithTimeout(t.Context(), 3*time.Second)
		defer stop()
		if err := l.Send(short, batch(1, 1000), func(int, error) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		cancel(nil)
		l.Wait()
	})
}
