// Package status tells people and machines how the gateway is: one [Snapshot], rendered as a page, as JSON, as text and as metrics.
//
// What always holds:
//   - Every rendering shows the same snapshot: what the page says, /status.json, /metrics and `drawbridge status` say too.
//   - Nothing shown is secret: no key, password, token or payload of a live message.
//   - Over loopback and over the local socket no log-in is asked for; the socket is open to root and to the gateway's own user and group only.
//     Any other address is served over TLS alone, to people who have logged in.
//   - Every action is in the log, with who did it.
//   - The page asks nothing of any other machine, and can be read without JavaScript.
//
// The package decides nothing about the gateway: it reads a [Source], and acts through the abilities that the source has.
package status

import (
	"fmt"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
)

// Version is the version of the snapshot's JSON. Within a version fields are added, never renamed or removed.
const Version = 1

// Snapshot is the gateway at one moment. /status.json and `drawbridge status --json` are this struct.
type Snapshot struct {
	Version    int                   `json:"version"`    // of this document's shape; see Version
	Time       time.Time             `json:"time"`       // when it was taken, by the gateway's clock
	Verdict    Verdict               `json:"verdict"`    // the whole in one sentence; filled in by this package
	Gateway    Gateway               `json:"gateway"`    // the process itself
	Problems   []health.Problem      `json:"problems"`   // what is wrong now, worst first
	Outcomes   map[string]int64      `json:"outcomes"`   // reports of devices since start, by what they were told: "accepted", "denied", "full", ...
	Devices    DeviceCount           `json:"devices"`    // how many; the list itself is paged, see /v1/devices
	Listeners  []Listener            `json:"listeners"`  // where devices connect, by name
	Routes     []Route               `json:"routes"`     // what leads where, in the file's order
	Connectors []Connector           `json:"connectors"` // the clouds, by name
	Spool      spool.Stats           `json:"spool"`      // the queue on disk
	Ledger     []spool.Tally         `json:"ledger"`     // accepted = delivered + expired + dead + pending, for each route and connector
	Keys       []Key                 `json:"keys"`       // by name
	PSKs       PSKs                  `json:"psks"`       // where devices' pre-shared keys live
	Chips      []hwcrypto.QueueStats `json:"chips"`      // the signing queue of each chip
}

// Gateway is the process.
type Gateway struct {
	ID         string    `json:"id"`                // gateway.id of the file
	Version    string    `json:"version"`           // of the program
	Config     string    `json:"config"`            // path of the file in force
	Started    time.Time `json:"started"`           // when this process started
	Reloaded   time.Time `json:"reloaded,omitzero"` // when the file in force was taken over; zero: at start
	StateBytes int64     `json:"state_bytes"`       // size of the state directory on disk
	RSSBytes   int64     `json:"rss_bytes"`         // memory of the process that is resident
	Ready      bool      `json:"ready"`             // every listener is bound
}

// PSKs counts the devices that have a pre-shared key, by where it lives.
type PSKs struct {
	Chip   int `json:"chip"`   // in a chip, which computes with it: never in this process's memory
	Sealed int `json:"sealed"` // sealed by a chip; in memory for the device's handshakes alone
	Plain  int `json:"plain"`  // in a file or credential; in memory for the device's handshakes alone
}

// String says so in a sentence; it is empty where there are none.
func (p PSKs) String() string {
	if p == (PSKs{}) {
		return ""
	}
	return fmt.Sprintf("pre-shared keys of devices: %d in a chip, which computes with them; %d sealed by a chip and %d in files or credentials, each in memory for its handshakes alone",
		p.Chip, p.Sealed, p.Plain)
}

// DeviceCount is how many devices there are.
type DeviceCount struct {
	Connected int `json:"connected"` // with a session or association now
	Queued    int `json:"queued"`    // commands that wait in mailboxes
}

// Listener is one [listener.NAME].
type Listener struct {
	Name     string           `json:"name"`
	Type     string           `json:"type"`     // "coap", "mqtt", ...
	Address  string           `json:"address"`  // bound address; the one of the file until it is bound
	Security []string         `json:"security"` // "psk", "x509", "tls", "none"
	Bound    bool             `json:"bound"`
	Error    string           `json:"error,omitempty"` // why it is not bound
	Devices  int              `json:"devices"`         // with a session here now
	Counters map[string]int64 `json:"counters"`        // as the listener names them
}

