package keytest

import (
	"crypto"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Credential makes what a service sends to the TPM with these keys (each a TPM2B_PUBLIC) so that the TPM alone has the HMAC key: see
// hwcrypto.Activator.
func Credential(t testing.TB, ek, srk, secret []byte) []byte {
	t.Helper()
	endorsement, _ := encapsulation(t, ek)
	storage, storageName := encapsulation(t, srk)

	inner := random(32)
	identity, identitySecret, err := tpm2.CreateCredential(rand.Reader, endorsement, storageName, inner)
	check(t, err)

	seed := random(32)
	unique := sha256.Sum256(slices.Concat(seed, secret))
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme: tpm2.TPMAlgHMAC, Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]}),
	}
	name, err := tpm2.ObjectName(&public)
	check(t, err)
	sensitive := tpm2.Marshal(tpm2.TPM2BDigest{Buffer: tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash, SeedValue: tpm2.TPM2BDigest{Buffer: seed},
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: secret}),
	})})
	// The inner wrapper, then the outer one.
	integrity := sha256.Sum256(slices.Concat(sensitive, name.Buffer))
	wrapped := cfb(t, inner, append(tpm2.Marshal(tpm2.TPM2BDigest{Buffer: integrity[:]}), sensitive...))
	outer, outerSecret, err := storage.Encapsulate(rand.Reader, "DUPLICATE")
	check(t, err)
	wrapped = cfb(t, tpm2.KDFa(crypto.SHA256, outer, "STORAGE", name.Buffer, nil, 128), wrapped)
	mac := hmac.New(sha256.New, tpm2.KDFa(crypto.SHA256, outer, "INTEGRITY", nil, nil, 256))
	mac.Write(wrapped)
	mac.Write(name.Buffer)
	private := append(tpm2.Marshal(tpm2.TPM2BDigest{Buffer: mac.Sum(nil)}), wrapped...)

	return slices.Concat(
		tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: identity}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: identitySecret}),
		tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: private}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: outerSecret}),
		tpm2.Marshal(tpm2.New2B(public)),
	)
}

func encapsulation(t testing.TB, public []byte) (tpm2.LabeledEncapsulationKey, []byte) {
	t.Helper()
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	check(t, err)
	area, err := pub.Contents()
	check(t, err)
	key, err := tpm2.ImportEncapsulationKey(area)
	check(t, err)
	name, err := tpm2.ObjectName(area)
	check(t, err)
	return key, name.Buffer
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// cfb encrypts as TPMs do: AES in cipher feedback mode, from a vector of zeros.
func cfb(t testing.TB, key, plain []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	check(t, err)
	out, last := make([]byte, len(plain)), make([]byte, aes.BlockSize)
	for i := range plain {
		if i%aes.BlockSize == 0 {
			block.Encrypt(last, last)
		}
		last[i%aes.BlockSize] ^= plain[i]
		out[i] = last[i%aes.BlockSize]
	}
	return out
}
