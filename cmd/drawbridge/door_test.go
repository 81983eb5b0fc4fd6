package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/northbound/northtest"
)

// The page of a gateway that others can reach: TLS by the file's key, a log-in by its password or at its issuer.
func TestThePageThatOthersCanReach(t *testing.T) {
	h := newHouse(t)
	ca := northtest.NewCA(t)
	s := h.tokenServer(ca)
	h.write("operator", []byte(auth.HashPassword([]byte("open sesame"))))
	key := h.identity(ca)
	h.write("drawbridge.toml", []byte(fmt.Sprintf(`[gateway]
id = "gw1"
state = "state"
[status]
listen = "0.0.0.0:0"
socket = "s"
key = "identity"
password = "file:operator"
issuer = "plant"
client_id = "page"
[issuer.plant]
url = %q
audience = "gw1"
ca = %q
`, s.URL, ca.File(t))+key+shop))
	h.start()
	u, err := url.Parse(h.page)
	if err != nil {
		t.Fatal(err)
	}
	page := "https://" + net.JoinHostPort("localhost", u.Port())
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(method, path, body string, want int) http.Header {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, page+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s %s: %s, want %d", method, path, resp.Status, want)
		}
		return resp.Header
	}
	ask("GET", "/status.json", "", http.StatusUnauthorized)
	ask("POST", "/v1/reload", "{}", http.StatusUnauthorized)
	ask("POST", "/login", "password=open", http.StatusUnauthorized)
	to, err := url.Parse(ask("GET", "/login/issuer", "", http.StatusSeeOther).Get("Location"))
	if q := to.Query(); err != nil || !strings.HasPrefix(to.String(), s.URL+"/authorize?") || q.Get("client_id") != "page" ||
		q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != page+"/login/callback" {
		t.Errorf("the issuer is asked by %s (%v)", to, err)
	}
	ask("POST", "/login", "password=open+sesame", http.StatusSeeOther)
	ask("GET", "/status.json", "", http.StatusOK)
	ask("POST", "/v1/reload", "{}", http.StatusOK)
	for _, line := range []string{`"operator from `, `msg="action: log in"`, `result="wrong password"`, `msg="action: reload"`} {
		if !strings.Contains(h.log.text(), line) {
			t.Errorf("the audit log lacks %s:\n%s", line, h.log.text())
		}
	}
	if resp, err := http.Get("http://" + net.JoinHostPort("localhost", u.Port()) + "/status.json"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("served without TLS")
		}
	}
}
