//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// BenchmarkSign holds our signatures against the module's own, called in one session per goroutine.
func BenchmarkSign(b *testing.B) {
	token := keytest.SoftHSM(b)
	p := New(b.Context(), Options{})
	defer p.Close()
	u, err := hwcrypto.ParseURI(token.URI("a"), "/")
	if err != nil {
		b.Fatal(err)
	}
	made, err := p.Generate(b.Context(), u, hwcrypto.ECDSAP256)
	if err != nil {
		b.Fatal(err)
	}
	k := made.(*signer)
	digest := make([]byte, 32)
	raw := func(b *testing.B) func() error {
		c := k.t.id.module.ctx
		h, err := c.OpenSession(k.t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			b.Error(err)
		}
		return func() error {
			if err := c.SignInit(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, k.h); err != nil {
				return err
			}
			_, err := c.Sign(h, digest)
			return err
		}
	}
	ours := func(*testing.B) func() error { return func() error { return sign(b.Context(), k) } }
	for name, with := range map[string]func(*testing.B) func() error{"module": raw, "ours": ours} {
		b.Run(name+"/one", func(b *testing.B) {
			f := with(b)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/eight", func(b *testing.B) {
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				f := with(b)
				for pb.Next() {
					if err := f(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
