package queue

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

func as(t *testing.T, user string) context.Context { return hwcrypto.WithUser(t.Context(), user) }

func TestUsersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "chip"})
		defer q.Close()
		var order []string
		var wg sync.WaitGroup
		add := func(user string) {
			wg.Go(func() {
				_ = q.Do(as(t, user), func(context.Context) error {
					order = append(order, user) // one at a time
					time.Sleep(time.Millisecond)
					return nil
				})
			})
			synctest.Wait()
		}
		add("first")
		for range 20 {
			add("greedy")
		}
		add("modest")
		add("modest")
		wg.Wait()
		if got := strings.Join(order[:6], " "); got != "first greedy modest greedy modest greedy" {
			t.Errorf("order: %s", got)
		}
		s := q.Stats()
		if s.Done != 23 || s.Depth != 0 || s.Latency < time.Millisecond || s.Histogram[3] != 23 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestAUserWhoHasTooManyWaitingIsRefusedAloneAndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "the chip", Depth: 2})
		defer q.Close()
		release := make(chan struct{})
		hold := func(context.Context) error { <-release; return nil }
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _ = q.Do(as(t, "greedy"), hold) })
		}
		synctest.Wait()
		err := q.Do(as(t, "greedy"), hold)
		if !errors.Is(err, hwcrypto.ErrBusy) || !strings.Contains(err.Error(), "the chip") {
			t.Errorf("a fourth: %v", err)
		}
		wg.Go(func() {
			if err := q.Do(as(t, "modest"), func(context.Context) error { return nil }); err != nil {
				t.Errorf("another user: %v", err)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
	})
}

func TestAnOperationThatHangsCostsItsTimeAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "the chip", Timeout: time.Second})
		defer q.Close()
		release := make(chan struct{})
		begin := time.Now()
		err := q.Do(as(t, "a"), func(ctx context.Context) error { <-release; return nil })
		if !errors.Is(err, hwcrypto.ErrTimeout) || !strings.Contains(err.Error(), "the chip") || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if err := q.Do(as(t, "b"), func(context.Context) error { return nil }); err != nil {
			t.Errorf("the next: %v", err)
		}
		for range 3 {
			_ = q.Do(as(t, "a"), func(ctx context.Context) error { <-release; return nil })
		}
		begin = time.Now()
		if err := q.Do(as(t, "b"), func(context.Context) error { return nil }); !errors.Is(err, hwcrypto.ErrTimeout) || time.Since(begin) != 0 {
			t.Errorf("after too many: %v after %v", err, time.Since(begin))
		}
		close(release)
		synctest.Wait()
		if err := q.Do(as(t, "b"), func(context.Context) error { return nil }); err != nil {
			t.Errorf("after they have returned: %v", err)
		}
		if s := q.Stats(); s.TimedOut != 4 || s.Depth != 0 || s.Done != 2 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestSlowIsNotHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "chip"})
		defer q.Close()
		v, err := Call(t.Context(), q, func(context.Context) (int, error) { time.Sleep(5 * time.Second); return 7, nil })
		if v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
	})
}

func TestWaitingEndsWithTheContextOrInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "chip", Timeout: time.Second})
		defer q.Close()
		release := make(chan struct{})
		go func() { _ = q.Do(t.Context(), func(context.Context) error { <-release; return nil }) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := q.Do(ctx, func(context.Context) error { t.Error("has run"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := q.Stats().Depth; d != 1 {
			t.Errorf("depth %d", d)
		}
		close(release)
	})
}

func TestAPanicIsAnError(t *testing.T) {
	q := New(Options{Chip: "chip"})
	defer q.Close()
	if err := q.Do(t.Context(), func(context.Context) error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Error(err)
	}
	if err := q.Do(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// BenchmarkCall is what a turn costs beside the operation itself.
func BenchmarkCall(b *testing.B) {
	q := New(Options{Chip: "chip", Workers: 8})
	defer q.Close()
	for b.Loop() {
		if err := q.Do(b.Context(), func(context.Context) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
