package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/southbound"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

// start serves a source on a page address and a socket of their own.
func start(t *testing.T, src Source, change ...func(*Options)) (page string, socket string) {
	t.Helper()
	bound := make(chan net.Addr, 1)
	socket = filepath.Join(t.TempDir(), "s")
	o := Options{Source: src, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return noon }, Listen: "127.0.0.1:0", Socket: socket,
		Bound: func(a net.Addr) { bound <- a }}
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(o.Socket); o.Socket != "" && err == nil {
			t.Error("the socket is left behind")
		}
	})
	select {
	case a := <-bound:
		return "http://" + a.String(), socket
	case err := <-ended:
		ended <- err
		t.Fatal(err)
		return "", ""
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestRenderings(t *testing.T) {
	for name, g := range map[string]*gateway{"well": well(), "unwell": unwell(), "empty": {snap: Snapshot{Time: noon, Gateway: Gateway{ID: "new", Version: "0.1.0", Started: noon}}}} {
		t.Run(name, func(t *testing.T) {
			page, _ := start(t, g)
			snap := g.Snapshot()
			snap.complete()
			var text bytes.Buffer
			if err := snap.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			golden(t, name+".txt", text.Bytes())
			_, doc := get(t, page+"/status.json")
			golden(t, name+".json", []byte(doc))
			var back Snapshot
			if err := json.Unmarshal([]byte(doc), &back); err != nil || back.Verdict != snap.Verdict || !reflect.DeepEqual(back.Problems, snap.Problems) {
				t.Errorf("read back: %v, %+v", err, back.Verdict)
			}
			code, metrics := get(t, page+"/metrics")
			if code != http.StatusOK {
				t.Errorf("metrics: %d", code)
			}
			golden(t, name+".prom", []byte(metrics))
		})
	}
}

func TestReadyNamesTheListenersThatAreNotBound(t *testing.T) {
	g := unwell()
	page, _ := start(t, g)
	code, body := get(t, page+"/readyz")
	if code != http.StatusServiceUnavailable || body != "listener shop: not bound: listen tcp :8883: bind: address already in use\n" {
		t.Errorf("%d %q", code, body)
	}
	g.change(func(s *Snapshot) { s.Listeners[1].Bound = true })
	if code, body := get(t, page+"/readyz"); code != http.StatusOK || body != "ready\n" {
		t.Errorf("%d %q", code, body)
	}
}

func TestHealthTellsWhatIsWrong(t *testing.T) {
	page, _ := start(t, unwell())
	code, body := get(t, page+"/healthz")
	want := "degraded\ndegraded cloud-unreachable \"connector plant\": the cloud cannot be reached\nnotice key-in-software \"key dev\": a key lives in a file, not in a chip\n"
	if code != http.StatusServiceUnavailable || body != want {
		t.Errorf("%d %q", code, body)
	}
	page, _ = start(t, well())
	if code, body := get(t, page+"/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %q", code, body)
	}
}

func TestDamageIsAcknowledgedOnThePage(t *testing.T) {
	g := well()
	page, _ := start(t, g)
	const button = `data-do="/v1/spool/acknowledge"`
	if _, body := get(t, page+"/"); strings.Contains(body, button) {
		t.Error("it is offered where nothing is damaged")
	}
	g = well()
	g.change(func(s *Snapshot) { s.Problems = append(s.Problems, health.Problem{Code: "spool-damaged"}) })
	page, _ = start(t, g)
	if _, body := get(t, page+"/"); !strings.Contains(body, button) {
		t.Error("it is not offered")
	}
}

