package onem2m

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// Connector reaches one CSE.
type Connector struct {
	env    northbound.Env
	cfg    Config
	url    *url.URL
	csi    string // CSE-ID with its slash
	base   string // address of the CSEBase, SP-relative
	bearer *mqtt.Bearer
	notes  *notes

	requests, notified atomic.Int64
}

func open(env northbound.Env, cfg any) (northbound.Connector, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("connector %s: configuration of type %T", env.Name, cfg)
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("connector %s: url: %w", env.Name, err)
	}
	k := &Connector{env: env, cfg: *c, url: u, bearer: mqtt.NewBearer(env.Tokens, c.Token)}
	if k.cfg.AE == "" {
		k.cfg.AE = env.Gateway
	}
	csi, name, named := strings.Cut(strings.TrimPrefix(c.CSE, "/"), "/")
	if k.csi, k.base = "/"+csi, c.CSE; !named || name == "" {
		k.base = k.csi + "/-"
	}
	if k.notes, err = loadNotes(env.State); err != nil {
		return nil, fmt.Errorf("connector %s: %w", env.Name, err)
	}
	return k, nil
}

// Limits is northbound.Limited's.
func (c *Connector) Limits() northbound.Limits {
	return northbound.Limits{Payload: int(c.cfg.MBS), Window: 16 * c.cfg.Parallel}
}

// Counters is northbound.Counters'.
func (c *Connector) Counters() map[string]int64 {
	return map[string]int64{"requests": c.requests.Load(), "notifications": c.notified.Load()}
}

// wire is one binding, ready for requests.
type wire interface {
	// ask sends a request and gives its response. An error says that the wire has failed, or that ctx has ended.
	ask(ctx context.Context, q *request) (*response, error)
	// join lets the wire carry what concerns one more originator.
	join(ctx context.Context, originator string) error
	close()
}

// dialWire connects with a credential.
func (s *session) dialWire(ctx context.Context, b badge) (wire, error) {
	switch s.c.url.Scheme {
	case "https", "http":
		return s.c.dialHTTP(ctx, b)
	case "mqtts", "mqtt":
		return s.dialMQTT(ctx, b)
	case "coaps":
		return s.dialCoAP(ctx, b)
	}
	return nil, msg.Permanent(fmt.Errorf("url: %q is no binding", s.c.url.Scheme))
}

// ports are the schemes' own.
var ports = map[string]string{"https": "443", "http": "80", "mqtts": "8883", "mqtt": "1883", "coaps": "5684"}

// hostPort gives the CSE's address with the scheme's own port where the URL has none.
func (c *Connector) hostPort() string {
	port := c.url.Port()
	if port == "" {
		port = ports[c.url.Scheme]
	}
	return net.JoinHostPort(c.url.Hostname(), port)
}

// explain says in plain words why the CSE could not be reached.
func (c *Connector) explain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return mqtt.Address{URL: &url.URL{Scheme: c.url.Scheme, Host: c.hostPort()}}.Explain(err)
}

// Dial is northbound.Connector's.
func (c *Connector) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	s := newSession(ctx, c, down)
	if err := s.begin(ctx); err != nil {
		s.fail(err)
		s.Close()
		return nil, err
	}
	c.bearer.Judge(nil)
	return s, nil
}

// Examine is northbound.Examined's. It retrieves the CSEBase and publishes nothing.
func (c *Connector) Examine(ctx context.Context, step func(northbound.Step)) {
	began := time.Now()
	timed := func(name, note string, err error) {
		step(northbound.Step{Name: name, Took: time.Since(began), Note: note, Err: err})
		began = time.Now()
	}
	s := newSession(ctx, c, nil)
	defer s.Close()
	var err error
	own, _ := c.badge(c.cfg.AE)
	if s.wire, err = s.dialWire(ctx, own); err != nil {
		timed("tls", "", err)
		return
	}
	from := c.id(c.cfg.AE)
	if err := s.wire.join(ctx, from); err != nil {
		timed("log-in", "", err)
		return
	}
	r, err := s.ask(ctx, &request{Op: opRetrieve, To: c.base, From: from})
	if err != nil {
		timed("log-in", c.base, err)
		return
	}
	a, _ := attributes(r.Content)
	timed("log-in", fmt.Sprintf("CSEBase %q of %q, releases %s", text(a["rn"]), text(a["csi"]), a["srv"]), nil)
}
