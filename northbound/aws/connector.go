package aws

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// SubscriptionRefused is the problem of a policy that does not let the gateway wait for some commands. Reports go on.
var SubscriptionRefused = health.Code{
	Name:     "aws-subscription-refused",
	Title:    "AWS IoT does not let the gateway wait for some commands",
	Severity: health.Degraded,
	Hint:     "allow iot:Subscribe on topicfilter/FILTER and iot:Receive on topic/TOPIC in the certificate's or role's policy",
}

// Connector reaches one AWS IoT Core endpoint.
type Connector struct {
	env    northbound.Env
	cfg    Config
	vault  vault
	bearer *mqtt.Bearer
	sent   atomic.Int64
	read   atomic.Int64

	between time.Duration // log-ins

	mu       sync.Mutex
	loggedIn time.Time             // guarded by mu: the last CONNECT
	shadows  map[string]*seen      // guarded by mu; by prefix
	jobs     map[string]*jobUpdate // guarded by mu: how executions ended; nil while under way
}

func open(env northbound.Env, cfg any) (northbound.Connector, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("connector %s: configuration of type %T", env.Name, cfg)
	}
	return &Connector{env: env, cfg: *c, bearer: mqtt.NewBearer(env.Tokens, c.Token), between: betweenLogins, shadows: map[string]*seen{}, jobs: map[string]*jobUpdate{}}, nil
}

// Limits is northbound.Limited's.
func (c *Connector) Limits() northbound.Limits {
	return northbound.Limits{
		Payload: maxPayload, Topic: maxTopic - len(c.ingest("")), TopicLevels: maxLevels, Window: maxInFlight,
		Rate: c.cfg.Rate, KeepAlive: maxKeepAlive,
	}
}

// Counters is northbound.Counters'.
func (c *Connector) Counters() map[string]int64 {
	return map[string]int64{"octets_sent": c.sent.Load(), "octets_received": c.read.Load()}
}

func (c *Connector) clientID() string {
	if c.cfg.ClientID != "" {
		return c.cfg.ClientID
	}
	return c.env.Gateway
}

// ingest gives the topic that leads past the broker into a rule, where the configuration wants that.
func (c *Connector) ingest(topic string) string {
	if c.cfg.BasicIngest == "" || strings.HasPrefix(topic, "$aws/") {
		return topic
	}
	return "$aws/rules/" + c.cfg.BasicIngest + "/" + topic
}

// Dial is northbound.Connector's.
func (c *Connector) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	if err := c.pace(ctx); err != nil {
		return nil, err
	}
	address, o, err := c.login(ctx)
	if err != nil {
		return nil, err
	}
	s := newSession(c, down)
	o.Receive = s.receive
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return nil, northbound.Explain(err, hints())
	}
	s.Session, err = mqtt.Start(ctx, conn, o)
	if c.cfg.Auth == "authorizer" {
		err = c.bearer.Judge(err)
	}
	if err != nil {
		return nil, northbound.Explain(address.Explain(err), hints())
	}
	err = s.begin(ctx)
	if _, refused := errors.AsType[*mqtt.RefusedFilter](err); refused {
		c.env.Health.Set(&SubscriptionRefused, err.Error())
	} else if err != nil {
		s.Close()
		return nil, northbound.Explain(address.Explain(err), hints())
	} else {
		c.env.Health.Clear(&SubscriptionRefused)
	}
	return s, nil
}

