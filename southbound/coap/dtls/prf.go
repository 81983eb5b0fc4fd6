package dtls

import (
	"hash"
	"io"
)

const (
	masterLen = 48
	verifyLen = 12
)

// expand is the pseudorandom function of TLS 1.2 (RFC 5246 section 5), where mac is an HMAC keyed with the secret.
func expand(mac hash.Hash, label string, seed []byte, n int) []byte {
	start := func(a []byte) {
		mac.Reset()
		mac.Write(a)
	}
	rest := func() {
		io.WriteString(mac, label)
		mac.Write(seed)
	}
	start(nil)
	rest()
	a := mac.Sum(nil)
	out := make([]byte, 0, n+mac.Size())
	for {
		start(a)
		rest()
		if out = mac.Sum(out); len(out) >= n {
			return out[:n]
		}
		start(a)
		a = mac.Sum(a[:0])
	}
}

// verify gives the verify_data of a Finished (RFC 5246 section 7.4.9).
func (hs *Handshake) verify(label string) []byte {
	return expand(hs.mac, label, digestOf(hs.suite.hash, hs.transcript), verifyLen)
}

func digestOf(h func() hash.Hash, b []byte) []byte {
	d := h()
	d.Write(b)
	return d.Sum(nil)
}
