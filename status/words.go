package status

import (
	"fmt"
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

// size writes octets as people read them: 1.5 MiB.
func size(n int64) string {
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

// span writes a length of time in its two largest units: "3 d 4 h", "12 s", "40 ms".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Millisecond:
		return strconv.FormatInt(d.Microseconds(), 10) + " µs"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	type unit struct {
		name string
		of   time.Duration
	}
	units := []unit{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.of {
			continue
		}
		s := fmt.Sprintf("%d %s", d/u.of, u.name)
		if i+1 < len(units) && i < 2 {
			if rest := d % u.of / units[i+1].of; rest > 0 {
				s += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return s
	}
	return "0 s"
}

// since writes how long ago t is; "never" where t is zero.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(max(0, now.Sub(t)))
}
