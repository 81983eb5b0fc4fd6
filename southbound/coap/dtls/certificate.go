package dtls

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	pion "github.com/pion/dtls/v3/pkg/protocol/handshake"
	"golang.org/x/crypto/cryptobyte"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// curve gives the curve of a named group (RFC 8422 section 5.1.1); nil for one that is not spoken here.
func curve(group uint16) ecdh.Curve {
	switch group {
	case groupP256:
		return ecdh.P256()
	case 24:
		return ecdh.P384()
	case 29:
		return ecdh.X25519()
	}
	return nil
}

const groupP256 = 23

// chooseGroup gives the first group of the client that this side knows, which in a chip is P-256 alone; P-256 where the client names none
// (RFC 8422 section 4); 0 for none in common.
func chooseGroup(offered []uint16, chip bool) uint16 {
	if offered == nil {
		return groupP256
	}
	for _, g := range offered {
		if g == groupP256 || !chip && curve(g) != nil {
			return g
		}
	}
	return 0
}

// chooseScheme gives the signature scheme for the key, 0 where the suite, the key and the client do not go together.
func chooseScheme(s *Suite, cert *tls.Certificate, offered []uint16) uint16 {
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return 0
	}
	var able []tls.SignatureScheme
	switch signer.Public().(type) {
	case *ecdsa.PublicKey:
		if s.kx == ecdheECDSA {
			able = []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512}
		}
	case ed25519.PublicKey:
		if s.kx == ecdheECDSA {
			able = []tls.SignatureScheme{tls.Ed25519}
		}
	case *rsa.PublicKey:
		if s.kx == ecdheRSA {
			able = []tls.SignatureScheme{tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384}
		}
	}
	if only := cert.SupportedSignatureAlgorithms; only != nil {
		able = slices.DeleteFunc(able, func(a tls.SignatureScheme) bool { return !slices.Contains(only, a) })
	}
	for _, a := range able {
		// A client that names no algorithms gets the first, based on SHA-256.
		if offered == nil || slices.Contains(offered, uint16(a)) {
			return uint16(a)
		}
	}
	return 0
}

// schemeHash gives the hash of a scheme; ok is false for a scheme that is not known. In TLS 1.2 an ECDSA scheme does not bind the curve.
func schemeHash(scheme uint16) (h crypto.Hash, ok bool) {
	switch tls.SignatureScheme(scheme) {
	case tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.PKCS1WithSHA256:
		return crypto.SHA256, true
	case tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384, tls.PKCS1WithSHA384:
		return crypto.SHA384, true
	case tls.ECDSAWithP521AndSHA512, tls.PSSWithSHA512, tls.PKCS1WithSHA512:
		return crypto.SHA512, true
	case tls.Ed25519:
		return 0, true
	}
	return 0, false
}

func isPSS(scheme uint16) bool { return scheme>>8 == 8 && scheme != uint16(tls.Ed25519) }

func digest(h crypto.Hash, parts ...[]byte) []byte {
	if h == 0 {
		return slices.Concat(parts...)
	}
	d := h.New()
	for _, p := range parts {
		d.Write(p)
	}
	return d.Sum(nil)
}

func (c *Config) ephemeral(ctx context.Context, group uint16) (hwcrypto.Ephemeral, error) {
	if c.Ephemeral != nil {
		return c.Ephemeral(ctx)
	}
	key, err := curve(group).GenerateKey(rand.Reader)
	return inMemory{key}, err
}

// inMemory is an ephemeral key without a chip.
type inMemory struct{ *ecdh.PrivateKey }

func (k inMemory) ECDH(_ context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	return k.PrivateKey.ECDH(peer)
}

func (inMemory) Close(context.Context) error { return nil }

