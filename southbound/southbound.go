// Package southbound is the contract between the bridge and the listeners that devices connect to.
//
// A listener authenticates devices, turns what they say into messages, and says yes to a device only after
// [Uplink.Submit] has completed without error. It knows resources; it never sees a topic.
//
// A listener does not retry, queue on disk, decide policy on reports, or know a cloud.
package southbound

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Uplink takes what devices say.
type Uplink interface {
	// Submit takes m. It never blocks on a disk or a network. Before it returns it has copied what it keeps,
	// so m and its payload are the caller's again. done is called exactly once, from any goroutine, possibly
	// before Submit returns; nil means that m is on disk for every connector it is routed to (or, on a route with
	// ack = "cloud", confirmed by each). Any other outcome is a *msg.Refusal or wraps one. done must not block.
	Submit(m *msg.Message, done func(error))
}

// Accept submits m and waits for the outcome.
// When ctx ends first the outcome is unknown and the cause is returned: the message may still be delivered.
func Accept(ctx context.Context, up Uplink, m *msg.Message) error {
	result := make(chan error, 1)
	up.Submit(m, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ErrNotHere is returned by Deliver where the device has no session at this listener.
var ErrNotHere = errors.New("device is not connected")

// Listener serves one protocol on one address.
type Listener interface {
	// Serve binds the address, calls env.Bound once, and serves until ctx ends; then it lets go of the
	// address, waits for its goroutines and returns nil. An address that cannot be bound is returned at once.
	Serve(ctx context.Context, up Uplink) error

	// Deliver hands a command to a device and waits until it has answered, ctx ends, or it is certain that it will not.
	// ErrNotHere: nothing was sent, another listener or the mailbox may try.
	Deliver(ctx context.Context, m msg.Message) (msg.Reply, error)
}

// DeviceInfo is what a listener knows of a device that has a session or association with it.
type DeviceInfo struct {
	Device    string    `json:"device"`
	Groups    []string  `json:"groups,omitempty"`
	Listener  string    `json:"listener"`
	Address   string    `json:"address"`
	Auth      string    `json:"auth"`               // "psk", "x509", "password", "jwt", "http", "anonymous", "none"
	Protocol  string    `json:"protocol,omitempty"` // "MQTT 5", "DTLS 1.2 TLS_PSK_WITH_AES_128_CCM_8 CID", ...
	Since     time.Time `json:"since"`
	LastSeen  time.Time `json:"last_seen"`
	Connected bool      `json:"connected"`
	Queued    int       `json:"queued"` // messages that wait for it in the listener
}

// Inventory is the ability to list devices. A listener with it is shown with its devices on the status page.
type Inventory interface {
	// Devices calls yield for each device with a session, in no order, until yield returns false.
	Devices(yield func(DeviceInfo) bool)
	// Disconnect ends every session of the device and tells how many there were.
	Disconnect(device string) int
}

// Counters is the ability to give figures: cumulative counts and gauges by name,
// such as "handshakes_ok", "handshakes_failed", "sessions", "bytes_in". Names are stable: they become metrics.
type Counters interface{ Counters() map[string]int64 }

// PolicyChanged is the ability to re-evaluate live sessions after a reload changed devices, groups or rules.
type PolicyChanged interface{ PolicyChanged() }

// Keys is what a listener may ask of the key ring.
type Keys interface {
	// Certificate gives the certificate chain of [key.NAME] with a crypto.Signer that lives in the chip.
	Certificate(ctx context.Context, name string) (*tls.Certificate, error)
	// Sealer gives the chip's ability to seal state at rest.
	Sealer(ctx context.Context, name string) (hwcrypto.Sealer, error)
}

// EphemeralKeys is the ability of Keys to have the chip of [key.NAME] make keys for one agreement.
type EphemeralKeys interface {
	Ephemeral(ctx context.Context, name string) (hwcrypto.Ephemeral, error)
}

// Env is what the gateway gives a listener.
type Env struct {
	Name    string       // from [listener.NAME]
	Log     *slog.Logger // already carries the name
	Health  *health.Reporter
	Keys    Keys
	Auth    auth.Authenticator                    // who devices are; its tables change on reload without a restart
	Policy  auth.Policy                           // what they may do; likewise
	State   string                                // a directory for this listener alone, existing, mode 0700
	Now     func() time.Time                      // the trusted clock
	Correct func(time.Time) time.Time             // gives what a time that Now gave stands for, where the clock was set since; nil: it never is
	Bound   func(a net.Addr)                      // to be called once the address is bound; may be nil
	Awake   func(dev string)                      // to be called when a device that may have commands waiting has spoken or subscribed; cheap, never blocks; may be nil
	Socket  func() (net.Listener, net.PacketConn) // a socket handed over by systemd for this listener, else nils; may be nil
	Alive   func()                                // to be called every second or more often, once it is bound, from within the locks that what devices send has to pass: a listener that falls silent is wedged; may be nil
}

// Kind is one type of listener: an entry of kinds.go.
type Kind struct {
	Type string // the value of type = "..."
	// Config gives a pointer to a new config struct with the defaults filled in. The struct's toml tags are the keys;
	// it may implement config.Checker.
	Config func() any
	// Open builds a listener from what Config gave and the file filled in. It binds nothing.
	Open func(env Env, cfg any) (Listener, error)
}
