package onem2m

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// meanings are what response status codes mean that a person can do something about (TS-0004 clause 6.6.3).
var meanings = map[number]*health.Meaning{
	rscNotFound: {Name: "cse-not-found", What: "the CSE has nothing at this address", Hint: "look at `url` and `cse`: is the CSEBase named as the CSE names it?"},
	rscNoPrivilege: {Name: "cse-no-privilege", What: "the CSE knows this gateway, and its access control policies do not allow that",
		Hint: "allow it to the gateway's AE-ID in the <accessControlPolicy> of the resource"},
	rscNotKnown: {Name: "cse-not-authenticated", What: "the CSE does not know this AE, or does not take its credential",
		Hint: "register the AE-ID with its key, PSK or token at the CSE; look at `ae`, `key`, `psk_id` and `token`"},
	4107:            {Name: "cse-association", What: "the CSE wants another security association for this", Hint: "look at the scheme and port of `url`, and at `key` or `psk`"},
	4117:            {Name: "cse-registered", What: "the CSE has an AE of this id already, which is not this gateway's", Hint: "give the gateway another `ae`, or delete the old one at the CSE"},
	rscNotReachable: {Name: "cse-not-reachable", What: "the CSE cannot reach the one that it sends to", Hint: "look at `poa`: can the CSE reach that address?"},
	rscVerification: {Name: "cse-verification", What: "the CSE could not verify that this gateway takes notifications", Hint: "look at `poa` and `listen`: can the CSE reach that address?"},
	rscInternal:     {Name: "cse-fault", What: "the CSE has a fault of its own", Hint: "it is tried again; its log may say more"},
}

// Explain is health.Explainer's. What comes from something between us and the CSE is an answer over HTTP.
func (r *refusal) Explain(now time.Time) (health.Explanation, bool) {
	if r.rsc < 1000 {
		return health.Explain(&health.Answer{Status: int(r.rsc)}, now)
	}
	m := meanings[r.rsc]
	return health.Explanation{Meaning: m}, m != nil
}

var pskRefused = health.Meaning{Name: "cse-psk", What: "the CSE does not take the pre-shared key of {identity}",
	Hint: "compare `psk` and `psk_id` with what is registered at the CSE; does it take pre-shared keys at this port?"}

// refused gives the error of a handshake by a pre-shared key its meaning: what peers say of one varies, and many say nothing.
func (b badge) refused(err error) error {
	_, alert := health.AlertOf(err)
	if b.pskID == "" || !alert && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return pskRefused.Of(err, health.Values{"identity": strconv.Quote(b.pskID)})
}

// alerted makes the error of a DTLS handshake one that tells the peer's alert: pion has a type for alerts that it keeps to itself.
func alerted(err error) error {
	alert, ok := errors.AsType[interface {
		error
		Marshal() ([]byte, error)
		IsFatalOrCloseNotify() bool
	}](err)
	if !ok {
		return err
	}
	b, wrong := alert.Marshal()
	if wrong != nil || len(b) != 2 { // level, description
		return err
	}
	return fmt.Errorf("%w: %w", health.Alert(b[1]), err)
}
