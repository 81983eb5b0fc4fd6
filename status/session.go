package status

import (
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	sessionIdle  = 30 * time.Minute
	sessionLife  = 12 * time.Hour
	maxSessions  = 256
	sessionName  = "__Host-session"
	attemptSpan  = time.Minute
	attemptsEach = 5  // log-ins in attemptSpan that one network may try
	attemptsAll  = 30 // and all together
)

// session is a person who has logged in.
type session struct {
	who        caller
	began, use time.Time
}

// sessions are kept in memory alone: a restart logs everybody out.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]*session // guarded by mu; by token
}

// start makes a session and gives its token, which is always a new one.
func (s *sessions) start(who caller) string {
	token := rand.Text() + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var oldest string
	for t, other := range s.open {
		if other.over(now) {
			delete(s.open, t)
		} else if oldest == "" || other.use.Before(s.open[oldest].use) {
			oldest = t
		}
	}
	if len(s.open) >= maxSessions {
		delete(s.open, oldest)
	}
	s.open[token] = &session{who, now, now}
	return token
}

func (s *session) over(now time.Time) bool {
	return now.Sub(s.use) > sessionIdle || now.Sub(s.began) > sessionLife
}

// find gives who has the token.
func (s *sessions) find(token string) (caller, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.open[token]
	if found == nil || found.over(s.now()) {
		delete(s.open, token)
		return caller{}, false
	}
	found.use = s.now()
	return found.who, true
}

// gone tells whether the token's session has ended. Unlike find, it is no use of the session: a page that is left open logs nobody in for ever.
func (s *sessions) gone(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.open[token]
	return found == nil || found.over(s.now())
}

func (s *sessions) end(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, token)
}

func setSession(w http.ResponseWriter, token string) {
	// Lax, so that the way back from the issuer brings it; forms of other sites are refused elsewhere.
	http.SetCookie(w, &http.Cookie{Name: sessionName, Value: token, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(sessionLife.Seconds())})
}

func clearCookie(w http.ResponseWriter, name string) {
	http.SetCookie(w, &http.Cookie{Name: name, Path: "/", Secure: true, HttpOnly: true, MaxAge: -1})
}

// throttle bounds how often log-ins are tried.
type throttle struct {
	now func() time.Time

	mu    sync.Mutex
	tries []try // guarded by mu; of the last attemptSpan, oldest first
}

type try struct {
	at   time.Time
	from netip.Prefix
}

// allow counts a try, and tells whether it may be made.
func (t *throttle) allow(remote string) bool {
	from := networkOf(remote)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.tries = slices.DeleteFunc(t.tries, func(old try) bool { return now.Sub(old.at) >= attemptSpan || old.at.After(now) })
	same := 0
	for _, old := range t.tries {
		if old.from == from {
			same++
		}
	}
	if same >= attemptsEach || len(t.tries) >= attemptsAll {
		return false
	}
	t.tries = append(t.tries, try{now, from})
	return true
}

// networkOf gives the network that one attacker would hold: an address of IPv4, a /64 of IPv6.
func networkOf(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // cannot fail: bits fit the address
	return p
}
