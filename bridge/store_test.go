package bridge

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
)

func TestAFileThatCannotBeReadIsPutAside(t *testing.T) {
	good := func(t *testing.T, dir string) []byte {
		s, err := openStore(dir, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "bridge.db"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, damage := range map[string]func([]byte) []byte{
		"text":           func([]byte) []byte { return []byte("not a database at all") },
		"garbage":        func(b []byte) []byte { return slices.Repeat([]byte{0xa5}, len(b)) },
		"cut off":        func(b []byte) []byte { return b[:len(b)/2] },
		"a lost page":    func(b []byte) []byte { clear(b[len(b)/2:]); return b },
		"two lost metas": func(b []byte) []byte { clear(b[:8192]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "bridge.db")
			if err := os.WriteFile(path, damage(good(t, dir)), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := openStore(dir, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			if s.damaged == "" {
				t.Fatal("the damage went unnoticed")
			}
			if _, err := os.Stat(s.damaged); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDeadLettersAreKeptOnceAndBounded(t *testing.T) {
	r := newRig(t)
	entry := func(payload string) spool.Entry {
		return spool.Entry{ID: msg.NewID(time.Now()), Time: time.Now(), Route: "sensors",
			Data: appendRecord(nil, &msg.Publication{Device: "d", Topic: "t", Payload: []byte(payload)}, false)}
	}
	first := entry("1")
	first.ID = msg.NewID(time.Now().Add(-time.Second)) // within a millisecond ids are in no order
	for range 3 {
		if err := r.dead.bury("cloud", []burial{{first, "no"}}); err != nil {
			t.Fatal(err)
		}
	}
	if box := r.dead.box("cloud"); box.count != 1 {
		t.Errorf("got %+v", box)
	}
	var all []burial
	for range maxLetters - 1 {
		all = append(all, burial{entry("x"), "no"})
	}
	if err := r.dead.bury("cloud", all); err != nil {
		t.Fatal(err)
	}
	if err := r.dead.bury("cloud", []burial{{entry("y"), "no"}}); !errors.Is(err, errLettersFull) {
		t.Errorf("got %v", err)
	}
	if err := r.dead.bury("cloud", all[:1]); err != nil {
		t.Errorf("one that is there already: %v", err)
	}
	if box := r.dead.box("cloud"); box.count != maxLetters {
		t.Errorf("got %+v", box)
	}
	list, err := r.DeadLetters("cloud", "", 2)
	if err != nil || len(list) != 2 || list[0].ID != first.ID.String() {
		t.Fatalf("got %+v, %v", list, err)
	}
	next, err := r.DeadLetters("cloud", list[1].ID, 1)
	if err != nil || len(next) != 1 || next[0].ID <= list[1].ID {
		t.Errorf("got %+v, %v", next, err)
	}
	if n, err := r.Drop("cloud", list[0].ID, list[0].ID, msg.NewID(time.Now()).String()); n != 1 || err != nil {
		t.Errorf("dropped %d, %v", n, err)
	}
	if _, err := r.Drop("cloud", "x"); err == nil {
		t.Error("an id that is none was taken")
	}
	before := r.dead.box("cloud")
	if err := r.Bridge.Close(); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if after := r.dead.box("cloud"); after.count != before.count || after.bytes != before.bytes {
		t.Errorf("%+v became %+v", before, after)
	}
	if n, err := r.Drop("cloud"); n != maxLetters-1 || err != nil {
		t.Errorf("dropped %d, %v", n, err)
	}
}

func TestALetterThatDiesAgainDuringItsReplayIsKept(t *testing.T) {
	r := newRig(t)
	e := spool.Entry{ID: msg.NewID(time.Now()), Route: "sensors", Data: appendRecord(nil, &msg.Publication{Topic: "t"}, false)}
	if err := r.dead.bury("cloud", []burial{{e, "first"}}); err != nil {
		t.Fatal(err)
	}
	var read grave
	if err := r.dead.read("cloud", []grave{{id: e.ID}}, func(id msg.ID, l letter) { read = grave{id, l.Serial} }); err != nil {
		t.Fatal(err)
	}
	if err := r.dead.bury("cloud", []burial{{e, "second"}}); err != nil {
		t.Fatal(err)
	}
	if n, err := r.dead.remove("cloud", []grave{read}); n != 0 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if list, _ := r.DeadLetters("cloud", "", 9); len(list) != 1 || list[0].Reason != "second" {
		t.Errorf("got %+v", list)
	}
}

func TestAReplayThatFindsNoRoomKeepsTheLetters(t *testing.T) {
	r := newRig(t)
	e := spool.Entry{ID: msg.NewID(time.Now()), Route: "sensors", Data: appendRecord(nil, &msg.Publication{Topic: "t"}, false)}
	if err := r.dead.bury("cloud", []burial{{e, "no"}}); err != nil {
		t.Fatal(err)
	}
	r.queue.setFail(spool.ErrFull)
	if n, err := r.Replay(t.Context(), "cloud"); n != 0 || err == nil {
		t.Errorf("took %d, %v", n, err)
	}
	if box := r.dead.box("cloud"); box.count != 1 {
		t.Errorf("got %+v", box)
	}
}