func TestClientAsksAndActsOverTheSocket(t *testing.T) {
	g := unwell()
	g.letters = []DeadLetter{{ID: "a", Connector: "cloud", Reason: "too large"}, {ID: "b", Connector: "plant"}}
	g.devices = []southbound.DeviceInfo{{Device: "th-17", Groups: []string{"thermostat"}, Listener: "field"}, {Device: "press-3", Listener: "shop"}}
	var audit bytes.Buffer
	_, socket := start(t, g, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&audit, nil)) })
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v %v", info.Mode(), err)
	}
	c, ctx := NewClient(socket), t.Context()

	snap, err := c.Snapshot(ctx)
	if err != nil || snap.Gateway.ID != "plant7-gw1" || snap.Verdict.State != StateDegraded || snap.Verdict.Well() {
		t.Fatalf("snapshot: %+v, %v", snap.Verdict, err)
	}
	if r, err := c.Reload(ctx); err != nil || !reflect.DeepEqual(r.Restarted, []string{"connector plant"}) {
		t.Errorf("reload: %+v, %v", r, err)
	}
	var r RouteResult
	if err := c.do(ctx, "POST", "/v1/routes/test", RouteTest{Device: "th-17", Resource: "/sensors/temp"}, &r); err != nil || r.Route != "sensors" || string(r.Payload) != `{"v":21.5}` {
		t.Errorf("route: %+v, %v", r, err)
	}
	var l DeviceList
	if err := c.do(ctx, "GET", "/v1/devices?search=THERMO&limit=10", nil, &l); err != nil || l.Total != 1 || l.Devices[0].Device != "th-17" {
		t.Errorf("devices: %+v, %v", l, err)
	}
	if l, err := c.DeadLetters(ctx, "cloud", 10); err != nil || len(l) != 1 || l[0].ID != "a" {
		t.Errorf("dead letters: %+v, %v", l, err)
	}
	if n, err := c.Replay(ctx, "", []string{"a"}); n != 1 || err != nil {
		t.Errorf("replay: %d, %v", n, err)
	}
	if n, err := c.Drop(ctx, "plant", nil); n != 1 || err != nil {
		t.Errorf("drop: %d, %v", n, err)
	}
	if n, err := c.act(ctx, "/v1/devices/disconnect", named{"th-17"}); n != 1 || err != nil {
		t.Errorf("disconnect: %d, %v", n, err)
	}
	if _, err := c.act(ctx, "/v1/connectors/pause", named{"cloud"}); err != nil {
		t.Errorf("pause: %v", err)
	}
	if _, err := c.act(ctx, "/v1/connectors/resume", named{"cloud"}); err != nil {
		t.Errorf("resume: %v", err)
	}
	if _, err := c.act(ctx, "/v1/connectors/pause", named{"moon"}); err == nil || err.Error() != `connector "moon": unknown` {
		t.Errorf("pause: %v", err)
	}
	if n, err := c.Forget(ctx, "old"); n != 7 || err != nil {
		t.Errorf("forget: %d, %v", n, err)
	}
	if n, err := c.Acknowledge(ctx); n != 1 || err != nil {
		t.Errorf("acknowledge: %d, %v", n, err)
	}
	want := []string{"reload", `replay 1 of ""`, `drop 1 of "plant"`, "disconnect th-17", "pause cloud", "resume cloud", "forget old", "acknowledge"}
	if got := g.done(); !reflect.DeepEqual(got, want) {
		t.Errorf("did %q", got)
	}
	for _, line := range []string{
		`msg="action: disconnect device" audit=true who="uid `,
		`msg="action: pause connector" audit=true`, "subject=moon result=refused", "subject=th-17 result=done",
	} {
		if !strings.Contains(audit.String(), line) {
			t.Errorf("the audit log lacks %s:\n%s", line, audit.String())
		}
	}
}

func TestARefusedReloadTellsEveryMistake(t *testing.T) {
	g := well()
	g.reload = config.Errors{{Path: "drawbridge.toml", Pos: config.Pos{Line: 3, Col: 1}, Msg: `unknown key "gatway"`},
		{Path: "drawbridge.toml", Pos: config.Pos{Line: 9, Col: 5}, Msg: `there is no connector "clod"`}}
	_, socket := start(t, g)
	_, err := NewClient(socket).Reload(t.Context())
	r, ok := errors.AsType[*Refused](err)
	if !ok || r.Message != "2 mistakes: nothing was changed" || len(r.Details) != 2 || r.Details[1] != `drawbridge.toml:9:5: there is no connector "clod"` {
		t.Errorf("%#v", err)
	}
}

func TestClientSaysThatNoGatewayAnswers(t *testing.T) {
	_, err := NewClient("/nowhere/drawbridge.sock").Snapshot(t.Context())
	u, ok := errors.AsType[*Unanswered](err)
	if !ok || err.Error() != `no gateway answers at "/nowhere/drawbridge.sock": dial unix /nowhere/drawbridge.sock: connect: no such file or directory` || u.Hint() == "" {
		t.Errorf("%v", err)
	}
}

