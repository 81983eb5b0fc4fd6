// Package dtls is the DTLS 1.2 server side (RFC 6347) of the CoAP listener, made for very many quiet devices behind NATs.
//
// It holds no sockets, goroutines or timers. A [Gate] answers ClientHellos without keeping anything until a cookie has come back; a
// [Handshake] is a step function that is fed datagrams and gives datagrams; a [Conn] protects and opens records. What drives them,
// and when, is the caller's business.
//
// Promises: nothing is allocated for an address that has not returned a valid cookie. No unauthenticated datagram ends or changes an
// established association. A record is accepted once. No sequence number is used twice under one key, across restarts too
// (see [Conn.Export]). A private key is only ever used as a crypto.Signer. A wrong PSK and an unknown PSK identity look the same, but
// that a chip which computes with a PSK of its own takes another time for it.
//
// The connection id of RFC 9146 is spoken with every kind of cipher. CBC suites are negotiated only together with
// encrypt-then-MAC (RFC 7366), which has no padding oracle. There is no renegotiation, no compression, no session resumption and no DTLS 1.3.
//
// In our memory are, of a pre-shared key that a chip computes with, nothing but the master secret of each handshake; of another one, the key for the
// moment of the key exchange; of ECDHE, the agreed secret for that moment and, without a chip, the ephemeral key until then.
//
// The messages' encodings come from github.com/pion/dtls. Its connection type is not used: it cannot take
// over a ClientHello whose cookie was checked without state, so each spoofed hello would cost an allocation and goroutines.
package dtls

import (
	"errors"
	"fmt"
)

// Content types (RFC 5246 section 6.2.1, RFC 9146 section 4).
const (
	typeCCS         = 20
	typeAlert       = 21
	typeHandshake   = 22
	TypeApplication = 23
	typeCID         = 25
)

// Alert is an alert description (RFC 5246 section 7.2).
type Alert uint8

// The alerts that this package sends or names.
const (
	CloseNotify          Alert = 0
	unexpectedMessage    Alert = 10
	handshakeFailure     Alert = 40
	badCertificate       Alert = 42
	certificateExpired   Alert = 45
	illegalParameter     Alert = 47
	unknownCA            Alert = 48
	accessDenied         Alert = 49
	decodeError          Alert = 50
	decryptError         Alert = 51
	protocolVersion      Alert = 70
	insufficientSecurity Alert = 71
	internalError        Alert = 80
)

// Failure says why a handshake failed. Reason is one of a few stable words, for counters: "no-common-suite", "wrong-psk", ...
type Failure struct {
	Alert  Alert
	Reason string
	Err    error // may be nil
}

func (f *Failure) Error() string {
	if f.Err == nil {
		return f.Reason
	}
	return f.Reason + ": " + f.Err.Error()
}

func (f *Failure) Unwrap() error { return f.Err }

func fail(a Alert, reason, format string, args ...any) error {
	return &Failure{a, reason, fmt.Errorf(format, args...)}
}

// The errors of the record layer. A record that gives one of the first three is dropped without an answer (RFC 6347 section 4.1.2.7).
var (
	ErrRecord    = errors.New("malformed record")
	ErrForged    = errors.New("record does not authenticate")
	ErrReplayed  = errors.New("record seen before")
	ErrExhausted = errors.New("sequence numbers used up")
)
