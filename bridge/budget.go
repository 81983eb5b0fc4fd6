package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// BudgetShort is the problem of a connector whose data budget makes messages wait.
var BudgetShort = health.Code{
	Name: "data-budget-short", Title: "the data budget is nearly used up: messages wait", Severity: health.Degraded,
	Hint: "they go out when the day or the month is over, or expire by ttl or spool.max_age; raise [connector.NAME.budget]",
}

// Budget is what a connector may put on the wire and take off it.
//
// Messages of low priority wait once four fifths of it are used, those of normal priority once all of it is. What has high priority always
// goes, and is counted. Nothing is lost for it: what waits is in the queue. Since octets are counted once they are on the wire, what is on its way
// may exceed a limit.
type Budget struct {
	config.Budget
	Wire Wire // nil: nothing is counted
}

// Wire counts the octets of one connector's connections: TCP and UDP payload with TLS and DTLS, log-ins and pings, without the headers of
// IP, TCP and UDP. It must be comparable.
type Wire interface {
	Octets() (sent, received int64) // since it was made
}

const (
	lowShare          = 0.8 // of a budget: when low priority waits
	budgetLook        = 10 * time.Second
	keepAccountsEvery = time.Minute
	carefulBatch      = 16 // messages that are read at once where there is a limit
)

var errLookAgain = errors.New("look again at the budget")

// used is what a connector has had on the wire, as it is kept on disk.
type used struct {
	Day         string `json:"day"` // "2006-01-02"
	DayOctets   int64  `json:"day_octets"`
	Month       string `json:"month"` // "2006-01"
	MonthOctets int64  `json:"month_octets"`
}

// account reckons what a connector has had on the wire. Its zero value has no limit.
type account struct {
	mu     sync.Mutex
	budget Budget           // guarded by mu, as all below
	used   used             //
	seen   int64            // of budget.Wire, that is in used
	routes map[string]int64 // octets of topics and payloads that the cloud has confirmed, by route
	kept   used             // on disk
}

// swap takes over another budget, or the same.
func (a *account) swap(b Budget, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reckon(now)
	if b.Wire != a.budget.Wire {
		a.seen = 0
	}
	a.budget = b
}

// reckon takes over what went over the wire since; mu is held.
func (a *account) reckon(now time.Time) {
	if a.budget.Wire == nil {
		return
	}
	sent, received := a.budget.Wire.Octets()
	fresh := sent + received - a.seen
	a.seen += fresh
	now = now.UTC()
	if day := now.Format(time.DateOnly); day != a.used.Day {
		a.used.Day, a.used.DayOctets = day, 0
	}
	if month := now.Format("2006-01"); month != a.used.Month {
		a.used.Month, a.used.MonthOctets = month, 0
	}
	a.used.DayOctets += fresh
	a.used.MonthOctets += fresh
}

// share tells how much of the budget is used, 1 for all; mu is held.
func (a *account) share() (most float64) {
	for _, l := range []struct{ limit, used int64 }{{int64(a.budget.Day), a.used.DayOctets}, {int64(a.budget.Month), a.used.MonthOctets}} {
		if l.limit > 0 {
			most = max(most, float64(l.used)/float64(l.limit))
		}
	}
	return most
}

// lowest gives the lowest priority that goes out now.
func (a *account) lowest(now time.Time) spool.Class {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reckon(now)
	switch share := a.share(); {
	case share >= 1:
		return spool.High
	case share >= lowShare:
		return spool.Normal
	}
	return spool.Low
}

// most gives how many of n messages are to be read at once, so that a limit is not exceeded by much.
func (a *account) most(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.budget.Day > 0 || a.budget.Month > 0 {
		return min(n, carefulBatch)
	}
	return n
}

func (a *account) linger() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(a.budget.Linger)
}

// sent notes what of a route the cloud has confirmed.
func (a *account) sent(route string, octets int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.routes == nil {
		a.routes = map[string]int64{}
	}
	a.routes[route] += int64(octets)
}

// WireStatus is what a connector has had on the wire.
type WireStatus struct {
	Sent     int64            `json:"sent"`               // octets since the connector was opened, see Wire
	Received int64            `json:"received"`           //
	Day      int64            `json:"day"`                // octets of this day in UTC, both ways
	Month    int64            `json:"month"`              // octets of this month
	DayMax   int64            `json:"day_max,omitzero"`   // zero: no limit
	MonthMax int64            `json:"month_max,omitzero"` //
	Waits    []string         `json:"waits,omitempty"`    // the priorities that wait because the budget is short
	Routes   map[string]int64 `json:"routes,omitempty"`   // octets of topics and payloads that the cloud has confirmed since start, by route
}

func (a *account) status(now time.Time) WireStatus {
	lowest := a.lowest(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	s := WireStatus{
		Day: a.used.DayOctets, Month: a.used.MonthOctets, DayMax: int64(a.budget.Day), MonthMax: int64(a.budget.Month), Routes: maps.Clone(a.routes),
	}
	if a.budget.Wire != nil {
		s.Sent, s.Received = a.budget.Wire.Octets()
	}
	if lowest < spool.Normal {
		s.Waits = append(s.Waits, "normal")
	}
	if lowest < spool.Low {
		s.Waits = append(s.Waits, "low")
	}
	return s
}

// used reads what was kept of a connector.
func (s *store) used(connector string) (u used) {
	_ = s.db.View(func(tx *bolt.Tx) error {
		if data := tx.Bucket(bucketWire).Get([]byte(connector)); data != nil {
			return json.Unmarshal(data, &u) // what cannot be read counts from zero
		}
		return nil
	})
	return u
}

// keepAccounts writes down what has changed, so that a restart does not begin the budgets anew.
func (b *Bridge) keepAccounts(now time.Time) {
	b.mu.Lock()
	pumps := maps.Clone(b.pumps)
	b.mu.Unlock()
	changed := map[string]used{}
	for name, p := range pumps {
		a := &p.account
		a.mu.Lock()
		a.reckon(now)
		if a.used != a.kept {
			changed[name] = a.used
		}
		a.mu.Unlock()
	}
	if len(changed) == 0 {
		return
	}
	err := b.store.db.Update(func(tx *bolt.Tx) error {
		for name, u := range changed {
			data, err := json.Marshal(u)
			if err == nil {
				err = tx.Bucket(bucketWire).Put([]byte(name), data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.o.Log.Warn("what connectors have had on the wire cannot be kept: after a restart their budgets would begin anew", "error", err)
		return
	}
	for name, u := range changed {
		a := &pumps[name].account
		a.mu.Lock()
		a.kept = u
		a.mu.Unlock()
	}
}

// examineBudget reports a budget that is short.
func (b *Bridge) examineBudget(name string, h *health.Reporter, now time.Time) {
	w := b.pump(name).account.status(now)
	if len(w.Waits) == 0 {
		h.Clear(&BudgetShort)
		return
	}
	h.Set(&BudgetShort, fmt.Sprintf("priority %v; %s", w.Waits, w))
}

// String says what is used.
func (w WireStatus) String() string {
	s := ""
	if w.DayMax > 0 {
		s = fmt.Sprintf("%d of %d octets of the day", w.Day, w.DayMax)
	}
	if w.MonthMax > 0 {
		if s != "" {
			s += ", "
		}
		s += fmt.Sprintf("%d of %d octets of the month", w.Month, w.MonthMax)
	}
	return s
}
