package northtest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Webhook is a web service in this process, over TLS with client certificates. It takes arrays of messages, or one in each request.
type Webhook struct {
	CA  CA
	URL string
	// Judge, where not nil, gives the status of a request before anything else; 0 goes on. It is set before the first request.
	Judge func(r *http.Request, body []byte) int

	ctx   context.Context
	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu

	received []string        // guarded by mu: payloads
	requests []HookRequest   // guarded by mu
	delay    time.Duration   // guarded by mu
	never    map[string]bool // guarded by mu
	busy     map[string]bool // guarded by mu
	cut      int             // guarded by mu: messages until the connection is dropped; 0: never
}

// HookRequest is one request that was answered with 2xx.
type HookRequest struct {
	Path   string
	Header http.Header
	Body   string
	At     time.Time
}

// NewWebhook starts one that lives as long as the test.
func NewWebhook(t testing.TB) *Webhook {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	h := &Webhook{CA: NewCA(t), ctx: ctx, conns: map[net.Conn]bool{}, never: map[string]bool{}, busy: map[string]bool{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(h.serve), ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(conn net.Conn, s http.ConnState) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if s == http.StateNew {
				h.conns[conn] = true
			} else if s == http.StateClosed {
				delete(h.conns, conn)
			}
		},
	}
	var served sync.WaitGroup
	served.Go(func() { server.Serve(tls.NewListener(l, h.CA.Server(t))) })
	t.Cleanup(func() {
		cancel()
		server.Close()
		served.Wait()
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	h.URL = "https://localhost:" + port + "/hook"
	return h
}

func (h *Webhook) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if h.Judge != nil {
		if status := h.Judge(r, body); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	payloads := []string{string(body)}
	if r.Header.Get("Content-Type") == "application/json" {
		var list []struct {
			Payload json.RawMessage `json:"payload"`
		}
		if json.Unmarshal(body, &list) == nil {
			payloads = payloads[:0]
			for _, m := range list {
				var s string
				if json.Unmarshal(m.Payload, &s) != nil {
					s = string(m.Payload)
				}
				payloads = append(payloads, s)
			}
		}
	}
	status, cut, delay := h.take(r, string(body), payloads)
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
		case <-h.ctx.Done():
		}
	}
	if cut {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(status)
}

func (h *Webhook) take(r *http.Request, body string, payloads []string) (status int, cut bool, delay time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range payloads {
		switch {
		case h.never[p]:
			return http.StatusUnprocessableEntity, false, 0
		case h.busy[p]:
			delete(h.busy, p)
			return http.StatusServiceUnavailable, false, 0
		}
	}
	for range payloads {
		if h.cut > 0 {
			h.cut--
			cut = cut || h.cut == 0
		}
	}
	h.received = append(h.received, payloads...)
	h.requests = append(h.requests, HookRequest{r.URL.Path, r.Header.Clone(), body, time.Now()})
	return http.StatusNoContent, cut, h.delay
}

// Requests are those that were taken.
func (h *Webhook) Requests() []HookRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

// Received is Cloud's.
func (h *Webhook) Received() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.received)
}

// Command is Cloud's: a web service sends none.
func (h *Webhook) Command(payload string) {
	panic(fmt.Sprintf("a web service sends no command %.20q", strings.ToValidUTF8(payload, "?")))
}

// Drop is Cloud's.
func (h *Webhook) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for conn := range h.conns {
		conn.(*tls.Conn).NetConn().Close()
	}
}

// CutAfter is Faulty's.
func (h *Webhook) CutAfter(n int) { h.set(func() { h.cut = n }) }

// Delay is Faulty's.
func (h *Webhook) Delay(d time.Duration) { h.set(func() { h.delay = d }) }

// Refuse is Faulty's.
func (h *Webhook) Refuse(payload string) { h.set(func() { h.never[payload] = true }) }

// Busy is Faulty's.
func (h *Webhook) Busy(payload string) { h.set(func() { h.busy[payload] = true }) }

// Unconfirmed is Faulty's.
func (h *Webhook) Unconfirmed() int { return 0 }

func (h *Webhook) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}
