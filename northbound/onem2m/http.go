package onem2m

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

const (
	bodyMax = 16 << 20 // octets of a response or notification
	apiJSON = "application/json"
)

var methods = map[number]string{
	opCreate: http.MethodPost, opRetrieve: http.MethodGet, opUpdate: http.MethodPut, opDelete: http.MethodDelete, opNotify: http.MethodPost,
}

// overHTTP is the HTTP binding (TS-0009).
type overHTTP struct {
	c         *Connector
	transport *http.Transport
	client    *http.Client
}

func (c *Connector) dialHTTP(ctx context.Context, b badge) (wire, error) {
	t := &http.Transport{
		DialContext: c.env.Dial, MaxIdleConnsPerHost: c.cfg.Parallel + 1, MaxConnsPerHost: c.cfg.requests(), IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second, DisableCompression: true,
	}
	if c.url.Scheme == "https" {
		var err error
		if t.TLSClientConfig, err = c.tls(ctx, b); err != nil {
			return nil, err
		}
	}
	return &overHTTP{c, t, &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (w *overHTTP) join(context.Context, string) error { return nil }

func (w *overHTTP) close() { w.transport.CloseIdleConnections() }

// target gives the URL of a primitive (TS-0009 clause 6.2.3).
func target(base *url.URL, q *request) *url.URL {
	u := *base
	u.Path = strings.TrimSuffix(base.Path, "/")
	switch {
	case strings.HasPrefix(q.To, "//"):
		u.Path += "/_" + q.To[1:]
	case strings.HasPrefix(q.To, "/"):
		u.Path += "/~" + q.To
	default:
		u.Path += "/" + q.To
	}
	u.RawQuery = q.query().Encode()
	return &u
}

// query gives what HTTP and CoAP carry in the query, in short names.
func (q *request) query() url.Values {
	v := url.Values{}
	if q.Result != nil {
		v.Set("rcn", strconv.Itoa(*q.Result))
	}
	if q.Names != 0 {
		v.Set("drt", strconv.Itoa(q.Names))
	}
	if q.Response != nil {
		v.Set("rt", strconv.Itoa(q.Response.Value))
	}
	if f := q.Filter; f != nil {
		if f.Use != 0 {
			v.Set("fu", strconv.Itoa(f.Use))
		}
		for _, t := range f.Types {
			v.Add("ty", strconv.Itoa(t))
		}
		if f.After != "" {
			v.Set("cra", f.After)
		}
	}
	return v
}

// header makes the headers of a primitive.
func (w *overHTTP) header(q *request) http.Header {
	h := http.Header{
		"X-M2M-Origin": {q.From}, "X-M2M-RI": {q.ID}, "X-M2M-RVI": {q.Release}, "Accept": {apiJSON},
		"Idempotency-Key": nil, // not sent; it lets the transport repeat a request whose connection had ended: names make it safe
	}
	if q.Deadline != "" {
		h["X-M2M-RET"] = []string{q.Deadline}
	}
	if q.Response != nil && len(q.Response.To) > 0 {
		h["X-M2M-RTU"] = []string{strings.Join(q.Response.To, "&")}
	}
	if q.Content != nil {
		h["Content-Type"] = []string{apiJSON}
		if q.Op == opCreate {
			h["Content-Type"] = []string{fmt.Sprintf("%s;ty=%d", apiJSON, q.Type)}
		}
	}
	if len(q.Tokens) > 0 {
		h["Authorization"] = []string{strings.Join(q.Tokens, "+")}
	}
	return h
}

func (w *overHTTP) ask(ctx context.Context, q *request) (*response, error) {
	r, err := http.NewRequestWithContext(ctx, methods[q.Op], target(w.c.url, q).String(), bytes.NewReader(q.Content))
	if err != nil {
		return nil, msg.Permanent(fmt.Errorf("%s: %w", q.To, err))
	}
	r.Header = w.header(q)
	send := w.send
	if len(q.Tokens) == 0 {
		send = func(r *http.Request) (*http.Response, error) { return w.c.bearer.Do(r, w.send) }
	}
	got, err := send(r)
	if err != nil {
		return nil, err
	}
	defer got.Body.Close()
	body, err := io.ReadAll(io.LimitReader(got.Body, bodyMax))
	if err != nil {
		return nil, w.c.explain(err)
	}
	answer := &response{RSC: statusOf(got), ID: got.Header.Get("X-M2M-RI")}
	if json.Valid(body) {
		answer.Content = body
	}
	if answer.ID != "" && answer.ID != q.ID {
		return nil, fmt.Errorf("%s: the answer to another request", q.To)
	}
	return answer, nil
}

func (w *overHTTP) send(r *http.Request) (*http.Response, error) {
	got, err := w.client.Do(r)
	if err != nil {
		return nil, w.c.explain(err)
	}
	return got, nil
}

// statusOf gives the response status code: the header's, or what the HTTP status stands for. What comes from no CSE keeps its status.
func statusOf(r *http.Response) number {
	if n, err := strconv.Atoi(strings.TrimSuffix(r.Header.Get("X-M2M-RSC"), ".0")); err == nil && n >= 1000 && n < 10000 {
		return number(n)
	}
	switch r.StatusCode {
	case http.StatusOK:
		return rscOK
	case http.StatusCreated:
		return rscCreated
	case http.StatusAccepted:
		return 1000
	case http.StatusConflict:
		return rscConflict
	case http.StatusNotFound:
		return rscNotFound
	}
	return number(r.StatusCode)
}

// statuses are the HTTP statuses of what we answer (TS-0009 table 6.3.2-1).
var statuses = map[number]int{rscOK: 200, 4000: 400, 4005: 405, rscInternal: 500}

// serve takes notifications by HTTP while the session lasts.
func (s *session) serve(ctx context.Context) error {
	l, err := net.Listen("tcp", s.c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if strings.HasPrefix(s.c.cfg.POA, "https:") {
		b, _ := s.c.badge(s.c.cfg.AE)
		t, err := s.c.tls(ctx, b)
		if err != nil {
			l.Close()
			return err
		}
		t.ClientAuth, t.ClientCAs = tls.RequireAndVerifyClientCert, t.RootCAs
		l = tls.NewListener(l, t)
	}
	room := make(chan struct{}, atOnce)
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case room <- struct{}{}:
				defer func() { <-room }()
				s.take(w, r)
			case <-r.Context().Done():
			}
		}),
	}
	s.tasks.Go(func() {
		<-s.ctx.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		server.Shutdown(late) // what is being answered ends with the session
		server.Close()
	})
	s.tasks.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("listen: %w", err))
		}
	})
	return nil
}

// take is one notification by HTTP.
func (s *session) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	q := &request{Op: opNotify, From: r.Header.Get("X-M2M-Origin"), ID: r.Header.Get("X-M2M-RI"), Content: body}
	if _, p, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method != http.MethodPost || err == nil && p["ty"] != "" {
		q.Op = opCreate // nothing is made here
	}
	answer := s.notified(r.Context(), q)
	h := w.Header()
	h["X-M2M-RI"], h["X-M2M-RSC"], h["X-M2M-RVI"] = []string{answer.ID}, []string{strconv.Itoa(int(answer.RSC))}, []string{answer.Release}
	w.WriteHeader(statuses[answer.RSC])
}
