package http_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	hook "github.com/drawbridge/drawbridge/northbound/http"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func connector(t testing.TB, h *northtest.Webhook, tokens northbound.Tokens, change func(*hook.Config)) northbound.Connector {
	t.Helper()
	env, _ := northtest.Env(t, &northtest.Keys{
		Certificates: map[string]tls.Certificate{"identity": h.CA.Certificate(t, broker.Subject{Name: "gw1"})},
		Secrets:      map[string]string{"file:key": "s3cret\n"},
	})
	env.Tokens = tokens
	cfg := hook.Kind().Config().(*hook.Config)
	cfg.URL, cfg.CA, cfg.Key = h.URL, config.Path(h.CA.File(t)), "identity"
	if change != nil {
		change(cfg)
	}
	c, err := hook.Kind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConnector(t *testing.T) {
	for name, change := range map[string]func(*hook.Config){
		"an array":          func(*hook.Config) {},
		"the payload alone": func(c *hook.Config) { c.Body = "payload" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			northtest.TestConnector(t, func(t *testing.T) northtest.Setup {
				h := northtest.NewWebhook(t)
				return northtest.Setup{
					Connector: connector(t, h, nil, change), Cloud: h, Topic: "dt/gw1/x", Filter: "cmd/#", NoCommands: true, Mends: true,
					NoRefusals: name == "an array", PerDevice: name != "an array",
				}
			})
		})
	}
}

// sent sends a batch and waits for its outcome.
func sent(t *testing.T, s northbound.Session, batch []msg.Publication) *northtest.Outcome {
	t.Helper()
	o := northtest.NewOutcome(len(batch))
	if err := s.Send(t.Context(), batch, o.Done); err != nil {
		t.Fatal(err)
	}
	o.Await(t)
	return o
}

func dial(t *testing.T, c northbound.Connector) northbound.Session {
	t.Helper()
	return northtest.Dial(t, c, &northtest.Downlink{})
}

func publication(topic, media, payload string) msg.Publication {
	now := time.Now()
	return msg.Publication{ID: msg.NewID(now), Time: now, Topic: topic, Type: media, Payload: []byte(payload), Device: "th-17"}
}

func TestARefusedBatchLosesOnlyWhatIsRefused(t *testing.T) {
	h := northtest.NewWebhook(t)
	h.Refuse("2")
	h.Delay(50 * time.Millisecond) // the first leaves alone, the rest together
	s := dial(t, connector(t, h, nil, nil))
	var batch []msg.Publication
	for _, p := range []string{"0", "1", "2", "3"} {
		batch = append(batch, publication("a/b", "text/plain", p))
	}
	o := sent(t, s, batch)
	for i := range batch {
		if n, err := o.Err(i); n != 1 || msg.IsPermanent(err) != (i == 2) {
			t.Errorf("%d: done %d times, error %v", i, n, err)
		}
	}
	if got := h.Received(); !slices.Equal(got, []string{"0", "1", "3"}) {
		t.Errorf("received %q", got)
	}
}

func TestWhatAMessageOfAnArrayLooksLike(t *testing.T) {
	h := northtest.NewWebhook(t)
	s := dial(t, connector(t, h, nil, func(c *hook.Config) {
		c.Secret, c.Headers = "file:key", map[string]string{"X-Plant": "7"}
	}))
	for _, c := range []struct{ media, payload, want string }{
		{"application/json", `{"a":1}`, `"payload":{"a":1}`},
		{"application/senml+json", `[]`, `"payload":[]`},
		{"application/json", `{`, `"payload":"{"`},
		{"", "21.5", `"payload":"21.5"`},
		{"application/cbor", "\xff\x00", `"payload":"/wA=","base64":true`},
	} {
		sent(t, s, []msg.Publication{publication("dt/temp", c.media, c.payload)})
		list := h.Requests()
		got := list[len(list)-1]
		if !strings.Contains(got.Body, c.want) || !strings.Contains(got.Body, `"device":"th-17","topic":"dt/temp"`) {
			t.Errorf("%q %q: %s", c.media, c.payload, got.Body)
		}
		if got.Header.Get("X-API-Key") != "s3cret" || got.Header.Get("X-Plant") != "7" || got.Header.Get("Idempotency-Key") == "" {
			t.Errorf("headers: %v", got.Header)
		}
	}
}

func TestTheTopicFollowsTheURL(t *testing.T) {
	h := northtest.NewWebhook(t)
	s := dial(t, connector(t, h, nil, func(c *hook.Config) { c.Body, c.Method = "payload", "PUT" }))
	sent(t, s, []msg.Publication{publication("dt/a b/temp", "application/json", "{}")})
	got := h.Requests()[0]
	if got.Path != "/hook/dt/a b/temp" || got.Body != "{}" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %+v", got)
	}
}

// issuer gives a new token after each one that was refused.
type issuer struct{ refused atomic.Int64 }

func (i *issuer) Token(context.Context, string) (string, time.Time, error) {
	return "token-" + string(rune('0'+i.refused.Load())), time.Time{}, nil
}

func (i *issuer) Reject(string, string) { i.refused.Add(1) }

func TestATokenThatIsRefusedIsNotShownAgain(t *testing.T) {
	h, tokens := northtest.NewWebhook(t), &issuer{}
	h.Judge = func(r *http.Request, _ []byte) int {
		if r.Header.Get("Authorization") != "Bearer token-1" {
			return http.StatusUnauthorized
		}
		return 0
	}
	c := connector(t, h, tokens, func(c *hook.Config) { c.Token = "plant" })
	s := dial(t, c)
	if err := s.Send(t.Context(), []msg.Publication{publication("a", "", "x")}, func(int, error) { t.Error("done") }); err != nil {
		t.Fatal(err)
	}
	<-s.Context().Done()
	if err := context.Cause(s.Context()); msg.IsPermanent(err) {
		t.Errorf("the first refusal is permanent: %v", err)
	}
	s.Close()
	if _, err := sent(t, dial(t, c), []msg.Publication{publication("a", "", "x")}).Err(0); err != nil {
		t.Error(err)
	}
}

