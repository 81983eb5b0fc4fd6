package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"html"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/status"
)

// troubles bring about each problem that is declared, by what really causes it, and mend it.
var troubles = []struct {
	name  string
	codes []string // that it brings about
	play  func(*house)
}{
	{"the cloud is away", []string{"cloud-unreachable", "queue-growing", "spool-full", "replies-lost"}, (*house).cloudAway},
	{"the cloud refuses", []string{"cloud-refuses-login", "cloud-refuses-message", "cloud-refuses-all", "dead-letters"}, (*house).cloudRefuses},
	{"dead letters pile up", []string{"dead-letters-full"}, (*house).deadLettersPileUp},
	{"the broker can do less", []string{"subscription-refused", "retain-unavailable"}, (*house).brokerCanDoLess},
	{"an operator and a new file", []string{"connector-paused", "data-budget-short", "queue-orphaned", "no-commands"}, (*house).newFiles},
	{"the disk is full", []string{"dead-letters-failing", "mqtt-store-failing", "token-unkept"}, (*house).diskFull},
	{"files are damaged", []string{"spool-damaged", "bridge-store-damaged"}, (*house).filesDamaged},
	{"too many commands sleep", []string{"mailboxes-full"}, (*house).commandsSleep},
	{"a part fails", []string{"task-failed"}, (*house).partFails},
	{"a part hangs", []string{"task-stuck"}, (*house).partHangs},
	{"the clock is wrong", []string{"clock-wrong"}, (*house).clockWrong},
	{"keys", []string{"key-in-software", "key-unavailable", "key-weak"}, (*house).keysFail},
	{"payload keys", []string{"payload-key-failing"}, (*house).payloadKeyFails},
	{"certificates", []string{"certificate-missing", "certificate-mismatch", "certificate-expiring", "certificate-expired"}, (*house).certificatesFail},
	{"the CA refuses", []string{"renewal-failed"}, (*house).renewalFails},
	{"devices over CoAP", []string{"coap-key-unavailable", "coap-handshakes-full", "coap-associations-not-kept", "coap-credentials-refused"}, (*house).coapFails},
	{"who vouches for devices is away", []string{"issuer-unreachable", "authenticator-unreachable"}, (*house).vouchersAway},
	{"revocation lists", []string{"crl-unreadable", "crl-stale"}, (*house).listsRot},
	{"tokens", []string{"token-missing", "token-late"}, (*house).tokensFail},
	{"AWS", []string{"aws-subscription-refused"}, (*house).awsRefuses},
	{"Azure", []string{"azure-subscription-refused", "azure-devices-refused"}, (*house).azureRefuses},
	{"oneM2M", []string{"onem2m-subscription-refused", "group-refused"}, (*house).onem2mRefuses},
}

// TestEveryProblemAppearsAndGoes holds every declared problem to its promise: it is seen on the page, by `drawbridge status`, in /status.json,
// /metrics, /healthz and the log when its cause is there, and is gone from all of them when the cause is.
func TestEveryProblemAppearsAndGoes(t *testing.T) {
	declared := declaredCodes(t)
	brought := []string{unconfigured.Name} // TestFirstStart, which has the ports that nothing configures to itself
	for _, x := range troubles {
		brought = append(brought, x.codes...)
	}
	for code, where := range declared {
		if !slices.Contains(brought, code) {
			t.Errorf("%s declares %q, and nothing here brings it about", where, code)
		}
	}
	var korean map[string]string
	if data, err := os.ReadFile("../../status/lang/ko.json"); err != nil || json.Unmarshal(data, &korean) != nil {
		t.Fatal(err)
	}
	for code := range declared {
		if korean["problem."+code] == "" || korean["hint."+code] == "" {
			t.Errorf("%q has no words in Korean", code)
		}
	}
	for _, code := range brought {
		if declared[code] == "" {
			t.Errorf("%q is declared nowhere", code)
		}
	}
	// All at once, for they wait more than they work.
	var wg sync.WaitGroup
	for _, x := range troubles {
		wg.Go(func() {
			t.Run(x.name, func(t *testing.T) {
				h := newHouse(t)
				x.play(h)
				slices.Sort(h.brought)
				if want := slices.Sorted(slices.Values(x.codes)); !slices.Equal(h.brought, want) {
					t.Errorf("brought about %q, want %q", h.brought, want)
				}
			})
		})
	}
	wg.Wait()
}

