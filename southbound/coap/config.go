package coap

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
)

// Config is [listener.NAME] of type "coap".
type Config struct {
	Listen    string      `toml:"listen"`
	Transport string      `toml:"transport"` // "udp", or "tcp" (RFC 8323): TLS with certificates, or in the clear
	Security  []string    `toml:"security"`  // "psk", "x509"; or "none", on loopback only
	Key       string      `toml:"key"`       // of the server certificate, for "x509"
	DeviceCA  config.Path `toml:"device_ca"` // PEM, for "x509"
	// DeviceCRL names revocation lists, PEM or DER. The authenticator reads and checks them.
	DeviceCRL    config.Path `toml:"device_crl"`
	StateKey     string      `toml:"state_key"`     // seals what is kept of associations; empty: key
	ECDHE        string      `toml:"ecdhe"`         // where the server's ephemeral keys are made and used: "memory", or "chip", that of key
	ConnectionID bool        `toml:"connection_id"` // RFC 9146, where the client offers it
	Suites       []string    `toml:"suites"`        // IANA names in order of preference; empty: all that are sound

	Observe []string `toml:"observe"` // resources that the gateway observes on each device that may report on them

	MaxPayload       config.Size     `toml:"max_payload"`       // of one report, put together from its blocks
	DeviceRate       int             `toml:"device_rate"`       // reports of one device in a second; 0: any number
	LastValues       config.Size     `toml:"last_values"`       // room for the last value of each resource, for GET; 0: none are held
	MaxDevices       int             `toml:"max_devices"`       // associations; the one silent for longest makes room
	MaxHandshakes    int             `toml:"max_handshakes"`    // under way at a time
	HandshakeTimeout config.Duration `toml:"handshake_timeout"` // of one, losses included
	IdleTimeout      config.Duration `toml:"idle_timeout"`      // after which a silent association is forgotten
	AckTimeout       config.Duration `toml:"ack_timeout"`       // ACK_TIMEOUT of RFC 7252 section 4.8
	MaxRetransmit    int             `toml:"max_retransmit"`    // MAX_RETRANSMIT
}

// Kind is the entry for kinds.go.
func Kind() southbound.Kind {
	return southbound.Kind{
		Type: "coap",
		Config: func() any {
			return &Config{
				Listen: ":5684", Transport: "udp", Security: []string{"psk", "x509"}, ECDHE: "memory", ConnectionID: true,
				MaxPayload: 64 << 10, LastValues: 16 << 20, MaxDevices: 100_000, MaxHandshakes: 1000,
				HandshakeTimeout: config.Duration(60 * time.Second), IdleTimeout: config.Duration(30 * 24 * time.Hour),
				AckTimeout: config.Duration(2 * time.Second), MaxRetransmit: 4,
			}
		},
		Open: func(env southbound.Env, cfg any) (southbound.Listener, error) {
			c, ok := cfg.(*Config)
			if !ok {
				return nil, fmt.Errorf("coap: config is a %T", cfg)
			}
			return open(env, c)
		},
	}
}

// Check implements config.Checker.
func (c *Config) Check(s *config.Scope) {
	s.Address("listen", c.Listen)
	c.checkSecurity(s)
	if c.StateKey != "" {
		s.Key("state_key", c.StateKey)
	}
	c.checkSuites(s)
	c.checkObserve(s)
	c.checkLimits(s)
}

func (c *Config) checkSecurity(s *config.Scope) {
	if c.Transport == "tcp" && !s.Given("security") {
		s.Errorf("transport", `transport "tcp" needs security = ["x509"] or ["none"]`)
	}
	if len(c.Security) == 0 {
		s.Errorf("security", "security: there is none").Hint = `for example security = ["psk", "x509"]`
	}
	for i, v := range c.Security {
		key := fmt.Sprintf("security[%d]", i)
		if !s.OneOf(key, v, "psk", "x509", "none") {
			continue
		}
		if slices.Contains(c.Security[:i], v) {
			s.Errorf(key, "security: %q is there twice", v)
		}
		if v == "psk" && c.Transport == "tcp" {
			s.Errorf(key, `security "psk" is only spoken over udp`).Hint = `Go's TLS has no pre-shared keys; for tcp, security = ["x509"]`
		}
		if v == "none" {
			s.Loopback(key, c.Listen, `security "none"`)
			if len(c.Security) > 1 {
				s.Errorf(key, `security: "none" stands alone`)
			}
		}
	}
	s.OneOf("transport", c.Transport, "udp", "tcp")
	if c.uses("x509") {
		if c.Key == "" {
			s.Errorf("key", `security "x509" needs a key`).Hint = `for example key = "identity" for [key.identity]`
		}
		if c.DeviceCA == "" {
			s.Errorf("device_ca", `security "x509" needs device_ca`).Hint = "the CA that has signed the devices' certificates, as PEM"
		}
	}
	if c.DeviceCRL != "" && c.DeviceCA == "" {
		s.Errorf("device_crl", "device_crl without device_ca")
	}
	if s.OneOf("ecdhe", c.ECDHE, "memory", inChip) && c.ECDHE == inChip {
		if c.Key == "" {
			s.Errorf("ecdhe", `ecdhe = "chip" needs a key: it is in that key's chip that the ephemeral keys are made`)
		}
		if s.KeyScheme(c.Key) == "file" {
			s.Errorf("ecdhe", `ecdhe = "chip": the key %q lives in a file, not in a chip`, c.Key)
		}
		if c.Transport == "tcp" || c.uses("none") {
			s.Errorf("ecdhe", `ecdhe = "chip" goes with DTLS alone`)
		}
	}
}

