package slots

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T, root *os.Root, key byte) *File {
	t.Helper()
	f, err := Open(root, "f", bytes.Repeat([]byte{key}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func contents(f *File) map[string]uint64 {
	m := map[string]uint64{}
	for i, b := range f.All {
		m[string(b)] = f.Word(i, 2)
	}
	return m
}

func TestRecordsSurvive(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, root, 1)
	if !f.Rebooted() {
		t.Error("a new file is from this boot")
	}
	var slots []int
	for i := range 200 { // the file grows
		n, err := f.Put([]byte{byte(i), 'x'}, [Words]uint64{2: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, n)
	}
	f.SetWord(slots[7], 2, 777)
	f.Free(slots[8])
	// The process is gone: nothing is closed or synced.
	g := open(t, root, 1)
	if g.Rebooted() {
		t.Error("rebooted")
	}
	got := contents(g)
	if len(got) != 199 || got["\x07x"] != 777 || got["\x09x"] != 9 {
		t.Errorf("%d records: %v", len(got), got)
	}
	if _, ok := got["\x08x"]; ok {
		t.Error("a dropped record is back")
	}
	if n, err := g.Put([]byte("again"), [Words]uint64{}); err != nil || n != slots[8] {
		t.Errorf("slot %d, %v; want the free one", n, err)
	}
	if err := errors.Join(f.Close(), g.Close()); err != nil {
		t.Error(err)
	}
}

func TestRecordsOfAnotherKeyOrTamperedAreDropped(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, root, 1)
	f.Put([]byte("secret"), [Words]uint64{})
	n, _ := f.Put([]byte("tampered"), [Words]uint64{})
	f.slot(n)[fixedLen] ^= 1
	if bytes.Contains(f.mem, []byte("secret")) {
		t.Error("the contents are there to read")
	}
	if got := contents(f); len(got) != 1 {
		t.Errorf("%v", got)
	}
	f.Close()
	g := open(t, root, 2)
	if got := contents(g); len(got) != 0 {
		t.Errorf("under another key: %v", got)
	}
	if _, err := g.Put(make([]byte, MaxRecord+1), [Words]uint64{}); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long: %v", err)
	}
	if _, err := g.Put(make([]byte, MaxRecord), [Words]uint64{}); err != nil {
		t.Errorf("just long enough: %v", err)
	}
	g.Close()
}

func TestAnyFileOpens(t *testing.T) {
	for _, content := range []string{"", "x", magic, string(bytes.Repeat([]byte{0xff}, headerLen+slotLen)), string(bytes.Repeat([]byte{1}, headerLen+3*slotLen))} {
		dir := t.TempDir()
		os.WriteFile(dir+"/f", []byte(content), 0o600)
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, root, 1)
		if got := contents(f); len(got) != 0 {
			t.Errorf("%v", got)
		}
		f.Close()
	}
}

// TestPowerCuts makes images of the file as power cuts leave it: since the last Sync each sector may have been written or not, at any of
// its states, or be garbage where it was being written. What had been synced and not changed since is there; nothing is there that was not
// stored at some time since; and a word, which only ever grows here, is not smaller than the last Sync saw it.
func TestPowerCuts(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	for round := range 40 {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, root, 1)
		type record struct {
			slot int
			word uint64
		}
		now := map[string]record{}  // what is stored
		synced := map[string]bool{} // and was at the last Sync, and has not been touched since
		floor := map[string]uint64{}
		ever := map[string]bool{} // stored at some time since the last Sync
		history := [][]byte{bytes.Clone(f.mem)}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		for i := range 150 {
			switch n := rng.IntN(10); {
			case n < 4 || len(now) == 0:
				name := fmt.Sprintf("record %d", i)
				slot, err := f.Put([]byte(name), [Words]uint64{2: 1})
				if err != nil {
					t.Fatal(err)
				}
				now[name], ever[name], floor[name] = record{slot, 1}, true, 1
			case n < 8:
				for name, r := range now { // any one
					r.word++
					f.SetWord(r.slot, 2, r.word)
					now[name] = r
					delete(synced, name)
					break
				}
			case n < 9:
				for name, r := range now {
					f.Free(r.slot)
					delete(now, name)
					delete(synced, name)
					break
				}
			default:
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				history, synced, ever = nil, map[string]bool{}, map[string]bool{}
				for name, r := range now {
					synced[name], ever[name], floor[name] = true, true, r.word
				}
			}
			history = append(history, bytes.Clone(f.mem))
		}
		image := bytes.Clone(history[len(history)-1])
		image = image[:len(history[rng.IntN(len(history))])] // how far it has grown
		garbage := round%2 == 1
		for at := 0; at < len(image); at += 512 {
			var states [][]byte // of the sector; where the file was shorter it is zero
			for _, h := range history {
				sector := make([]byte, 512)
				if at < len(h) {
					copy(sector, h[at:])
				}
				if n := len(states); n == 0 || !bytes.Equal(states[n-1], sector) {
					states = append(states, sector)
				}
			}
			copy(image[at:], states[rng.IntN(len(states))])
			if garbage && len(states) > 1 && rng.IntN(4) == 0 {
				for i := range 512 {
					image[at+i] = byte(rng.Uint32())
				}
			}
		}
		copy(image[len(magic):], "another boot of the kernel's kind...")
		if err := os.WriteFile(filepath.Join(dir, "g"), image, 0o600); err != nil {
			t.Fatal(err)
		}
		g, err := Open(root, "g", bytes.Repeat([]byte{1}, 32))
		if err != nil {
			t.Fatal(err)
		}
		if !g.Rebooted() {
			t.Error("a power cut is not seen")
		}
		got := contents(g)
		for name := range synced {
			if _, ok := got[name]; !ok {
				t.Errorf("round %d: %q, which was synced, is gone", round, name)
			}
		}
		for name, word := range got {
			if !ever[name] || word < floor[name] {
				t.Errorf("round %d: %q is there with %d, where %d was synced", round, name, word, floor[name])
			}
		}
		if err := errors.Join(f.Close(), g.Close(), root.Close()); err != nil {
			t.Error(err)
		}
	}
}
