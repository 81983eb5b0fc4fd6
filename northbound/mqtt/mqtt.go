// Package mqtt connects to any MQTT broker over TLS: version 5 by paho.golang, version 3.1.1 by paho.mqtt.golang.
//
// Both libraries are used for their packets; the session is our own, one for both versions. It promises:
//   - publications leave in the order of Send, as many in flight as the broker's receive maximum and ours allow, and each is
//     confirmed by its own PUBACK (QoS 1) or PUBCOMP (QoS 2), never by having been written; only QoS 0 is done when it is written;
//   - a topic goes over the wire once where the broker takes topic aliases; after that its number does;
//   - what the broker said in CONNACK is honoured: what it could only refuse is refused here, for that publication alone;
//   - a publication from the broker is acknowledged after it is settled, in order of arrival, and commands on one topic do not overtake each other;
//   - a token that is shown as the password is shown anew, in another session, before it ends;
//   - a dead connection, and a broker that confirms nothing, end the session within bounds: nothing waits for ever;
//   - after Close no goroutine of the session is left.
//
// It holds no queue and repeats nothing: what was not confirmed belongs to the spool. Over a reconnect even QoS 2 is therefore at least once.
// MQTT 3.1.1 has no place for user properties, media type, expiry and response topic: they are left out.
//
// Package aws and others build on Start, Address and Session.
package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// SubscriptionRefused is the problem of a connector whose broker does not let it wait for some commands. Reports go on.
var SubscriptionRefused = health.Code{
	Name:     "subscription-refused",
	Title:    "the broker does not let the gateway wait for some commands",
	Severity: health.Degraded,
	Hint:     "allow the gateway's client id or certificate to subscribe to the topic filters in the detail",
}

// RetainUnavailable is the problem of a broker that keeps no retained messages.
var RetainUnavailable = health.Code{
	Name:     "retain-unavailable",
	Title:    "the broker keeps no retained messages: routes with retain = true are sent without it",
	Severity: health.Notice,
	Hint:     "turn retained messages on at the broker, or take retain out of the routes",
}

// Config is [connector.NAME] with type = "mqtt".
type Config struct {
	URL           string           `toml:"url"`
	Preset        string           `toml:"preset"` // a platform's own topics and limits; empty: any broker
	Key           string           `toml:"key"`    // [key.NAME] with its certificate; empty: none is shown
	CA            config.Path      `toml:"ca"`     // PEM; empty: the system's roots
	Version       int              `toml:"version"`
	ClientID      string           `toml:"client_id"` // empty: the gateway's id
	Username      string           `toml:"username"`
	Password      config.SecretRef `toml:"password"`
	Token         string           `toml:"token"` // [token.NAME], shown as the password
	KeepAlive     config.Duration  `toml:"keep_alive"`
	SessionExpiry config.Duration  `toml:"session_expiry"` // how long the broker keeps commands for us; 0: a clean start each time
	Window        int              `toml:"window"`         // most publications in flight
}

// Check is config.Checker's.
func (c *Config) Check(s *config.Scope) {
	if u := s.URL("url", c.URL, "mqtts", "wss", "mqtt", "ws"); u != nil {
		if (u.Scheme == "mqtt" || u.Scheme == "ws") && !config.Loopback(net.JoinHostPort(u.Hostname(), "0")) {
			s.Errorf("url", "url: %s:// is only allowed on loopback, and %q is not", u.Scheme, u.Hostname()).Hint =
				fmt.Sprintf("use %ss://", u.Scheme)
		}
		if (u.Scheme == "mqtts" || u.Scheme == "mqtt") && u.Path != "" && u.Path != "/" {
			s.Errorf("url", "url: %s:// has no path", u.Scheme)
		}
	}
	if c.Key != "" {
		s.Key("key", c.Key)
	}
	if c.Version != int(V5) && c.Version != int(V311) {
		s.Errorf("version", "version: %d is not one of 5 and 4 (MQTT 3.1.1)", c.Version)
	}
	if c.Token != "" {
		s.Token("token", c.Token)
		if c.Password != "" {
			s.Errorf("token", "token: either it or password")
		}
	}
	if c.Password != "" && c.Username == "" && c.Version == int(V311) {
		s.Errorf("password", "password: MQTT 3.1.1 has none without a username")
	}
	if d := time.Duration(c.KeepAlive); d < time.Second || d > 65535*time.Second {
		s.Errorf("keep_alive", "keep_alive: from \"1s\" to \"65535s\"")
	}
	if c.Window < 1 || c.Window > 65535 {
		s.Errorf("window", "window: from 1 to 65535")
	}
	if d := time.Duration(c.SessionExpiry); d != 0 && d < time.Second {
		s.Errorf("session_expiry", "session_expiry: at least \"1s\", or \"0s\" for a clean start each time")
	}
	c.checkPreset(s)
	if len(c.ClientID) > 65535 || len(c.Username) > 65535 {
		s.Errorf("client_id", "client_id, username: longer than MQTT carries")
	}
}

// Kind is the entry of kinds.go.
func Kind() northbound.Kind {
	return northbound.Kind{
		Type:    "mqtt",
		About:   "any MQTT 5 or 3.1.1 broker over TLS",
		Example: example,
		Config: func() any {
			return &Config{
				Version: int(V5), KeepAlive: config.Duration(time.Minute), SessionExpiry: config.Duration(24 * time.Hour), Window: 4096,
			}
		},
		Open: open,
	}
}

