// Package http posts publications to a web service: a webhook, in batches or one by one, or a channel of ThingSpeak.
//
// It promises:
//   - a publication is done when the service has answered the request that carries it with 2xx;
//   - body = "array": batches leave one after the other, in order. A batch that is refused is sent one by one, so that only what the service
//     refuses is lost to the dead letters;
//   - body = "payload": publications of one device leave one after the other, those of several devices at the same time;
//   - 408, 425, 429 and 5xx are tried again in another session; any other answer but 2xx is permanent. Redirects are not followed;
//   - after Close no goroutine of the session is left.
//
// Each request has an Idempotency-Key, the same when it is repeated with the same content. A web service has no way to send commands.
package http

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// Config is [connector.NAME] with type = "http".
type Config struct {
	URL      string            `toml:"url"`
	Preset   string            `toml:"preset"` // "thingspeak"; empty: a webhook
	Method   string            `toml:"method"`
	Body     string            `toml:"body"`  // "array", "payload"
	Batch    int               `toml:"batch"` // most publications in an array
	Key      string            `toml:"key"`   // [key.NAME] with its certificate; empty: none is shown
	CA       config.Path       `toml:"ca"`    // PEM; empty: the system's roots
	Token    string            `toml:"token"` // [token.NAME], shown as bearer token
	Headers  map[string]string `toml:"headers"`
	Secret   config.SecretRef  `toml:"secret"`        // an API key
	SecretIn string            `toml:"secret_header"` // the header that it goes in
	Timeout  config.Duration   `toml:"timeout"`
	Interval config.Duration   `toml:"interval"` // least time between two batches
	Parallel int               `toml:"parallel"` // requests in flight with body = "payload"
}

const example = `[connector.hook]
type = "http"
url  = "https://hooks.plant7.example/ingest"
#method   = "POST"                 # or "PUT"
#body     = "array"                # JSON array of messages; "payload": one request each, the topic below the URL
#batch    = 100                    # most messages in an array
#key      = ""                     # [key.NAME] for mutual TLS
#ca       = ""                     # system roots where empty
#token    = ""                     # [token.NAME], as bearer token
#secret   = ""                     # an API key: "file:", "credential:" or "sealed:"
#secret_header = "X-API-Key"
#headers  = {}
#timeout  = "30s"
#interval = "0s"                   # least time between two batches
#parallel = 16                     # requests in flight with body = "payload"

# ThingSpeak:
#preset = "thingspeak"             # with url = "https://api.thingspeak.com/channels/ID", secret = the write key;
                                   # topics "field1" to "field8" with a number, or any topic with {"field1": ...}
`

// Kind is the entry of kinds.go.
func Kind() northbound.Kind {
	return northbound.Kind{
		Type:    "http",
		About:   "a web service that takes messages by HTTPS: webhooks with batches, and ThingSpeak",
		Example: example,
		Config: func() any {
			return &Config{
				Method: "POST", Body: "array", Batch: 100, SecretIn: "X-API-Key", Timeout: config.Duration(30 * time.Second), Parallel: 16,
			}
		},
		Open: open,
	}
}

// headerForm is that of a header's name (RFC 9110 section 5.6.2).
var headerForm = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// Check is config.Checker's.
func (c *Config) Check(s *config.Scope) {
	if u := s.URL("url", c.URL, "https", "http"); u != nil {
		if u.Scheme == "http" && !config.Loopback(net.JoinHostPort(u.Hostname(), "0")) {
			s.Errorf("url", "url: http:// is only allowed on loopback, and %q is not", u.Hostname()).Hint = "use https://"
		}
		if u.RawQuery != "" && mayHoldSecret(u) {
			s.Errorf("url", "url: a secret does not stand in a URL").Hint = "use secret and secret_header, or token"
		}
	}
	if c.Preset != "" && s.OneOf("preset", c.Preset, "thingspeak") {
		if c.Secret == "" {
			s.Errorf("secret", "secret: ThingSpeak needs the channel's write key")
		}
		for _, key := range []string{"method", "body", "token", "secret_header"} {
			if s.Given(key) {
				s.Errorf(key, "%s: preset = %q says it already", key, c.Preset)
			}
		}
	}
	s.OneOf("method", c.Method, "POST", "PUT")
	s.OneOf("body", c.Body, "array", "payload")
	if c.Batch < 1 || c.Batch > 10_000 {
		s.Errorf("batch", "batch: from 1 to 10000")
	}
	if c.Key != "" {
		s.Key("key", c.Key)
	}
	if c.Token != "" {
		s.TokenOverHTTP("token", c.Token)
	}
	if !headerForm.MatchString(c.SecretIn) {
		s.Errorf("secret_header", "secret_header: %q is not the name of a header", c.SecretIn)
	}
	for name, value := range c.Headers {
		if !headerForm.MatchString(name) || strings.ContainsFunc(value, unicode.IsControl) {
			s.Errorf("headers", "headers: %q is not a header", name)
		} else if lower := strings.ToLower(name); lower == "authorization" || lower == "cookie" {
			s.Errorf("headers", "headers: %s is a secret", name).Hint = "use token, or secret and secret_header"
		}
	}
	if d := time.Duration(c.Timeout); d < time.Second || d > 5*time.Minute {
		s.Errorf("timeout", "timeout: from \"1s\" to \"5m\"")
	}
	if d := time.Duration(c.Interval); d < 0 || d > time.Hour {
		s.Errorf("interval", "interval: from \"0s\" to \"1h\"")
	}
	if c.Parallel < 1 || c.Parallel > 1024 {
		s.Errorf("parallel", "parallel: from 1 to 1024")
	}
}

// mayHoldSecret tells whether a query looks like it carries a key.
func mayHoldSecret(u *url.URL) bool {
	for name := range u.Query() {
		n := strings.ToLower(name)
		if strings.Contains(n, "key") || strings.Contains(n, "token") || strings.Contains(n, "secret") || strings.Contains(n, "sig") {
			return true
		}
	}
	return false
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
	k := &Connector{env: env, cfg: *c, url: u, form: array, bearer: mqtt.NewBearer(env.Tokens, c.Token)}
	switch {
	case c.Preset == "thingspeak":
		k.url = u.JoinPath("bulk_update.json")
		k.form = thingspeak
		if k.cfg.Interval == 0 {
			k.cfg.Interval = config.Duration(thingspeakPause)
		}
		k.cfg.Batch = thingspeakBatch
	case c.Body == "payload":
		k.form = payload
	}
	return k, nil
}