// serverKeyExchange makes the ephemeral key and, with a certificate, signs it (RFC 8422 section 5.4, RFC 5489 section 2).
func (hs *Handshake) serverKeyExchange(ctx context.Context, cert *tls.Certificate, scheme uint16) ([]byte, error) {
	var err error
	if hs.key, err = hs.cfg.ephemeral(ctx, hs.group); err != nil {
		return nil, &Failure{internalError, "key-unavailable", err}
	}
	var b cryptobyte.Builder
	b.AddUint8(3) // named curve
	b.AddUint16(hs.group)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(hs.key.PublicKey().Bytes()) })
	params := b.BytesOrPanic()
	if cert == nil {
		return append([]byte{0, 0}, params...), nil // an empty PSK identity hint
	}
	h, _ := schemeHash(scheme)
	opts := crypto.SignerOpts(h)
	if isPSS(scheme) {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	sig, err := cert.PrivateKey.(crypto.Signer).Sign(rand.Reader, digest(h, hs.random[0][:], hs.random[1][:], params), opts)
	if err != nil {
		return nil, &Failure{internalError, "key-unavailable", err}
	}
	var out cryptobyte.Builder
	out.AddBytes(params)
	out.AddUint16(scheme)
	out.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sig) })
	return out.BytesOrPanic(), nil
}

// Bounds of what a client may make this side compute; that of RSA is crypto/tls's.
const (
	maxChain = 8
	maxRSA   = 8192
)

func (hs *Handshake) clientCertificate(body []byte) error {
	var m pion.MessageCertificate
	if err := m.Unmarshal(body); err != nil {
		return &Failure{decodeError, "malformed", err}
	}
	if len(m.Certificate) == 0 {
		return fail(handshakeFailure, "no-client-certificate", "client shows none")
	}
	if len(m.Certificate) > maxChain {
		return fail(badCertificate, "client-certificate", "chain of %d", len(m.Certificate))
	}
	for _, raw := range m.Certificate {
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return &Failure{badCertificate, "client-certificate", err}
		}
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
			return fail(badCertificate, "client-certificate", "RSA key of %d bits", k.N.BitLen())
		}
		hs.chain = append(hs.chain, c)
	}
	return nil
}

// certificateVerify checks that the client holds the key of its certificate, that the certificate leads to a CA, and whose it is.
func (hs *Handshake) certificateVerify(ctx context.Context, body []byte) error {
	b := cryptobyte.String(body)
	var scheme uint16
	var sig cryptobyte.String
	if !b.ReadUint16(&scheme) || !b.ReadUint16LengthPrefixed(&sig) || !b.Empty() {
		return fail(decodeError, "malformed", "CertificateVerify")
	}
	leaf := hs.chain[0]
	if !verifySignature(leaf.PublicKey, scheme, sig, hs.transcript[:hs.keyAt]) {
		return fail(decryptError, "client-certificate", "signature of CertificateVerify")
	}
	pool := x509.NewCertPool()
	for _, c := range hs.chain[1:] {
		pool.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: hs.cfg.ClientCAs, Intermediates: pool, CurrentTime: hs.cfg.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		alert := badCertificate
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			alert = unknownCA
		} else if inv, ok := errors.AsType[x509.CertificateInvalidError](err); ok && inv.Reason == x509.Expired {
			alert = certificateExpired
		}
		return &Failure{alert, "client-certificate", err}
	}
	if hs.peer, err = hs.cfg.Peer(ctx, chains[0]); err != nil {
		return &Failure{accessDenied, "unknown-device", err}
	}
	return nil
}

func verifySignature(pub crypto.PublicKey, scheme uint16, sig, signed []byte) bool {
	h, ok := schemeHash(scheme)
	if !ok {
		return false
	}
	sum := digest(h, signed)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return scheme&0xff == 3 && ecdsa.VerifyASN1(k, sum, sig)
	case ed25519.PublicKey:
		return scheme == uint16(tls.Ed25519) && ed25519.Verify(k, sum, sig)
	case *rsa.PublicKey:
		switch {
		case isPSS(scheme):
			return rsa.VerifyPSS(k, h, sum, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		case scheme&0xff == 1:
			return rsa.VerifyPKCS1v15(k, h, sum, sig) == nil
		}
	}
	return false
}