// declaredCodes finds the declarations of problems in the sources: their names, and where they stand.
func declaredCodes(t *testing.T) map[string]string {
	t.Helper()
	codes := map[string]string{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if sel, ok := lit.Type.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Code" || sel.X.(*ast.Ident).Name != "health" {
				return true
			}
			for _, e := range lit.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && kv.Key.(*ast.Ident).Name == "Name" {
					name, err := strconv.Unquote(kv.Value.(*ast.BasicLit).Value)
					if err != nil || codes[name] != "" {
						t.Errorf("%s: the code %q is declared twice, or badly", files.Position(lit.Pos()), name)
					}
					codes[name] = files.Position(lit.Pos()).String()
				}
			}
			return true
		})
		return nil
	})
	if err != nil || len(codes) == 0 {
		t.Fatalf("%d codes are declared (%v)", len(codes), err)
	}
	return codes
}

// house is a gateway in this process, put together as `drawbridge run` does, with a clock that can be moved.
type house struct {
	*testing.T
	dir     string
	ahead   atomic.Int64 // of the system's clock, in nanoseconds
	log     record
	page    string
	gateway *gateway
	stop    func()   // ends the gateway; nil: none runs
	brought []string // the problems that were seen to come and go
}

// record is the log.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func (r *record) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b.Reset()
}

func newHouse(t *testing.T) *house {
	// Not t.TempDir: the path of a socket has at most 107 octets.
	dir, err := os.MkdirTemp("", "house")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{T: t, dir: dir}
	t.Cleanup(func() {
		if h.stop != nil {
			h.stop()
		}
		os.RemoveAll(dir)
		if t.Failed() {
			lines := strings.SplitAfter(h.log.text(), "\n")
			t.Logf("the end of the gateway's log:\n%s", strings.Join(lines[max(0, len(lines)-40):], ""))
		}
	})
	return h
}

func (h *house) path(name string) string { return filepath.Join(h.dir, name) }

func (h *house) write(name string, data []byte) string {
	h.Helper()
	if err := os.WriteFile(h.path(name), data, 0o600); err != nil {
		h.Fatal(err)
	}
	return h.path(name)
}

// configure writes the gateway's file: what every house has, and more.
func (h *house) configure(more ...string) {
	h.Helper()
	h.write("drawbridge.toml", []byte("[gateway]\nid = \"gw1\"\nstate = \"state\"\n[status]\nlisten = \"127.0.0.1:0\"\nsocket = \"s\"\n"+strings.Join(more, "\n")))
}

// start runs the gateway until stop.
func (h *house) start() {
	h.Helper()
	h.log.clear()
	bound := make(chan net.Addr, 1)
	records := status.NewRecorder(100)
	g, err := openGateway(h.Context(), h.path("drawbridge.toml"), parts{
		log: slog.New(records.Handler(slog.NewTextHandler(&h.log, nil))), records: records, page: func(a net.Addr) { bound <- a },
		system: func() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) },
	})
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.Context()))
	ended := make(chan error, 1)
	go func() { ended <- g.run(ctx) }()
	h.stop = func() {
		h.stop = nil
		cancel()
		if err := <-ended; err != nil {
			h.Errorf("the gateway ended: %v", err)
		}
	}
	select {
	case a := <-bound:
		h.page = "http://" + a.String()
	case err := <-ended:
		ended <- nil
		h.Fatal(err)
	}
	eventually(h, "the gateway to be ready", func() bool {
		select {
		case <-g.ready:
			return true
		default:
			return false
		}
	})
	h.gateway = g
}

// pass moves the system's clock.
func (h *house) pass(d time.Duration) { h.ahead.Add(int64(d)) }

// reload has the gateway take over what configure wrote.
func (h *house) reload(more ...string) {
	h.Helper()
	h.configure(more...)
	if out, code := h.verb("reload"); code != exitYes {
		h.Fatalf("reload: %d %s", code, out)
	}
}

// verb runs a verb of the command, as a person would.
func (h *house) verb(args ...string) (string, int) { return h.tell("", args...) }

// tell runs a verb that is told something.
func (h *house) tell(input string, args ...string) (string, int) {
	var out bytes.Buffer
	code := execute(h.Context(), append(args, "--config", h.path("drawbridge.toml")), streams{strings.NewReader(input), &out, &out})
	return out.String(), code
}