// pace keeps log-ins a second apart: the platform refuses more under one client id.
func (c *Connector) pace(ctx context.Context) error {
	c.mu.Lock()
	wait := time.Until(c.loggedIn.Add(c.between))
	c.loggedIn = time.Now().Add(max(wait, 0))
	c.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// login makes what the configured way of logging in needs, anew each time: certificates and tokens are renewed.
func (c *Connector) login(ctx context.Context) (mqtt.Address, mqtt.Options, error) {
	o := mqtt.Options{
		Version: byte(c.cfg.Version), ClientID: c.clientID(), KeepAlive: time.Duration(c.cfg.KeepAlive),
		SessionExpiry: time.Duration(c.cfg.SessionExpiry), Window: maxInFlight, NoLocal: true, MaxQoS: 1,
		Now: c.env.Now, Sent: &c.sent, Read: &c.read,
	}
	a := mqtt.Address{Net: c.env.Dial}
	config, err := c.tls()
	if err != nil {
		return a, o, err
	}
	a.TLS = config
	switch c.cfg.Auth {
	case "sigv4":
		keys, err := c.credentials(ctx)
		if err != nil {
			return a, o, err
		}
		a.URL = presign(c.cfg.Endpoint, c.cfg.Region, keys, c.env.Now(), 5*time.Minute)
		config.NextProtos = []string{"http/1.1"}
		return a, o, nil
	case "authorizer":
		a.URL = c.url("443")
		config.NextProtos = []string{"mqtt"}
		err := c.authorize(ctx, &o)
		return a, o, err
	}
	a.URL = c.url("8883")
	if a.URL.Port() != "8883" {
		config.NextProtos = []string{"x-amzn-mqtt-ca"}
	}
	cert, err := c.env.Keys.Certificate(ctx, c.cfg.Key)
	if err != nil {
		return a, o, fmt.Errorf("key %s: %w", c.cfg.Key, err)
	}
	config.Certificates = []tls.Certificate{*cert}
	return a, o, nil
}

func (c *Connector) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, Time: c.env.Now}
	if c.cfg.CA != "" {
		roots, err := mqtt.LoadCA(string(c.cfg.CA))
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	return config, nil
}

func (c *Connector) url(port string) *url.URL {
	host := c.cfg.Endpoint
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, port)
	}
	return &url.URL{Scheme: "mqtts", Host: host}
}

// authorize puts the token where the custom authorizer looks for it: in the user name, signed, or in the password.
func (c *Connector) authorize(ctx context.Context, o *mqtt.Options) error {
	token, _, err := c.bearer.Token(ctx)
	if err != nil {
		return err
	}
	var query []string
	if c.cfg.Authorizer != "" {
		query = append(query, "x-amz-customauthorizer-name="+url.QueryEscape(c.cfg.Authorizer))
	}
	if c.cfg.SigningKey != "" {
		signature, err := c.sign(ctx, token)
		if err != nil {
			return err
		}
		query = append(query, "x-amz-customauthorizer-signature="+url.QueryEscape(signature))
	}
	if c.cfg.TokenKey != "" {
		query = append(query, url.QueryEscape(c.cfg.TokenKey)+"="+url.QueryEscape(token))
	} else {
		o.Password = []byte(token)
	}
	o.Username = c.cfg.Username
	if len(query) > 0 || o.Username == "" {
		o.Username += "?" + strings.Join(query, "&")
	}
	return nil
}

// sign is what proves the token to an authorizer with signing on: RSA PKCS#1 v1.5 with SHA-256 over its octets.
func (c *Connector) sign(ctx context.Context, token string) (string, error) {
	keys, ok := c.env.Keys.(northbound.Signers)
	if !ok {
		return "", msg.Permanent(fmt.Errorf("signing_key %s: the key ring gives no keys to sign with", c.cfg.SigningKey))
	}
	key, err := keys.Signer(ctx, c.cfg.SigningKey)
	if err != nil {
		return "", fmt.Errorf("signing_key %s: %w", c.cfg.SigningKey, err)
	}
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		return "", msg.Permanent(fmt.Errorf("signing_key %s: AWS wants an RSA key", c.cfg.SigningKey))
	}
	sum := sha256.Sum256([]byte(token))
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("signing_key %s: %w", c.cfg.SigningKey, err)
	}
	return base64.StdEncoding.EncodeToString(signature), nil
}

// Examine is northbound.Examined's.
func (c *Connector) Examine(ctx context.Context, step func(northbound.Step)) {
	step = northbound.ExplainSteps(step, hints())
	address, o, err := c.login(ctx)
	if err != nil {
		step(northbound.Step{Name: "log-in", Err: err})
		return
	}
	conn, err := address.Dial(ctx, step)
	if err != nil {
		return // the step that failed has been told
	}
	mqtt.Examine(ctx, conn, o, address, "drawbridge/"+c.env.Gateway+"/doctor", step)
}
