package status

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/status/pagetest"
)

// site is a server certificate for 127.0.0.1 with whoever trusts it.
type site struct {
	cert tls.Certificate
	pool *x509.CertPool
}

func newSite(t *testing.T) *site {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool: x509.NewCertPool()}
	s.pool.AddCert(leaf)
	return s
}

func (s *site) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}}, Timeout: time.Minute}
}

// visitor is a browser's idea of cookies without the browser.
func (s *site) visitor(t *testing.T) *http.Client {
	t.Helper()
	c := s.client()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Jar = jar
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	at time.Time // guarded by mu
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// startOpen serves on an address that others could reach.
func startOpen(t *testing.T, s *site, l Login, change ...func(*Options)) (page string, g *gateway) {
	t.Helper()
	g = busy()
	addr, _ := start(t, g, append([]func(*Options){func(o *Options) {
		o.Listen, o.TLS, o.Login = "0.0.0.0:0", &tls.Config{Certificates: []tls.Certificate{s.cert}}, &l
	}}, change...)...)
	u, err := url.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	return "https://127.0.0.1:" + u.Port(), g
}

func password(text string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return []byte(text), nil }
}

// request makes a request and gives its answer and body; the header's lines are "Name: value".
func request(t *testing.T, c *http.Client, method, address, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestNothingIsServedWithoutALogIn(t *testing.T) {
	s := newSite(t)
	page, g := startOpen(t, s, Login{Password: password("open sesame")})
	c := s.visitor(t)
	for _, path := range []string{"/status.json", "/metrics", "/healthz", "/readyz", "/v1/devices", "/live/overview", "/devices", "/nowhere"} {
		if resp, body := request(t, c, "GET", page+path, ""); resp.StatusCode != 401 || strings.Contains(body, "plant7") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, _ := request(t, c, "POST", page+"/v1/reload", "{}"); resp.StatusCode != 401 || len(g.done()) > 0 {
		t.Errorf("reload: %d, did %q", resp.StatusCode, g.done())
	}
	resp, _ := request(t, c, "GET", page+"/devices?search=x", "", "Accept: text/html")
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/login?next=%2Fdevices%3Fsearch%3Dx" {
		t.Errorf("a person: %d %s", resp.StatusCode, resp.Header.Get("Location"))
	}
	if resp.Header.Get("Strict-Transport-Security") == "" {
		t.Error("no HSTS")
	}
	if resp, err := http.Get("http" + strings.TrimPrefix(page, "https") + "/"); err == nil && resp.StatusCode == 200 {
		t.Error("served without TLS")
	}
}

func TestLogInByPassword(t *testing.T) {
	s := newSite(t)
	at := &clock{at: noon}
	page, g := startOpen(t, s, Login{Password: password(auth.HashPassword([]byte("open sesame")))}, func(o *Options) { o.Now = at.now })
	c := s.visitor(t)
	if resp, body := request(t, c, "POST", page+"/login", "password=wrong"); resp.StatusCode != 401 || !strings.Contains(body, "That password is wrong") {
		t.Errorf("wrong: %d", resp.StatusCode)
	}
	// A session that somebody else has chosen is not taken over (fixation).
	chosen := strings.Repeat("A", 52)
	resp, _ := request(t, c, "POST", page+"/login", "password=open+sesame&next=/devices", "Cookie: __Host-session="+chosen)
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/devices" {
		t.Fatalf("right: %d %s", resp.StatusCode, resp.Header.Get("Location"))
	}
	set := resp.Header.Get("Set-Cookie")
	for _, want := range []string{"__Host-session=", "; Secure", "; HttpOnly", "; SameSite=Lax", "; Path=/"} {
		if !strings.Contains(set, want) || strings.Contains(set, chosen) {
			t.Errorf("cookie %q lacks %q", set, want)
		}
	}
	if resp, body := request(t, c, "GET", page+"/status.json", ""); resp.StatusCode != 200 || !strings.Contains(body, "plant7-gw1") {
		t.Errorf("in: %d", resp.StatusCode)
	}
	if resp, _ := request(t, c, "POST", page+"/v1/reload", "{}", "Sec-Fetch-Site: cross-site"); resp.StatusCode != 403 || len(g.done()) > 0 {
		t.Errorf("a form of another site: %d", resp.StatusCode)
	}
	if resp, _ := request(t, c, "POST", page+"/v1/reload", "{}"); resp.StatusCode != 200 || len(g.done()) != 1 {
		t.Errorf("reload: %d", resp.StatusCode)
	}
	at.pass(29 * time.Minute)
	if resp, _ := request(t, c, "GET", page+"/status.json", ""); resp.StatusCode != 200 {
		t.Errorf("after 29 minutes: %d", resp.StatusCode)
	}
	at.pass(31 * time.Minute)
	if resp, _ := request(t, c, "GET", page+"/status.json", ""); resp.StatusCode != 401 {
		t.Errorf("idle for 31 minutes: %d", resp.StatusCode)
	}
	request(t, c, "POST", page+"/login", "password=open+sesame")
	if resp, _ := request(t, c, "POST", page+"/logout", ""); resp.StatusCode != 303 {
		t.Errorf("log out: %d", resp.StatusCode)
	}
	if resp, _ := request(t, c, "GET", page+"/status.json", ""); resp.StatusCode != 401 {
		t.Errorf("after the log-out: %d", resp.StatusCode)
	}
}

