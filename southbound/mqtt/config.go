package mqtt

import (
	"slices"
	"time"

	"github.com/drawbridge/drawbridge/config"
)

// Config is [listener.NAME] with type = "mqtt".
type Config struct {
	Listen    string      `toml:"listen"`    // default ":8883"
	Transport string      `toml:"transport"` // "tcp" (default) or "websocket", at the path /mqtt
	Security  []string    `toml:"security"`  // ["tls"] (default), or ["none"] on loopback
	Key       string      `toml:"key"`       // [key.NAME] of the server
	DeviceCA  config.Path `toml:"device_ca"` // PEM; client certificates are asked for where this is set
	DeviceCRL config.Path `toml:"device_crl"`
	Auth      []string    `toml:"auth"` // tried in this order: "x509", "password", "jwt", "http", "anonymous" on loopback

	// ClientID says what a client id names: "bound" a session of its own device, so that equal ids of two devices are two sessions;
	// "free" a session of the whole listener type, as in a plain broker.
	ClientID string `toml:"client_id"`
	// Takeover says what happens to a second connection with the client id of a live one: "accept" ends the first, as
	// the standard has it; "refuse" refuses the second.
	Takeover string `toml:"takeover"`

	// ConnectTimeout is from the TCP connection to CONNECT, TLS handshake included. It is longer than a chip has for an operation: what is slow
	// is then said to be the chip, not the device.
	ConnectTimeout   config.Duration `toml:"connect_timeout"`
	MaxKeepAlive     config.Duration `toml:"max_keep_alive"` // a longer one, or none, is cut to this
	MaxConnections   int             `toml:"max_connections"`
	MaxHalfOpen      int             `toml:"max_half_open"` // connections that have not logged in yet
	MaxPacket        config.Size     `toml:"max_packet"`
	ReceiveMaximum   int             `toml:"receive_maximum"` // publishes of one client that may wait for their acknowledgement
	MaxRate          int             `toml:"max_rate"`        // publishes per second and device; 0: no limit
	MaxSessions      int             `toml:"max_sessions"`    // of one device
	MaxSubscriptions int             `toml:"max_subscriptions"`
	MaxTopicLevels   int             `toml:"max_topic_levels"`
	MaxSessionExpiry config.Duration `toml:"max_session_expiry"`
	MaxQueued        int             `toml:"max_queued"`       // messages that wait for one session
	MaxQueuedBytes   config.Size     `toml:"max_queued_size"`  // and their octets; as many may wait for its acknowledgement
	MaxQueuedTotal   config.Size     `toml:"max_queued_total"` // octets that wait for all sessions
	QueueFull        string          `toml:"queue_full"`       // "drop-new" (default) or "drop-old": counted, QoS 1 and 2 too
	MaxRetainedSize  config.Size     `toml:"max_retained_size"`
	MaxConnectRate   int             `toml:"max_connect_rate"` // connections per second and address; 0: no limit
	MaxRetained      int             `toml:"max_retained"`     // retained messages of the listener
}

func defaults() *Config {
	return &Config{
		Listen: ":8883", Transport: "tcp", Security: []string{"tls"}, Auth: []string{"x509", "password"},
		ClientID: "bound", Takeover: "accept",
		ConnectTimeout: config.Duration(15 * time.Second), MaxKeepAlive: config.Duration(30 * time.Minute),
		MaxConnections: 20000, MaxHalfOpen: 1000, MaxPacket: 256 << 10, ReceiveMaximum: 1000,
		MaxSessions: 100, MaxSubscriptions: 100, MaxTopicLevels: 32, MaxSessionExpiry: config.Duration(7 * 24 * time.Hour),
		MaxQueued: 1000, MaxQueuedBytes: 8 << 20, MaxQueuedTotal: 64 << 20, QueueFull: "drop-new", MaxRetained: 10000, MaxRetainedSize: 64 << 20,
	}
}

// Check implements config.Checker.
func (c *Config) Check(s *config.Scope) {
	s.Address("listen", c.Listen)
	s.OneOf("transport", c.Transport, "tcp", "websocket")
	s.OneOf("client_id", c.ClientID, "bound", "free")
	s.OneOf("takeover", c.Takeover, "accept", "refuse")
	s.OneOf("queue_full", c.QueueFull, "drop-new", "drop-old")
	switch {
	case len(c.Security) != 1:
		s.Errorf("security", `security: exactly one of "tls" and "none"`)
	case s.OneOf("security", c.Security[0], "tls", "none"):
		if c.Security[0] == "none" {
			s.Loopback("security", c.Listen, `security "none"`)
		} else if c.Key == "" {
			s.Errorf("key", `a listener with security "tls" needs a key`).Hint = `for example key = "identity" for [key.identity]`
		}
	}
	if len(c.Auth) == 0 {
		s.Errorf("auth", "auth: no way to log in is left")
	}
	for _, m := range c.Auth {
		if !s.OneOf("auth", m, "x509", "password", "jwt", "http", "anonymous") {
			continue
		}
		if m == "anonymous" {
			s.Loopback("auth", c.Listen, `auth "anonymous"`)
		}
		if m == "jwt" && s.Issuers() == 0 {
			s.Errorf("auth", `auth "jwt" needs an issuer`).Hint = "add an [issuer.NAME] with url and audience"
		}
	}
	if s.Given("auth") && slices.Contains(c.Auth, "x509") && c.DeviceCA == "" {
		s.Errorf("auth", `auth "x509" needs device_ca`).Hint = `device_ca = "devices-ca.pem" names the CA of the devices' certificates`
	}
	if c.DeviceCRL != "" && c.DeviceCA == "" {
		s.Errorf("device_crl", "device_crl without device_ca")
	}
	for key, v := range map[string]struct{ value, low, high int64 }{
		"max_connections":   {int64(c.MaxConnections), 1, 1 << 20},
		"max_half_open":     {int64(c.MaxHalfOpen), 1, 1 << 20},
		"max_packet":        {int64(c.MaxPacket), 1024, 268435455},
		"receive_maximum":   {int64(c.ReceiveMaximum), 1, 65535},
		"max_rate":          {int64(c.MaxRate), 0, 1 << 20},
		"max_subscriptions": {int64(c.MaxSubscriptions), 1, 1 << 20},
		"max_topic_levels":  {int64(c.MaxTopicLevels), 1, 1000},
		"max_queued":        {int64(c.MaxQueued), 1, 60000},
		"max_queued_size":   {int64(c.MaxQueuedBytes), 1024, 1 << 30},
		"max_queued_total":  {int64(c.MaxQueuedTotal), 1024, 1 << 40},
		"max_sessions":      {int64(c.MaxSessions), 1, 1 << 20},
		"max_retained_size": {int64(c.MaxRetainedSize), 0, 1 << 40},
		"max_connect_rate":  {int64(c.MaxConnectRate), 0, 1 << 20},
		"max_retained":      {int64(c.MaxRetained), 0, 1 << 24},
	} {
		if v.value < v.low || v.value > v.high {
			s.Errorf(key, "%s: %d is not between %d and %d", key, v.value, v.low, v.high)
		}
	}
	if c.ConnectTimeout < config.Duration(time.Second) {
		s.Errorf("connect_timeout", "connect_timeout: less than a second")
	}
	if c.MaxKeepAlive < config.Duration(time.Second) {
		s.Errorf("max_keep_alive", "max_keep_alive: less than a second")
	}
	if c.MaxSessionExpiry < 0 {
		s.Errorf("max_session_expiry", "max_session_expiry: less than nothing")
	}
}

func (c *Config) tls() bool { return c.Security[0] == "tls" }
