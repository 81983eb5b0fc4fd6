package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// put appends and waits.
func put(t testing.TB, s *Spool, c Class, r Record) (Pos, error) {
	t.Helper()
	if r.ID == (msg.ID{}) {
		r.ID = msg.NewID(time.Now())
	}
	if r.Time.IsZero() {
		r.Time = s.o.Now()
	}
	type result struct {
		pos Pos
		err error
	}
	ch := make(chan result, 1)
	s.Append(c, &r, func(p Pos, err error) { ch <- result{p, err} })
	got := <-ch
	return got.pos, got.err
}

func mustPut(t testing.TB, s *Spool, c Class, r Record) Pos {
	t.Helper()
	p, err := put(t, s, c, r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// take reads at least n entries.
func take(t testing.TB, c *Consumer, n int) []Entry {
	t.Helper()
	var all []Entry
	for len(all) < n {
		list, err := c.Read(t.Context(), Low, n-len(all), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	return all
}

// balance checks the ledger's equation.
func balance(t testing.TB, s *Spool) {
	t.Helper()
	for _, n := range s.Ledger() {
		if n.Accepted != n.Delivered+n.Expired+n.Dead+n.Pending || n.Pending > n.Accepted {
			t.Errorf("ledger does not add up: %+v", n)
		}
	}
}

func TestReadBackInOrderHigherClassesFirst(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(time.Now().UnixMilli())
	for i := range 10 {
		mustPut(t, s, Low, Record{Time: at, Route: "r", To: []string{"a"}, Data: fmt.Appendf(nil, "low %d", i)})
		mustPut(t, s, High, Record{Time: at, Expires: at.Add(time.Hour), Route: "r", To: []string{"a", "b"}, Data: fmt.Appendf(nil, "high %d", i)})
	}
	check := func(s *Spool) {
		t.Helper()
		got := take(t, s.Consumer("a"), 20)
		for i := range 10 {
			if string(got[i].Data) != fmt.Sprintf("high %d", i) || string(got[10+i].Data) != fmt.Sprintf("low %d", i) {
				t.Fatalf("entry %d: %q, %q", i, got[i].Data, got[10+i].Data)
			}
		}
		if e := got[0]; !e.Time.Equal(at) || !e.Expires.Equal(at.Add(time.Hour)) || e.Route != "r" || !got[10].Expires.IsZero() {
			t.Errorf("entry %+v", e)
		}
		if got := take(t, s.Consumer("b"), 10); string(got[9].Data) != "high 9" {
			t.Errorf("%q", got[9].Data)
		}
	}
	check(s)
	s.Consumer("a").Settle(Pos{High, 2}, Delivered)
	s.Consumer("a").Settle(Pos{High, 2}, Dead)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := take(t, s.Consumer("a"), 19); string(got[1].Data) != "high 2" {
		t.Errorf("settled entry came again: %q", got[1].Data)
	}
	s.Consumer("a").Rewind()
	if got := take(t, s.Consumer("a"), 19); string(got[1].Data) != "high 2" || string(got[18].Data) != "low 9" {
		t.Errorf("after rewind: %q, %q", got[1].Data, got[18].Data)
	}
	want := []Tally{
		{Route: "r", Connector: "a", Accepted: 20, Delivered: 1, Pending: 19},
		{Route: "r", Connector: "b", Accepted: 10, Pending: 10},
	}
	if got := s.Ledger(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("ledger %+v", got)
	}
	s.Forget("b")
	balance(t, s)
	if got := s.Ledger()[1]; got.Expired != 10 || got.Pending != 0 {
		t.Errorf("forgotten: %+v", got)
	}
	if got := fmt.Sprint(s.Consumers()); got != "[a b]" {
		t.Errorf("consumers %v", got)
	}
}

func TestReadWaitsAndEnds(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	time.AfterFunc(10*time.Millisecond, func() { cancel(gone) })
	if _, err := s.Consumer("a").Read(ctx, Low, 1, 1); err != gone {
		t.Errorf("read: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, func() {
		s.Append(Normal, &Record{Time: time.Now(), Route: "r", To: []string{"a"}}, func(Pos, error) {})
	})
	if got := take(t, s.Consumer("a"), 1); got[0].Pos != (Pos{Normal, 1}) {
		t.Errorf("%+v", got)
	}
	time.AfterFunc(10*time.Millisecond, func() { s.Close() })
	if _, err := s.Consumer("a").Read(t.Context(), Low, 1, 1); err != ErrClosed {
		t.Errorf("read: %v", err)
	}
	if _, err := put(t, s, Normal, Record{Route: "r", To: []string{"a"}}); err != ErrClosed {
		t.Errorf("append: %v", err)
	}
}

func TestManySegmentsManyProducers(t *testing.T) {
	dir := t.TempDir()
	o := Options{MaxSize: 64 << 20, Segment: 64 << 10}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	const producers, each = 16, 500
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := range each {
				if _, err := put(t, s, Normal, Record{Route: "r", To: []string{"a", "b"}, Data: fmt.Appendf(make([]byte, 0, 300), "%d %d %200d", p, i, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	next := map[string][]int{"a": make([]int, producers), "b": make([]int, producers)}
	read := func(name string, n int) {
		c := s.Consumer(name)
		for n > 0 {
			list, err := c.Read(t.Context(), Low, 100, 10000)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range list {
				var p, i int
				fmt.Sscan(string(e.Data), &p, &i)
				if next[name][p] != i {
					t.Errorf("%s: producer %d: got %d, want %d", name, p, i, next[name][p])
					return
				}
				next[name][p]++
				c.Settle(e.Pos, Delivered)
			}
			n -= len(list)
		}
	}
	wg.Go(func() { read("a", producers*each) })
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, o); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	read("b", producers*each)
	balance(t, s)
	if st := s.Stats(); st.Records != 0 || st.Lost != 0 {
		t.Errorf("%+v", st)
	}
	for _, n := range s.Ledger() {
		if n.Delivered != producers*each {
			t.Errorf("%+v", n)
		}
	}
}

// What is pending is on disk, not in memory.
func TestBacklogTakesNoMemory(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.Consumer("a")
	mustPut(t, s, Normal, numbered(0, 200, "a"))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const all = 100_000
	var wg sync.WaitGroup
	r := numbered(0, 200, "a")
	r.Time = time.Now()
	for n := 1; n < all; n++ {
		if n%5000 == 0 {
			wg.Wait()
		}
		wg.Add(1)
		binary.BigEndian.PutUint64(r.Data, uint64(n))
		s.Append(Normal, &r, func(_ Pos, err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
	if got := heap() - before; got > 4<<20 {
		t.Errorf("%d octets for %d pending records", got, all)
	}
	for n := 0; n < all; {
		if st := s.Stats(); n == 0 && (st.Records != all || !st.Oldest.Before(time.Now())) {
			t.Errorf("%+v", st)
		}
		list, err := c.Read(t.Context(), Low, 1000, 256<<10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if number(e) != n {
				t.Fatalf("%d, want %d", number(e), n)
			}
			n++
			c.Settle(e.Pos, Delivered)
		}
		if n > all/2 && n < all/2+2000 {
			if got := heap() - before; got > 8<<20 {
				t.Errorf("%d octets while reading", got)
			}
		}
	}
}

// A commit never outgrows a segment, however small that is and however much comes at once.
func TestCommitsFitSegments(t *testing.T) {
	s := openMem(t, newMemDisk(), Options{Segment: 64 << 10})
	defer s.Close()
	const all = 2000
	var wg sync.WaitGroup
	for n := range all {
		r := numbered(n, 8+n*37%9000, "a")
		if n%100 == 0 {
			r.Data = append(r.Data, make([]byte, 20000)...)
		}
		r.Time = time.Now()
		wg.Add(1)
		s.Append(Normal, &r, func(_ Pos, err error) {
			if err != nil && !errors.Is(err, ErrFull) {
				t.Errorf("%d: %v", n, err)
			}
			wg.Done()
		})
		if n%50 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	got := drain(t, s, "a")
	if n := s.Ledger()[0]; n.Accepted != all || len(got) != all {
		t.Errorf("%d read, %+v", len(got), n)
	}
}

func TestLingerGathersCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openMem(t, newMemDisk(), Options{Linger: 20 * time.Millisecond})
		defer s.Close()
		mustPut(t, s, Normal, numbered(0, 10, "a"))
		before, start := s.Stats().Commits, time.Now()
		var wg sync.WaitGroup
		for n := range 10 {
			wg.Add(1)
			r := numbered(n, 10, "a")
			s.Append(Normal, &r, func(Pos, error) { wg.Done() })
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if n := s.Stats().Commits - before; n != 1 {
			t.Errorf("%d commits", n)
		}
		if took := time.Since(start); took != 20*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}
