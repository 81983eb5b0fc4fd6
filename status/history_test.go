package status

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound"
)

func TestHistoryKeepsAnHourAndADayAndSurvives(t *testing.T) {
	dir := t.TempDir()
	h, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := noon
	for i := range 26 * 3600 {
		at = at.Add(time.Second)
		p := point{At: at, In: 10, Out: 8, Pending: 5, Latency: time.Millisecond}
		if i%300 == 7 {
			p.Pending, p.Latency = 900, time.Second // the plots must not miss what lasts a second
		}
		if err := h.add(p); err != nil {
			t.Fatal(err)
		}
	}
	hour, day := h.lastHour(), h.lastDay()
	if len(hour) != 360 || len(day) != 288 {
		t.Fatalf("%d and %d points", len(hour), len(day))
	}
	if p := day[100]; p.In != 10 || p.Out != 8 || p.Pending != 900 || p.Latency != time.Second {
		t.Errorf("%+v", p)
	}
	if first := hour[0].At; at.Sub(first) < time.Hour-time.Minute {
		t.Errorf("the hour begins at %v of %v", first, at)
	}
	if err := h.save(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(h.path); err != nil || info.Size() > 14<<10 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	again, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b []point) bool {
		for i := range a {
			if !a[i].At.Equal(b[i].At) {
				return false
			}
			a[i].At, b[i].At = time.Time{}, time.Time{}
		}
		return reflect.DeepEqual(a, b)
	}
	if !same(again.lastHour(), hour) || !same(again.lastDay(), day) {
		t.Error("the past has changed")
	}
}

