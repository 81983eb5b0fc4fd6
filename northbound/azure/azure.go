// Package azure connects to Azure IoT Hub and to Azure Event Grid namespaces over MQTT.
//
// # IoT Hub (service = "iothub")
//
// The gateway is one device of the hub. It logs in by MQTT 3.1.1 with the certificate of key (auth = "x509"), or with a shared access
// signature that the chip computes with key (auth = "sas"); a session on a signature ends by itself before the signature does. With
// id_scope the hub is found through the Device Provisioning Service, to which the gateway shows the same certificate, the same key or, with
// group = true, the key that is derived from it. With auth = "tpm" the service knows the TPM's endorsement key, and gives the gateway a symmetric
// key that only this TPM can open: it becomes key, and signs as with "sas".
//
// The hub has no free topics. Routes use these, and the connector translates:
//   - an uplink's topic, whatever it is, becomes the property "topic" of a device-to-cloud message, beside "device", the route's own properties
//     and the system properties for media type, message id and time;
//   - an uplink's topic "twin/reported" or "twin/reported/KEY" patches reported properties, and is confirmed when the twin has them;
//   - a cloud-to-device message arrives on the topic in its property "topic", else on "devicebound";
//   - a direct method NAME arrives on "methods/NAME", a method DEVICE.NAME on "methods/DEVICE/NAME"; the device's answer is the method's,
//     within method_timeout;
//   - desired properties arrive on "twin/desired/KEY", one publication for each top-level key, when they change and at each connect.
//
// With identities = "device" each device of the gateway is a device of the hub, with a connection and a credential of its own: the key that
// device_key names for it, a certificate or a symmetric key, or one that is derived in the chip from that of an enrolment group. Connections
// are made when a device first reports, and again for every device that ever did at each start, paced by connect_rate. "devicebound", "methods"
// and "twin/desired" are then followed by the device's name, and "twin/reported" is the reporting device's own twin.
//
// What the hub bears, enforced before anything is sent: 256 KiB in a message with its properties, 32 KiB of reported properties, QoS 0 and 1
// (a publication of QoS 2 is sent with QoS 1), no retained messages, a keep alive of 1177 s, one connection per device.
//
// # Event Grid (service = "eventgrid")
//
// MQTT 5, with free topics within the namespace's topic spaces. The client logs in with the certificate of key (auth = "x509"), with an
// Entra token (auth = "oauth", method OAUTH2-JWT) or with a token of another issuer (auth = "jwt", method CUSTOM-JWT). Before a token ends
// the connector shows a new one without disconnecting.
//
// What a namespace bears: packets of 512 KiB, topics of 256 octets and 8 levels, QoS 0 and 1, a keep alive of 1160 s, sessions of 8 hours, and 10
// topic aliases, which are used.
package azure

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
)

// Limits of the platform.
const (
	hubPayload    = 256 << 10
	hubReported   = 32 << 10
	hubKeepAlive  = 1177 * time.Second
	gridPacket    = 512 << 10
	gridTopic     = 256
	gridLevels    = 8
	gridKeepAlive = 1160 * time.Second
	gridExpiry    = 8 * time.Hour
)

// Config is [connector.NAME] with type = "azure".
type Config struct {
	Service   string          `toml:"service"`  // "iothub", "eventgrid"
	Endpoint  string          `toml:"endpoint"` // HOST or HOST:PORT; port 443 is WebSocket
	Auth      string          `toml:"auth"`     // "x509", "sas", "tpm"; "x509", "oauth", "jwt"
	Key       string          `toml:"key"`
	CA        config.Path     `toml:"ca"`
	DeviceID  string          `toml:"device_id"` // IoT Hub's device id, Event Grid's session name; empty: the gateway's id
	KeepAlive config.Duration `toml:"keep_alive"`

	// IoT Hub
	TokenLife     config.Duration `toml:"token_life"` // of a shared access signature
	MethodTimeout config.Duration `toml:"method_timeout"`
	ModelID       string          `toml:"model_id"`     // of IoT Plug and Play: "dtmi:..."
	IDScope       string          `toml:"id_scope"`     // of the Device Provisioning Service, where endpoint is empty
	Registration  string          `toml:"registration"` // registration id; empty: device_id
	Provisioning  string          `toml:"provisioning"` // HOST or HOST:PORT of the service
	Group         bool            `toml:"group"`        // key is that of an enrolment group
	Identities    string          `toml:"identities"`   // "gateway", or "device": a connection for each device
	DeviceKey     string          `toml:"device_key"`   // pattern of the [key.NAME] that each of them has, such as "hub-{device}"
	ConnectRate   float64         `toml:"connect_rate"` // log-ins per second with identities = "device"

	// Event Grid
	Name          string          `toml:"name"`  // client authentication name; empty: device_id
	Token         string          `toml:"token"` // [token.NAME]
	SessionExpiry config.Duration `toml:"session_expiry"`
}

