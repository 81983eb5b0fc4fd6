package health

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Meaning declares what errors of one kind mean, as data. A word in braces is a place, which takes a value of the very error.
type Meaning struct {
	Name  string // stable, kebab-case; other languages know the texts by it
	What  string // what is wrong; empty: what the error itself says
	Hint  string // what to do
	Stays bool   // waiting does not mend it
}

// Values are what the places of a meaning's texts take: strings, and lengths of time, which each language says in its own way.
type Values map[string]any

// Explanation is an error in plain words.
type Explanation struct {
	*Meaning
	Values Values
}

// Say fills the places of a text, which is one of the meaning's own or a translation of it.
func (e Explanation) Say(text string, span func(time.Duration) string) string {
	pairs := make([]string, 0, 2*len(e.Values))
	for name, value := range e.Values {
		if d, ok := value.(time.Duration); ok {
			value = span(d)
		}
		pairs = append(pairs, "{"+name+"}", fmt.Sprint(value))
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// Words gives both texts in English.
func (e Explanation) Words() (what, hint string) {
	return e.Say(e.What, rough), e.Say(e.Meaning.Hint, rough)
}

// Explainer is the ability of an error to say what it means; false: it knows no more than others do.
type Explainer interface {
	error
	Explain(now time.Time) (Explanation, bool)
}

// Of gives err the meaning. Its text stays, and so does what errors.Is and errors.As find in it.
func (m *Meaning) Of(err error, v Values) error { return &explained{err, Explanation{m, v}} }

type explained struct {
	error
	e Explanation
}

func (x *explained) Unwrap() error                         { return x.error }
func (x *explained) Explain(time.Time) (Explanation, bool) { return x.e, true }

// Hint is for those who want no more of an error than that.
func (x *explained) Hint() string {
	_, hint := x.e.Words()
	return hint
}

// Explain says what an error means; false where nothing better is known than its own words. now is the trusted clock. What an error says of
// itself, if only by a method Hint, goes before what the table knows of errors of certificates, TLS, names and connections.
func Explain(err error, now time.Time) (Explanation, bool) {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if _, more := h.(Explainer); ok && !more && h.Hint() != "" {
		return Explanation{Meaning: &Meaning{Hint: h.Hint()}}, true
	}
	if e, ok := errors.AsType[Explainer](err); ok {
		if x, ok := e.Explain(now); ok {
			return x, true
		}
	}
	for _, explain := range []func(error, time.Time) (Explanation, bool){ofCertificate, ofAlert, ofHandshake, ofAnswer, ofConnection} {
		if e, ok := explain(err, now); ok {
			return e, true
		}
	}
	return Explanation{}, false
}

// Words gives err in plain words, with its own behind them, and what to do; the hint is empty where nothing is known.
func Words(err error, now time.Time) (text, hint string) {
	e, ok := Explain(err, now)
	if !ok {
		return err.Error(), ""
	}
	what, hint := e.Words()
	return Beside(what, err.Error()), hint
}

// Beside puts an error's own words behind what is wrong, where they do not say it themselves.
func Beside(what, own string) string {
	if strings.Contains(own, what) {
		return own
	}
	return fmt.Sprintf("%s (%s)", what, own)
}

// Stays tells whether err is known to be one that waiting does not mend; no time changes that.
func Stays(err error) bool {
	e, ok := Explain(err, time.Time{})
	return ok && e.Stays
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// rough says a length of time as one does.
func rough(d time.Duration) string {
	n, unit := d/time.Minute, "minute"
	switch {
	case d >= 48*time.Hour:
		n, unit = d/(24*time.Hour), "day"
	case d >= 2*time.Hour:
		n, unit = d/time.Hour, "hour"
	case d < 2*time.Minute:
		n, unit = d/time.Second, "second"
	}
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}
