package keyring

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Step is one thing that Examine tried.
type Step struct {
	Name string // "chip", "attributes", "room", "signature", "hmac", "seal", "certificate", "validity"
	Took time.Duration
	Err  error  // nil: it went well
	Note string // what was seen
}

// Examine tries one key: its chip answers and holds it, its attributes protect it, it signs or computes, it seals, and its certificate
// is its own and valid by our clock. It changes nothing, but for the sealing key, which a first sealing makes.
func (r *Ring) Examine(ctx context.Context, name string, step func(Step)) {
	var k hwcrypto.Key
	var e *entry
	try := func(name string, f func() (string, error)) bool {
		begin := time.Now()
		note, err := f()
		step(Step{name, time.Since(begin), err, note})
		return err == nil
	}
	if !try("chip", func() (string, error) {
		var err error
		e, k, err = r.named(ctx, name)
		if err != nil {
			return "", err
		}
		i, err := k.(hwcrypto.Describer).Describe(ctx)
		return fmt.Sprintf("%s: %s", i.Where, i.Algorithm), err
	}) {
		return
	}
	try("attributes", func() (string, error) {
		i, err := k.(hwcrypto.Describer).Describe(ctx)
		if err == nil && len(i.Weak) > 0 {
			err = errors.New(strings.Join(i.Weak, "; "))
		}
		return "it cannot leave its chip", err
	})
	if c, ok := k.(hwcrypto.Roomy); ok {
		try("room", func() (string, error) { return c.Room(ctx) })
	}
	if s, ok := k.(hwcrypto.ContextSigner); ok {
		try("signature", func() (string, error) { return "made and verified", signs(ctx, s, k) })
	}
	if m, ok := k.(hwcrypto.MACer); ok {
		try("hmac", func() (string, error) {
			_, err := m.MAC(ctx, []byte("drawbridge doctor"))
			return "computed", err
		})
	}
	if s, ok := k.(hwcrypto.Sealer); ok {
		try("seal", func() (string, error) {
			b, err := s.Seal(ctx, []byte("drawbridge doctor"), nil)
			if err == nil {
				_, err = s.Unseal(ctx, b, nil)
			}
			return "sealed and opened again", err
		})
	}
	if k.Public() == nil || r.certPath(e) == "" {
		return
	}
	var c *chain
	if !try("certificate", func() (string, error) {
		var err error
		if c, err = r.chainOf(e, k); err != nil {
			return "", err
		}
		return c.leaf.Subject.String(), nil
	}) {
		return
	}
	try("validity", func() (string, error) {
		now, l := r.o.Now(), c.leaf
		switch {
		case now.Before(l.NotBefore):
			return "", fmt.Errorf("by our clock, %s, it begins only at %s", now.Format(time.DateTime), l.NotBefore.Format(time.DateTime))
		case now.After(l.NotAfter):
			return "", fmt.Errorf("by our clock, %s, it has ended at %s", now.Format(time.DateTime), l.NotAfter.Format(time.DateTime))
		}
		return fmt.Sprintf("until %s; renewal is due at %s", l.NotAfter.Format(time.DateTime), due(name, l.NotBefore, l.NotAfter).Format(time.DateTime)), nil
	})
}

// signs has a random digest signed and verifies it: a token may hold a public key that is not the private key's.
func signs(ctx context.Context, s hwcrypto.ContextSigner, k hwcrypto.Key) error {
	var text [32]byte
	rand.Read(text[:]) // never fails
	d256, d384 := sha256.Sum256(text[:]), sha512.Sum384(text[:])
	hash, digest := crypto.SHA256, d256[:]
	if p, ok := k.Public().(*ecdsa.PublicKey); ok && p.Params().BitSize == 384 {
		hash, digest = crypto.SHA384, d384[:]
	}
	sig, err := s.SignContext(ctx, digest, hash)
	if err != nil {
		return err
	}
	good := false
	switch p := k.Public().(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(p, digest, sig)
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(p, hash, digest, sig) == nil
	}
	if !good {
		return errors.New("the signature does not verify: the chip's public key is not the private key's")
	}
	return nil
}
