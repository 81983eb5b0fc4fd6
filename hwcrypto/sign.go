package hwcrypto

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// ECDHP256 is for a key that agrees and does not sign: one key, one purpose.
const ECDHP256 Algorithm = "ecdh-p256"

// ContextSigner is the ability of a key to sign for a named user (WithUser) and within a time. Every key of this
// module that signs has it; crypto.Signer, which knows no context, is served by it.
type ContextSigner interface {
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Ephemeral is a key on P-256 for one agreement. In a chip it was made, and does not leave it; Close is for one that is not used.
type Ephemeral interface {
	Agreer
	PublicKey() *ecdh.PublicKey
	Close(ctx context.Context) error
}

// EphemeralMaker is the ability of a key to have its chip make keys for one agreement each. Nothing of them is kept in the token.
type EphemeralMaker interface {
	Ephemeral(ctx context.Context) (Ephemeral, error)
}

// HashBound is the ability of a key to say that the chip signs with some hashes only.
type HashBound interface{ Hashes() []crypto.Hash }

// Roomy is the ability of a key to say how much room its chip has for work, and how near it is to locking. An error says that there is none,
// or that the next mistake locks it.
type Roomy interface {
	Room(ctx context.Context) (note string, err error)
}

// Renamer is the ability of a provider to give a key another name. ErrNoKey where there is none at from, ErrKeyExists where there is
// one at to.
type Renamer interface {
	Rename(ctx context.Context, from, to URI) error
}

// Queued is the ability of a provider to say how its chips' queues do.
type Queued interface{ Queues() []QueueStats }

// QueueBuckets are the upper bounds of QueueStats.Histogram.
func QueueBuckets() []time.Duration {
	return []time.Duration{100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
		50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second}
}

// ECDSASignature gives r and s, as chips give them, in the form of RFC 3279 section 2.2.3, as crypto.Signer does.
func ECDSASignature(r, s []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range [][]byte{r, s} {
			b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) {
				for len(n) > 1 && n[0] == 0 {
					n = n[1:]
				}
				if len(n) == 0 || n[0] >= 0x80 {
					b.AddUint8(0)
				}
				b.AddBytes(n)
			})
		}
	})
	return b.Bytes()
}