func TestLiveValuesEndWithTheSession(t *testing.T) {
	s := newSite(t)
	page, _ := startOpen(t, s, Login{Password: password("open sesame")}, func(o *Options) { o.Now = time.Now })
	c := s.visitor(t)
	request(t, c, "POST", page+"/login", "password=open+sesame")
	r, err := http.NewRequestWithContext(t.Context(), "GET", page+"/live/overview", nil)
	if err != nil {
		t.Fatal(err)
	}
	live, err := c.Do(r)
	if err != nil || live.StatusCode != 200 {
		t.Fatal(err)
	}
	defer live.Body.Close()
	if _, err := io.ReadFull(live.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	request(t, c, "POST", page+"/logout", "")
	if _, err := io.Copy(io.Discard, live.Body); err != nil {
		t.Errorf("the values do not end: %v", err)
	}
}

func TestGuessingIsSlow(t *testing.T) {
	s := newSite(t)
	at := &clock{at: noon}
	page, _ := startOpen(t, s, Login{Password: password("open sesame")}, func(o *Options) { o.Now = at.now })
	c := s.visitor(t)
	for i := range attemptsEach {
		if resp, _ := request(t, c, "POST", page+"/login", fmt.Sprintf("password=guess%d", i)); resp.StatusCode != 401 {
			t.Errorf("guess %d: %d", i, resp.StatusCode)
		}
	}
	resp, _ := request(t, c, "POST", page+"/login", "password=open+sesame")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("the sixth: %d", resp.StatusCode)
	}
	at.pass(attemptSpan)
	if resp, _ := request(t, c, "POST", page+"/login", "password=open+sesame"); resp.StatusCode != 303 {
		t.Errorf("a minute later: %d", resp.StatusCode)
	}
}

