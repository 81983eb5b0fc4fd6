package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/lanes"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// NoCommands is the problem of routes that wait for commands from a web service.
var NoCommands = health.Code{
	Name:     "no-commands",
	Title:    "routes wait for commands from a web service, which cannot send any",
	Severity: health.Degraded,
	Hint:     "let these downlinks come from another connector",
}

const farewell = time.Second // how long Close waits for what is in flight

// Connector reaches one web service.
type Connector struct {
	env  northbound.Env
	cfg  Config
	url  *url.URL
	form form
	// bearer outlives a session: only a second token that is refused has to be mended by a person.
	bearer *mqtt.Bearer

	requests, octets atomic.Int64
}

// session is a pool of connections. It ends when a request cannot be answered.
type session struct {
	c         *Connector
	ctx       context.Context
	cancel    context.CancelCauseFunc
	lanes     *lanes.Lanes
	transport *http.Transport
	client    *http.Client
	header    http.Header // of every request
	call      call
	next      time.Time // when the next batch may leave; only touched by the one worker of an array
}

// Counters is northbound.Counters'.
func (c *Connector) Counters() map[string]int64 {
	return map[string]int64{"requests": c.requests.Load(), "octets_sent": c.octets.Load()}
}

// Dial is northbound.Connector's. It connects, so that a service which cannot be reached is known before anything is sent.
func (c *Connector) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	if len(down.Topics()) > 0 {
		c.env.Health.Set(&NoCommands, "")
	} else {
		c.env.Health.Clear(&NoCommands)
	}
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.probe(ctx, nil); err != nil {
		s.cancel(err)
		return nil, err
	}
	return s, nil
}

// session makes one that has no connection yet.
func (c *Connector) session(ctx context.Context) (*session, error) {
	s := &session{c: c, header: http.Header{}}
	s.transport = &http.Transport{
		DialContext: c.env.Dial, MaxIdleConnsPerHost: c.cfg.Parallel, MaxConnsPerHost: c.cfg.Parallel, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second, ForceAttemptHTTP2: true,
	}
	if c.url.Scheme == "https" {
		t, err := mqtt.ClientTLS(ctx, c.env, string(c.cfg.CA), c.cfg.Key)
		if err != nil {
			return nil, err
		}
		s.transport.TLSClientConfig = t
	}
	s.client = &http.Client{
		Transport: s.transport, Timeout: time.Duration(c.cfg.Timeout),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for name, value := range c.cfg.Headers {
		s.header.Set(name, value)
	}
	if c.cfg.Secret != "" {
		secret, err := c.env.Keys.Secret(ctx, string(c.cfg.Secret))
		if err != nil {
			return nil, fmt.Errorf("secret: %w", err)
		}
		s.call.secret = string(bytes.TrimRight(secret, "\r\n"))
		if c.cfg.Preset == "" {
			s.header.Set(c.cfg.SecretIn, s.call.secret)
		}
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	o := lanes.Options{
		Parallel: c.cfg.Parallel, Batch: 1, Lane: func(p *msg.Publication) string { return p.Device }, Check: c.form.check, Post: s.post,
	}
	if !c.form.single {
		o.Parallel, o.Batch, o.Lane = 1, c.cfg.Batch, func(*msg.Publication) string { return "" }
		if o.Check == nil {
			o.Check = func(p *msg.Publication) error { return mqtt.CheckTopic(p.Topic) }
		}
	}
	s.lanes = lanes.New(s.ctx, o)
	return s, nil
}

// explain says in plain words why the service could not be reached. The URL stays out of it.
func (c *Connector) explain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return mqtt.Address{URL: &url.URL{Scheme: c.url.Scheme, Host: c.hostPort()}}.Explain(err)
}

func (c *Connector) hostPort() string {
	port := c.url.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[c.url.Scheme]
	}
	return net.JoinHostPort(c.url.Hostname(), port)
}

