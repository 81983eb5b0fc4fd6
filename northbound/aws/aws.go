// Package aws connects to AWS IoT Core over MQTT.
//
// It builds on package mqtt and adds what the platform does differently: three ways to log in, limits that the platform enforces by silence
// or by closing, and the protocols that lie on its reserved topics.
//
// Log-in (auth):
//   - "x509": the certificate of key, at port 8883, or at 443 with ALPN x-amzn-mqtt-ca;
//   - "authorizer": a custom authorizer gets the token of [token.NAME], at port 443 with ALPN mqtt;
//   - "sigv4": MQTT over WebSocket at port 443, signed with temporary credentials, which come from STS for a token of [token.NAME]
//     (AssumeRoleWithWebIdentity) or from the IoT credentials provider for the certificate of key.
//
// With claim_key and template the connector enrols: fleet provisioning certifies key for a request that is signed in its chip.
//
// Reserved topics, for routes to use as any other:
//   - $aws/things/THING/shadow[/name/NAME]/update as an uplink's topic reports state: a payload that is no shadow request is wrapped
//     as {"state":{"reported":...}}, and the report is confirmed when the shadow has accepted it, not when the broker has it;
//   - $aws/things/THING/shadow[/name/NAME]/update/delta as a downlink's topic waits for desired state. What differed while the
//     gateway was away is fetched at each connect; deltas older than one that was delivered are left out;
//   - $aws/things/THING/jobs/notify-next as a downlink's topic carries out jobs: each is set IN_PROGRESS, delivered, and set SUCCEEDED, FAILED or
//     REJECTED by the device's answer. The next one is asked for at each connect.
//
// What the platform bears (AWS IoT Core quotas), enforced before anything is sent, so that one publication never costs the connection:
//
//	payload                     128 KiB
//	topic                       256 octets, 8 levels (the prefix of basic_ingest does not count)
//	client id                   128 octets
//	publications                100 per second and connection (rate), 100 unconfirmed
//	throughput                  512 KiB per second and connection
//	log-ins                     1 per second and client id
//	keep alive                  30 s to 20 min
//	subscriptions               50 per connection, 8 in one packet
//	shadow                      10 unanswered requests per thing, 8 KiB
//	topic aliases               8, used (MQTT 5): a topic that repeats itself goes over the wire once
//	QoS                         0 and 1; a publication of QoS 2 is sent with QoS 1
package aws

import (
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
)

// Limits of the platform.
const (
	maxPayload    = 128 << 10
	maxTopic      = 256
	maxLevels     = 8
	maxClientID   = 128
	maxInFlight   = 100
	maxThroughput = 512 << 10 // octets per second
	minKeepAlive  = 30 * time.Second
	maxKeepAlive  = 20 * time.Minute
	maxExpiry     = 7 * 24 * time.Hour
	betweenLogins = time.Second
)

// Config is [connector.NAME] with type = "aws".
type Config struct {
	Endpoint      string          `toml:"endpoint"` // HOST or HOST:PORT
	Auth          string          `toml:"auth"`     // "x509", "authorizer", "sigv4"
	Key           string          `toml:"key"`
	CA            config.Path     `toml:"ca"`      // PEM; empty: the system's roots, where Amazon's are
	Version       int             `toml:"version"` // 5 or 4
	ClientID      string          `toml:"client_id"`
	KeepAlive     config.Duration `toml:"keep_alive"`
	SessionExpiry config.Duration `toml:"session_expiry"`
	Rate          float64         `toml:"rate"`         // publications per second
	BasicIngest   string          `toml:"basic_ingest"` // name of a rule: every uplink goes to $aws/rules/NAME/TOPIC

	Token      string `toml:"token"` // [token.NAME], for "authorizer", and for "sigv4" with role_arn
	Authorizer string `toml:"authorizer"`
	Username   string `toml:"username"`    // for "authorizer": what stands before the question mark
	TokenKey   string `toml:"token_key"`   // for "authorizer": the name of the token's parameter; empty: the token is the password
	SigningKey string `toml:"signing_key"` // for "authorizer": [key.NAME] whose RSA signature of the token proves it

	ClaimKey   string            `toml:"claim_key"`  // [key.NAME] of the claim certificate that fleet provisioning logs in with
	Template   string            `toml:"template"`   // of fleet provisioning
	Parameters map[string]string `toml:"parameters"` // for the template

	Region      string `toml:"region"`
	RoleARN     string `toml:"role_arn"`   // for "sigv4" with token
	STS         string `toml:"sts"`        // URL; empty: the region's
	RoleAlias   string `toml:"role_alias"` // for "sigv4" with key
	Credentials string `toml:"credentials_endpoint"`
	Thing       string `toml:"thing"` // for "sigv4" with key: the thing that the certificate belongs to
}

