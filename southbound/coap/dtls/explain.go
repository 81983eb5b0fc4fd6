package dtls

import (
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// meanings are what reasons of failures mean that a person can do something about.
var meanings = map[string]*health.Meaning{
	"no-common-suite": {Name: "dtls-suites", What: "the device offers no cipher suite that this listener has",
		Hint: "does `security` of the listener have what the device speaks, psk or x509? The suites are PSK or ECDHE_ECDSA with AES-CCM or AES-GCM"},
	"no-client-certificate": {Name: "dtls-no-certificate", What: "the device showed no certificate, and must", Hint: "give it one that the CA of `device_ca` has signed"},
	"client-certificate": {Name: "dtls-certificate", What: "the device's certificate cannot be read, or is not of the key that the device has",
		Hint: "give it the certificate of its own key"},
	"unknown-device": {Name: "dtls-unknown-device", What: "the device's certificate is good, and names no device of the file",
		Hint: "write a [device.NAME] of its common name, or a [group.NAME] with a `san` that fits it; was it revoked?"},
	"unknown-psk": {Name: "dtls-unknown-psk", What: "a device named a PSK identity that is not in the file",
		Hint: "write a [device.NAME] with `psk`, and `psk_identity` where that is another than the name"},
	"wrong-psk": {Name: "dtls-wrong-psk", What: "a device's pre-shared key is not the one in the file",
		Hint: "compare the device's key with what `psk` of its [device.NAME] names: as octets, `hex:` or `base64:`"},
	"psk-in-chip": {Name: "dtls-psk-in-chip", What: "the device's pre-shared key is in a chip, which cannot compute what the device's cipher suite wants",
		Hint: "have the device offer a plain PSK suite with SHA-256, such as TLS_PSK_WITH_AES_128_CCM_8"},
	"finished-mismatch": {Name: "dtls-finished", What: "the device and this listener have not heard the same handshake",
		Hint: "does something between them change datagrams? It tries again"},
}

// Explain is health.Explainer's. What crypto/x509 or a chip says of the cause goes before what the reason says.
func (f *Failure) Explain(now time.Time) (health.Explanation, bool) {
	if f.Err != nil {
		if e, ok := health.Explain(f.Err, now); ok {
			return e, true
		}
	}
	m := meanings[f.Reason]
	return health.Explanation{Meaning: m}, m != nil
}
