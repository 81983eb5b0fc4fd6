package health

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"
)

var (
	unreachable = Code{Name: "unreachable", Title: "a cloud cannot be reached", Severity: Degraded, Hint: "is it running?"}
	behind      = Code{Name: "behind", Title: "messages wait", Severity: Degraded, DependsOn: []string{"unreachable", "disk-full"}}
	diskFull    = Code{Name: "disk-full", Title: "the disk is full", Severity: Failing}
	slow        = Code{Name: "slow", Title: "the chip is slow", Severity: Notice, After: time.Minute}
)

// desk is a tracker with a clock that is set by hand.
type desk struct {
	*Tracker
	now time.Time
	log bytes.Buffer
}

func newDesk() *desk {
	d := &desk{now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	d.Tracker = New(slog.New(slog.NewTextHandler(&d.log, nil)), func() time.Time { return d.now })
	return d
}

func (d *desk) shows(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, p := range d.Problems() {
		got = append(got, p.Code+"/"+p.Subject)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func TestProblemsAreListedWorstFirstThenOldest(t *testing.T) {
	d := newDesk()
	d.For("connector b").Set(&unreachable, "")
	d.For("connector a").Set(&unreachable, "")
	d.now = d.now.Add(time.Second)
	d.For("").Set(&diskFull, "")
	d.For("connector 0").Set(&unreachable, "")
	d.shows(t, "disk-full/", "unreachable/connector a", "unreachable/connector b", "unreachable/connector 0")
}

func TestAConsequenceIsNotShownBesideItsCause(t *testing.T) {
	d := newDesk()
	cloud, plant := d.For("connector cloud"), d.For("connector plant")
	cloud.Set(&behind, "12 messages")
	cloud.Set(&unreachable, "")
	plant.Set(&behind, "3 messages")
	d.shows(t, "behind/connector plant", "unreachable/connector cloud")
	cloud.Clear(&unreachable)
	d.shows(t, "behind/connector cloud", "behind/connector plant")
	d.For("").Set(&diskFull, "") // of the gateway: a cause for every subject
	d.shows(t, "disk-full/")
}

func TestAYoungProblemIsNotShown(t *testing.T) {
	d := newDesk()
	chip := d.For("chip")
	chip.Set(&slow, "")
	d.now = d.now.Add(time.Minute - 1)
	d.shows(t)
	d.now = d.now.Add(1)
	d.shows(t, "slow/chip")
	chip.Clear(&slow)
	chip.Set(&slow, "")
	d.shows(t)
}

func TestSettingAgainKeepsTheTimeAndTakesTheDetail(t *testing.T) {
	d := newDesk()
	r := d.For("connector cloud")
	r.Set(&unreachable, "refused")
	since := d.now
	d.now = d.now.Add(time.Hour)
	r.Set(&unreachable, "timed out")
	want := []Problem{{"unreachable", "a cloud cannot be reached", Degraded, "connector cloud", "timed out", "is it running?", false, since, nil, ""}}
	if got := d.Problems(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(d.log.String(), "\n"); n != 1 {
		t.Errorf("%d lines of log:\n%s", n, d.log.String())
	}
}

func TestTheLogHasEachChangeOfState(t *testing.T) {
	d := newDesk()
	r := d.For("connector cloud")
	r.Clear(&unreachable)
	r.Set(&unreachable, "refused")
	r.Clear(&unreachable)
	r.Clear(&unreachable)
	for i, want := range []string{
		`level=WARN msg="a cloud cannot be reached" problem=unreachable subject="connector cloud" detail=refused hint="is it running?"`,
		`level=INFO msg="solved: a cloud cannot be reached" problem=unreachable subject="connector cloud"`,
		"",
	} {
		if got := strings.Split(d.log.String(), "\n")[i]; !strings.HasSuffix(got, want) || want == "" && got != "" {
			t.Errorf("line %d: %s", i, got)
		}
	}
}

func TestClearAllForgetsOneSubject(t *testing.T) {
	d := newDesk()
	d.For("connector cloud").Set(&unreachable, "")
	d.For("connector cloud").Set(&behind, "")
	d.For("connector plant").Set(&unreachable, "")
	d.For("connector cloud").ClearAll()
	d.shows(t, "unreachable/connector plant")
	if n := strings.Count(d.log.String(), `level=INFO msg="no longer: `); n != 2 {
		t.Errorf("%d lines of what is gone:\n%s", n, d.log.String())
	}
}

func TestANilReporterDoesNothing(t *testing.T) {
	var r *Reporter
	r.Set(&slow, "")
	r.Clear(&slow)
	r.ClearAll()
}

func TestSeverityIsAWordInJSON(t *testing.T) {
	for s := Notice; s <= Failing; s++ {
		text, err := json.Marshal(s)
		if err != nil || string(text) != `"`+s.String()+`"` {
			t.Errorf("%s %v", text, err)
		}
		var back Severity
		if err := json.Unmarshal(text, &back); err != nil || back != s {
			t.Errorf("%v %v", back, err)
		}
	}
	var s Severity
	if err := json.Unmarshal([]byte(`"dire"`), &s); err == nil || err.Error() != `severity "dire": unknown` {
		t.Errorf("%v", err)
	}
}
