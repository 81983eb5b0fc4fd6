package status

import (
	"context"
	"time"

	"github.com/drawbridge/drawbridge/southbound"
)

// Source is what the gateway gives to be shown. Whatever else it can do is found by assertion: an ability that a source lacks is not
// offered, neither on the page nor over the socket.
type Source interface {
	// Snapshot gives the gateway as it is now. It is called about once a second; Version, Verdict and Gateway.Ready are filled in here.
	Snapshot() Snapshot
}

// DeviceLister is the ability to list the devices with a session.
type DeviceLister interface {
	// Devices calls yield for each, in no order, until yield returns false.
	Devices(yield func(southbound.DeviceInfo) bool)
}

// Reloader is the ability to read the file again and take it over, all or nothing.
type Reloader interface {
	// Reload gives an error that says everything that is wrong with the file where it changed nothing.
	Reload(ctx context.Context) (Reloaded, error)
}

// Reloaded is what a reload did, in names such as "connector cloud".
type Reloaded struct {
	Started   []string `json:"started,omitempty"`
	Restarted []string `json:"restarted,omitempty"`
	Stopped   []string `json:"stopped,omitempty"`
	Changed   []string `json:"changed,omitempty"` // taken over without a restart: "routes", "devices", ...
}

// RouteTester is the ability to say what would become of a report, without sending it.
type RouteTester interface {
	TestRoute(ctx context.Context, t RouteTest) (RouteResult, error)
}

// RouteTest is a report that is tried.
type RouteTest struct {
	Device   string `json:"device"`
	Resource string `json:"resource"`
	Type     string `json:"type,omitempty"`    // media type of the payload
	Payload  []byte `json:"payload,omitempty"` // nil: the transform is not tried
}

// RouteResult is what would become of it.
type RouteResult struct {
	Taken     bool         `json:"taken"`
	Refused   string       `json:"refused,omitempty"`   // why it is not taken
	Rule      string       `json:"rule,omitempty"`      // the [[allow]] that lets it through, such as "drawbridge.toml:62"
	Route     string       `json:"route,omitempty"`     // name of the [[uplink]] that matched
	Transform string       `json:"transform,omitempty"` //
	To        []RouteLeads `json:"to,omitempty"`        //
	Type      string       `json:"type,omitempty"`      // media type of what the clouds receive
	Payload   []byte       `json:"payload,omitempty"`   // what the clouds receive
}

// RouteLeads is one place that a report goes to.
type RouteLeads struct {
	Connector string `json:"connector"`
	Topic     string `json:"topic"`
}

// DeadLetters is the ability to look at what no cloud would take, and to decide on it.
type DeadLetters interface {
	// DeadLetters gives up to limit letters, oldest first, those of one connector where that is not empty.
	DeadLetters(ctx context.Context, connector string, limit int) ([]DeadLetter, error)
	// Replay queues letters again and Drop deletes them; both tell how many. No ids means all of the connector,
	// or all of them where that is empty too.
	Replay(ctx context.Context, connector string, ids []string) (int, error)
	Drop(ctx context.Context, connector string, ids []string) (int, error)
}

// DeadLetter is a message that a cloud refused for good.
type DeadLetter struct {
	ID        string    `json:"id"`
	Connector string    `json:"connector"`
	Route     string    `json:"route"`
	Device    string    `json:"device"`
	Topic     string    `json:"topic"`
	Reason    string    `json:"reason"`
	Accepted  time.Time `json:"accepted"` // when the device was told yes
	Died      time.Time `json:"died"`     // when it was given up
	Size      int       `json:"size"`     // octets of the payload
	Type      string    `json:"type,omitempty"`
	Payload   []byte    `json:"payload,omitempty"` // nil where it is not shown
}

// Disconnecter is the ability to end a device's sessions.
type Disconnecter interface {
	// Disconnect tells how many sessions there were.
	Disconnect(device string) int
}

// Pauser is the ability to hold a connector back: what is accepted for it waits.
type Pauser interface {
	Pause(connector string) error
	Resume(connector string) error
}

// Forgetter is the ability to give up what waits for a connector that is gone.
type Forgetter interface {
	// Forget tells how many messages and dead letters there were. It refuses to where the connector is in the file.
	Forget(connector string) (int, error)
}

// Acknowledger is the ability to take note that a person knows what damage to the disk has taken: its problem goes until more is lost.
type Acknowledger interface {
	// Acknowledge tells how many messages that were.
	Acknowledge() (int, error)
}

// Prober is the ability to send a publication that carries no data, to see whether a cloud takes it.
type Prober interface {
	// Probe returns once the cloud has confirmed.
	Probe(ctx context.Context, connector string) error
}
