package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// chain is a certificate file as it was read.
type chain struct {
	modified time.Time
	size     int64
	der      [][]byte
	leaf     *x509.Certificate
}

// errNoCertificate: the key has none yet.
var errNoCertificate = errors.New("no certificate")

// errMismatch: the certificate is for another key.
var errMismatch = errors.New("the certificate is for another key")

// chainOf gives the certificates of a key, and makes sure that they are its.
func (r *Ring) chainOf(e *entry, k hwcrypto.Key) (*chain, error) {
	c, err := r.readChain(e, k)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", e.name, err)
	}
	return c, nil
}

func (r *Ring) readChain(e *entry, k hwcrypto.Key) (*chain, error) {
	path := r.certPath(e)
	if path == "" {
		return nil, certUnnamed.Of(fmt.Errorf("%w: cert is not set in [key.%s]", errNoCertificate, e.name), health.Values{"key": e.name})
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, certAbsent.Of(fmt.Errorf("%w: file %q is not there", errNoCertificate, path), health.Values{"key": e.name, "path": path})
	}
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.chain; c != nil && isFor(c, k) && c.modified.Equal(st.ModTime()) && c.size == st.Size() {
		return c, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c, err := parseChain(b)
	if err != nil {
		return nil, fmt.Errorf("certificate %q: %w", path, err)
	}
	if !isFor(c, k) {
		return nil, certOfOther.Of(fmt.Errorf("certificate %q: %w: it certifies %s, the chip has %s", path, errMismatch,
			short(hwcrypto.Fingerprint(c.leaf.PublicKey)), short(hwcrypto.Fingerprint(k.Public()))), health.Values{"key": e.name, "path": path})
	}
	c.modified, c.size = st.ModTime(), st.Size()
	e.chain = c
	return c, nil
}

// isFor tells whether a chain certifies the key.
func isFor(c *chain, k hwcrypto.Key) bool {
	pub, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(c.leaf.PublicKey)
}

// certPath is where a key's certificate lies; "" where there is no place for it.
func (r *Ring) certPath(e *entry) string {
	if e.cfg.Cert == "" && e.cfg.EST != "" {
		return filepath.Join(r.o.State, "keys", e.name+".crt")
	}
	return r.absolute(string(e.cfg.Cert))
}

// certificate is a chain with its key as TLS wants it.
func (v View) certificate(k hwcrypto.Key, der [][]byte, leaf *x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{Certificate: der, Leaf: leaf, PrivateKey: v.signer(k)}
	if h, ok := k.(hwcrypto.HashBound); ok {
		c.SupportedSignatureAlgorithms = schemes(k.Public(), h.Hashes())
	}
	return c
}

func short(fingerprint string) string {
	if fingerprint == "" {
		return "no public key"
	}
	return "sha256:" + fingerprint[:16] + "…"
}

func parseChain(b []byte) (*chain, error) {
	c := &chain{}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM type %q in it: want CERTIFICATE alone", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if c.leaf == nil {
			c.leaf = cert
		}
		c.der = append(c.der, block.Bytes)
	}
	if c.leaf == nil {
		return nil, errors.New("no PEM certificate in it")
	}
	return c, nil
}

// schemes are the TLS signature schemes that a key bound to some hashes can serve.
func schemes(pub crypto.PublicKey, hashes []crypto.Hash) []tls.SignatureScheme {
	var out []tls.SignatureScheme
	for _, h := range hashes {
		switch pub.(type) {
		case *ecdsa.PublicKey:
			switch h {
			case crypto.SHA256:
				out = append(out, tls.ECDSAWithP256AndSHA256)
			case crypto.SHA384:
				out = append(out, tls.ECDSAWithP384AndSHA384)
			}
		case *rsa.PublicKey:
			if h == crypto.SHA256 {
				out = append(out, tls.PSSWithSHA256, tls.PKCS1WithSHA256)
			}
		}
	}
	return out
}
