package supervise

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// house is a supervisor with its problems and its log.
type house struct {
	*Supervisor
	problems *health.Tracker
	log      bytes.Buffer
}

func newHouse() *house {
	h := &house{}
	log := slog.New(slog.NewTextHandler(&h.log, nil))
	h.problems = health.New(log, time.Now)
	h.Supervisor = New(log, h.problems)
	return h
}

func (h *house) failing(t *testing.T, want bool) {
	t.Helper()
	if got := len(h.problems.Problems()) > 0; got != want {
		t.Errorf("problem shown: %v, want %v", got, want)
	}
}

func TestPausesDoubleWithJitterUpToFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		var starts []time.Time
		h.Go(ctx, "pump", func(context.Context, *Task) error {
			starts = append(starts, time.Now())
			return errors.New("no")
		})
		time.Sleep(40 * time.Minute)
		cancel()
		h.Wait()
		want := time.Second
		for i := 1; i < len(starts); i++ {
			if got := starts[i].Sub(starts[i-1]); got < want/2 || got >= want {
				t.Errorf("pause %d is %v, want [%v, %v)", i, got, want/2, want)
			}
			want = min(2*want, 5*time.Minute)
		}
		if len(starts) < 15 {
			t.Errorf("started only %d times", len(starts))
		}
	})
}

func TestAGoodMinuteStartsThePausesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		var ended, pause time.Time
		runs := 0
		h.Go(ctx, "pump", func(context.Context, *Task) error {
			if runs++; runs < 8 {
				return errors.New("no")
			}
			if runs == 8 {
				time.Sleep(goodRun)
				ended = time.Now()
				return errors.New("after a good while")
			}
			pause = time.Now()
			<-ctx.Done()
			return nil
		})
		time.Sleep(10 * time.Minute)
		cancel()
		h.Wait()
		if got := pause.Sub(ended); got <= 0 || got >= time.Second {
			t.Errorf("paused %v", got)
		}
		if runs != 9 {
			t.Errorf("%d runs", runs)
		}
	})
}

func TestTheProblemStaysUntilAGoodMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		var mended atomic.Bool
		h.Go(ctx, "pump", func(ctx context.Context, _ *Task) error {
			if !mended.Load() {
				return errors.New("no")
			}
			<-ctx.Done()
			return nil
		})
		// While it keeps failing, with pauses of minutes between, the problem is there at every moment.
		for range 30 * 60 {
			time.Sleep(time.Second)
			if len(h.problems.Problems()) != 1 {
				t.Fatal("the problem went while the task kept failing")
			}
		}
		mended.Store(true)
		time.Sleep(lastPause + goodRun)
		h.failing(t, false)
		cancel()
		h.Wait()
	})
}

func TestATaskThatEndsByItselfIsStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		h.Go(ctx, "listener field", func(context.Context, *Task) error { return nil })
		synctest.Wait()
		list := h.problems.Problems()
		if len(list) != 1 || list[0].Detail != "ended by itself" || list[0].Subject != "task listener field" {
			t.Errorf("%+v", list)
		}
		cancel()
		h.Wait()
		h.failing(t, false)
	})
}

func TestAPanicCostsOnlyItsTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		other := 0
		h.Go(ctx, "bad", func(context.Context, *Task) error { panic("out of cheese") })
		h.Go(ctx, "good", func(ctx context.Context, _ *Task) error {
			other++
			<-ctx.Done()
			return nil
		})
		synctest.Wait()
		list := h.problems.Problems()
		if len(list) != 1 || list[0].Detail != "panic: out of cheese" {
			t.Errorf("%+v", list)
		}
		if other != 1 || !strings.Contains(h.log.String(), "supervise_test.go") {
			t.Errorf("other ran %d times; log:\n%s", other, h.log.String())
		}
		cancel()
		h.Wait()
	})
}

func TestAPanicOnTheWayOutIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		task := h.Go(t.Context(), "bad", func(ctx context.Context, _ *Task) error {
			<-ctx.Done()
			panic("out of cheese")
		})
		if err := task.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if !strings.Contains(h.log.String(), "out of cheese") {
			t.Errorf("log: %s", h.log.String())
		}
	})
}

func TestStopWaitsForTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ended, runs := false, 0
		task := h.Go(t.Context(), "slow", func(ctx context.Context, _ *Task) error {
			runs++
			<-ctx.Done()
			time.Sleep(3 * time.Second)
			ended = true
			return ctx.Err()
		})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := task.Stop(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "task slow: did not stop") {
			t.Errorf("after a second: %v", err)
		}
		if err := task.Stop(t.Context()); err != nil || !ended {
			t.Errorf("after three: %v, ended %v", err, ended)
		}
		h.Wait()
		if runs != 1 {
			t.Error("a task that was stopped was started again")
		}
	})
}

func TestStopEndsAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		task := h.Go(t.Context(), "pump", func(context.Context, *Task) error { return errors.New("no") })
		time.Sleep(20 * time.Minute)
		began := time.Now()
		if err := task.Stop(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		h.failing(t, false)
	})
}

func TestStuckNamesTheTaskThatBrokeItsPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		step := make(chan func(*Task))
		h.Go(ctx, "pump cloud", func(ctx context.Context, task *Task) error {
			for {
				select {
				case f := <-step:
					f(task)
				case <-ctx.Done():
					return nil
				}
			}
		})
		h.Go(ctx, "never says anything", func(ctx context.Context, _ *Task) error {
			<-ctx.Done()
			return nil
		})
		stuck := func(want ...string) {
			t.Helper()
			if got := h.Stuck(); !slices.Equal(got, want) {
				t.Errorf("stuck: %q, want %q", got, want)
			}
		}
		step <- func(task *Task) { task.Progress(10 * time.Second) }
		time.Sleep(10 * time.Second)
		stuck()
		time.Sleep(time.Millisecond)
		stuck("pump cloud")
		step <- func(task *Task) { task.Progress(10 * time.Second) }
		synctest.Wait()
		stuck()
		step <- func(task *Task) { task.Waiting() }
		time.Sleep(time.Hour)
		stuck()
		cancel()
		h.Wait()
		stuck()
	})
}

func TestATaskInItsPauseIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		ctx, cancel := context.WithCancel(t.Context())
		h.Go(ctx, "pump", func(_ context.Context, task *Task) error {
			task.Progress(time.Millisecond)
			return errors.New("no")
		})
		time.Sleep(30 * time.Minute)
		if got := h.Stuck(); got != nil {
			t.Errorf("stuck: %q", got)
		}
		cancel()
		h.Wait()
	})
}
