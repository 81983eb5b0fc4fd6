package file

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

var otherForm = health.Meaning{Name: "file-form", What: "the key file {path} has an older form than PKCS#8",
	Hint: "openssl pkcs8 -topk8 -nocrypt -in {path} -out {path}.pk8"}

const (
	privateType = "PRIVATE KEY"
	secretType  = "SECRET KEY"
	useHeader   = "Use"
	useAgree    = "agreement"

	sealInfo = "drawbridge seal v1"
	tagSize  = 16
)

// key is what every kind of key in a file has in common.
type key struct {
	path string
	alg  hwcrypto.Algorithm
	pub  crypto.PublicKey // nil for a secret
	aead cipher.AEAD      // from HKDF over the key's octets, so that a file key seals without a second file
}

// signer signs, seals and says what it is.
type signer struct {
	key
	priv crypto.Signer
}

type agreer struct {
	key
	priv *ecdh.PrivateKey
}

type macer struct {
	key
	secret []byte
}

var (
	_ hwcrypto.ContextSigner = (*signer)(nil)
	_ hwcrypto.Sealer        = (*signer)(nil)
	_ hwcrypto.Describer     = (*signer)(nil)
	_ hwcrypto.Agreer        = (*agreer)(nil)
	_ hwcrypto.MACer         = (*macer)(nil)
)

func parse(path string, b []byte) (hwcrypto.Key, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM in it")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more in it than one PEM block")
	}
	k := key{path: path}
	var err error
	if k.aead, err = sealKey(block.Bytes); err != nil {
		return nil, err
	}
	switch block.Type {
	case secretType:
		if len(block.Bytes) == 0 {
			return nil, errors.New("the secret is empty")
		}
		k.alg = hwcrypto.HMACSHA256
		return &macer{k, block.Bytes}, nil
	case privateType:
	case "EC PRIVATE KEY", "RSA PRIVATE KEY":
		return nil, otherForm.Of(fmt.Errorf("PEM type %q: want PKCS#8", block.Type), health.Values{"path": path})
	default:
		return nil, fmt.Errorf("PEM type %q: want %q or %q", block.Type, privateType, secretType)
	}
	p, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not PKCS#8")
	}
	switch p := p.(type) {
	case *ecdsa.PrivateKey:
		k.pub = p.Public()
		if block.Headers[useHeader] == useAgree {
			d, err := p.ECDH()
			if err != nil {
				return nil, err
			}
			k.alg = hwcrypto.ECDHP256
			return &agreer{k, d}, nil
		}
		switch p.Curve.Params().BitSize {
		case 256:
			k.alg = hwcrypto.ECDSAP256
		case 384:
			k.alg = hwcrypto.ECDSAP384
		default:
			return nil, fmt.Errorf("curve %s: want P-256 or P-384", p.Curve.Params().Name)
		}
		return &signer{k, p}, nil
	case *rsa.PrivateKey:
		if p.N.BitLen() < 2048 {
			return nil, fmt.Errorf("RSA key of %d bits: want 2048 or more", p.N.BitLen())
		}
		k.alg, k.pub = hwcrypto.Algorithm(fmt.Sprintf("rsa-%d", p.N.BitLen())), p.Public()
		return &signer{k, p}, nil
	}
	return nil, errors.New("kind of key: want ECDSA or RSA")
}

// sealKey derives the sealing key. The private key is used as keying material of HKDF under a label of its own, so
// that nothing sealed tells of the key or the other way round.
func sealKey(material []byte) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, material, nil, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	b, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

func (k *key) Close() error             { return nil }
func (k *key) Public() crypto.PublicKey { return k.pub }

func (k *key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fmt.Errorf("key file %q: %w: a key for %s does not sign", k.path, hwcrypto.ErrUnsupported, k.alg)
}

func (k *key) Seal(_ context.Context, plain, aad []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plain, aad), nil
}

func (k *key) Unseal(_ context.Context, sealed, aad []byte) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("key file %q: %w", k.path, hwcrypto.ErrNotSealed)
	}
	return plain, nil
}

func (k *key) Describe(context.Context) (hwcrypto.Info, error) {
	i := hwcrypto.Info{
		URI:         "file:" + k.path,
		Where:       "file " + k.path,
		Algorithm:   k.alg,
		Extractable: true,
		Weak:        []string{"the key is in a file: whoever reads the file has the key"},
	}
	if k.pub != nil {
		i.Fingerprint = hwcrypto.Fingerprint(k.pub)
	}
	return i, nil
}

func (k *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if h := opts.HashFunc(); h == 0 || len(digest) != h.Size() {
		return nil, fmt.Errorf("key file %q: sign: want a digest of a hash that is named", k.path)
	}
	return k.priv.Sign(rand.Reader, digest, opts)
}

func (k *signer) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Sign(nil, digest, opts)
}

func (k *agreer) ECDH(_ context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	return k.priv.ECDH(peer)
}

func (k *macer) MAC(_ context.Context, data []byte) ([]byte, error) {
	m := hmac.New(sha256.New, k.secret)
	m.Write(data)
	return m.Sum(nil), nil
}
