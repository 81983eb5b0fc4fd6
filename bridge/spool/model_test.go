package spool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// model is what the spool should be, in a form in which it cannot be wrong.
type model struct {
	t       *testing.T
	rnd     *rand.Rand
	now     time.Time
	d       *memDisk
	o       Options
	s       *Spool
	records []*modelRecord
	out     map[string][]Entry // handed out and not settled
}

type modelRecord struct {
	pos     Pos
	route   string
	expires time.Time
	to      map[string]Outcome // 0: pending
	data    []byte
}

func (m *model) find(p Pos) *modelRecord {
	i := slices.IndexFunc(m.records, func(r *modelRecord) bool { return r.pos == p })
	if i < 0 {
		m.t.Fatalf("%v was never appended", p)
	}
	return m.records[i]
}

// set changes the time, and gives what it was.
func (m *model) set(now time.Time) time.Time {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	before := m.now
	m.now = now
	return before
}

func (m *model) append() {
	r := &modelRecord{route: fmt.Sprint("r", m.rnd.IntN(3)), to: map[string]Outcome{}, data: make([]byte, m.rnd.IntN(16000))}
	for i := 0; i < len(r.data); i += 16 {
		r.data[i] = byte(m.rnd.Uint32())
	}
	var to []string
	for _, name := range []string{"a", "b", "c"} {
		if m.rnd.IntN(2) == 0 {
			to = append(to, name)
			r.to[name] = 0
		}
	}
	if len(to) == 0 {
		return
	}
	if m.rnd.IntN(4) == 0 {
		r.expires = m.now.Add(time.Duration(m.rnd.IntN(1000)) * time.Second)
	}
	pos, err := put(m.t, m.s, Class(m.rnd.IntN(3)), Record{Time: m.now, Expires: r.expires, Route: r.route, To: to, Data: r.data})
	if errors.Is(err, ErrFull) {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	r.pos = pos
	m.records = append(m.records, r)
}

// read takes what there is at once, and settles in the model what has expired on the way.
func (m *model) read(name string, most int) {
	list, err := m.s.Consumer(name).read(Low, most, 1<<m.rnd.IntN(20))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range list {
		r := m.find(e.Pos)
		o, ok := r.to[name]
		if !ok || o != 0 || r.route != e.Route || string(r.data) != string(e.Data) {
			m.t.Fatalf("%s reads %v: addressed %v, settled %d", name, e.Pos, ok, o)
		}
		if slices.ContainsFunc(m.out[name], func(x Entry) bool { return x.Pos == e.Pos }) {
			m.t.Fatalf("%s reads %v twice", name, e.Pos)
		}
		if !r.expires.IsZero() && !r.expires.After(m.now) {
			m.t.Fatalf("%s reads %v, which has expired", name, e.Pos)
		}
	}
	m.out[name] = append(m.out[name], list...)
}

func (m *model) settle(name string) {
	out := m.out[name]
	for n := m.rnd.IntN(len(out) + 1); n > 0; n-- {
		i := 0
		if m.rnd.IntN(2) == 0 {
			i = m.rnd.IntN(len(out))
		}
		o := Outcome(1 + m.rnd.IntN(3))
		m.s.Consumer(name).Settle(out[i].Pos, o)
		m.s.Consumer(name).Settle(out[i].Pos, Dead) // counts for nothing
		m.find(out[i].Pos).to[name] = o
		out = slices.Delete(out, i, i+1)
	}
	m.out[name] = out
}

// learn reads all that is pending, for what a crash has undone and what has expired, which the model cannot know.
// Pending is only what was not settled, or was settled after the newest checkpoint.
func (m *model) learn(when string, latest time.Time) {
	for _, name := range []string{"a", "b", "c"} {
		c := m.s.Consumer(name)
		c.Rewind()
		there := map[Pos]bool{}
		for {
			list, err := c.read(Low, 1000, 1<<20)
			if err != nil {
				m.t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for _, e := range list {
				there[e.Pos] = true
			}
		}
		for _, r := range m.records {
			o, ok := r.to[name]
			gone := !r.expires.IsZero() && !r.expires.After(latest)
			switch {
			case !ok && there[r.pos]:
				m.t.Fatalf("%s reads %v of another", name, r.pos)
			case there[r.pos]:
				r.to[name] = 0
			case ok && o == 0 && gone:
				r.to[name] = Expired
			case ok && o == 0:
				m.t.Fatalf("%s: %s: %v is lost", when, name, r.pos)
			}
		}
		c.Rewind()
	}
	clear(m.out)
}

// reopen opens what is on the disk and compares. It does so at a time when nothing has expired, since what a crash has undone may
// expire then.
func (m *model) reopen(d *memDisk, when string, start time.Time) {
	m.d = d
	m.s = openMem(m.t, m.d, m.o)
	now := m.set(start)
	m.learn(when, now)
	m.check(when)
	m.set(now)
	m.learn("later", now)
}

func (m *model) ledger() string {
	sums := map[[2]string]*Tally{}
	for _, r := range m.records {
		for name, o := range r.to {
			k := [2]string{r.route, name}
			if sums[k] == nil {
				sums[k] = &Tally{Route: r.route, Connector: name}
			}
			n := sums[k]
			n.Accepted++
			switch o {
			case 0:
				n.Pending++
			case Delivered:
				n.Delivered++
			case Expired:
				n.Expired++
			case Dead:
				n.Dead++
			}
		}
	}
	var lines []string
	for _, n := range sums {
		lines = append(lines, fmt.Sprintf("%+v", *n))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (m *model) check(when string) {
	m.t.Helper()
	var lines []string
	for _, n := range m.s.Ledger() {
		lines = append(lines, fmt.Sprintf("%+v", n))
	}
	slices.Sort(lines)
	if got, want := strings.Join(lines, "\n"), m.ledger(); got != want {
		m.t.Fatalf("%s: ledger\n%s\nwant\n%s", when, got, want)
	}
	bytes := map[string]int64{}
	for _, r := range m.records {
		for name, o := range r.to {
			if o == 0 {
				bytes[name] += cost(r.data)
			}
		}
	}
	for name, n := range m.s.Stats().PendingBytes {
		if n != bytes[name] {
			m.t.Fatalf("%s: %s has %d octets pending, want %d", when, name, n, bytes[name])
		}
	}
}

// TestProveModel does what comes to mind in any order, and compares the ledger with that of the model to the last count.
func TestProveModel(t *testing.T) {
	seeds, steps := 12, 300
	if prove() {
		seeds, steps = 100, 1000
	}
	t.Cleanup(func() {
		if !t.Failed() {
			t.Logf("prove: %d runs of %d random steps with crashes and restarts, each count as in the model", seeds, steps)
		}
	})
	start := time.UnixMilli(1_700_000_000_000)
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &model{
				t: t, rnd: rand.New(rand.NewPCG(3, uint64(seed))), d: newMemDisk(), out: map[string][]Entry{},
				now: start,
			}
			// A small one, so that it is short of segments and moves records about.
			m.o = Options{Segment: 64 << 10, MaxSize: 1 << 20 << m.rnd.IntN(2), Now: func() time.Time { return m.now }, MaxAge: 1000 * time.Hour}
			m.s = openMem(t, m.d, m.o)
			for range steps {
				name := []string{"a", "b", "c"}[m.rnd.IntN(3)]
				switch n := m.rnd.IntN(100); {
				case n < 45:
					m.append()
				case n < 60:
					m.read(name, m.rnd.IntN(20)+1)
				case n < 80:
					m.settle(name)
				case n < 84:
					m.s.Consumer(name).Rewind()
					m.out[name] = nil
				case n < 86:
					m.set(m.now.Add(time.Duration(m.rnd.IntN(100)) * time.Second))
				case n < 87:
					m.s.Forget(name)
					m.out[name] = nil
					for _, r := range m.records {
						if o, ok := r.to[name]; ok && o == 0 {
							r.to[name] = Expired
						}
					}
				case n < 92:
					// It may be so full after many restarts that the last of what was settled cannot be written down.
					if err := m.s.Close(); err != nil && !errors.Is(err, ErrFull) {
						t.Fatal(err)
					}
					m.reopen(m.d, "after a restart", start)
				case n < 96:
					how := cuts[m.rnd.IntN(len(cuts))]
					d := m.d.image(how, m.rnd)
					m.s.Close()
					m.reopen(d, "after a crash, "+string(how), start)
				default:
					m.learn("in between", m.now)
					m.check("in between")
				}
			}
			m.learn("at the end", m.now)
			m.check("at the end")
			if st := m.s.Stats(); st.Lost != 0 {
				t.Errorf("%d lost", st.Lost)
			}
			if err := m.s.Close(); err != nil && !errors.Is(err, ErrFull) {
				t.Error(err)
			}
		})
	}
}