const example = `[connector.plant]
type = "mqtt"
url  = "mqtts://broker.plant7.example:8883"   # or "wss://HOST/PATH"; "mqtt://" only on loopback
key  = "identity"                  # client certificate; without it none is shown
#ca  = ""                          # system roots where empty
#preset         = ""               # the topics and limits of a platform, see below
#version        = 5                # or 4 (MQTT 3.1.1)
#client_id      = ""               # the gateway's id where empty
#username       = ""
#password       = ""               # "file:", "credential:" or "sealed:"
#token          = ""               # [token.NAME] instead: a JWT as the password, shown anew before it ends
#keep_alive     = "1m"
#session_expiry = "24h"            # how long the broker keeps commands for us; "0s" = clean start
#window         = 4096             # most publications in flight; the broker may lower it

# preset          topics of uplinks; of downlinks
# "cumulocity"    s/us/{device}, measurement/measurements/create; s/ds
# "emqx"          any
# "hivemq"        any
# "hono"          telemetry/TENANT/{device}, event/TENANT/{device}; command/TENANT/{device}/req/...
# "ibm-mq"        any
# "kaa"           kp1/APP/dcx/TOKEN/json; kp1/APP/cex/TOKEN/command/TYPE/status
# "thingspeak"    channels/ID/publish, channels/ID/publish/fields/field1; channels/ID/subscribe/fields/field1
# "watson"        iot-2/type/TYPE/id/{device}/evt/{kind}/fmt/json; iot-2/type/TYPE/id/{device}/cmd/NAME/fmt/json
`

// Connector reaches one broker.
type Connector struct {
	env    northbound.Env
	cfg    Config
	url    *url.URL
	bearer *Bearer
	sent   atomic.Int64
	read   atomic.Int64
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
	return &Connector{env: env, cfg: c.withPreset(), url: u, bearer: NewBearer(env.Tokens, c.Token)}, nil
}

// Limits is northbound.Limited's.
func (c *Connector) Limits() northbound.Limits {
	return northbound.Limits{Payload: presets[c.cfg.Preset].payload, Topic: 65535, Window: c.cfg.Window, KeepAlive: time.Duration(c.cfg.KeepAlive)}
}

// Dial is northbound.Connector's.
func (c *Connector) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	address, err := c.address(ctx)
	if err != nil {
		return nil, err
	}
	o, until, err := c.options(ctx)
	if err != nil {
		return nil, err
	}
	o.Receive = func(ctx context.Context, p msg.Publication) error {
		_, err := down.Deliver(ctx, p)
		return err
	}
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	s, err := Start(ctx, conn, o)
	if c.cfg.Token != "" {
		err = c.bearer.Judge(err)
	}
	if err != nil {
		return nil, explain(err, address.HostPort())
	}
	if s.server.Retain {
		c.env.Health.Clear(&RetainUnavailable)
	} else {
		c.env.Health.Set(&RetainUnavailable, "")
	}
	if err := Forget(ctx, s, c.env.State, down.Topics()); err != nil {
		c.env.Log.Warn("subscriptions of an earlier configuration may remain", "error", err)
	}
	err = s.Subscribe(ctx, down.Topics()...)
	_, refused := errors.AsType[*RefusedFilter](err)
	switch {
	case err == nil:
		c.env.Health.Clear(&SubscriptionRefused)
	case refused:
		c.env.Health.Set(&SubscriptionRefused, err.Error())
	default:
		s.Close()
		return nil, explain(err, address.HostPort())
	}
	if !until.IsZero() {
		timer := time.AfterFunc(time.Duration(renewAt*float64(until.Sub(c.env.Now()))), func() { s.End(northbound.ErrRenew) })
		context.AfterFunc(s.Context(), func() { timer.Stop() })
	}
	return c.bound(s), nil
}

// renewAt is the part of a token's life after which a session is replaced by one with a new token.
const renewAt = 0.8

// address gives where the broker is reached.
func (c *Connector) address(ctx context.Context) (Address, error) {
	a := Address{URL: c.url, Net: c.env.Dial}
	if !a.secure() {
		return a, nil
	}
	var err error
	if a.TLS, err = ClientTLS(ctx, c.env, string(c.cfg.CA), c.cfg.Key); err != nil {
		return a, err
	}
	if c.url.Scheme == "mqtts" && c.url.Port() == "443" {
		a.TLS.NextProtos = []string{"mqtt"}
	}
	if c.url.Scheme == "wss" {
		a.TLS.NextProtos = []string{"http/1.1"}
	}
	return a, nil
}

// options says how to log in, and until when what is shown holds; zero: for ever.
func (c *Connector) options(ctx context.Context) (o Options, until time.Time, err error) {
	o = Options{
		Version: byte(c.cfg.Version), ClientID: c.cfg.ClientID, Username: c.cfg.Username,
		KeepAlive: time.Duration(c.cfg.KeepAlive), SessionExpiry: time.Duration(c.cfg.SessionExpiry),
		Window: c.cfg.Window, NoLocal: true, Now: c.env.Now, Sent: &c.sent, Read: &c.read,
	}
	if o.ClientID == "" {
		o.ClientID = c.env.Gateway
	}
	switch {
	case c.cfg.Password != "":
		if o.Password, err = c.env.Keys.Secret(ctx, string(c.cfg.Password)); err != nil {
			return o, until, fmt.Errorf("password: %w", err)
		}
	case c.cfg.Token != "":
		var token string
		if token, until, err = c.bearer.Token(ctx); err != nil {
			return o, until, err
		}
		o.Password = []byte(token)
		if o.Username == "" && o.Version == V311 {
			o.Username = o.ClientID // MQTT 3.1.1 has no password without one
		}
	}
	return o, until, nil
}

// Counters is northbound.Counters'.
func (c *Connector) Counters() map[string]int64 {
	return map[string]int64{"octets_sent": c.sent.Load(), "octets_received": c.read.Load()}
}
