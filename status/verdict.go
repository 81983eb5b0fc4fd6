package status

import (
	"fmt"
	"strings"

	"github.com/drawbridge/drawbridge/internal/health"
)

// State is the verdict in one word.
type State string

// The states of the gateway, from best to worst.
const (
	StateOK       State = "ok"
	StateNotice   State = "notice"   // works; something is worth knowing
	StateStarting State = "starting" // a listener is not bound yet
	StateDegraded State = "degraded" // part of the work is late or refused
	StateFailing  State = "failing"  // the main job does not get done
)

// Verdict is the whole in one sentence.
type Verdict struct {
	State    State  `json:"state"`
	Sentence string `json:"sentence"` // English
}

// Well tells whether the gateway does its work: what `drawbridge status` answers by its exit status.
func (v Verdict) Well() bool { return v.State == StateOK || v.State == StateNotice }

// complete fills in what follows from the rest.
func (s *Snapshot) complete() {
	s.Version = Version
	listed(&s.Problems)
	listed(&s.Listeners)
	listed(&s.Routes)
	listed(&s.Connectors)
	listed(&s.Ledger)
	listed(&s.Keys)
	listed(&s.Chips)
	s.Gateway.Ready = len(s.Unbound()) == 0
	s.Verdict = Verdict{s.state(), s.sentence(english)}
}

// listed makes JSON show an empty list as one, not as null.
func listed[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

func (s *Snapshot) state() State {
	if len(s.Problems) > 0 {
		switch s.Problems[0].Severity {
		case health.Failing:
			return StateFailing
		case health.Degraded:
			return StateDegraded
		}
	}
	switch {
	case len(s.Unbound()) > 0:
		return StateStarting
	case len(s.Problems) > 0:
		return StateNotice
	}
	return StateOK
}

// sentence says in words of the language what state says in one.
func (s *Snapshot) sentence(l *language) string {
	switch state := s.state(); state {
	case StateStarting:
		return l.textf("verdict.starting", strings.Join(s.Unbound(), ", "))
	case StateOK:
		return l.textf("verdict.ok", s.flow(l))
	case StateNotice:
		return l.textf("verdict.notice", s.flow(l), l.lead(s.Problems))
	default:
		return l.textf("verdict."+string(state), l.lead(s.Problems))
	}
}

// flow says what crosses: how many devices, clouds and waiting messages.
func (s *Snapshot) flow(l *language) string {
	up := 0
	for _, c := range s.Connectors {
		if c.State == ConnectorUp {
			up++
		}
	}
	waiting := l.text("flow.empty")
	if n := s.Totals().Pending; n > 0 {
		waiting = l.count("flow.waiting", int(n))
	}
	return fmt.Sprintf("%s, %s, %s", l.count("flow.devices", s.Devices.Connected), l.count("flow.clouds", up), waiting)
}

// lead names the first problem, and how many there are besides.
func (l *language) lead(list []health.Problem) string {
	first := l.title(list[0])
	if list[0].Subject != "" {
		first += " (" + list[0].Subject + ")"
	}
	if more := len(list) - 1; more > 0 {
		first += l.count("verdict.more", more)
	}
	return first
}
