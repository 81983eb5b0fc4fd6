package azure_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

var key = northtest.HMAC("0123456789abcdef0123456789abcdef")

func connector(t testing.TB, b *northtest.Broker, tokens northbound.Tokens, change func(*azure.Config)) northbound.Connector {
	t.Helper()
	ring := &northtest.Keys{
		Certificates: map[string]tls.Certificate{"identity": b.CA.Certificate(t, broker.Subject{Name: "gw1"})},
		MACs:         map[string]hwcrypto.MACer{"hmac": key},
	}
	env, _ := northtest.Env(t, ring)
	env.Tokens = tokens
	c := azure.Kind().Config().(*azure.Config)
	c.Endpoint, c.CA, c.Key = local(b.Addr), config.Path(b.CA.File(t)), "identity"
	if change != nil {
		change(c)
	}
	if c.Identities == "device" {
		knows(t, env, "gw1")
	}
	return open(t, env, c)
}

// knows lets a connector find devices in its state that have reported before.
func knows(t testing.TB, env northbound.Env, devices ...string) {
	t.Helper()
	list, err := json.Marshal(devices)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(env.State, "devices.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, env northbound.Env, c *azure.Config) northbound.Connector {
	t.Helper()
	conn, err := azure.Kind().Open(env, c)
	if err != nil {
		t.Fatal(err)
	}
	azure.SetLeastPoll(conn, 0)
	return conn
}

func local(addr string) string { return strings.Replace(addr, "127.0.0.1", "localhost", 1) }

func bySAS(c *azure.Config) { c.Auth, c.Key = "sas", "hmac" }

// issuer gives tokens that are good for a while.
type issuer struct {
	mu   sync.Mutex
	n    int
	life time.Duration
	down bool

	rejected []string
}

func (i *issuer) Token(context.Context, string) (string, time.Time, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		return "", time.Time{}, errors.New("the issuer is down")
	}
	i.n++
	return fmt.Sprintf("token %d", i.n), time.Now().Add(i.life), nil
}

// Reject makes a token that was refused no more what it gives.
func (i *issuer) Reject(_, token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rejected = append(i.rejected, token)
}

func isToken(s string) bool { return strings.HasPrefix(s, "token ") }

// downlink answers commands.
type downlink struct {
	northtest.Downlink
	answer func(p msg.Publication) msg.Reply
}

func (d *downlink) Deliver(ctx context.Context, p msg.Publication) (msg.Reply, error) {
	if _, err := d.Downlink.Deliver(ctx, p); err != nil {
		return msg.Reply{}, err
	}
	if d.answer == nil {
		return msg.Reply{Status: msg.Done}, nil
	}
	return d.answer(p), nil
}

func TestReportSaysInItsPropertiesWhatItIs(t *testing.T) {
	h := northtest.NewHub(t, nil)
	s := northtest.Dial(t, connector(t, h.Broker, nil, nil), &northtest.Downlink{})
	err := northtest.Send(t, s, msg.Publication{
		Topic: "dt/gw1/th 1/temp", Device: "th 1", Type: "application/json", Payload: []byte("{}"), Retain: true,
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Properties: map[string]string{"unit": "°C", "$.uid": "nobody"},
	})
	if err != nil {
		t.Fatal(err)
	}
	topic := h.Messages()[0].Topic
	_, bag, _ := strings.Cut(topic, "/messages/events/%24.mid=")
	if _, rest, _ := strings.Cut(bag, "&"); rest != "%24.ct=application%2Fjson&%24.ce=utf-8&%24.ctime=2026-01-02T03%3A04%3A05Z&device=th%201&topic=dt%2Fgw1%2Fth%201%2Ftemp&unit=%C2%B0C" {
		t.Fatal(topic)
	}
}

