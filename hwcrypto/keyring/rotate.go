package keyring

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/est"
)

// Rotation is how far the change to a new key has come.
type Rotation struct {
	Done bool   // the new key and its certificate are in use
	CSR  []byte // PEM, for a CA to sign: put the certificate in the place of the old one, then rotate again
}

// Rotate has the chip make a new key beside the old one, and changes over when it is certified: at once where the key has an EST server,
// else when Rotate is called again with the new certificate in the old one's file. The old key stays in its chip under another name. What
// is sealed stays readable. Until the last step, the old key and certificate serve.
func (r *Ring) Rotate(ctx context.Context, name string, what Enrolment) (Rotation, error) {
	e, err := r.entry(name)
	if err != nil {
		return Rotation{}, err
	}
	done, err := r.rotate(ctx, e, what)
	if err != nil {
		err = fmt.Errorf("key %q: rotate: %w", name, err)
	}
	return done, err
}

func (r *Ring) rotate(ctx context.Context, e *entry, what Enrolment) (Rotation, error) {
	p := r.providers[e.uri.Scheme]
	mover, ok := p.(hwcrypto.Renamer)
	if !ok {
		return Rotation{}, hwcrypto.WithHint(fmt.Errorf("%w: a key in a file cannot be changed under what it has sealed", hwcrypto.ErrUnsupported),
			"name a new key in the configuration, seal anew what the old one has sealed, then use the new one")
	}
	next, old := renamed(e.uri, "-next"), renamed(e.uri, "-old-"+r.o.Now().UTC().Format("20060102150405"))
	was, err := p.Open(ctx, e.uri)
	if errors.Is(err, hwcrypto.ErrNoKey) {
		// Interrupted between the two renamings: the successor has no rival.
		if err = mover.Rename(ctx, next, e.uri); err == nil {
			was, err = p.Open(ctx, e.uri)
		}
		if err == nil {
			return Rotation{Done: true}, r.takeOver(e, was)
		}
	}
	if err != nil {
		return Rotation{}, err
	}
	if c, err := readCertificates(r.certPath(e) + ".next"); err == nil && isFor(c, was) {
		return Rotation{Done: true}, r.takeOver(e, was) // interrupted before the very last step
	}
	k, err := p.Open(ctx, next)
	if errors.Is(err, hwcrypto.ErrNoKey) {
		k, err = p.(hwcrypto.Generator).Generate(ctx, next, hwcrypto.AlgorithmOf(was.Public()))
	}
	if err != nil {
		return Rotation{}, err
	}
	if e.cfg.EST != "" {
		if err := r.enrollNext(ctx, e, was, k, what); err != nil {
			return Rotation{}, err
		}
	} else if c, err := readCertificates(r.certPath(e)); err != nil || !isFor(c, k) {
		csr, err := x509.CreateCertificateRequest(rand.Reader, r.successorRequest(e, was, what), r.signer(k))
		return Rotation{CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})}, err
	}
	if err := mover.Rename(ctx, e.uri, old); err != nil {
		return Rotation{}, err
	}
	if err := mover.Rename(ctx, next, e.uri); err != nil {
		return Rotation{}, err
	}
	if k, err = p.Open(ctx, e.uri); err != nil {
		return Rotation{}, err
	}
	return Rotation{Done: true}, r.takeOver(e, k)
}

// takeOver has the ring use the new key and the certificate that was fetched for it.
func (r *Ring) takeOver(e *entry, k hwcrypto.Key) error {
	path := r.certPath(e)
	e.put(k)
	err := os.Rename(path+".next", path)
	if errors.Is(err, os.ErrNotExist) { // a person has put it in its place
		return nil
	}
	return err
}

func renamed(u hwcrypto.URI, suffix string) hwcrypto.URI {
	if u.Scheme == "tpm" {
		u.Name += suffix
		return u
	}
	u.Object += suffix
	return u
}

// successorRequest asks for what the old certificate has, or for what is said.
func (r *Ring) successorRequest(e *entry, was hwcrypto.Key, what Enrolment) *x509.CertificateRequest {
	if c, err := r.chainOf(e, was); err == nil {
		return again(c.leaf)
	}
	req := &x509.CertificateRequest{Subject: what.Subject}
	req.DNSNames, req.EmailAddresses, req.IPAddresses, req.URIs, _ = splitNames(what.SANs)
	return req
}

func readCertificates(path string) (*chain, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseChain(b)
}

// enrollNext fetches a certificate for the successor and proves it, and lays it beside the old one.
func (r *Ring) enrollNext(ctx context.Context, e *entry, was, k hwcrypto.Key, what Enrolment) error {
	client, err := r.estClient(ctx, e)
	if err != nil {
		return err
	}
	defer clear(client.Password)
	var ask enroller = client.Enroll
	if c, err := r.chainOf(e, was); err == nil && r.o.Now().Before(c.leaf.NotAfter) {
		client.Certificate = r.certificate(was, c.der, c.leaf)
		ask = client.Reenroll
		what.Prove = r.proof(what.Prove)
	}
	chain, err := r.fetch(ctx, client, ask, e.name, k, r.successorRequest(e, was, what), what.Prove)
	if err != nil {
		return err
	}
	return hwcrypto.WriteFile(r.certPath(e)+".next", est.PEM(chain))
}
