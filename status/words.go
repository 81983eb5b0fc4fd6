package status

import (
	"strconv"
	"time"
)

// number writes n with its thousands apart: 12 345 (a thin space, ISO 80000-1).
func number[T int | int64 | uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "\u2009" + s[i:]
	}
	return s
}

// Size writes octets as people read them: 1.5 MiB.
func Size(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		f /= 1024
		if f < 1023.5 {
			return trim(f) + " " + unit
		}
	}
	return trim(f/1024) + " TiB"
}

// trim writes f with three figures or so.
func trim(f float64) string {
	if f < 9.95 {
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}

// units of time from the largest, with the key of their names.
var units = []struct {
	key string
	of  time.Duration
}{{"unit.d", 24 * time.Hour}, {"unit.h", time.Hour}, {"unit.min", time.Minute}, {"unit.s", time.Second}, {"unit.ms", time.Millisecond}, {"unit.us", time.Microsecond}}

// span writes a length of time in its largest unit, days and hours with the next smaller one: "3 d 4 h", "12 s", "40 ms".
func (l *language) span(d time.Duration) string {
	if d < 0 {
		return "−" + l.span(-d)
	}
	for i, u := range units {
		if d < u.of {
			continue
		}
		s := strconv.FormatInt(int64(d/u.of), 10) + l.text(u.key)
		if rest := d % u.of; i < 2 && rest >= units[i+1].of {
			s += " " + strconv.FormatInt(int64(rest/units[i+1].of), 10) + l.text(units[i+1].key)
		}
		return s
	}
	return "0" + l.text("unit.s")
}

// since writes how long ago t is; "never" where t is zero.
func (l *language) since(t, now time.Time) string {
	if t.IsZero() {
		return l.text("never")
	}
	return l.span(max(0, now.Sub(t)))
}
