// Package auth says who a device is and what it may do, and (northbound) obtains the tokens with which clouds are reached.
//
// Southbound, a [Realm] holds the devices, groups and rules of one file. What always holds:
//   - Who a device is comes from its credential, never from what it says. What no rule allows is refused.
//   - A name that a [device] bears is that device's alone: no pattern of a group, and no client id, makes another one of it.
//   - Secrets are read where they rest for each handshake and log-in, compared in constant time and wiped. An unknown identity costs
//     the same work as a known one. What proves nobody and what is wrong are one error, [ErrUnknown]; another error says that somebody
//     could not be asked.
//   - A revoked certificate proves nobody, whether the list was there at the start or came later; a list that cannot be read leaves the
//     one before in force.
//   - Wrong passwords make who gives them wait, by user and network; what they cost us in memory and processors is bounded.
//   - A reload is taken over whole. It does not wait for anybody outside.
//
// Northbound, [Tokens] holds one [Source] for each [token.NAME]. What always holds:
//   - Assertions and proofs are signed in the chip, and refresh tokens rest sealed by it. A token that was rotated is on disk before it is
//     used, or a problem says that it is not.
//   - There is one request to an issuer at a time, however many wait for it, and pauses grow while it fails. A token serves until it
//     ends, whatever becomes of its issuer.
//   - A clock that differs from the issuer's is reckoned with.
//   - No token, password, key or answer of an issuer that may hold one is part of an error or a log line.
//
// It does not renew what a cloud holds against a session: connectors ask for the token when they need it. It keeps no list of
// sessions: listeners ask [Refresher] when the rules have changed.
package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Identity is a device as its credential proves it.
type Identity struct {
	Device     string    // unique name: [device.NAME], or what the certificate says
	Groups     []string  // from [device.NAME] and every [group.NAME] that matches; sorted
	Method     string    // "psk", "x509", "password", "jwt", "http", "anonymous", "none"
	Credential string    // PSK identity, certificate fingerprint (SHA-256, hex), user name: for people, never secret
	Expires    time.Time // when the credential ends; zero: never
	Sleepy     bool      // commands wait in a mailbox

	proof *proof // what Refresh looks at again; nil where nothing more is needed
}

// ErrUnknown is returned for a credential that proves nobody, and for a wrong secret alike.
var ErrUnknown = errors.New("unknown device or wrong credential")

// Credentials is what an MQTT client has shown (the JAAS parameters of IBM MQ Telemetry, by their purpose).
type Credentials struct {
	Listener string
	User     string
	Password []byte
	ClientID string
	Remote   netip.AddrPort
	Chain    []*x509.Certificate // verified against the listener's device_ca; nil where no certificate was shown
}

// CheckPassword tells whether password is the one that stored holds: as it is, or as an argon2id or bcrypt hash.
// It takes as long and as much memory as a hash asks for: bound how often it is called.
func CheckPassword(stored, password []byte) (bool, error) {
	if hashed(stored) {
		return verifyHash(stored, password)
	}
	// Sums have one length, so that the comparison does not tell how long the password is.
	a, b := sha256.Sum256(stored), sha256.Sum256(password)
	return len(stored) > 0 && subtle.ConstantTimeCompare(a[:], b[:]) == 1, nil
}

// Op is what a rule allows.
type Op string

// The operations of [[allow]].
const (
	Report    Op = "report"    // device → cloud, on a resource
	Command   Op = "command"   // cloud → device, on a resource
	Publish   Op = "publish"   // device → devices, on an MQTT topic
	Subscribe Op = "subscribe" // device ← devices, on an MQTT topic filter
)

// Authenticator is what a listener asks. *Realm is one.
type Authenticator interface {
	// PSK gives the key of a PSK identity. ErrUnknown where there is none. The caller wipes the key after use.
	PSK(ctx context.Context, identity string) (Identity, []byte, error)
	// Certificate maps a chain that has been verified against the listener's CA to an identity: a [device] whose
	// certificate field matches, a [group] pattern, else ErrUnknown.
	Certificate(ctx context.Context, listener string, chain []*x509.Certificate) (Identity, error)
	// Login checks what an MQTT client has shown by the methods in order; the first that proves an identity wins.
	Login(ctx context.Context, methods []string, c Credentials) (Identity, error)
}

// ChipPSKs is the ability of an Authenticator to leave pre-shared keys in their chip.
type ChipPSKs interface {
	// PSKsInChip tells whether there are any.
	PSKsInChip() bool
	// PSKInChip gives what computes HMACs in the chip, keyed with the premaster secret of a plain PSK handshake (RFC 4279 section 2).
	// It gives nil for an identity whose key is not in a chip, and for one that is not there: PSK is to be asked then.
	PSKInChip(ctx context.Context, identity string) (Identity, hwcrypto.MACer, error)
}

// Policy is what bridge and listeners ask before anything is done.
type Policy interface {
	// Allowed tells whether the device may report on the resource, publish to the topic, or subscribe to the filter.
	Allowed(id *Identity, op Op, resource string) bool
	// Commandable tells whether the connector may command the device on the resource.
	Commandable(connector, device string, groups []string, resource string) bool
}

// CommandScope is the ability of a Policy to tell whether any connector may command the device on some resource that the
// MQTT topic filter matches (the topic of a resource is its path without the leading slash). An MQTT listener grants such a
// subscription even where no "subscribe" rule does; the device then sees only the commands to itself on it.
type CommandScope interface {
	CommandsWithin(id *Identity, filter string) bool
}

// Refresher is the ability of an Authenticator to look up again, after a reload, who a live session's device is now:
// its groups and whether it sleeps. ErrUnknown where the device or its credential is no longer there; never for the method "none".
type Refresher interface {
	Refresh(ctx context.Context, id Identity) (Identity, error)
}