// Direction says which way a route leads.
type Direction string

// The directions of a route.
const (
	Up   Direction = "up"   // device → cloud, [[uplink]]
	Down Direction = "down" // cloud → device, [[downlink]]
)

// Route is one [[uplink]] or [[downlink]]. What an uplink has carried stands in the ledger.
type Route struct {
	Name      string           `json:"name"`
	Direction Direction        `json:"direction"`
	Resource  string           `json:"resource"` // pattern, such as "/sensors/{kind}"
	Topic     string           `json:"topic"`    // pattern, such as "dt/{gateway}/{device}/{kind}"
	Peers     []string         `json:"peers"`    // connectors: to (uplink), from (downlink)
	Transform string           `json:"transform,omitempty"`
	Ack       string           `json:"ack,omitempty"` // "disk" or "cloud"; empty on downlinks
	Counters  map[string]int64 `json:"counters"`      // outcomes by name: "accepted", "denied", "full", "bad-payload", "done", "queued", ...
}

// ConnectorState is what a connector is doing.
type ConnectorState string

// The states of a connector.
const (
	ConnectorUp         ConnectorState = "up"
	ConnectorConnecting ConnectorState = "connecting"
	ConnectorBackingOff ConnectorState = "backing-off" // waits before it dials again
	ConnectorPaused     ConnectorState = "paused"      // by an operator, until resumed
	ConnectorGone       ConnectorState = "gone"        // not in the file any more; what waits for it is kept until it expires
)

// Connector is one [connector.NAME].
type Connector struct {
	Name      string            `json:"name"`
	Type      string            `json:"type"`                // "mqtt", "aws", ...
	Address   string            `json:"address,omitempty"`   // the cloud's endpoint
	State     ConnectorState    `json:"state"`               //
	Since     time.Time         `json:"since"`               // since when it is in this state
	NextTry   time.Time         `json:"next_try,omitzero"`   // when it dials again, while backing off; else zero
	LastError string            `json:"last_error"`          // why the last session or dial ended; kept after it is up again
	LastFault time.Time         `json:"last_fault,omitzero"` // when that was; zero: never
	InFlight  int               `json:"in_flight"`           // publications sent and not yet confirmed
	Latency   time.Duration     `json:"latency_ns"`          // moving mean from send to confirmation; zero: none yet
	Limits    northbound.Limits `json:"limits"`              // what the platform bears
	TokenEnds time.Time         `json:"token_ends,omitzero"` // when the access token ends; zero: no token
	Counters  map[string]int64  `json:"counters"`            // as the connector names them
	Transport string            `json:"transport,omitempty"` // "MQTT 5, TLS 1.3, X25519MLKEM768"
}

// Key is one [key.NAME] with its certificate.
type Key struct {
	Name    string        `json:"name"`
	Info    hwcrypto.Info `json:"info"`            // where it lives and what it is
	Error   string        `json:"error,omitempty"` // why it cannot be used
	Subject string        `json:"subject"`         // of its certificate; empty: none yet
	Issuer  string        `json:"issuer"`          // of its certificate
	Ends    time.Time     `json:"ends,omitzero"`   // when its certificate ends; zero: no certificate
}

// DaysLeft gives the whole days until the key's certificate ends, negative after the end.
func (k *Key) DaysLeft(now time.Time) int {
	return int(k.Ends.Sub(now).Round(time.Hour) / (24 * time.Hour))
}

// Pending gives the messages that wait for the connector.
func (s *Snapshot) Pending(connector string) (n uint64) {
	for _, t := range s.Ledger {
		if t.Connector == connector {
			n += t.Pending
		}
	}
	return n
}

// Totals adds up the ledger.
func (s *Snapshot) Totals() (sum spool.Tally) {
	for _, t := range s.Ledger {
		sum.Accepted += t.Accepted
		sum.Delivered += t.Delivered
		sum.Expired += t.Expired
		sum.Dead += t.Dead
		sum.Pending += t.Pending
	}
	return sum
}

// Unbound names the listeners that are not bound.
func (s *Snapshot) Unbound() (names []string) {
	for _, l := range s.Listeners {
		if !l.Bound {
			names = append(names, l.Name)
		}
	}
	return names
}