func TestDamageCostsThePlotsPastAlone(t *testing.T) {
	dir := t.TempDir()
	past(t, dir)
	path := filepath.Join(dir, "history")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[1000] ^= 1
	for name, data := range map[string][]byte{"empty": {}, "cut": whole[:len(whole)/2], "flipped": flipped, "longer": append(bytes.Clone(whole), 0)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := openHistory(dir)
		if !errors.Is(err, errDamaged) || h == nil || len(h.lastHour()) > 0 {
			t.Errorf("%s: %v", name, err)
		}
		if err := h.save(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzHistory(f *testing.F) {
	h, _ := openHistory("")
	f.Add(h.encode())
	h.hour.points = []point{{At: noon, In: 1, Out: 2, Pending: 3, Latency: time.Millisecond}}
	f.Add(h.encode())
	f.Add([]byte(historyMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, _ := openHistory("")
		if h.decode(data) == nil && !bytes.Equal(h.encode(), data) {
			t.Error("what is read is not what is written")
		}
	})
}

func TestRatesFollowTheLedger(t *testing.T) {
	l := newLive()
	snap := func(second int, accepted, delivered uint64) Snapshot {
		return Snapshot{Time: noon.Add(time.Duration(second) * time.Second), Ledger: []spool.Tally{
			{Route: "r", Connector: "a", Accepted: accepted, Delivered: delivered}, {Route: "r", Connector: "b", Accepted: accepted}}}
	}
	if m := l.take(snap(0, 100, 50)); m.Total != (rate{}) {
		t.Errorf("first: %+v", m.Total)
	}
	if m := l.take(snap(1, 110, 54)); m.Total != (rate{10, 4}) {
		t.Errorf("second: %+v", m.Total)
	}
	for i := 2; i < 20; i++ {
		l.take(snap(i, 110, 54))
	}
	if m := l.take(snap(20, 110, 54)); m.Total != (rate{}) {
		t.Errorf("idle: %+v", m.Total)
	}
	if m := l.take(snap(21, 3, 1)); m.Total != (rate{}) {
		t.Errorf("counted anew: %+v", m.Total)
	}
	l.take(snap(10, 3, 1)) // a clock that is set back
	if m := l.take(snap(10, 4, 2)); m.Total.In < 0 || m.Total.Out < 0 {
		t.Errorf("clock set back: %+v", m.Total)
	}
}

func TestRecorderKeepsTheLastLines(t *testing.T) {
	r := NewRecorder(3)
	var out bytes.Buffer
	log := slog.New(r.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	log.Debug("not written, not kept")
	log.Info("one")
	log = log.With("part", "x y").WithGroup("g").With("a", 1)
	log.Warn("two", "b", errors.New("no"), slog.Group("h", "c", ""))
	for i := range 2 {
		log.Error(fmt.Sprint("three ", i))
	}
	var got []string
	for _, l := range r.Lines() {
		got = append(got, l.Level.String()+" "+l.Message+" "+l.Fields)
	}
	want := []string{`ERROR three 1 part="x y" g.a=1`, `ERROR three 0 part="x y" g.a=1`, `WARN two part="x y" g.a=1 g.b=no g.h.c=""`}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if n := strings.Count(out.String(), "\n"); n != 4 {
		t.Errorf("%d lines went on", n)
	}
	for _, want := range []string{`g.b=no`, `g.h.c=""`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the handler beside lacks %s", want)
		}
	}
}

func TestPlotLeavesGaps(t *testing.T) {
	points := []point{{At: noon.Add(-50 * time.Minute), In: 1}, {At: noon.Add(-50*time.Minute + 10*time.Second), In: 2},
		{At: noon.Add(-10 * time.Minute), In: 4}, {At: noon.Add(-2 * time.Hour), In: 9}, {At: noon.Add(time.Minute), In: 9}}
	p := plots(english, points, noon, time.Hour, 10*time.Second)[0]
	if want := "M100.0 88.3L101.7 77.7M500.0 56.3"; p.Lines[0].D != want || strings.Count(p.Lines[0].Area, "Z") != 2 {
		t.Errorf("%s, %s", p.Lines[0].D, p.Lines[0].Area)
	}
	if empty := plots(english, nil, noon, time.Hour, time.Second)[0]; empty.Now != "–" || empty.Lines[0].D != "" {
		t.Errorf("%+v", empty)
	}
}

func TestPictureShowsWhereItIsStuck(t *testing.T) {
	g := unwell()
	m := newLive().take(g.Snapshot())
	for _, upright := range []bool{false, true} {
		p := m.draw(english, upright)
		classes := map[string]string{}
		for _, n := range p.Nodes {
			classes[n.Full] = n.Class
			if n.X < 0 || n.X+n.W > p.Width || n.Y < 0 || n.Y+n.H > p.Height {
				t.Errorf("%s lies outside", n.Full)
			}
		}
		for full, want := range map[string]string{"shop not bound": "bad", "field COAP · 8 devices": "ok", "12\u2009345 waiting, full": "bad", "plant mqtt · backing off": "warn"} {
			if classes[full] != want {
				t.Errorf("%q is %q, want %q", full, classes[full], want)
			}
		}
		stuck := 0
		for _, e := range p.Edges {
			if e.Class == "stuck" {
				stuck++
			}
		}
		if stuck != 2 {
			t.Errorf("%d edges are stuck", stuck)
		}
	}
	for range 30 {
		g.change(func(s *Snapshot) {
			s.Connectors = append(s.Connectors, Connector{Name: fmt.Sprint("c", len(s.Connectors))})
		})
	}
	many := newLive().take(g.Snapshot()).draw(english, false)
	if len(many.Nodes) > 5*maxNodes {
		t.Errorf("%d nodes", len(many.Nodes))
	}
}

func TestMetricsAsPromtoolWantsThem(t *testing.T) {
	promtool := needs.Program(t, "promtool")
	for _, name := range []string{"well", "unwell", "empty"} {
		data, err := os.ReadFile("testdata/" + name + ".prom")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestTooManyLivePagesAreRefused(t *testing.T) {
	s, err := New(Options{Source: well(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.readers.Store(maxReaders)
	w := httptest.NewRecorder()
	s.PageHandler().ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/live/overview", nil))
	if w.Code != http.StatusServiceUnavailable || s.readers.Load() != maxReaders {
		t.Errorf("%d, %d readers", w.Code, s.readers.Load())
	}
}

// BenchmarkTenThousandDevices is what one second of an open page of 10,000 devices costs.
func BenchmarkTenThousandDevices(b *testing.B) {
	g := busy()
	for i := range 10_000 {
		g.devices = append(g.devices, southbound.DeviceInfo{Device: fmt.Sprint("device-", i), Listener: "field", Address: fmt.Sprint("10.0.0.1:", i), Protocol: "DTLS 1.2"})
	}
	s, err := New(Options{Source: g, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	h := s.PageHandler()
	b.ReportAllocs()
	for b.Loop() {
		s.sample()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/devices", nil))
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
