// Package northbound is the contract between the bridge and the connectors that reach clouds.
//
// A connector dials, authenticates and translates publications to its platform's wire. It knows topics; it never sees a
// resource. It holds no retry loop and no queue: it returns the error, and the pump dials again, resends and backs off.
package northbound

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Connector dials sessions with one platform.
type Connector interface {
	// Dial connects, authenticates and subscribes to down.Topics. It gives up when ctx ends.
	// An error marked msg.Permanent is still tried again, but slowly: a person has to mend it.
	Dial(ctx context.Context, down Downlink) (Session, error)
}

// Session is one connection that is up.
type Session interface {
	// Context ends when the session does; its cause says why.
	Context() context.Context

	// Send takes the batch in order and calls done once for each index, in any order, from any goroutine,
	// possibly before Send returns and possibly after. It blocks while the platform's window (such as MQTT's
	// receive maximum) is full, and returns an error only when the session is at its end: what was not
	// done then is sent again in another session. done with nil: the platform has confirmed it. done with an error marked
	// msg.Permanent: it goes to the dead letters. done with any other error: the pump sends it again.
	// The publications stay unchanged until they are done.
	Send(ctx context.Context, batch []msg.Publication, done func(i int, err error)) error

	// Close ends the session in the protocol's own way, within a second or two. It may be called twice.
	Close() error
}

// ErrRenew is the cause of a session that its connector has ended in order, because what it logged in with is about to end.
// It is no fault: the next session is to be dialled at once.
var ErrRenew = errors.New("the session ends to be renewed")

// Downlink takes what clouds send.
type Downlink interface {
	// Topics gives the MQTT topic filters (MQTT 5 section 4.7) that routes wait for. It does not change during a session.
	Topics() []string
	// Deliver hands over a publication and waits for the outcome. A nil error means that it is settled: carried out, in
	// a mailbox on disk, or refused for good with the reply sent where the route has one; the cloud may then be told so.
	// It blocks as long as the device takes: call it on a goroutine of its own, and bound how many.
	Deliver(ctx context.Context, p msg.Publication) (msg.Reply, error)
}

// Limits is what a platform bears; zero is no limit.
type Limits struct {
	Payload     int           `json:"payload,omitempty"`       // octets
	Topic       int           `json:"topic,omitempty"`         // octets
	TopicLevels int           `json:"topic_levels,omitempty"`  // slashes + 1
	Window      int           `json:"window,omitempty"`        // publications in flight
	Rate        float64       `json:"rate,omitempty"`          // publications per second
	KeepAlive   time.Duration `json:"keep_alive_ns,omitempty"` // the longest
}

// Limited is the ability to say limits before anything is sent: `check` and the pump hold publications against them.
type Limited interface{ Limits() Limits }

// Step is one thing that doctor tried, in the order in which they were tried.
type Step struct {
	Name string // "name", "tcp", "tls", "log-in", "publish", "echo"
	Took time.Duration
	Err  error  // nil: it went well
	Note string // what was seen: an address, a certificate's subject and end, a reason code
}

// Examined is the ability to be examined by doctor. It publishes nothing that a subscriber could mistake for data.
type Examined interface {
	Examine(ctx context.Context, step func(Step))
}

// Enroller is the ability of a connector to have its key certified by its own platform.
type Enroller interface {
	// Enroll shows the platform a certificate signing request (PEM) for Enrolment.Key.
	Enroll(ctx context.Context, csr []byte) (Enrolment, error)
}

// Enrolment is what a platform gave.
type Enrolment struct {
	Key         string // [key.NAME] that was certified
	Certificate []byte // PEM chain
	Note        string // for a person: "thing plant7-gw1"
}

// Provisioner is the ability of a connector to have its platform say where the gateway belongs, by the credential that it has.
type Provisioner interface {
	// Provision asks the platform anew. The note is for a person: "device plant7-gw1 of plant7.azure-devices.net".
	Provision(ctx context.Context) (note string, err error)
}

// Counters is as in southbound.
type Counters interface{ Counters() map[string]int64 }

// Keys is what a connector may ask of the key ring.
type Keys interface {
	// Certificate gives the certificate chain of [key.NAME] with a crypto.Signer that lives in the chip.
	Certificate(ctx context.Context, name string) (*tls.Certificate, error)
	// MAC gives a key's HMAC-SHA256 ability, or an error that says that it has none.
	MAC(ctx context.Context, name string) (hwcrypto.MACer, error)
	// Secret reads a secret named in the configuration: file:, credential: or sealed:.
	Secret(ctx context.Context, ref string) ([]byte, error)
}

// Tokens is what a connector may ask of the token sources.
type Tokens interface {
	// Token gives the access token of [token.NAME], obtained or renewed where need be, and when it ends (zero: unknown).
	Token(ctx context.Context, name string) (token string, expires time.Time, err error)
	// Reject tells that a platform does not take the token, though its time has not come: the next is a new one.
	Reject(name, token string)
}

// Provers is the ability of Tokens to prove with each HTTP request that we hold the key to which a token is bound (RFC 9449 section 7).
type Provers interface {
	// Authorize puts a token of [token.NAME] into a request, with the proof where it is bound, and gives it.
	Authorize(ctx context.Context, name string, r *http.Request) (token string, err error)
	// Answered takes from the answer what the next proof needs; true: repeat the request, it wanted that.
	Answered(name string, r *http.Request, answer *http.Response) bool
}

// Signers is the ability of Keys to give a key itself, for what is signed outside TLS.
type Signers interface {
	Signer(ctx context.Context, name string) (crypto.Signer, error)
}

// Activators is the ability of Keys to take a key that a service has made for the gateway's TPM alone; see hwcrypto.Activator.
type Activators interface {
	Endorsement(ctx context.Context, name string) (ek, srk []byte, err error)
	Activate(ctx context.Context, name string, credential []byte) error
}

// Env is what the gateway gives a connector.
type Env struct {
	Name    string // from [connector.NAME]
	Gateway string // gateway.id
	Log     *slog.Logger
	Health  *health.Reporter
	Keys    Keys
	Tokens  Tokens           // nil where there is no [token.NAME]
	State   string           // a directory for this connector alone, existing, mode 0700
	Now     func() time.Time // the trusted clock: for tls.Config.Time and token checks
	// Groups gives what is known of a device's groups; nil where nothing is.
	Groups func(device string) []string
	// Dial reaches other machines, and counts what goes over the wire, TLS included; nil: the net package's own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Hint says what an error means when it comes from this platform, which knows more of it than health.Explain.
type Hint struct {
	Says    string // the error in short, as it is shown
	Fits    func(error) bool
	Meaning health.Meaning
}

// Explain gives err the meaning of the first of hints that fits it.
func Explain(err error, hints []Hint) error {
	for i := range hints {
		if hints[i].Fits(err) {
			return hints[i].Meaning.Of(err, nil)
		}
	}
	return err
}

// ExplainSteps gives step as one whose errors up to the log-in have the meaning that the platform gives them; what comes after it means other things.
func ExplainSteps(step func(Step), hints []Hint) func(Step) {
	return func(s Step) {
		if s.Err != nil && (s.Name == "tls" || s.Name == "log-in") {
			s.Err = Explain(s.Err, hints)
		}
		step(s)
	}
}

// Kind is one type of connector: an entry of kinds.go.
type Kind struct {
	Type    string // the value of type = "..."
	About   string // one sentence for `drawbridge connectors`
	Example string // a TOML example for the same
	Hints   []Hint // what the platform's errors mean
	Config  func() any
	Open    func(env Env, cfg any) (Connector, error)
}