const example = `[connector.hub]
type     = "azure"
endpoint = "plant7.azure-devices.net"   # ":443" is WebSocket, through most firewalls
key      = "identity"               # certificate with the device's id as common name
#service    = "iothub"              # or "eventgrid"
#auth       = "x509"                # "sas": signed by key in the chip; "tpm": by a key that id_scope gives; Event Grid: "oauth", "jwt"
#device_id  = ""                    # the gateway's id where empty
#id_scope   = ""                    # instead of endpoint: ask the Device Provisioning Service
#keep_alive = "4m"
#token_life = "1h"
#method_timeout = "25s"
#group      = false                 # key is that of an enrolment group
#identities = "gateway"             # "device": a connection for each device, with group = true or device_key
#device_key = ""                    # "hub-{device}": each device's own key, of which the file has one for each
#connect_rate = 50                  # of these, per second

[[uplink]]
name     = "state-to-twin"
resource = "/state"
to       = ["hub"]
topic    = "twin/reported/{device}"

[[downlink]]
name     = "method"
from     = "hub"
topic    = "methods/{device}/setpoint"
method   = "PUT"
resource = "/actuators/setpoint"
`

// Kind is the entry of kinds.go.
func Kind() northbound.Kind {
	return northbound.Kind{
		Type:    "azure",
		About:   "Azure IoT Hub, with provisioning, twins and direct methods, and Event Grid namespaces",
		Example: example,
		Hints:   slices.Concat(hubHints(), gridHints()),
		Config: func() any {
			return &Config{
				Service: "iothub", Auth: "x509", KeepAlive: config.Duration(4 * time.Minute), TokenLife: config.Duration(time.Hour),
				MethodTimeout: config.Duration(25 * time.Second), Provisioning: "global.azure-devices-provisioning.net",
				Identities: "gateway", ConnectRate: 50, SessionExpiry: config.Duration(time.Hour),
			}
		},
		Open: open,
	}
}

// Check is config.Checker's.
func (c *Config) Check(s *config.Scope) {
	if !s.OneOf("service", c.Service, "iothub", "eventgrid") {
		return
	}
	host, port, err := net.SplitHostPort(c.Endpoint)
	if err != nil {
		host, port = c.Endpoint, ""
	}
	if strings.ContainsAny(c.Endpoint, "/ ") || c.Endpoint != "" && (host == "" || strings.Contains(host, ":")) {
		s.Errorf("endpoint", "endpoint: %q is not a host", c.Endpoint)
	}
	if c.Endpoint == "" && (c.IDScope == "" || c.Service == "eventgrid") {
		s.Errorf("endpoint", "endpoint: the host is missing").Hint = "such as \"plant7.azure-devices.net\""
	}
	if port == "0" {
		s.Errorf("endpoint", "endpoint: port 0")
	}
	if c.Key != "" {
		s.Key("key", c.Key)
	}
	if c.Token != "" {
		s.Token("token", c.Token)
	}
	need := func(key, value, what string) {
		if value == "" {
			s.Errorf(key, "%s: auth = %q needs %s", key, c.Auth, what)
		}
	}
	most := hubKeepAlive
	if c.Service == "iothub" {
		s.OneOf("auth", c.Auth, "x509", "sas", "tpm")
		if c.Auth == "tpm" && (c.IDScope == "" || c.Identities == "device") {
			s.Errorf("auth", "auth: \"tpm\" needs id_scope, and is for the gateway as one device")
		}
		if c.DeviceKey == "" {
			need("key", c.Key, "a key")
		}
		if d := time.Duration(c.TokenLife); d < 5*time.Minute {
			s.Errorf("token_life", "token_life: at least \"5m\"")
		}
		if d := time.Duration(c.MethodTimeout); d < time.Second || d > 300*time.Second {
			s.Errorf("method_timeout", "method_timeout: from \"1s\" to \"5m\"")
		}
		if c.Group && c.Auth != "sas" {
			s.Errorf("group", "group: it goes with auth = \"sas\"")
		}
		if s.OneOf("identities", c.Identities, "gateway", "device") && c.Identities == "device" && !c.Group && c.DeviceKey == "" {
			s.Errorf("identities", "identities: a connection for each device needs group = true, by which the devices' keys are derived from the group's, or device_key")
		}
		switch {
		case c.DeviceKey == "":
		case c.Identities != "device" || c.Group:
			s.Errorf("device_key", "device_key: it goes with identities = \"device\" and without group")
		case !strings.Contains(c.DeviceKey, "{device}"):
			s.Errorf("device_key", "device_key: %q has no \"{device}\"", c.DeviceKey)
		}
		if c.ConnectRate <= 0 {
			s.Errorf("connect_rate", "connect_rate: it must be more than 0")
		}
	} else {
		most = gridKeepAlive
		if s.OneOf("auth", c.Auth, "x509", "oauth", "jwt") {
			if c.Auth == "x509" {
				need("key", c.Key, "a key with a certificate")
			} else {
				need("token", c.Token, "a token")
			}
		}
		if d := time.Duration(c.SessionExpiry); d < 0 || d > gridExpiry {
			s.Errorf("session_expiry", "session_expiry: Event Grid keeps a session for \"8h\" at most")
		}
	}
	if d := time.Duration(c.KeepAlive); d < time.Second || d > most {
		s.Errorf("keep_alive", "keep_alive: from \"1s\" to %q", most.String())
	}
}
