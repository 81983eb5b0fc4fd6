package mqtt

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Explain says which peer could not be reached or logged in to. What a person has to mend is permanent; a nil error stays nil.
func (a Address) Explain(err error) error { return explain(err, a.HostPort()) }

func explain(err error, hostport string) error {
	if err == nil || msg.IsPermanent(err) {
		return err
	}
	err = fmt.Errorf("%s: %w", hostport, err)
	if health.Stays(err) {
		return msg.Permanent(err)
	}
	return err
}

// meanings are what the reason codes mean that a person can do something about.
var meanings = map[byte]*health.Meaning{
	0x84: {Name: "mqtt-version", What: "the broker does not speak this version of MQTT", Hint: "set `version = 4` for MQTT 3.1.1, or `version = 5`"},
	0x85: {Name: "mqtt-client-id", What: "the broker does not take this client id", Hint: "look at `client_id`: some brokers want that of the certificate, or 23 letters and digits at most"},
	0x86: {Name: "mqtt-password", What: "the broker does not take the user name or password", Hint: "look at `username` and `password`, or at the token that stands for it; has it ended?"},
	0x87: {Name: "mqtt-not-authorized", What: "the broker knows this gateway, and does not allow that",
		Hint: "look at the rights of the client id, user name or certificate in the broker's access list"},
	0x88: {Name: "mqtt-unavailable", What: "the broker runs, and does not serve now", Hint: "it is tried again; its log may say why"},
	0x89: {Name: "mqtt-busy", What: "the broker is overloaded", Hint: "it is tried again"},
	0x8A: {Name: "mqtt-banned", What: "the broker has banned this client", Hint: "have it taken off the broker's list; did two gateways use one client id?"},
	0x8C: {Name: "mqtt-auth-method", What: "the broker does not know this way to log in", Hint: "look at what ways the broker is configured for: certificate, password or token"},
	0x8D: {Name: "mqtt-keep-alive", What: "the broker heard nothing from this gateway in time", Hint: "the line may lose packets; it is tried again"},
	0x8E: {Name: "mqtt-taken-over", What: "somebody else has logged in under this client id", Hint: "give each gateway a `client_id` of its own"},
	0x95: {Name: "mqtt-too-large", What: "the broker does not take packets of this size", Hint: "raise its limit, or send less in one message"},
	0x97: {Name: "mqtt-quota", What: "a quota of the broker is used up", Hint: "raise it there, or send less"},
	0x9A: {Name: "mqtt-no-retain", What: "the broker takes no retained messages", Hint: "turn them on at the broker, or take `retain` out of the routes"},
	0x9B: {Name: "mqtt-no-qos", What: "the broker does not take this QoS", Hint: "look at `qos` of the routes and at the broker's limit"},
	0x9C: {Name: "mqtt-other-server", What: "the broker sends this gateway to another server for now", Hint: "is there another address in its documentation?"},
	0x9D: {Name: "mqtt-moved", What: "the broker has moved to another address", Hint: "write the new address into `url`"},
	0x9F: {Name: "mqtt-rate", What: "the broker takes fewer log-ins than these in that time", Hint: "it is tried again; do several gateways share an account?"},
}

var hungUp = health.Meaning{Name: "mqtt-hung-up", What: "the broker closed the connection without a word",
	Hint: "its log may say why; brokers do so where another client has the same client id, or the client id, the certificate or a policy does not fit"}

// Explain is health.Explainer's.
func (r *Reason) Explain(time.Time) (health.Explanation, bool) {
	m := meanings[r.Code]
	return health.Explanation{Meaning: m}, m != nil
}

// Explain is health.Explainer's.
func (e *Ended) Explain(now time.Time) (health.Explanation, bool) { return (*Reason)(e).Explain(now) }

// Said gives the test for errors with which a broker has given this reason code.
func Said(code byte) func(error) bool {
	return func(err error) bool {
		r, ok := errors.AsType[*Reason](err)
		e, ended := errors.AsType[*Ended](err)
		return ok && r.Code == code || ended && e.Code == code
	}
}

// HungUp tells whether the broker ended the connection without a word.
func HungUp(err error) bool { return errors.Is(err, errHungUp) || errors.Is(err, syscall.ECONNRESET) }
