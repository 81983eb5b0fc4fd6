package auth

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// machine is a computer with a clock that can be set.
type machine struct {
	booted time.Time
	ahead  atomic.Int64 // of the clock
	path   string
}

func (m *machine) elapsed() time.Duration { return time.Since(m.booted) }
func (m *machine) system() time.Time {
	return time.Unix(60, 0).Add(time.Duration(m.ahead.Load()) + m.elapsed())
}

func (m *machine) start(t *testing.T, built time.Time) *Clock {
	t.Helper()
	c, err := OpenClock(m.path, built, m.system)
	if err != nil {
		t.Fatal(err)
	}
	c.leaps.open("", time.Time{}, c.Now(), m.elapsed(), !c.system().Before(c.floor)) // as OpenClock, by this machine's time
	c.elapsed = m.elapsed
	return c
}

func TestLeaps(t *testing.T) {
	built := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for name, f := range map[string]func(t *testing.T, m *machine){
		"what was dated before the clock was set is as old as it is": func(t *testing.T, m *machine) {
			c := m.start(t, built)
			time.Sleep(time.Hour)
			dated := c.Now()
			time.Sleep(time.Hour)
			if got := c.Correct(dated); !got.Equal(dated) {
				t.Errorf("before the leap: %v became %v", dated, got)
			}
			truth := built.Add(10 * 24 * time.Hour)
			m.ahead.Add(int64(truth.Sub(m.system())))
			if age := c.Now().Sub(c.Correct(dated)); (age - time.Hour).Abs() > time.Second {
				t.Errorf("it is an hour old, not %v", age)
			}
			fresh := c.Now()
			if got := c.Correct(fresh); !got.Equal(fresh) {
				t.Errorf("what is dated after the leap moved to %v", got)
			}
			old := built.Add(-time.Hour)
			if got := c.Correct(old); !got.Equal(old) {
				t.Errorf("what was dated by an earlier process that knew the time moved to %v", got)
			}
		},
		"a clock that comes to the time in two leaps is right after the second": func(t *testing.T, m *machine) {
			c := m.start(t, built)
			dated := c.Now()
			time.Sleep(time.Hour)
			m.ahead.Add(int64(built.Add(240 * time.Hour).Sub(m.system())))
			time.Sleep(time.Hour)
			between := c.Now()
			c.Correct(between)
			time.Sleep(time.Hour)
			m.ahead.Add(int64(480 * time.Hour))
			for date, want := range map[time.Time]time.Duration{dated: 3 * time.Hour, between: time.Hour} {
				if age := c.Now().Sub(c.Correct(date)); (age - want).Abs() > time.Second {
					t.Errorf("it is %v old, not %v", want, age)
				}
			}
		},
		"a clock that is put right by seconds has not leapt": func(t *testing.T, m *machine) {
			m.ahead.Store(int64(built.Sub(m.system()) + time.Hour))
			c := m.start(t, built)
			dated := c.Now()
			time.Sleep(time.Hour)
			m.ahead.Add(int64(20 * time.Second))
			if got := c.Correct(dated); !got.Equal(dated) {
				t.Errorf("moved by %v", got.Sub(dated))
			}
		},
		"a clock that is set back makes nothing older": func(t *testing.T, m *machine) {
			m.ahead.Store(int64(built.Sub(m.system()) + 1000*time.Hour))
			c := m.start(t, built)
			dated := c.Now()
			m.ahead.Add(-int64(900 * time.Hour))
			if got := c.Correct(dated); !got.Equal(dated) {
				t.Errorf("moved by %v", got.Sub(dated))
			}
		},
		"the next process knows": func(t *testing.T, m *machine) {
			c := m.start(t, built)
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- c.Run(ctx, health.New(slog.New(slog.DiscardHandler), time.Now).For("clock")) }()
			time.Sleep(time.Hour)
			dated := c.Now()
			m.ahead.Add(int64(5000 * 24 * time.Hour * 5))
			time.Sleep(time.Minute)
			stop()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			next, err := OpenClock(m.path, built, m.system)
			if err != nil {
				t.Fatal(err)
			}
			if age := next.Now().Sub(next.Correct(dated)); (age - time.Minute).Abs() > 2*time.Second {
				t.Errorf("it is a minute old, not %v", age)
			}
		},
		"the clock is set while no process runs": func(t *testing.T, m *machine) {
			c := m.start(t, built)
			time.Sleep(time.Hour)
			dated := c.Now()
			ctx, stop := context.WithCancel(t.Context())
			stop()
			if err := c.Run(ctx, health.New(slog.New(slog.DiscardHandler), time.Now).For("clock")); err != nil {
				t.Fatal(err)
			}
			m.ahead.Add(int64(built.Add(30 * 24 * time.Hour).Sub(m.system())))
			next, err := OpenClock(m.path, built, m.system)
			if err != nil {
				t.Fatal(err)
			}
			if age := next.Now().Sub(next.Correct(dated)); age.Abs() > time.Second {
				t.Errorf("it is new, not %v old", age)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f(t, &machine{booted: time.Now(), path: filepath.Join(t.TempDir(), "clock")})
			})
		})
	}
}
