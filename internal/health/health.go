// Package health keeps the list of what is wrong at this moment. Status page, `drawbridge status`, metrics,
// /healthz and the log all show this one list.
//
// A problem is declared once, as data, where it can arise. It is set and cleared by whoever sees it; setting it again is cheap and
// changes nothing but its detail.
package health

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Severity orders problems.
type Severity uint8

// The severities: what a person should do about it.
const (
	Notice   Severity = iota + 1 // worth knowing; nothing is lost or late
	Degraded                     // part of the work is late or refused
	Failing                      // the main job does not get done
)

// String gives the severity in one word.
func (s Severity) String() string {
	return [...]string{"", "notice", "degraded", "failing"}[min(s, Failing)]
}

// MarshalText makes JSON show the word.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the word.
func (s *Severity) UnmarshalText(text []byte) error {
	for v := Notice; v <= Failing; v++ {
		if v.String() == string(text) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("severity %q: unknown", text)
}

// Code declares a kind of problem.
type Code struct {
	Name      string // stable, kebab-case: "cloud-unreachable"
	Title     string // what is wrong, in plain words
	Severity  Severity
	Hint      string        // what to do
	DependsOn []string      // names of codes which, present for the same subject, make this one a mere consequence
	After     time.Duration // how long it must last before it is shown
}

// Problem is one thing that is wrong now.
type Problem struct {
	Code     string    `json:"code"`
	Title    string    `json:"title"`
	Severity Severity  `json:"severity"`
	Subject  string    `json:"subject"` // "connector cloud", "key identity"; empty: the gateway
	Detail   string    `json:"detail,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Precise  bool      `json:"precise,omitempty"` // the hint is for this very error, not for its kind
	Since    time.Time `json:"since"`

	Explained *Explanation `json:"-"` // of which detail and hint are the English; nil where there is none
	Own       string       `json:"-"` // the words of the error that is explained
}

type id struct{ code, subject string }

type entry struct {
	code   *Code
	detail string
	hint   string
	why    *Explanation
	own    string
	since  time.Time
}

// Tracker is the list. The zero value is not usable; see New.
type Tracker struct {
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	problems map[id]*entry // guarded by mu
}

// New makes an empty list that logs each change of state to log.
func New(log *slog.Logger, now func() time.Time) *Tracker {
	return &Tracker{log: log, now: now, problems: map[id]*entry{}}
}

// For gives a reporter whose problems carry the subject.
func (t *Tracker) For(subject string) *Reporter { return &Reporter{t, subject} }

// Problems lists what is wrong, worst first, without those that only follow from another and those too young to show.
func (t *Tracker) Problems() []Problem {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var list []Problem
	for k, e := range t.problems {
		if now.Sub(e.since) < e.code.After || slices.ContainsFunc(e.code.DependsOn, func(c string) bool {
			return t.problems[id{c, k.subject}] != nil || t.problems[id{c, ""}] != nil
		}) {
			continue
		}
		list = append(list, Problem{e.code.Name, e.code.Title, e.code.Severity, k.subject, e.detail, e.hint, e.hint != e.code.Hint, e.since, e.why, e.own})
	}
	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), a.Since.Compare(b.Since), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Subject, b.Subject))
	})
	return list
}

// Reporter sets and clears problems of one subject. A nil Reporter does nothing.
type Reporter struct {
	t       *Tracker
	subject string
}

// Set says that the problem is there. detail is for a person; it holds no secret.
func (r *Reporter) Set(c *Code, detail string) { r.set(c, detail, c.Hint, nil, "") }

// Fail is Set for an error, which is put in plain words where that is possible; the hint then fits the error rather than the code.
func (r *Reporter) Fail(c *Code, err error) {
	if r == nil {
		return
	}
	now := r.t.now()
	e, ok := Explain(err, now)
	if !ok {
		r.Set(c, err.Error())
		return
	}
	text, hint := Words(err, now)
	r.set(c, text, hint, &e, err.Error())
}

func (r *Reporter) set(c *Code, detail, hint string, why *Explanation, own string) {
	if r == nil {
		return
	}
	t, k := r.t, id{c.Name, r.subject}
	t.mu.Lock()
	e := t.problems[k]
	fresh := e == nil
	if fresh {
		e = &entry{code: c, since: t.now()}
		t.problems[k] = e
	}
	e.detail, e.hint, e.why, e.own = detail, hint, why, own
	t.mu.Unlock()
	if fresh {
		t.log.Warn(c.Title, "problem", c.Name, "subject", r.subject, "detail", detail, "hint", hint)
	}
}

// Clear says that the problem is gone. Clearing what is not there does nothing.
func (r *Reporter) Clear(c *Code) {
	if r == nil {
		return
	}
	t, k := r.t, id{c.Name, r.subject}
	t.mu.Lock()
	e := t.problems[k]
	delete(t.problems, k)
	t.mu.Unlock()
	if e != nil {
		t.log.Info("solved: "+c.Title, "problem", c.Name, "subject", r.subject)
	}
}

// ClearAll clears every problem of the subject: it is going away.
func (r *Reporter) ClearAll() {
	if r == nil {
		return
	}
	var gone []*Code
	r.t.mu.Lock()
	for k, e := range r.t.problems {
		if k.subject == r.subject {
			delete(r.t.problems, k)
			gone = append(gone, e.code)
		}
	}
	r.t.mu.Unlock()
	for _, c := range gone {
		r.t.log.Info("no longer: "+c.Title, "problem", c.Name, "subject", r.subject)
	}
}
