// Package hwcrypto reaches keys that live in a chip: a PKCS#11 token or a TPM 2.0.
//
// No function of this package returns a private key or a shared secret that the chip holds. A key is used through
// crypto.Signer and through abilities that are found by assertion; what a provider cannot do, its keys do not assert.
//
// What is in our memory all the same: a key of the provider file; a pre-shared key that is not in the chip (psk = "key:NAME" is), unsealed for
// its handshake alone and overwritten after; what TLS and DTLS derive for their sessions, as long as these last; the key by which a TPM
// seals, for the moment of sealing (a TPM knows no AES-GCM), and its AES key schedule until the garbage collector has overwritten it; the key of one
// message of an envelope, likewise; a PIN for the moment of the log-in; and a secret that a user of Unseal or ECDH has asked for. Go's
// collector does not overwrite at once, so a copy may outlive its use.
//
// Where a PKCS#11 module is software, such as SoftHSM2, it lives in our process, and so does all that it holds.
//
// This is held to a test that looks for known keys in all the memory of a gateway with 200 devices, and in a core dump of it: nothing of
// a TPM's keys is found, nothing of SoftHSM2's keys where Go manages the memory, and none of the pre-shared keys after their handshakes. The
// gateway sets its own limit of core dumps to 0; where core dumps are piped to a program (core_pattern), that program decides.
package hwcrypto

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"io"
	"time"
)

// Key is a key in a chip. Every key signs, except those whose Info says that they are secrets.
type Key interface {
	crypto.Signer
	Close() error
}

// Provider opens the keys of one URI scheme: "pkcs11", "tpm" or "file".
type Provider interface {
	// Open finds the key that u names. ErrNoKey where there is none; an ambiguous URI is an error.
	Open(ctx context.Context, u URI) (Key, error)
	Close() error
}

// Generator is the ability of a provider to make a key pair inside the chip.
type Generator interface {
	// Generate makes a key that is not extractable where u says. ErrKeyExists where there is one already.
	Generate(ctx context.Context, u URI, alg Algorithm) (Key, error)
}

// Importer is the ability of a provider to take a secret (never a private key) into the chip.
type Importer interface {
	Import(ctx context.Context, u URI, secret []byte) (Key, error)
}

// Activator is the ability of a provider to take a symmetric key that a service has made for this chip alone, which it knows by its
// endorsement key (TPM 2.0 Library, part 1, "Credential Protection" and "Duplication").
type Activator interface {
	// Endorsement gives the public areas (TPM2B_PUBLIC) of the endorsement key and of the storage key of the chip that u names.
	Endorsement(ctx context.Context, u URI) (ek, srk []byte, err error)
	// Activate takes the key, in place of one that u named before: TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET, TPM2B_PRIVATE,
	// TPM2B_ENCRYPTED_SECRET and TPM2B_PUBLIC, one after the other.
	Activate(ctx context.Context, u URI, credential []byte) (Key, error)
}

// MACer is the ability of a key to compute HMAC-SHA-256 in the chip.
type MACer interface {
	MAC(ctx context.Context, data []byte) ([]byte, error)
}

// Agreer is the ability of a key to compute ECDH in the chip.
type Agreer interface {
	ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error)
}

// Sealer is the ability to encrypt data at rest so that only this chip opens it again.
type Sealer interface {
	// Seal encrypts and authenticates plain together with aad, which Open must be given again.
	Seal(ctx context.Context, plain, aad []byte) ([]byte, error)
	Unseal(ctx context.Context, sealed, aad []byte) ([]byte, error)
}

// Attester is the ability to prove where a key lives.
type Attester interface {
	Attest(ctx context.Context, nonce []byte) (Attestation, error)
}

// Challenged is the ability to prove that the key by which a key's chip attests lives in the chip whose endorsement key a verifier knows: what
// the verifier has made for both, only that chip opens (TPM 2.0 Library, part 1, "Credential Protection").
type Challenged interface {
	ActivateCredential(ctx context.Context, credential []byte) (secret []byte, err error)
}

// Random is the ability of a key to give random octets of its chip.
type Random interface{ Rand() io.Reader }

// Lister is the ability of a provider to list the keys of a token.
type Lister interface {
	List(ctx context.Context, u URI) ([]Info, error)
}

// Describer is the ability of a key to say what it is.
type Describer interface {
	Describe(ctx context.Context) (Info, error)
}

// Algorithm is a kind of key.
type Algorithm string

// The algorithms of this package. Which of them a provider makes, it says by its errors.
const (
	ECDSAP256  Algorithm = "ecdsa-p256"
	ECDSAP384  Algorithm = "ecdsa-p384"
	RSA2048    Algorithm = "rsa-2048"
	HMACSHA256 Algorithm = "hmac-sha256"
)

// Info describes a key, for `keys list` and the status page. It holds nothing secret.
type Info struct {
	URI         string            `json:"uri"`
	Where       string            `json:"where"` // "PKCS#11 token \"gw\" (SoftHSM v2)", "TPM 2.0 (IBM SW TPM)", "file /etc/…"
	Algorithm   Algorithm         `json:"algorithm"`
	Fingerprint string            `json:"fingerprint,omitempty"` // SHA-256 of the SubjectPublicKeyInfo, hex
	Hardware    bool              `json:"hardware"`              // false for the file provider
	Extractable bool              `json:"extractable"`           // true is a problem
	Attributes  map[string]string `json:"attributes,omitempty"`  // the chip's own words: "SENSITIVE": "true", "fixedTPM": "true"
	Weak        []string          `json:"weak,omitempty"`        // what is wrong with it, one sentence each; nil is good
}

// Attestation is a chip's statement on a key.
type Attestation struct {
	Kind       string            `json:"kind"` // "TPM2_Certify", "PKCS#11 attributes"
	Statement  []byte            `json:"statement,omitempty"`
	Signature  []byte            `json:"signature,omitempty"`
	Public     []byte            `json:"public,omitempty"` // of the key, as the chip writes it
	AKPublic   []byte            `json:"ak_public,omitempty"`
	EKPublic   []byte            `json:"ek_public,omitempty"`
	EKChain    [][]byte          `json:"ek_chain,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// QueueStats is what the signing queue of one chip has seen.
type QueueStats struct {
	Chip      string        `json:"chip"`
	Depth     int           `json:"depth"`
	Done      uint64        `json:"done"`
	Failed    uint64        `json:"failed"`
	TimedOut  uint64        `json:"timed_out"`
	Latency   time.Duration `json:"latency_ns"` // moving mean of an operation
	Histogram []uint64      `json:"histogram"`  // counts per bucket of QueueBuckets, the last for all above
}
