package status

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// Login says who may log in where others than this machine's own users can reach the page. At least one of its ways is set.
type Login struct {
	// Password gives the operator's password or its hash; nil: nobody logs in by password. The result is wiped after use.
	Password func(ctx context.Context) ([]byte, error)
	// Issuer is whose people may log in; nil: none.
	Issuer *Issuer
}

// Issuer is an OpenID provider at which this gateway is registered, with the redirect URL https://ADDRESS/login/callback.
type Issuer struct {
	Name     string                                    // for people
	URL      string                                    //
	ClientID string                                    //
	Secret   func(ctx context.Context) ([]byte, error) // nil: a public client
	Roles    string                                    // the claim that holds "viewer" or "operator", alone or in a list; dots lead into objects
	Client   *http.Client                              // trusts the issuer's certificate
}

// The roles of people.
const (
	roleViewer   = "viewer"
	roleOperator = "operator"
)

const (
	loginName    = "__Host-login"
	loginWithin  = 10 * time.Minute
	loginsEach   = 100 // log-ins at the issuer that one network may have begun; then its oldest goes
	maxLogins    = 1000
	maxPassword  = 1024
	issuerAnswer = 15 * time.Second
	issuerPause  = 5 * time.Second // after a discovery that failed
)

// door keeps out those who have not logged in.
type door struct {
	s *Server
	Login
	sessions sessions
	throttle throttle
	hashing  chan struct{} // holds one while a password is checked, which takes much memory

	finding  sync.Mutex
	provider *oidc.Provider // guarded by finding; nil until discovered
	failed   error          // guarded by finding; of the last discovery
	failedAt time.Time      // guarded by finding

	mu      sync.Mutex
	started map[string]*started // guarded by mu; log-ins at the issuer, by state
}

// started is a log-in that is at the issuer.
type started struct {
	nonce, verifier, next, redirect string
	at                              time.Time
	from                            netip.Prefix
}

func newDoor(s *Server, l Login) *door {
	return &door{s: s, Login: l, sessions: sessions{now: s.o.Now, open: map[string]*session{}}, throttle: throttle{now: s.o.Now},
		hashing: make(chan struct{}, 1), started: map[string]*started{}}
}

// guard lets in requests of sessions, shows the log-in to people, and refuses programs.
func (d *door) guard(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) { d.show(w, r, http.StatusOK, "") })
	mux.HandleFunc("POST /login", d.password)
	mux.HandleFunc("GET /login/issuer", d.begin)
	mux.HandleFunc("GET /login/callback", d.callback)
	mux.HandleFunc("POST /logout", d.leave)
	mux.Handle("GET /static/", next)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie(sessionName); err == nil {
			if who, ok := d.sessions.find(c.Value); ok {
				who.gone = func() bool { return d.sessions.gone(c.Value) }
				next.ServeHTTP(w, withCaller(r, who))
				return
			}
		}
		if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") {
			http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return
		}
		writeError(w, http.StatusUnauthorized, &Refused{Message: "log in first", Advice: "open /login in a browser"})
	})
	return mux
}

