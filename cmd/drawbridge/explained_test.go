package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/status"
	"github.com/drawbridge/drawbridge/status/pagetest"
)

var tags = regexp.MustCompile(`<[^>]*>`)

// TestErrorsAreExplainedWhereverTheyAreShown has a broker whose certificate ended three days ago and a certified issuer that does not take the
// gateway's secret: page, in both languages, `drawbridge status`, /status.json, log and doctor say what is wrong and what to do.
func TestErrorsAreExplainedWhereverTheyAreShown(t *testing.T) {
	h := newHouse(t)
	b := northtest.NewBroker(h, broker.Options{})
	ended := time.Now().Add(-73 * time.Hour)
	config := b.CA.Server(h)
	config.Certificates = []tls.Certificate{b.CA.Certificate(h, broker.Subject{Name: "localhost", Hosts: northtest.Loopback, From: ended.Add(-time.Hour), Until: ended})}
	b.Listen(h, config)
	issuer := pagetest.Install(t).Issuer(t, b.CA.Certificate(h, broker.Subject{Name: "issuer", Hosts: northtest.Loopback}))
	issuer.Serve("https://localhost/login/callback")
	h.write("secret", []byte("a secret that is wrong"))
	hook := northtest.NewWebhook(h)
	h.configure(h.identity(b.CA), connectorTo("plant", b.CA, h, b.Addr), h.key("hook", hook.CA, broker.Subject{Name: "gw1"}), shop, toHook(hook, hook.CA.File(h)), fmt.Sprintf(`[token.access]
issuer = %q
client_id = "gateway"
client_auth = "client_secret_post"
client_secret = "file:secret"
ca = %q
`, issuer.URL, b.CA.File(h)))
	h.start()
	device := h.device("th-1")
	defer device.Close()
	device.publish5("hook/x", []byte("1")) // for which a token is wanted
	doctor, _ := h.verb("doctor", "--skip", "key", "--skip", "disk")
	for _, c := range []struct{ code, subject, what, hint, korean, rat string }{
		{"cloud-unreachable", "connector plant",
			`the peer's certificate "CN=localhost" expired on ` + ended.UTC().Format(time.DateOnly) + ": it was not renewed, or its clock or ours is off by 3 days (",
			"have it renewed at the peer; this clock says 2",
			`상대의 인증서 "CN=localhost": ` + ended.UTC().Format(time.DateOnly) + "에 만료되었습니다. 갱신하지 않았거나, 상대 또는 이 기기의 시계가 3일 1시간 어긋나 있습니다 (",
			"상대에서 인증서를 갱신하게 하세요"},
		{"token-missing", "token access", `the issuer does not know client "gateway", or its secret is wrong or has ended (token "access": the issuer answered 401 invalid_client`,
			"compare `client_id` and `client_secret` of [token.access] with what the issuer has",
			`발급자가 클라이언트 "gateway"를 모르거나, 그 비밀이 틀렸거나 만료되었습니다 (`, "[token.access]의 client_id와 client_secret을 발급자에 있는 것과 비교하고"},
	} {
		p := h.appears(c.code, c.subject)
		if !strings.HasPrefix(p.Detail, c.what) || !strings.HasPrefix(p.Hint, c.hint) {
			t.Errorf("%s:\n%s\n%s", c.code, p.Detail, p.Hint)
		}
		shown := func(path string) string { return html.UnescapeString(tags.ReplaceAllString(h.get(path), "")) }
		if page := shown("/?lang=en"); !strings.Contains(page, c.what) || !strings.Contains(page, strings.ReplaceAll(c.hint, "`", "")) {
			t.Errorf("%s: the page does not show it", c.code)
		}
		if page := shown("/?lang=ko"); !strings.Contains(page, c.korean) || !strings.Contains(page, c.rat) {
			t.Errorf("%s: the page does not show it in Korean", c.code)
		}
		if out, _ := h.verb("status"); !strings.Contains(out, "\n  "+c.what) || !strings.Contains(out, "\n  hint: "+c.hint) {
			t.Errorf("%s: drawbridge status says\n%s", c.code, out)
		}
		var s status.Snapshot
		if err := json.Unmarshal([]byte(h.get("/status.json")), &s); err != nil || !slices.ContainsFunc(s.Problems, func(q health.Problem) bool {
			return q.Code == c.code && strings.HasPrefix(q.Detail, c.what) && strings.HasPrefix(q.Hint, c.hint)
		}) {
			t.Errorf("%s: status.json: %v", c.code, err)
		}
		quoted := func(s string) string { return strings.Trim(fmt.Sprintf("%q", s), `"`) }
		if log := h.logged(); !strings.Contains(log, `detail="`+quoted(c.what)) || !strings.Contains(log, `hint="`+quoted(c.hint)) {
			t.Errorf("%s: the log does not say it", c.code)
		}
		what, _, _ := strings.Cut(c.what, " (")
		if !strings.Contains(doctor, ": "+what+" (") || !strings.Contains(doctor, "\n  hint: "+c.hint) {
			t.Errorf("%s: doctor says\n%s", c.code, doctor)
		}
	}
	if all := h.get("/?lang=en") + h.get("/status.json") + h.logged(); strings.Contains(all, "a secret that is wrong") {
		t.Error("the secret is shown")
	}
}
