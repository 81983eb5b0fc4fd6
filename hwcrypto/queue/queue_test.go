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

func TestWhoIsPatientCostsOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "the chip", Timeout: time.Second})
		defer q.Close()
		gaveUp := make(chan error, 4)
		patient := hwcrypto.WithPatience(as(t, "a"), func(err error) { gaveUp <- err })
		if v, err := Call(patient, q, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
		release, told := make(chan struct{}), make(chan error, 1)
		begin := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			v, err := Call(patient, q, func(ctx context.Context) (int, error) {
				<-ctx.Done()
				told <- context.Cause(ctx)
				<-release
				return 7, nil
			})
			if v != 0 || !errors.Is(err, hwcrypto.ErrTimeout) || !strings.Contains(err.Error(), "the chip") {
				t.Errorf("what returned too late: %d, %v", v, err)
			}
		})
		time.Sleep(500 * time.Millisecond)
		if err := q.Do(as(t, "b"), func(context.Context) error { return nil }); err != nil || time.Since(begin) != time.Second {
			t.Errorf("the next: %v after %v", err, time.Since(begin))
		}
		for who, told := range map[string]chan error{"the operation": told, "the caller": gaveUp} {
			if err := <-told; !errors.Is(err, hwcrypto.ErrTimeout) || !strings.Contains(err.Error(), "the chip") {
				t.Errorf("%s was told %v", who, err)
			}
		}
		for range 3 {
			wg.Go(func() { _ = q.Do(patient, func(context.Context) error { <-release; return nil }) })
			time.Sleep(2 * time.Second)
		}
		if err := q.Do(patient, func(context.Context) error { t.Error("has run"); return nil }); !errors.Is(err, hwcrypto.ErrTimeout) {
			t.Errorf("after too many: %v", err)
		}
		close(release)
		wg.Wait()
		if err := q.Do(patient, func(context.Context) error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
			t.Error(err)
		}
		if err := q.Do(patient, func(context.Context) error { return nil }); err != nil {
			t.Errorf("after they have returned: %v", err)
		}
		if s := q.Stats(); s.TimedOut != 4 || s.Depth != 0 || s.Done != 3 || s.Failed != 2 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestEachOperationHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Chip: "chip", Workers: 3, Timeout: time.Second})
		defer q.Close()
		release := make(chan struct{})
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
				err := q.Do(t.Context(), func(context.Context) error {
					if i == 1 {
						time.Sleep(900 * time.Millisecond)
						return nil
					}
					<-release
					return nil
				})
				want := time.Duration(i)*300*time.Millisecond + time.Second
				if i == 1 && (err != nil || time.Since(begin) != 1200*time.Millisecond) || i != 1 && (!errors.Is(err, hwcrypto.ErrTimeout) || time.Since(begin) != want) {
					t.Errorf("%d: %v after %v", i, err, time.Since(begin))
				}
			})
		}
		wg.Wait()
		close(release)
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
	for name, ctx := range map[string]context.Context{"handed over": b.Context(), "in place": hwcrypto.WithPatience(b.Context(), func(error) {})} {
		b.Run(name, func(b *testing.B) {
			q := New(Options{Chip: "chip", Workers: 8})
			defer q.Close()
			for b.Loop() {
				if err := q.Do(ctx, func(context.Context) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