const example = `[connector.cloud]
type     = "aws"
endpoint = "a1b2c3-ats.iot.eu-central-1.amazonaws.com"   # ":443" goes through most firewalls
key      = "identity"               # certificate registered with AWS IoT
#auth           = "x509"            # "authorizer": OIDC token to a custom authorizer; "sigv4": WebSocket with role credentials
#client_id      = ""                # the gateway's id where empty
#version        = 5                 # or 4 (MQTT 3.1.1)
#keep_alive     = "5m"
#session_expiry = "1h"              # how long AWS keeps commands for us; at most "168h"
#rate           = 100               # publications per second
#claim_key      = ""                # with template: fleet provisioning, the key is certified by AWS
#basic_ingest   = ""                # a rule's name: reports go to it without the price of the broker

[[uplink]]
name     = "state-to-shadow"
resource = "/state"
to       = ["cloud"]
topic    = "$aws/things/{device}/shadow/update"

[[downlink]]
name      = "desired-state"
from      = "cloud"
topic     = "$aws/things/{device}/shadow/update/delta"
resource  = "/state"
transform = "jq:.state"
`

// Kind is the entry of kinds.go.
func Kind() northbound.Kind {
	return northbound.Kind{
		Type:    "aws",
		About:   "AWS IoT Core, with shadows and jobs",
		Example: example,
		Hints:   hints(),
		Config: func() any {
			return &Config{
				Auth: "x509", Version: 5, KeepAlive: config.Duration(5 * time.Minute),
				SessionExpiry: config.Duration(time.Hour), Rate: 100,
			}
		},
		Open: open,
	}
}

// Check is config.Checker's.
func (c *Config) Check(s *config.Scope) {
	host, _, _ := strings.Cut(c.Endpoint, ":")
	if host == "" || strings.ContainsAny(c.Endpoint, "/ ") {
		s.Errorf("endpoint", "endpoint: %q is not a host", c.Endpoint).Hint = "`aws iot describe-endpoint --endpoint-type iot:Data-ATS` prints it"
	}
	s.OneOf("auth", c.Auth, "x509", "authorizer", "sigv4")
	c.checkLogin(s)
	for key, name := range map[string]string{"key": c.Key, "signing_key": c.SigningKey, "claim_key": c.ClaimKey} {
		if name != "" {
			s.Key(key, name)
		}
	}
	if c.Token != "" {
		s.Token("token", c.Token)
	}
	if c.Version != 5 && c.Version != 4 {
		s.Errorf("version", "version: %d is not one of 5 and 4 (MQTT 3.1.1)", c.Version)
	}
	if len(c.ClientID) > maxClientID {
		s.Errorf("client_id", "client_id: %d octets, AWS takes %d", len(c.ClientID), maxClientID)
	}
	if strings.HasPrefix(c.ClientID, "$") || strings.ContainsAny(c.ClientID, "#+") {
		s.Errorf("client_id", "client_id: %q begins with \"$\" or holds \"#\" or \"+\", which AWS does not take", c.ClientID)
	}
	if d := time.Duration(c.KeepAlive); d < minKeepAlive || d > maxKeepAlive {
		s.Errorf("keep_alive", "keep_alive: AWS takes from %q to %q", "30s", "20m")
	}
	if d := time.Duration(c.SessionExpiry); d < 0 || d > maxExpiry {
		s.Errorf("session_expiry", "session_expiry: AWS keeps a session for %q at most", "168h")
	}
	if c.Rate <= 0 {
		s.Errorf("rate", "rate: it must be more than 0")
	}
	if (c.ClaimKey == "") != (c.Template == "") {
		s.Errorf("template", "template: fleet provisioning needs claim_key and template")
	}
	if strings.ContainsAny(c.BasicIngest, "/#+ ") {
		s.Errorf("basic_ingest", "basic_ingest: %q is not the name of a rule", c.BasicIngest)
	}
}

// checkLogin reports what the way of logging in needs and does not have.
func (c *Config) checkLogin(s *config.Scope) {
	need := func(key, value, what string) {
		if value == "" {
			s.Errorf(key, "%s: auth = %q needs %s", key, c.Auth, what)
		}
	}
	switch c.Auth {
	case "x509":
		need("key", c.Key, "a key with a certificate that is registered with AWS IoT")
	case "authorizer":
		need("token", c.Token, "a token for the authorizer")
		if c.SigningKey != "" {
			need("token_key", c.TokenKey, "the name of the parameter that carries the signed token")
			need("authorizer", c.Authorizer, "the authorizer's name where tokens are signed")
		}
	case "sigv4":
		need("region", c.Region, "the region of the endpoint")
		switch {
		case c.Token != "":
			need("role_arn", c.RoleARN, "the role that the token is exchanged for")
		case c.Key != "":
			need("role_alias", c.RoleAlias, "the role alias that the certificate is exchanged for")
			need("credentials_endpoint", c.Credentials, "the endpoint of the credentials provider")
		default:
			s.Errorf("auth", "auth: \"sigv4\" needs token and role_arn, or key and role_alias")
		}
	}
}
