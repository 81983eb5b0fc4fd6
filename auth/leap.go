package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	leastLeap = time.Minute // less is what a clock that runs badly is put right by
	maxLeaps  = 16          // that are remembered
)

// leap says that what was dated from from until to was dated by a clock that stood too far back, by so much.
//
// Dates of before the leap end about where it began, and those of after it begin where it ended; to lies halfway, so that
// neither the moment at which it was noticed matters, nor a few dates that a process wrote which did not live to write down how far it came.
type leap struct {
	from, to time.Time
	by       time.Duration
}

// leaps is what a Clock knows of its leaps forward. Of one backward nothing need be known: what was dated before it is thought
// younger than it is, so that nothing ends too early.
type leaps struct {
	known atomic.Pointer[[]leap] // immutable

	mu     sync.Mutex
	since  time.Time     // guarded by mu; dates from then on were given in one go
	chain  int           // guarded by mu; so many of the last leaps came one upon the other: what was dated before one of them is made good by the later ones, too
	unsure bool          // guarded by mu; the clock was not believed
	now    time.Time     // guarded by mu; at the last look
	at     time.Duration // guarded by mu; elapsed, then
	slept  time.Duration // guarded by mu; the machine, until then
	news   bool          // guarded by mu; to be written down
}

// slept is how long the machine has slept since it was started, which a clock shows and elapsed does not.
func slept() time.Duration {
	var with, without unix.Timespec
	if errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &with), unix.ClockGettime(unix.CLOCK_MONOTONIC, &without)) != nil {
		return 0 // a kernel without them is older than Go bears
	}
	return time.Duration(with.Nano() - without.Nano())
}

// open takes over what a process before has written, which ran until about kept.
func (l *leaps) open(text string, kept, now time.Time, elapsed time.Duration, believed bool) {
	var known []leap
	before := now
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "unsure":
			if t, err := time.Parse(time.RFC3339, rest); err == nil && t.Before(before) {
				before = t
			}
		case "leap":
			f := strings.Fields(rest)
			if len(f) != 3 {
				continue
			}
			from, err1 := time.Parse(time.RFC3339, f[0])
			to, err2 := time.Parse(time.RFC3339, f[1])
			by, err3 := time.ParseDuration(f[2])
			if err1 == nil && err2 == nil && err3 == nil && by > 0 {
				known = append(known, leap{from, to, by})
			}
		}
	}
	if believed && before.Before(now) {
		// The true time came while no process ran. How long that was nobody knows; nothing is to end because of it.
		if by := now.Sub(kept); by >= leastLeap && !kept.IsZero() {
			known = append(known, leap{before, kept.Add(by / 2), by})
		}
		before = now
	}
	l.known.Store(&known)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since, l.unsure, l.now, l.at, l.slept = before, !believed, now, elapsed, slept()
}

// look compares the clock with the time that has passed.
func (l *leaps) look(now time.Time, elapsed time.Duration, believed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	by := now.Sub(l.now) - (elapsed - l.at)
	l.news = l.news || l.unsure == believed
	if by.Abs() >= leastLeap {
		s := slept()
		by -= s - l.slept
		l.slept = s
	}
	if by >= leastLeap {
		known := slices.Clone(*l.known.Load())
		for i := len(known) - l.chain; i < len(known); i++ {
			known[i].by += by
		}
		known = append(known, leap{l.since, now.Add(-by / 2), by})
		known = known[max(0, len(known)-maxLeaps):]
		l.known.Store(&known)
		l.chain = min(l.chain+1, len(known))
	} else if by <= -leastLeap {
		l.chain = 0
	}
	if by.Abs() >= leastLeap {
		l.since, l.news = now, true
	}
	l.unsure, l.now, l.at = !believed, now, elapsed
}

// changed tells, once, whether there is something new to write down.
func (l *leaps) changed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	news := l.news
	l.news = false
	return news
}

func (l *leaps) correct(date time.Time) time.Time {
	for _, k := range *l.known.Load() {
		if !date.Before(k.from) && date.Before(k.to) {
			return date.Add(k.by)
		}
	}
	return date
}

// text is what open reads.
func (l *leaps) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	if l.unsure {
		fmt.Fprintf(&b, "unsure %s\n", l.since.UTC().Format(time.RFC3339))
	}
	for _, k := range *l.known.Load() {
		fmt.Fprintf(&b, "leap %s %s %v\n", k.from.UTC().Format(time.RFC3339), k.to.UTC().Format(time.RFC3339), k.by.Round(time.Second))
	}
	return b.String()
}