// probe connects up to TLS, and no further: a request would be a message.
func (s *session) probe(ctx context.Context, step func(northbound.Step)) error {
	scheme := map[string]string{"https": "mqtts", "http": "mqtt"}[s.c.url.Scheme] // the names that the dialler has for TLS and none
	a := mqtt.Address{URL: &url.URL{Scheme: scheme, Host: s.c.hostPort()}, TLS: s.transport.TLSClientConfig, Net: s.c.env.Dial}
	if a.TLS != nil {
		a.TLS = a.TLS.Clone()
		a.TLS.NextProtos = []string{"h2", "http/1.1"}
	}
	conn, err := a.Dial(ctx, step)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Examine is northbound.Examined's. It sends no request.
func (c *Connector) Examine(ctx context.Context, step func(northbound.Step)) {
	s, err := c.session(ctx)
	if err == nil {
		defer s.Close()
		if err = s.probe(ctx, step); err != nil {
			return // the step that failed has been told
		}
		if c.cfg.Token != "" {
			_, _, err = s.c.bearer.Token(ctx)
		}
	}
	step(northbound.Step{Name: "log-in", Err: err, Note: "credentials are only tried with the first message"})
}

// Context is northbound.Session's.
func (s *session) Context() context.Context { return s.ctx }

// Send is northbound.Session's.
func (s *session) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	return s.lanes.Send(ctx, batch, done)
}

// Close is northbound.Session's.
func (s *session) Close() error {
	s.lanes.Drain(farewell)
	s.cancel(lanes.ErrClosed)
	s.lanes.Wait()
	s.transport.CloseIdleConnections()
	return nil
}

// post sends a batch. One that is refused for good is sent again one by one, to find out what is refused.
func (s *session) post(batch []*msg.Publication) []error {
	errs := make([]error, len(batch))
	err := s.request(batch)
	if len(batch) > 1 && msg.IsPermanent(err) && s.ctx.Err() == nil {
		for i := range batch {
			if errs[i] = s.request(batch[i : i+1]); s.ctx.Err() != nil {
				break
			}
		}
		return errs
	}
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// pause waits until the next batch may leave.
func (s *session) pause() {
	every := time.Duration(s.c.cfg.Interval)
	if every == 0 || s.c.form.single {
		return
	}
	timer := time.NewTimer(time.Until(s.next))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
	s.next = time.Now().Add(every)
}

// request sends one request. An error that ends the session is its cause too.
func (s *session) request(batch []*msg.Publication) error {
	s.pause()
	data, media, err := s.c.form.body(&s.call, batch)
	if err != nil {
		return msg.Permanent(err)
	}
	to := s.c.url
	if s.c.form.single {
		to = below(to, batch[0].Topic)
	}
	r, err := http.NewRequestWithContext(s.ctx, s.c.cfg.Method, to.String(), bytes.NewReader(data))
	if err != nil {
		return msg.Permanent(fmt.Errorf("topic %.200q: it makes no URL", batch[0].Topic))
	}
	for name, values := range s.header {
		r.Header[name] = slices.Clone(values)
	}
	r.Header.Set("Content-Type", media)
	r.Header.Set("Idempotency-Key", identity(batch))
	s.c.requests.Add(1)
	s.c.octets.Add(int64(len(data)))
	answer, err := s.c.bearer.Do(r, s.send)
	if err != nil {
		s.cancel(err)
		return err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // else the connection is not used again
	return s.judge(answer)
}

func (s *session) send(r *http.Request) (*http.Response, error) {
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, s.c.explain(err)
	}
	return answer, nil
}

// judge says what an answer means.
func (s *session) judge(answer *http.Response) error {
	code := answer.StatusCode
	err := fmt.Errorf("%s: %w", s.c.hostPort(), &health.Answer{Status: code})
	switch {
	case code >= 200 && code < 300:
		s.c.bearer.Judge(nil)
		return nil
	case code == http.StatusUnauthorized || code == http.StatusProxyAuthRequired:
		err = s.c.bearer.Judge(msg.Permanent(fmt.Errorf("%w: our credentials are refused", err)))
		s.cancel(err)
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500:
	default:
		return msg.Permanent(err)
	}
	return err
}

// identity is the same for the same publications.
func identity(batch []*msg.Publication) string {
	if len(batch) == 1 {
		return batch[0].ID.String()
	}
	h := sha256.New()
	for _, p := range batch {
		h.Write(p.ID[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