func TestDirectMethodIsAnsweredByTheDevice(t *testing.T) {
	h := northtest.NewHub(t, nil)
	d := &downlink{Downlink: northtest.Downlink{Filters: []string{"methods/#"}}, answer: func(p msg.Publication) msg.Reply {
		switch p.Topic {
		case "methods/th-1.a/setpoint":
			return msg.Reply{Status: msg.Done, Code: "2.04", Payload: []byte(`{"was":19}`)}
		case "methods/reboot":
			return msg.Reply{Status: msg.Queued}
		case "methods/th-1/missing":
			return msg.Reply{Status: msg.Refused, Code: "4.04", Payload: []byte("no such thing")}
		}
		return msg.Reply{Status: msg.Refused, Code: "denied"}
	}}
	northtest.Dial(t, connector(t, h.Broker, nil, nil), d)
	for method, want := range map[string]northtest.Answer{
		"th-1.a.setpoint": {Status: 200, Body: `{"was":19}`},
		"reboot":          {Status: 202, Body: `{"status":"queued"}`},
		"th-1.missing":    {Status: 404, Body: `{"status":"refused","code":"4.04","answer":"no such thing"}`},
		"th-1.forbidden":  {Status: 403, Body: `{"status":"refused","code":"denied"}`},
	} {
		if got := h.Call(t, method, `{"value":20}`); got != want {
			t.Errorf("%s: %+v", method, got)
		}
	}
}

func TestDirectMethodIsAnsweredInTimeWhateverTheDeviceDoes(t *testing.T) {
	h := northtest.NewHub(t, nil)
	d := &downlink{Downlink: northtest.Downlink{Filters: []string{"methods/#"}, Before: func(ctx context.Context, _ msg.Publication) error {
		<-ctx.Done()
		return ctx.Err()
	}}}
	northtest.Dial(t, connector(t, h.Broker, nil, func(c *azure.Config) { c.MethodTimeout = config.Duration(50 * time.Millisecond) }), d)
	if got := h.Call(t, "th-1.slow", "null"); got.Status != 504 {
		t.Fatalf("%+v", got)
	}
}

func TestTwinIsReportedAndDesired(t *testing.T) {
	h := northtest.NewHub(t, nil)
	c := connector(t, h.Broker, nil, nil)
	d := &northtest.Downlink{Filters: []string{"twin/desired/+"}}
	h.Desire(map[string]any{"th-1": map[string]any{"setpoint": 20}})
	s := northtest.Dial(t, c, d)
	got := func() (list []string) {
		for _, p := range d.Got() {
			list = append(list, p.Topic+" "+string(p.Payload))
		}
		return list
	}
	want := []string{`twin/desired/th-1 {"setpoint":20}`}
	northtest.Await(t, "the twin at connect", func() bool { return slices.Equal(got(), want) })
	h.Desire(map[string]any{"th-2": 5})
	want = append(want, "twin/desired/th-2 5")
	northtest.Await(t, "the change", func() bool { return slices.Equal(got(), want) })

	for _, r := range []struct {
		topic, payload string
		ok             bool
	}{
		{"twin/reported", `{"firmware":"1.2"}`, true}, {"twin/reported/th-1", `{"setpoint":20}`, true},
		{"twin/reported", `7`, false}, {"twin/reported/a.b", `7`, false}, {"twin/reported", `x`, false},
		{"twin/reported/big", `"` + strings.Repeat("x", 32<<10) + `"`, false},
	} {
		if err := northtest.Send(t, s, msg.Publication{Topic: r.topic, Payload: []byte(r.payload)}); r.ok && err != nil || !r.ok && !msg.IsPermanent(err) {
			t.Errorf("%s %.20s: %v", r.topic, r.payload, err)
		}
	}
	if data, _ := json.Marshal(h.Reported()); string(data) != `{"firmware":"1.2","th-1":{"setpoint":20}}` {
		t.Fatalf("reported %s", data)
	}

	s.Close()
	h.Desire(map[string]any{"th-2": 6})
	northtest.Dial(t, c, d)
	want = append(want, `twin/desired/th-1 {"setpoint":20}`, "twin/desired/th-2 6") // the whole twin, for it has changed
	northtest.Await(t, "what changed while away", func() bool { return slices.Equal(got(), want) })
}