func TestThrottle(t *testing.T) {
	at := &clock{at: noon}
	th := throttle{now: at.now}
	tries := func(from string) (n int) {
		for range 100 {
			if th.allow(from) {
				n++
			}
		}
		return n
	}
	if n := tries("[2001:db8::1]:1"); n != attemptsEach {
		t.Errorf("one address: %d", n)
	}
	if n := tries("[2001:db8::2]:9"); n != 0 {
		t.Errorf("its neighbour in the same /64: %d", n)
	}
	if n := tries("10.0.0.1:5") + tries("10.0.0.2:5"); n != 2*attemptsEach {
		t.Errorf("two others: %d", n)
	}
	for i := range 20 {
		tries(fmt.Sprintf("10.1.0.%d:1", i))
	}
	if len(th.tries) != attemptsAll {
		t.Errorf("all together: %d", len(th.tries))
	}
	at.pass(-time.Hour) // a clock that is set back locks nobody out
	if !th.allow("10.9.9.9:1") {
		t.Error("locked out")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	at := &clock{at: noon}
	s := sessions{now: at.now, open: map[string]*session{}}
	first := s.start(caller{name: "first"})
	for range maxSessions {
		at.pass(time.Second)
		s.start(caller{name: "other"})
	}
	if _, ok := s.find(first); ok || len(s.open) != maxSessions {
		t.Errorf("first is open: %v, of %d", ok, len(s.open))
	}
	long := s.start(caller{name: "long"})
	for range 40 {
		at.pass(20 * time.Minute)
		s.find(long)
	}
	if _, ok := s.find(long); ok {
		t.Error("open after 13 hours")
	}
}

func TestOnwardStaysHere(t *testing.T) {
	for next, want := range map[string]string{
		"/devices?search=a": "/devices?search=a", "": "/", "//evil.example": "/", `/\evil.example`: "/", "https://evil.example/": "/",
		"javascript:alert(1)": "/", "/\t/evil.example": "/", "evil": "/",
	} {
		if got := onward(next); got != want {
			t.Errorf("%q → %q", next, got)
		}
	}
}

func TestRolesOfAClaim(t *testing.T) {
	claims := map[string]any{"roles": []any{"a", 1.0, "operator"}, "role": "viewer", "realm": map[string]any{"roles": []any{"x"}}}
	for path, want := range map[string]string{"roles": "[a operator]", "role": "[viewer]", "realm.roles": "[x]", "realm": "[]", "none": "[]", "role.deeper": "[]"} {
		if got := fmt.Sprint(rolesIn(claims, path)); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestLogInAtAnIssuerInABrowser(t *testing.T) {
	s := newSite(t)
	way := &Issuer{Name: "plant", ClientID: "gateway", Roles: "realm.roles", Client: s.client()}
	page, g := startOpen(t, s, Login{Issuer: way}, func(o *Options) { o.Now = time.Now })
	issuer := pagetest.Install(t).Issuer(t, s.cert)
	issuer.Serve(page + "/login/callback")
	way.URL = issuer.URL
	ctx := pagetest.Browser(t, pagetest.Trusting(t, s.cert.Certificate[0]))
	// as logs a person in at the issuer, whose forms these are: log-in, consent.
	as := func(person string) {
		t.Helper()
		do(t, ctx, chromedp.Navigate(page+"/devices"), chromedp.Click("a.button"), chromedp.WaitVisible("input[name=login]"),
			chromedp.SendKeys("input[name=login]", person), chromedp.SendKeys("input[name=password]", "x"), chromedp.Click("button[type=submit]"))
		see(t, ctx, "consent", `document.querySelector("button[autofocus]") && !document.querySelector("input[name=login]")`)
		do(t, ctx, chromedp.Click("button[type=submit]"))
	}
	out := func() {
		t.Helper()
		do(t, ctx, chromedp.Navigate(way.URL+"/session/end"), chromedp.Click("button[value=yes]"))
		see(t, ctx, "out", `location.pathname.endsWith("/success")`)
	}

	as("operator")
	see(t, ctx, "operator is in", `location.pathname === "/devices" && document.querySelector(".aside form").textContent.includes("operator of plant")`)
	do(t, ctx, chromedp.Navigate(page+"/clouds"), chromedp.Click("#listenerlist [data-do='/v1/reload']"), chromedp.Click(`#confirm button[value=yes]`))
	see(t, ctx, "reloaded", `document.querySelector("#toast").textContent.includes("✓")`)
	if done := g.done(); len(done) != 1 {
		t.Errorf("did %q", done)
	}
	do(t, ctx, chromedp.Click(".aside form button"), chromedp.WaitVisible("a.button"))
	out()

	as("viewer")
	see(t, ctx, "viewer is in, and may not act", `location.pathname === "/devices" && document.querySelector("#devicelist") && !document.querySelector("#devicelist .acts")`)
	see(t, ctx, "viewer acts", `(window.asked = window.asked || fetch("/v1/reload", {method: "POST", body: "{}"}).then(r => window.code = r.status)) && window.code === 403`)
	do(t, ctx, chromedp.Click(".aside form button"), chromedp.WaitVisible("a.button"))
	out()

	as("guest")
	see(t, ctx, "guest is refused", `document.querySelector(".wrong").textContent.includes("no role")`)
	if done := g.done(); len(done) != 1 {
		t.Errorf("did %q", done)
	}
}

func TestALogInBelongsToOneBrowser(t *testing.T) {
	s := newSite(t)
	page, _ := startOpen(t, s, Login{Issuer: &Issuer{Name: "plant", Client: s.client()}})
	for _, query := range []string{"", "?state=guessed&code=x", "?error=access_denied"} {
		if resp, _ := request(t, s.visitor(t), "GET", page+"/login/callback"+query, "", "Cookie: __Host-login=guessed"); resp.StatusCode != 400 || resp.Header.Get("Location") != "" {
			t.Errorf("%q: %d", query, resp.StatusCode)
		}
	}
}
