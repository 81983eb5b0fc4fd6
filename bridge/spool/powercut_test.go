package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
)

// prove says whether the long forms of the crash tests are asked for.
func prove() bool { return os.Getenv("DRAWBRIDGE_PROVE") == "1" }

// witness knows what was acknowledged and what was settled.
type witness struct {
	mu      sync.Mutex
	told    map[uint64]Pos                 // by the number in the data
	to      map[uint64][]string            // also of what was not acknowledged
	settled map[string]map[uint64]struct{} // by connector
}

func newWitness() *witness {
	return &witness{told: map[uint64]Pos{}, to: map[uint64][]string{}, settled: map[string]map[uint64]struct{}{"a": {}, "b": {}, "c": {}}}
}

// drive runs producers in all classes and three consumers against the spool until stop is closed:
// a is fast, b settles in any order and goes back now and then, c never reads.
func (w *witness) drive(t *testing.T, s *Spool, life uint64, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for p := range 12 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(life, uint64(p)))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := life<<48 | uint64(p)<<32 | uint64(i)
				to := []string{"a", "b"}
				if rnd.IntN(20) == 0 {
					to = append(to, "c")
				}
				data := make([]byte, 8+rnd.IntN(900))
				binary.BigEndian.PutUint64(data, n)
				w.mu.Lock()
				w.to[n] = to
				w.mu.Unlock()
				pos, err := put(t, s, Class(p%3), Record{Route: fmt.Sprint("route", p), To: to, Data: data})
				switch {
				case err == nil:
					w.mu.Lock()
					w.told[n] = pos
					w.mu.Unlock()
				case errors.Is(err, ErrFull):
					time.Sleep(time.Millisecond)
				case errors.Is(err, ErrClosed):
					return
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	settle := func(c *Consumer, e Entry, o Outcome) {
		// Noted first: from the call on it may be on disk.
		w.mu.Lock()
		w.settled[c.name][binary.BigEndian.Uint64(e.Data)] = struct{}{}
		w.mu.Unlock()
		c.Settle(e.Pos, o)
	}
	for _, name := range []string{"a", "b"} {
		wg.Go(func() {
			c := s.Consumer(name)
			rnd := rand.New(rand.NewPCG(life, uint64(name[0])))
			ctx := t.Context()
			for {
				select {
				case <-stop:
					return
				default:
				}
				list, err := c.Read(ctx, Low, 50, 64<<10)
				if err != nil {
					return
				}
				if name == "b" {
					rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
					if rnd.IntN(10) == 0 {
						c.Rewind()
						continue
					}
				}
				for _, e := range list {
					settle(c, e, []Outcome{Delivered, Delivered, Delivered, Dead, Expired}[rnd.IntN(5)])
				}
			}
		})
	}
	return &wg
}

// examine opens what was found after the power went and compares it.
func (w *witness) examine(t *testing.T, img image, o Options) {
	t.Helper()
	s, err := open(img.d, o)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer s.Close()
	balance(t, s)
	pending := map[string]uint64{}
	for _, n := range s.Ledger() {
		pending[n.Connector] += n.Pending
	}
	if st := s.Stats(); st.Lost != 0 {
		t.Errorf("counts %d as lost", st.Lost)
	}
	for name, settled := range img.settled {
		seen := map[uint64]bool{}
		last := map[Class]uint64{}
		c := s.Consumer(name)
		for n := pending[name]; n > 0; {
			list, err := c.read(Low, 1000, 1<<20)
			if err != nil || len(list) == 0 {
				t.Errorf("%s: %d of %d pending are not there (%v)", name, n, pending[name], err)
				break
			}
			for _, e := range list {
				k := binary.BigEndian.Uint64(e.Data)
				if seen[k] {
					t.Errorf("%s: %x twice", name, k)
				}
				seen[k] = true
				if pos, ok := img.told[k]; ok && pos != e.Pos {
					t.Errorf("%s: %x at %v, acknowledged at %v", name, k, e.Pos, pos)
				}
				if e.Pos.Seq <= last[e.Pos.Class] {
					t.Errorf("%s: %v after %d", name, e.Pos, last[e.Pos.Class])
				}
				last[e.Pos.Class] = e.Pos.Seq
				c.Settle(e.Pos, Delivered)
				n--
			}
		}
		for k, pos := range img.told {
			w.mu.Lock()
			to := w.to[k]
			w.mu.Unlock()
			if _, ok := settled[k]; !ok && !seen[k] && contains(to, name) {
				t.Errorf("%s: %x at %v was acknowledged and is lost", name, k, pos)
			}
		}
	}
	balance(t, s)
	for _, n := range s.Ledger() {
		if n.Pending != 0 {
			t.Errorf("after all was settled: %+v", n)
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// image is a disk as it was found, and what was known of it then.
type image struct {
	d       *memDisk
	how     cut
	told    map[uint64]Pos
	settled map[string]map[uint64]struct{}
}

// cut takes an image of the disk of a spool that is at work.
func (w *witness) cut(d *memDisk, how cut, rnd *rand.Rand) image {
	img := image{how: how, settled: map[string]map[uint64]struct{}{}}
	w.mu.Lock()
	img.told = maps.Clone(w.told) // before the power goes
	w.mu.Unlock()
	img.d = d.image(how, rnd)
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, set := range w.settled { // after it went
		img.settled[name] = maps.Clone(set)
	}
	return img
}

// TestProvePowerCut lets the power go at any moment, and again after the spool was opened on what was left.
func TestProvePowerCut(t *testing.T) {
	runs := 10
	if prove() {
		runs = 60
	}
	const lives, per = 2, 4 // images of each life of a run: 80, or 480
	t.Cleanup(func() {
		if !t.Failed() {
			t.Logf("prove: %d images after power cuts, each opens, nothing acknowledged is lost, the ledger adds up", runs*lives*per)
		}
	})
	for run := range runs {
		t.Run(fmt.Sprint("run ", run), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(7, uint64(run)))
			d := newMemDisk()
			o, ways := Options{MaxSize: 3 << 20, Segment: 64 << 10}, cuts
			if run%4 == 3 {
				// Close together, for disks that do not turn pages to garbage.
				o.Align, ways = 8, cuts[:len(cuts)-1]
			}
			w := newWitness()
			for life := range lives {
				d.delay = time.Duration(rnd.IntN(200)) * time.Microsecond
				s := openMem(t, d, o)
				stop := make(chan struct{})
				wg := w.drive(t, s, uint64(life), stop)
				var images []image
				for i := range per {
					d.await(d.count() + 5 + rnd.IntN(60))
					images = append(images, w.cut(d, ways[(i+life*per+run)%len(ways)], rnd))
				}
				close(stop)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				wg.Wait()
				last := images[per-1]
				d = last.d.image(cutAll, rnd) // a copy
				w.told, w.settled = maps.Clone(last.told), last.settled
				for _, img := range images {
					w.examine(t, img, o)
					if t.Failed() {
						t.Fatalf("life %d, in-flight writes: %s", life, img.how)
					}
				}
			}
		})
	}
}
