package spool

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestKillChild is not a test of its own: TestProveKill runs it in a process that it kills.
func TestKillChild(t *testing.T) {
	dir := os.Getenv("DRAWBRIDGE_SPOOL_CHILD")
	if dir == "" {
		t.Skip("only as the child of TestProveKill")
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var base int
	fmt.Sscan(os.Getenv("DRAWBRIDGE_SPOOL_BASE"), &base)
	// One write a line, so that what is read is whole.
	say := func(what string, class Class, n int) { fmt.Fprintf(os.Stdout, "%s %d %d\n", what, class, n) }
	go func() {
		c := s.Consumer("a")
		for {
			list, err := c.Read(t.Context(), Low, 100, 1<<20)
			if err != nil {
				return
			}
			for _, e := range list {
				say("settled", e.Pos.Class, number(e))
				c.Settle(e.Pos, Delivered)
			}
		}
	}()
	for p := range 8 {
		go func() {
			for i := 0; ; i++ {
				n := base + i*8 + p
				class := Class(p % 2)
				if _, err := put(t, s, class, numbered(n, 600, "a", "b")); err != nil {
					return
				}
				say("told", class, n)
			}
		}()
	}
	time.Sleep(time.Minute)
}

// TestProveKill kills a process again and again while it appends and settles: whatever it was told yes for is there.
func TestProveKill(t *testing.T) {
	kills := 10
	if prove() {
		kills = 100
	}
	dir := t.TempDir()
	told := map[int]bool{}
	settled := map[int]bool{}
	rnd := rand.New(rand.NewPCG(1, 2))
	var acks, settles uint64
	for k := range kills {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), "DRAWBRIDGE_SPOOL_CHILD="+dir, fmt.Sprintf("DRAWBRIDGE_SPOOL_BASE=%d", (k+1)<<24))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := rnd.IntN(2000) + 1
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var what string
			var class, number int
			if _, err := fmt.Sscan(lines.Text(), &what, &class, &number); err != nil {
				continue
			}
			switch what {
			case "told":
				acks++
				told[number] = true
			case "settled":
				settles++
				settled[number] = true
			}
			if n == stop {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		balance(t, s)
		for _, n := range s.Ledger() {
			if n.Accepted < acks || n.Connector == "a" && n.Delivered > settles || n.Connector == "b" && n.Pending != n.Accepted {
				t.Errorf("%d acknowledged, %d settled, ledger %+v", acks, settles, n)
			}
		}
		here := map[int]bool{}
		c := s.Consumer("a")
		for {
			list, err := c.read(Low, 1000, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for _, e := range list {
				here[number(e)] = true
			}
		}
		for n := range told {
			if !here[n] && !settled[n] {
				t.Fatalf("kill %d: %d was acknowledged and is lost", k, n)
			}
		}
		if st := s.Stats(); st.Lost != 0 {
			t.Errorf("%d lost", st.Lost)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("prove: %d kills under load, %d records acknowledged, none lost, the ledger adds up", kills, acks)
}
