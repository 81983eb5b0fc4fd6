package mqtt

import "time"

// now gives the time as dates that come from the store have it, which know no monotonic clock.
func (l *listener) now() time.Time { return l.env.Now().Round(0) }

// corrected gives what a date stands for that now has given: the clock may have been set since.
func (l *listener) corrected(date time.Time) time.Time {
	if l.env.Correct == nil {
		return date
	}
	return l.env.Correct(date)
}

// passed tells whether so many seconds have passed since a date, also by a clock that was set since.
func (l *listener) passed(seconds uint32, since, now time.Time) bool {
	d := time.Duration(seconds) * time.Second
	return now.Sub(since) >= d && now.Sub(l.corrected(since)) >= d
}

// endOf gives when a message ends by the clock as it is now; the zero time: never.
func (l *listener) endOf(m *message) time.Time {
	if m.expires.IsZero() {
		return m.expires
	}
	return m.expires.Add(l.corrected(m.taken).Sub(m.taken))
}

func (l *listener) expired(m *message, now time.Time) bool {
	return !m.expires.IsZero() && !now.Before(m.expires) && !now.Before(l.endOf(m))
}