func TestMessageArrivesOnTheTopicInItsProperties(t *testing.T) {
	h := northtest.NewHub(t, nil)
	d := &northtest.Downlink{Filters: []string{"#"}}
	northtest.Dial(t, connector(t, h.Broker, nil, nil), d)
	h.Message("%24.mid=m1&%24.cid=c1&%24.ct=text%2Fplain&topic=cmd%2Fgw1%2Fth-1&unit=%C2%B0C&empty=&none", "a")
	h.Message("%24.to=%2Fdevices%2Fgw1", "b")
	northtest.Await(t, "messages", func() bool { return len(d.Got()) == 2 })
	got := d.Got()
	slices.SortFunc(got, func(a, b msg.Publication) int { return strings.Compare(string(a.Payload), string(b.Payload)) })
	a, b := got[0], got[1]
	if a.Topic != "cmd/gw1/th-1" || a.Type != "text/plain" || string(a.Correlation) != "c1" || a.Properties["unit"] != "°C" || a.Properties["mid"] != "m1" {
		t.Errorf("%+v", a)
	}
	if b.Topic != "devicebound" {
		t.Errorf("%+v", b)
	}
}

func TestSessionEndsWithItsSignatureAndIsRenewed(t *testing.T) {
	h := northtest.NewHub(t, key)
	c := connector(t, h.Broker, nil, func(c *azure.Config) { bySAS(c); c.TokenLife = config.Duration(4 * time.Second) })
	s := northtest.Dial(t, c, &northtest.Downlink{})
	first := h.Expires()
	<-s.Context().Done()
	if err := context.Cause(s.Context()); !errors.Is(err, northbound.ErrRenew) {
		t.Fatal(err)
	}
	if err := northtest.Send(t, northtest.Dial(t, c, &northtest.Downlink{}), msg.Publication{Topic: "x"}); err != nil {
		t.Fatal(err)
	}
	if !h.Expires().After(first) {
		t.Fatal("the same signature again")
	}
}

func TestTokenIsRenewedWithoutDisconnect(t *testing.T) {
	var mu sync.Mutex
	var shown []string
	b := northtest.NewGrid(t, "OAUTH2-JWT", func(token string) bool {
		mu.Lock()
		defer mu.Unlock()
		shown = append(shown, token)
		return isToken(token)
	})
	i := &issuer{life: 100 * time.Millisecond}
	c := connector(t, b, i, func(c *azure.Config) { c.Service, c.Auth, c.Token, c.Key = "eventgrid", "oauth", "entra", "" })
	azure.SetLeastRenewal(c, 20*time.Millisecond)
	s := northtest.Dial(t, c, &northtest.Downlink{})
	seen := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(shown) >= n
		}
	}
	northtest.Await(t, "three tokens", seen(3))
	// While the issuer is down the session goes on.
	i.mu.Lock()
	i.down = true
	i.mu.Unlock()
	if err := northtest.Send(t, s, msg.Publication{Topic: "dt/x"}); err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	i.down = false
	i.mu.Unlock()
	mu.Lock()
	n := len(shown)
	mu.Unlock()
	northtest.Await(t, "another token", seen(n+1))
	if s.Context().Err() != nil {
		t.Fatal(context.Cause(s.Context()))
	}
}