func (c *Config) checkSuites(s *config.Scope) {
	for i, name := range c.Suites {
		var all []string
		for _, suite := range dtls.Suites() {
			all = append(all, suite.Name)
		}
		s.OneOf(fmt.Sprintf("suites[%d]", i), name, all...)
	}
	if len(c.Suites) > 0 && c.Transport == "udp" && !c.uses("none") {
		if _, err := c.suites(); errors.Is(err, errNoSuite) {
			s.Errorf("suites", "%v", err)
		}
	}
}

func (c *Config) checkObserve(s *config.Scope) {
	if len(c.Observe) > maxWatches {
		s.Errorf("observe", "observe: %d resources are more than %d", len(c.Observe), maxWatches)
	}
	for i, resource := range c.Observe {
		key := fmt.Sprintf("observe[%d]", i)
		switch {
		case !isResource(resource):
			s.Errorf(key, "observe: %q is not a resource", resource).Hint = `for example observe = ["/sensors/temp"]`
		case slices.Contains(c.Observe[:i], resource):
			s.Errorf(key, "observe: %q is there twice", resource)
		case !s.Reportable(resource):
			s.Errorf(key, "observe: no rule lets a device report on %q", resource).Hint = fmt.Sprintf("write an [[allow]] with op = \"report\" and resources = [%q]", resource)
		}
	}
}

func (c *Config) checkLimits(s *config.Scope) {
	positive := func(key string, ok bool) {
		if !ok {
			s.Errorf(key, "%s: must be more than 0", key)
		}
	}
	positive("max_payload", c.MaxPayload > 0)
	if c.DeviceRate < 0 {
		s.Errorf("device_rate", "device_rate: %d is less than 0", c.DeviceRate)
	}
	positive("max_devices", c.MaxDevices > 0)
	positive("max_handshakes", c.MaxHandshakes > 0)
	positive("handshake_timeout", c.HandshakeTimeout > 0)
	positive("idle_timeout", c.IdleTimeout > 0)
	positive("ack_timeout", c.AckTimeout > 0)
	if c.MaxRetransmit < 0 || c.MaxRetransmit > 20 {
		s.Errorf("max_retransmit", "max_retransmit: %d is not from 0 to 20", c.MaxRetransmit)
	}
}

// isResource tells whether s is the path of one resource.
func isResource(s string) bool {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok || len(s) > maxPath || strings.ContainsAny(s, "{}+#*") {
		return false
	}
	for seg := range strings.SplitSeq(rest, "/") {
		if seg == "" || strings.ContainsFunc(seg, unicode.IsControl) {
			return false
		}
	}
	return true
}

// inChip is a value of ecdhe.
const inChip = "chip"

var errNoSuite = errors.New("suites: none goes with the listener's security")

func (c *Config) uses(security string) bool { return slices.Contains(c.Security, security) }

// suites gives the suites that the security allows, in order.
func (c *Config) suites() (list []*dtls.Suite, err error) {
	all := dtls.Suites()
	if len(c.Suites) > 0 {
		all = nil
		for _, name := range c.Suites {
			s := dtls.SuiteByName(name)
			if s == nil {
				return nil, fmt.Errorf("suites: %q is not known", name)
			}
			all = append(all, s)
		}
	}
	for _, s := range all {
		if s.UsesPSK() && c.uses("psk") || !s.UsesPSK() && c.uses("x509") {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil, errNoSuite
	}
	return list, nil
}

// readCA reads the certificates of a PEM file.
func readCA(file string) (pool *x509.CertPool, names [][]byte, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	pool = x509.NewCertPool()
	for {
		var block *pem.Block
		if block, data = pem.Decode(bytes.TrimSpace(data)); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		pool.AddCert(c)
		names = append(names, c.RawSubject)
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("%s: holds no certificate", file)
	}
	return pool, names, nil
}