func (h *house) get(path string) string {
	resp, err := http.Get(h.page + path)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

// at is the address that a listener has bound.
func (h *house) at(listener string) string {
	h.Helper()
	h.gateway.mu.Lock()
	l := h.gateway.plan.listeners[listener]
	h.gateway.mu.Unlock()
	var address string
	eventually(h, listener+" to be bound", func() bool {
		address = l.status().Address
		return l.status().Bound
	})
	return address
}

// report sends a report over MQTT, and gives the reason code of its PUBACK.
func (h *house) report(device, topic string, payload []byte) byte {
	h.Helper()
	c := h.device(device)
	defer c.Close()
	code, err := c.publish5(topic, payload)
	if err != nil {
		h.Fatalf("%s on %s: %v", device, topic, err)
	}
	return code
}

func (h *house) device(name string) *wireConn {
	h.Helper()
	c, err := dialMQTT(h.Context(), h.at("shop"), nil, wireOptions{clientID: name, v5: true})
	if err != nil {
		h.Fatal(err)
	}
	return c
}

// has tells whether the gateway knows the problem.
func (h *house) has(code string) bool {
	return slices.ContainsFunc(h.gateway.tracker.Problems(), func(p health.Problem) bool { return p.Code == code })
}

// again runs a part of the gateway as its supervisor would on a start, until look is done.
func (h *house) again(part func(context.Context) error, look func()) {
	ctx, cancel := context.WithCancel(h.Context())
	ended := make(chan error, 1)
	go func() { ended <- part(ctx) }()
	look()
	cancel()
	if err := <-ended; err != nil {
		h.Error(err)
	}
}

func (h *house) logged() string { return h.log.text() }

// asked is a gateway that can be asked in all the places.
type asked interface {
	get(path string) string            // from the page's address
	verb(args ...string) (string, int) // of the command
	logged() string
}

// tellers are the places where problems are told.
var tellers = []struct {
	name string
	told func(g asked, p health.Problem) bool
}{
	{"page", func(g asked, p health.Problem) bool {
		return strings.Contains(g.get("/?lang=en"), `data-key="`+html.EscapeString(p.Code+" "+p.Subject)+`"`)
	}},
	{"drawbridge status", func(g asked, p health.Problem) bool {
		out, _ := g.verb("status")
		line := fmt.Sprintf("\n%s: %s", p.Severity, p.Title)
		if p.Subject != "" {
			line += " (" + p.Subject + ")"
		}
		return strings.Contains(out, line+", for ")
	}},
	{"status.json", func(g asked, p health.Problem) bool {
		var s status.Snapshot
		return json.Unmarshal([]byte(g.get("/status.json")), &s) == nil && slices.ContainsFunc(s.Problems, func(q health.Problem) bool {
			return q.Code == p.Code && q.Subject == p.Subject
		})
	}},
	{"metrics", func(g asked, p health.Problem) bool {
		return strings.Contains(g.get("/metrics"), fmt.Sprintf("drawbridge_problem{code=%q,severity=%q,subject=%q} 1\n", p.Code, p.Severity, p.Subject))
	}},
	{"healthz", func(g asked, p health.Problem) bool {
		return strings.Contains(g.get("/healthz"), fmt.Sprintf("%s %s %q: %s\n", p.Severity, p.Code, p.Subject, p.Title))
	}},
	{"log", func(g asked, p health.Problem) bool {
		subject := " subject=" + p.Subject + " "
		if p.Subject == "" || strings.Contains(p.Subject, " ") {
			subject = fmt.Sprintf(" subject=%q", p.Subject)
		}
		last := ""
		for line := range strings.Lines(g.logged()) {
			line = strings.TrimSuffix(line, "\n") + " "
			if strings.Contains(line, " problem="+p.Code+" ") && strings.Contains(line, subject) {
				last = line
			}
		}
		return strings.Contains(last, "level=WARN")
	}},
}

// appears waits until the problem is told everywhere.
func (h *house) appears(code, subject string) health.Problem {
	h.Helper()
	var p health.Problem
	eventually(h, code+" to appear", func() bool {
		for _, q := range h.gateway.tracker.Problems() {
			if q.Code == code && q.Subject == subject {
				p = q
				return true
			}
		}
		return false
	})
	if p.Hint == "" {
		h.Errorf("%s gives no hint", code)
	}
	for _, place := range tellers {
		eventually(h, code+" to appear: "+place.name, func() bool { return place.told(h, p) })
	}
	return p
}

// goes waits until the problem is told nowhere.
func (h *house) goes(p health.Problem) {
	h.Helper()
	for _, place := range tellers {
		eventually(h, p.Code+" to go: "+place.name, func() bool { return !place.told(h, p) })
	}
	h.brought = append(h.brought, p.Code)
}

// brings has the cause show the problem, and the cure end it.
func (h *house) brings(code, subject string, cause, cure func()) {
	h.Helper()
	cause()
	p := h.appears(code, subject)
	cure()
	h.goes(p)
}