func TestTokenThatIsRefusedIsNotShownAgain(t *testing.T) {
	b := northtest.NewGrid(t, "OAUTH2-JWT", func(token string) bool { return token == "token 2" || token == "token 5" })
	i := &issuer{life: time.Hour}
	c := connector(t, b, i, func(c *azure.Config) { c.Service, c.Auth, c.Token, c.Key = "eventgrid", "oauth", "entra", "" })
	for n, want := range []struct{ ok, permanent bool }{{false, false}, {true, false}, {false, false}, {false, true}, {true, false}} {
		s, err := c.Dial(t.Context(), &northtest.Downlink{})
		if (err == nil) != want.ok || msg.IsPermanent(err) != want.permanent {
			t.Fatalf("log-in %d: %v", n+1, err)
		}
		if err == nil {
			s.Close()
		}
	}
	if got := strings.Join(i.rejected, ", "); got != "token 1, token 3, token 4" {
		t.Fatal(got)
	}
}

func TestProvisioningIsAskedOnceAndSaysNoInWords(t *testing.T) {
	h := northtest.NewHub(t, key)
	c := connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		c.Endpoint, c.IDScope, c.Provisioning = "", "0ne00000A0A", local(h.Addr)
	})
	northtest.Dial(t, c, &northtest.Downlink{}).Close()
	h.Refuse = "no allocation policy"
	northtest.Dial(t, c, &northtest.Downlink{}).Close()

	fresh := connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		c.Endpoint, c.IDScope, c.Provisioning = "", "0ne00000A0A", local(h.Addr)
	})
	if _, err := fresh.Dial(t.Context(), &northtest.Downlink{}); !msg.IsPermanent(err) || !strings.Contains(err.Error(), `provisioning: failed, error 401002: "no allocation policy"`) {
		t.Fatal(err)
	}
}

// The key of an enrolment group's device is derived from its registration id, also for the hub, which may know it by another name.
func TestKeyIsDerivedFromTheRegistration(t *testing.T) {
	h := northtest.NewHub(t, key)
	c := connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		provisioned(h, c)
		h.Group, c.Group, c.Registration = true, true, "plant7-registration"
	})
	if err := northtest.Send(t, northtest.Dial(t, c, &northtest.Downlink{}), msg.Publication{Topic: "x"}); err != nil {
		t.Fatal(err)
	}
}

func TestWrongKeyIsExplained(t *testing.T) {
	h := northtest.NewHub(t, northtest.HMAC("another key of thirty-two octets"))
	_, err := connector(t, h.Broker, nil, bySAS).Dial(t.Context(), &northtest.Downlink{})
	text, hint := health.Words(err, time.Now())
	if !msg.IsPermanent(err) || !strings.HasPrefix(text, "IoT Hub does not take this device's credential (") || !strings.HasPrefix(hint, "is the device enabled, is `key` its symmetric key") ||
		strings.Contains(text, "sig=") {
		t.Fatal(text, hint)
	}
}

func TestExamine(t *testing.T) {
	h := northtest.NewHub(t, nil)
	b := northtest.NewGrid(t, "OAUTH2-JWT", isToken)
	for want, c := range map[string]northbound.Connector{
		"name tcp tls log-in publish": connector(t, h.Broker, nil, nil),
		"name tcp tls log-in publish echo": connector(t, b, &issuer{life: time.Hour}, func(c *azure.Config) {
			c.Service, c.Auth, c.Token, c.Key, c.Name = "eventgrid", "oauth", "entra", "", "gw1"
		}),
	} {
		var names []string
		c.(northbound.Examined).Examine(t.Context(), func(s northbound.Step) {
			names = append(names, s.Name)
			if s.Err != nil {
				t.Errorf("%s: %v", s.Name, s.Err)
			}
		})
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s", got)
		}
	}
}

func TestExampleIsRight(t *testing.T) {
	kinds := config.Kinds{Connectors: map[string]func() any{"azure": azure.Kind().Config}}
	text := "[gateway]\nid = \"gw1\"\n[key.identity]\nuri = \"file:identity.key\"\n" + azure.Kind().Example
	if _, err := config.Parse(filepath.Join(t.TempDir(), "drawbridge.toml"), []byte(text), kinds); err != nil {
		t.Fatal(err)
	}
}
