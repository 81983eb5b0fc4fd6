package slots

import (
	"bytes"
	"errors"
	"os"
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