// onward gives the page to show after the log-in: one of this site.
func onward(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.Contains(next, `\`) {
		return "/"
	}
	return next
}

// loginView is what the template of the log-in sees.
type loginView struct {
	L            *language
	Gateway      string
	Next, Failed string
	ByPassword   bool
	Issuer       string
}

func (v loginView) T(key string) string { return v.L.text(key) }

// show shows the log-in; failed is the key of what went wrong.
func (d *door) show(w http.ResponseWriter, r *http.Request, code int, failed string) {
	v := loginView{L: languageOf(r), Gateway: d.s.moment().Gateway.ID, Next: onward(r.FormValue("next")), ByPassword: d.Password != nil, Failed: failed}
	if d.Issuer != nil {
		v.Issuer = d.Issuer.Name
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "login", v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	w.Write(b.Bytes())
}

func (d *door) audit(what, who, result string) {
	d.s.o.Log.Info("action: "+what, "audit", true, "who", who, "result", result)
}

// warn logs why the issuer has not let somebody in: the browser is not told.
func (d *door) warn(err error) {
	text, hint := health.Words(err, d.s.o.Now())
	d.s.o.Log.Warn("log-in", "issuer", d.Issuer.Name, "error", text, "hint", hint)
}

// enter starts a session; the browser's old one, if it had any, ends.
func (d *door) enter(w http.ResponseWriter, r *http.Request, who caller, next string) {
	if old, err := r.Cookie(sessionName); err == nil {
		d.sessions.end(old.Value)
	}
	setSession(w, d.sessions.start(who))
	d.audit("log in", who.name, "done")
	http.Redirect(w, r, onward(next), http.StatusSeeOther)
}

func (d *door) password(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	given := r.PostFormValue("password")
	if d.Password == nil || given == "" || len(given) > maxPassword {
		d.show(w, r, http.StatusUnauthorized, "login.wrong")
		return
	}
	if !d.throttle.allow(r.RemoteAddr) {
		d.audit("log in", "operator from "+r.RemoteAddr, "too often")
		w.Header().Set("Retry-After", "60")
		d.show(w, r, http.StatusTooManyRequests, "login.often")
		return
	}
	ok, err := d.check(r.Context(), []byte(given))
	if err != nil {
		d.s.o.Log.Error("the operator's password cannot be checked", "error", err)
	}
	if !ok {
		d.audit("log in", "operator from "+r.RemoteAddr, "wrong password")
		d.show(w, r, http.StatusUnauthorized, "login.wrong")
		return
	}
	d.enter(w, r, caller{name: "operator from " + r.RemoteAddr, operator: true, leaves: true}, r.PostFormValue("next"))
}

func (d *door) check(ctx context.Context, given []byte) (bool, error) {
	select {
	case d.hashing <- struct{}{}:
		defer func() { <-d.hashing }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	stored, err := d.Password(ctx)
	if err != nil {
		return false, err
	}
	defer clear(stored)
	return auth.CheckPassword(stored, given)
}

func (d *door) leave(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(sessionName); err == nil {
		if who, ok := d.sessions.find(c.Value); ok {
			d.audit("log out", who.name, "done")
		}
		d.sessions.end(c.Value)
	}
	clearCookie(w, sessionName)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// discover asks the issuer for its endpoints when somebody first logs in there: one question at a time, and none shortly after
// one that failed, for anybody can have it asked.
func (d *door) discover(ctx context.Context) (*oidc.Provider, error) {
	d.finding.Lock()
	defer d.finding.Unlock()
	now := d.s.o.Now()
	if d.provider != nil || d.failed != nil && now.Sub(d.failedAt).Abs() < issuerPause {
		return d.provider, d.failed
	}
	// The provider keeps the context for its keys: it must outlive the request.
	d.provider, d.failed = oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), d.Issuer.Client), d.Issuer.URL)
	d.failedAt = d.s.o.Now()
	return d.provider, d.failed
}

// client gives what is asked of the issuer.
func (d *door) client(ctx context.Context, redirect string) (*oauth2.Config, *oidc.IDTokenVerifier, error) {
	provider, err := d.discover(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := &oauth2.Config{ClientID: d.Issuer.ClientID, Endpoint: provider.Endpoint(), RedirectURL: redirect, Scopes: []string{oidc.ScopeOpenID, "profile"}}
	c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	if d.Issuer.Secret != nil {
		secret, err := d.Issuer.Secret(ctx)
		if err != nil {
			return nil, nil, err
		}
		c.ClientSecret = string(secret)
		clear(secret)
		c.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	}
	return c, provider.Verifier(&oidc.Config{ClientID: d.Issuer.ClientID, Now: d.s.o.Now}), nil
}

// begin sends the browser to the issuer: authorization code with PKCE (RFC 7636), bound to this browser by a cookie.
func (d *door) begin(w http.ResponseWriter, r *http.Request) {
	if d.Issuer == nil {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), issuerAnswer)
	defer cancel()
	redirect := "https://" + r.Host + "/login/callback"
	c, _, err := d.client(ctx, redirect)
	if err != nil {
		d.warn(err)
		d.show(w, r, http.StatusBadGateway, "login.away")
		return
	}
	state := rand.Text()
	l := &started{nonce: rand.Text(), verifier: oauth2.GenerateVerifier(), next: onward(r.URL.Query().Get("next")), redirect: redirect, at: d.s.o.Now(),
		from: networkOf(r.RemoteAddr)}
	if !d.keep(state, l) {
		d.show(w, r, http.StatusServiceUnavailable, "login.often")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: loginName, Value: state, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(loginWithin.Seconds())})
	http.Redirect(w, r, c.AuthCodeURL(state, oidc.Nonce(l.nonce), oauth2.S256ChallengeOption(l.verifier)), http.StatusSeeOther)
}

// keep notes a log-in that begins, unless there are too many.
func (d *door) keep(state string, l *started) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	oldest, same := "", 0
	for s, old := range d.started {
		switch {
		case l.at.Sub(old.at) > loginWithin:
			delete(d.started, s)
		case old.from == l.from:
			same++
			if oldest == "" || old.at.Before(d.started[oldest].at) {
				oldest = s
			}
		}
	}
	if same >= loginsEach {
		delete(d.started, oldest)
	}
	if len(d.started) >= maxLogins {
		return false
	}
	d.started[state] = l
	return true
}

// callback takes the browser back from the issuer.
func (d *door) callback(w http.ResponseWriter, r *http.Request) {
	state := r.URL.Query().Get("state")
	bound, err := r.Cookie(loginName)
	clearCookie(w, loginName)
	d.mu.Lock()
	l := d.started[state]
	delete(d.started, state)
	d.mu.Unlock()
	if d.Issuer == nil || err != nil || l == nil || subtle.ConstantTimeCompare([]byte(bound.Value), []byte(state)) != 1 || d.s.o.Now().Sub(l.at) > loginWithin {
		d.show(w, r, http.StatusBadRequest, "login.stale")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), issuerAnswer)
	defer cancel()
	who, err := d.redeem(ctx, l, r.URL.Query())
	if err != nil {
		d.audit("log in", "somebody of "+d.Issuer.Name, "refused")
		d.warn(err)
		key := "login.issuer"
		if errors.Is(err, errNoRole) {
			key = "login.role"
		}
		d.show(w, r, http.StatusForbidden, key)
		return
	}
	d.enter(w, r, who, l.next)
}

var errNoRole = errors.New("no role that may look")

// redeem turns the issuer's code into who has logged in.
func (d *door) redeem(ctx context.Context, l *started, q url.Values) (caller, error) {
	if e := q.Get("error"); e != "" {
		return caller{}, auth.LogInRefused(e, q.Get("error_description"), d.Issuer.ClientID)
	}
	c, verifier, err := d.client(ctx, l.redirect)
	if err != nil {
		return caller{}, err
	}
	token, err := c.Exchange(oidc.ClientContext(ctx, d.Issuer.Client), q.Get("code"), oauth2.VerifierOption(l.verifier))
	if err != nil {
		return caller{}, fmt.Errorf("token: %w", auth.LogInError(err, d.Issuer.ClientID, d.Issuer.Secret != nil))
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := verifier.Verify(ctx, raw)
	if err != nil {
		expected := config.Issuer{URL: d.Issuer.URL, Audience: d.Issuer.ClientID}
		return caller{}, fmt.Errorf("id token: %w", auth.Blame(err, raw, d.Issuer.Name, expected, d.s.o.Now()))
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(l.nonce)) != 1 {
		return caller{}, errors.New("id token: it is for another log-in")
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return caller{}, fmt.Errorf("id token: %w", err)
	}
	who := caller{name: id.Subject + " of " + d.Issuer.Name, leaves: true}
	roles := rolesIn(claims, d.Issuer.Roles)
	if !slices.Contains(roles, roleOperator) && !slices.Contains(roles, roleViewer) {
		return caller{}, fmt.Errorf("%s: %w: %q", who.name, errNoRole, roles)
	}
	who.operator = slices.Contains(roles, roleOperator)
	return who, nil
}

// rolesIn gives the strings of a claim; the path's dots lead into objects.
func rolesIn(claims map[string]any, path string) (roles []string) {
	var v any = claims
	for name := range strings.SplitSeq(path, ".") {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, x := range v {
			if s, ok := x.(string); ok {
				roles = append(roles, s)
			}
		}
	}
	return roles
}
