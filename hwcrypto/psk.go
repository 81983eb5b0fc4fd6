package hwcrypto

import (
	"context"
	"encoding/binary"
	"errors"
)

// PSKPremaster is the premaster secret of a TLS 1.2 handshake with a pre-shared key alone (RFC 4279 section 2). A chip that has it
// imported as an HMAC key computes the master secret by PRF12, so that the pre-shared key does not enter our memory again.
func PSKPremaster(psk []byte) ([]byte, error) {
	if len(psk) == 0 || len(psk) > 0xffff {
		return nil, errors.New("pre-shared key: want 1 to 65535 octets")
	}
	n := len(psk)
	b := make([]byte, 4+2*n)
	binary.BigEndian.PutUint16(b, uint16(n))
	binary.BigEndian.PutUint16(b[2+n:], uint16(n))
	copy(b[4+n:], psk)
	return b, nil
}

// PRF12 is the pseudorandom function of TLS 1.2 with SHA-256 (RFC 5246 section 5), where m is keyed with the secret. A master secret
// (n = 48) takes four HMACs in the chip.
func PRF12(ctx context.Context, m MACer, label string, seed []byte, n int) ([]byte, error) {
	seed = append([]byte(label), seed...)
	a := seed
	var out []byte
	for len(out) < n {
		var err error
		if a, err = m.MAC(ctx, a); err != nil {
			return nil, err
		}
		part, err := m.MAC(ctx, append(append([]byte(nil), a...), seed...))
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out[:n], nil
}