func TestWhoMayUseTheSocket(t *testing.T) {
	for name, c := range map[string]struct {
		cred unix.Ucred
		want bool
	}{
		"root may":                            {unix.Ucred{Uid: 0, Gid: 99999}, true},
		"the gateway's own user may":          {unix.Ucred{Uid: 4000, Gid: 99999}, true},
		"a member of the gateway's group may": {unix.Ucred{Uid: 4001, Gid: 4000}, true},
		"anybody else may not":                {unix.Ucred{Uid: 4001, Gid: 4001}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mayAct(&c.cred, 4000, 4000); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
	r := httptest.NewRequest("GET", "/status.json", nil)
	w := httptest.NewRecorder()
	s, _ := New(Options{Source: well(), Log: slog.New(slog.DiscardHandler)})
	s.SocketHandler().ServeHTTP(w, withCaller(r, caller{name: "uid 4001", refused: "stranger"}))
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "denied: stranger") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestASecondGatewayLeavesTheFirstItsSocket(t *testing.T) {
	_, socket := start(t, well())
	s, _ := New(Options{Source: well(), Log: slog.New(slog.DiscardHandler), Socket: socket})
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "another gateway answers there") {
		t.Errorf("%v", err)
	}
	if _, err := NewClient(socket).Snapshot(t.Context()); err != nil {
		t.Errorf("the first: %v", err)
	}
}

func TestASocketLeftBehindIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	start(t, well(), func(o *Options) { o.Socket = path })
	if _, err := NewClient(path).Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOnlyLoopbackIsServedWithoutALogIn(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:8480": true, "localhost:8480": true, "[::1]:8480": true, "": true,
		":8480": false, "0.0.0.0:8480": false, "192.168.1.4:8480": false, "gw.example:8480": false, "8480": false,
	} {
		if _, err := New(Options{Source: well(), Log: slog.New(slog.DiscardHandler), Listen: address}); (err == nil) != want {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// bare has no ability but to be looked at.
type bare struct{}

func (bare) Snapshot() Snapshot { return Snapshot{Time: noon} }

func TestAnAbilityThatIsMissingIsNotOffered(t *testing.T) {
	_, socket := start(t, bare{})
	_, err := NewClient(socket).Reload(t.Context())
	if r, ok := errors.AsType[*Refused](err); !ok || r.Code != http.StatusNotFound {
		t.Errorf("%v", err)
	}
}

func TestPageAddressWithstandsForeignPages(t *testing.T) {
	page, _ := start(t, well())
	ask := func(method, path string, change func(*http.Request)) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, page+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for name, c := range map[string]struct {
		method, path string
		change       func(*http.Request)
		want         int
	}{
		"a name that was made to lead here":  {"GET", "/status.json", func(r *http.Request) { r.Host = "evil.example:8480" }, 421},
		"the same for an action":             {"POST", "/v1/reload", func(r *http.Request) { r.Host = "evil.example" }, 421},
		"localhost by name":                  {"GET", "/status.json", func(r *http.Request) { r.Host = "localhost:9999" }, 200},
		"IPv6 loopback":                      {"GET", "/status.json", func(r *http.Request) { r.Host = "[::1]:8480" }, 200},
		"a form of another site":             {"POST", "/v1/reload", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		"a form of another port":             {"POST", "/v1/reload", func(r *http.Request) { r.Header.Set("Origin", "http://localhost:1234") }, 403},
		"the page's own request":             {"POST", "/v1/reload", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }, 200},
		"an action by GET":                   {"GET", "/v1/reload", func(*http.Request) {}, 405},
		"a path that climbs":                 {"GET", "/static/../../etc/passwd", func(*http.Request) {}, 404},
		"a path that climbs in disguise":     {"GET", "/static/%2e%2e/%2e%2e/etc/passwd", func(*http.Request) {}, 404},
		"a language that would set a header": {"GET", "/status.json?lang=en%0d%0aX-Evil:1", func(*http.Request) {}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			resp := ask(c.method, c.path, c.change)
			if resp.StatusCode != c.want {
				t.Errorf("%s %s: %d, want %d", c.method, c.path, resp.StatusCode, c.want)
			}
			if resp.Header.Get("X-Evil") != "" {
				t.Error("a header was injected")
			}
			if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
				t.Errorf("policy %q", csp)
			}
		})
	}
}