func TestStatuses(t *testing.T) {
	for status, permanent := range map[int]bool{
		300: true, 301: true, 307: true, 400: true, 403: true, 404: true, 410: true, 413: true, 422: true,
		408: false, 425: false, 429: false, 500: false, 502: false, 503: false, 504: false,
	} {
		h := northtest.NewWebhook(t)
		h.Judge = func(*http.Request, []byte) int { return status }
		_, err := sent(t, dial(t, connector(t, h, nil, nil)), []msg.Publication{publication("a", "", "x")}).Err(0)
		if err == nil || msg.IsPermanent(err) != permanent {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestThingSpeak(t *testing.T) {
	h := northtest.NewWebhook(t)
	h.URL = strings.TrimSuffix(h.URL, "/hook") + "/channels/42"
	c := connector(t, h, nil, func(c *hook.Config) {
		c.Preset, c.Secret, c.Interval = "thingspeak", "file:key", config.Duration(200*time.Millisecond)
	})
	s := dial(t, c)
	batch := []msg.Publication{
		publication("plant/field1", "text/plain", "21.5"), publication("plant/all", "application/json", `{"field1":22,"field8":"on"}`),
		publication("plant/all", "application/json", `{"field9":1}`), publication("plant/field2", "text/plain", "3"),
	}
	began := time.Now()
	o := sent(t, s, batch)
	for i := range batch {
		if _, err := o.Err(i); msg.IsPermanent(err) != (i == 2) {
			t.Errorf("%d: %v", i, err)
		}
	}
	var all []map[string]any
	requests := h.Requests()
	for _, r := range requests {
		var body struct {
			Key     string           `json:"write_api_key"`
			Updates []map[string]any `json:"updates"`
		}
		if err := json.Unmarshal([]byte(r.Body), &body); err != nil || body.Key != "s3cret" || r.Path != "/channels/42/bulk_update.json" {
			t.Fatalf("%s: %s", r.Path, r.Body)
		}
		all = append(all, body.Updates...)
	}
	if len(all) != 3 || all[0]["field1"] != "21.5" || all[1]["field1"] != 22.0 || all[1]["field8"] != "on" || all[2]["field2"] != "3" || all[2]["created_at"] == "" {
		t.Errorf("updates: %v", all)
	}
	for i := range requests {
		if after := requests[i].At.Sub(began); after < time.Duration(i)*200*time.Millisecond {
			t.Errorf("request %d comes after %s", i, after)
		}
	}
}

// What a look at the service costs on a metered line counts too.
func TestEveryConnectionGoesThroughTheGatewaysDialler(t *testing.T) {
	h := northtest.NewWebhook(t)
	env, _ := northtest.Env(t, &northtest.Keys{Certificates: map[string]tls.Certificate{"identity": h.CA.Certificate(t, broker.Subject{Name: "gw1"})}})
	var dialled atomic.Int32
	env.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	cfg := hook.Kind().Config().(*hook.Config)
	cfg.URL, cfg.CA, cfg.Key = h.URL, config.Path(h.CA.File(t)), "identity"
	c, err := hook.Kind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := dial(t, c)
	if n := dialled.Load(); n != 1 {
		t.Errorf("dialled %d times before a message", n)
	}
	sent(t, s, []msg.Publication{publication("a", "text/plain", "0")})
	if n := dialled.Load(); n != 2 {
		t.Errorf("dialled %d times", n)
	}
}

// prover gives tokens that are bound to a key. The first proof lacks what the platform's answer says.
type prover struct {
	issuer
	proofs atomic.Int64
}

func (p *prover) Authorize(ctx context.Context, name string, r *http.Request) (string, error) {
	token, _, err := p.Token(ctx, name)
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set("DPoP", "proof-"+string(rune('0'+p.proofs.Add(1))))
	return token, err
}

func (p *prover) Answered(_ string, r *http.Request, answer *http.Response) bool {
	return answer.StatusCode == http.StatusUnauthorized && r.Header.Get("DPoP") == "proof-1"
}

func TestEachRequestProvesThatTheTokenIsOurs(t *testing.T) {
	h, tokens := northtest.NewWebhook(t), &prover{}
	h.Judge = func(r *http.Request, _ []byte) int {
		if r.Header.Get("Authorization") != "DPoP token-0" || r.Header.Get("DPoP") == "proof-1" {
			return http.StatusUnauthorized
		}
		return 0
	}
	s := dial(t, connector(t, h, tokens, func(c *hook.Config) { c.Token = "plant" }))
	for _, payload := range []string{"first", "second"} {
		if _, err := sent(t, s, []msg.Publication{publication("a", "", payload)}).Err(0); err != nil {
			t.Error(err)
		}
	}
	list := h.Requests() // that were accepted
	if len(list) != 2 {
		t.Fatalf("%d requests: %+v", len(list), list)
	}
	for i, want := range []string{"first", "second"} {
		if got := list[i]; !strings.Contains(got.Body, want) || got.Header.Get("DPoP") != "proof-"+string(rune('2'+i)) {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if tokens.refused.Load() != 0 {
		t.Error("a token was thrown away whose proof was refused")
	}
}
