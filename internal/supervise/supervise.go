// Package supervise runs the long-lived tasks of the gateway and starts again what failed.
//
// A task is one function that runs until its context ends. When it returns early or panics it is started again after a pause of 1 s
// that doubles up to 5 min, with jitter; a task that ran well for a minute starts over at 1 s. A task that makes no progress, and has not said that
// it waits for something, is reported by Stuck: the watchdog is fed only while that is empty.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// TaskFailed is the problem of a task that had to be started again.
var TaskFailed = health.Code{
	Name:     "task-failed",
	Title:    "a part of the gateway failed and is started again",
	Severity: health.Degraded,
	Hint:     "the detail says why; if it does not end, report it together with `drawbridge support`",
}

// TaskStuck is the problem of a task that hangs.
var TaskStuck = health.Code{
	Name:     "task-stuck",
	Title:    "a part of the gateway hangs",
	Severity: health.Failing,
	Hint:     "under systemd the watchdog restarts the gateway within two minutes; elsewhere restart it; if it does not end, report it together with `drawbridge support`",
}

const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	goodRun    = time.Minute
)

// Supervisor owns tasks. The zero value is not usable; see New.
type Supervisor struct {
	log     *slog.Logger
	tracker *health.Tracker
	wg      sync.WaitGroup

	mu    sync.Mutex
	tasks []*Task // guarded by mu
}

// New makes a Supervisor without tasks.
func New(log *slog.Logger, tracker *health.Tracker) *Supervisor {
	return &Supervisor{log: log, tracker: tracker}
}

// Task is what a running function holds of its own supervision.
type Task struct {
	Name   string
	cancel context.CancelCauseFunc
	ended  chan struct{}

	mu     sync.Mutex
	within time.Duration // guarded by mu; 0: in a known wait
	beat   time.Time     // guarded by mu
}

// Progress says that the task moved, and that it will say so again within d.
func (t *Task) Progress(d time.Duration) {
	t.mu.Lock()
	t.within, t.beat = d, time.Now()
	t.mu.Unlock()
}

// Waiting says that the task waits for something that may take for ever: a device, a timer, a connection.
func (t *Task) Waiting() {
	t.mu.Lock()
	t.within = 0
	t.mu.Unlock()
}

// Stop ends the task and waits until it has ended or ctx has.
func (t *Task) Stop(ctx context.Context) error {
	t.cancel(errors.New("stopped"))
	select {
	case <-t.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("task %s: did not stop: %w", t.Name, context.Cause(ctx))
	}
}

// Go starts run under supervision until ctx ends or the task is stopped.
func (s *Supervisor) Go(ctx context.Context, name string, run func(context.Context, *Task) error) *Task {
	ctx, cancel := context.WithCancelCause(ctx)
	t := &Task{Name: name, cancel: cancel, ended: make(chan struct{})}
	s.mu.Lock()
	s.tasks = append(s.tasks, t)
	s.mu.Unlock()
	s.wg.Go(func() {
		defer func() {
			cancel(nil)
			s.mu.Lock()
			s.tasks = slices.DeleteFunc(s.tasks, func(o *Task) bool { return o == t })
			s.mu.Unlock()
			close(t.ended)
		}()
		s.keep(ctx, t, run)
	})
	return t
}

func (s *Supervisor) keep(ctx context.Context, t *Task, run func(context.Context, *Task) error) {
	reporter := s.tracker.For("task " + t.Name)
	defer reporter.ClearAll()
	for pause := firstPause; ; {
		began := time.Now()
		settled := make(chan struct{})
		settle := time.AfterFunc(goodRun, func() {
			reporter.Clear(&TaskFailed)
			close(settled)
		})
		err := once(ctx, t, run)
		if !settle.Stop() {
			<-settled // else a late Clear could take away what is set below
		}
		if p, ok := errors.AsType[*Panic](err); ok {
			s.log.Error("panic", "task", t.Name, "value", fmt.Sprint(p.Value), "stack", string(p.Stack))
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		if time.Since(began) >= goodRun {
			pause = firstPause
		}
		t.Waiting()
		reporter.Set(&TaskFailed, err.Error())
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, lastPause)
	}
}

// Panic is the error of a task that panicked. The log has its stack.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

func once(ctx context.Context, t *Task, run func(context.Context, *Task) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &Panic{v, debug.Stack()}
		}
	}()
	return run(ctx, t)
}

// Wait waits until every task has ended.
func (s *Supervisor) Wait() { s.wg.Wait() }

// Stuck names the tasks that promised progress and made none, and keeps the list of problems in step with that.
func (s *Supervisor) Stuck() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		reporter := s.tracker.For("task " + t.Name)
		t.mu.Lock()
		if t.within > 0 && time.Since(t.beat) > t.within {
			names = append(names, t.Name)
			reporter.Set(&TaskStuck, "")
		} else {
			reporter.Clear(&TaskStuck)
		}
		t.mu.Unlock()
	}
	return names
}
