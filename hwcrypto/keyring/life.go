package keyring

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Status is what is known of a key of the ring.
type Status struct {
	Name        string        `json:"name"`
	URI         string        `json:"uri"`
	Info        hwcrypto.Info `json:"info"`
	Certificate *Certificate  `json:"certificate,omitempty"`
	Err         string        `json:"error,omitempty"`      // why the key cannot be used
	CertErr     string        `json:"cert_error,omitempty"` // why the certificate cannot be used
}

// Certificate is what is known of a key's certificate.
type Certificate struct {
	Path      string    `json:"path"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	DaysLeft  int       `json:"days_left"`
	RenewAt   time.Time `json:"renew_at"` // when renewal is due
}

// List tells of every key, in order of names. Trouble with one is in its Status.
func (r *Ring) List(ctx context.Context) []Status {
	names := r.Names()
	all := make([]Status, len(names))
	var wg sync.WaitGroup
	for i, name := range names { // at once: a chip that hangs holds up no other
		wg.Go(func() { all[i] = r.Status(ctx, name) })
	}
	wg.Wait()
	return all
}

// Status tells of one key.
func (r *Ring) Status(ctx context.Context, name string) Status {
	s, _ := r.status(ctx, name)
	return s
}

// status gives the error beside its words, of the key or of its certificate.
func (r *Ring) status(ctx context.Context, name string) (s Status, err error) {
	s.Name = name
	e, err := r.entry(name)
	if err != nil {
		s.Err = err.Error()
		return s, err
	}
	s.URI = e.uri.String()
	k, err := r.open(ctx, e)
	if err == nil {
		s.Info, err = k.(hwcrypto.Describer).Describe(ctx)
	}
	if err != nil {
		s.Err = err.Error()
		return s, err
	}
	if k.Public() == nil || r.certPath(e) == "" {
		return s, nil
	}
	c, err := r.chainOf(e, k)
	if err != nil {
		s.CertErr = err.Error()
		return s, err
	}
	l := c.leaf
	s.Certificate = &Certificate{
		Path: r.certPath(e), Subject: l.Subject.String(), Issuer: l.Issuer.String(), Names: names(l),
		NotBefore: l.NotBefore, NotAfter: l.NotAfter, DaysLeft: int(l.NotAfter.Sub(r.o.Now()).Hours() / 24),
		RenewAt: due(name, l.NotBefore, l.NotAfter),
	}
	return s, nil
}

func names(c *x509.Certificate) []string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	for _, u := range c.URIs {
		all = append(all, u.String())
	}
	return append(all, c.EmailAddresses...)
}

// New makes the key inside its chip, unless it is there: then created is false and nothing has changed.
func (r *Ring) New(ctx context.Context, name string, alg hwcrypto.Algorithm) (s Status, created bool, err error) {
	e, err := r.entry(name)
	if err != nil {
		return s, false, err
	}
	_, err = r.open(ctx, e)
	if errors.Is(err, hwcrypto.ErrNoKey) {
		g, ok := r.providers[e.uri.Scheme].(hwcrypto.Generator)
		if !ok {
			return s, false, fmt.Errorf("key %q: %w: %s makes no keys", name, hwcrypto.ErrUnsupported, e.uri.Scheme)
		}
		if _, ok := g.(hwcrypto.Renamer); ok {
			if _, e := r.providers[e.uri.Scheme].Open(ctx, renamed(e.uri, "-next")); e == nil {
				return s, false, hwcrypto.WithHint(fmt.Errorf("key %q: a rotation to a new key was interrupted", name), "drawbridge keys rotate "+name)
			}
		}
		var k hwcrypto.Key
		k, err = g.Generate(ctx, e.uri, alg)
		created = err == nil
		switch {
		case created:
			e.put(k)
		case errors.Is(err, hwcrypto.ErrKeyExists): // another process was faster
			_, err = r.open(ctx, e)
		default:
			err = fmt.Errorf("key %q: %w", name, err)
		}
	}
	if err != nil {
		return s, false, err
	}
	return r.Status(ctx, name), created, nil
}

// Import takes a secret (an HMAC key; never a private key) into the chip, unless it is there. ErrKeyExists where another key is there.
func (r *Ring) Import(ctx context.Context, name string, secret []byte) (Status, error) {
	e, err := r.entry(name)
	if err != nil {
		return Status{}, err
	}
	if block, _ := pem.Decode(secret); block != nil && strings.Contains(block.Type, "PRIVATE KEY") {
		return Status{}, hwcrypto.WithHint(fmt.Errorf("key %q: a private key is not imported: one that has been outside the chip proves nothing", name),
			"drawbridge keys new "+name)
	}
	i, ok := r.providers[e.uri.Scheme].(hwcrypto.Importer)
	if !ok {
		return Status{}, fmt.Errorf("key %q: %w: %s takes no secrets", name, hwcrypto.ErrUnsupported, e.uri.Scheme)
	}
	k, err := i.Import(ctx, e.uri, secret)
	switch {
	case err == nil:
		e.put(k)
	case errors.Is(err, hwcrypto.ErrKeyExists) && r.holds(ctx, name, secret):
	default:
		return Status{}, fmt.Errorf("key %q: %w", name, err)
	}
	return r.Status(ctx, name), nil
}

// holds tells whether the key in the chip is the secret, by what both make of something new.
func (r *Ring) holds(ctx context.Context, name string, secret []byte) bool {
	m, err := r.MAC(ctx, name)
	if err != nil {
		return false
	}
	nonce := []byte(rand.Text())
	got, err := m.MAC(ctx, nonce)
	want := hmac.New(sha256.New, secret)
	want.Write(nonce)
	return err == nil && hmac.Equal(got, want.Sum(nil))
}

// CSR gives a PKCS#10 request in PEM, signed in the chip. A SAN is an IP address, a URI, a mail address or a DNS name.
func (r *Ring) CSR(ctx context.Context, name string, subject pkix.Name, sans []string) ([]byte, error) {
	s, err := r.Signer(ctx, name)
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{Subject: subject}
	if t.DNSNames, t.EmailAddresses, t.IPAddresses, t.URIs, err = splitNames(sans); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, s)
	if err != nil {
		return nil, fmt.Errorf("key %q: request: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// SelfSigned gives a certificate in PEM that the key has signed itself: for a first start and for the demo.
func (r *Ring) SelfSigned(ctx context.Context, name string, subject pkix.Name, sans []string, valid time.Duration) ([]byte, error) {
	s, err := r.Signer(ctx, name)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := r.o.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(valid),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if t.DNSNames, t.EmailAddresses, t.IPAddresses, t.URIs, err = splitNames(sans); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, s.Public(), s)
	if err != nil {
		return nil, fmt.Errorf("key %q: certificate: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func splitNames(sans []string) (dns, mail []string, ips []net.IP, uris []*url.URL, err error) {
	for _, s := range sans {
		switch ip := net.ParseIP(s); {
		case s == "":
			return nil, nil, nil, nil, errors.New("an alternative name is empty")
		case ip != nil:
			ips = append(ips, ip)
		case strings.Contains(s, ":"):
			u, err := url.Parse(s)
			if err != nil || u.Scheme == "" {
				return nil, nil, nil, nil, fmt.Errorf("alternative name %q is no URI", s)
			}
			uris = append(uris, u)
		case strings.Contains(s, "@"):
			mail = append(mail, s)
		default:
			dns = append(dns, s)
		}
	}
	return dns, mail, ips, uris, nil
}

// Attest gives the chip's statement on the key, made for the nonce.
func (r *Ring) Attest(ctx context.Context, name string, nonce []byte) (hwcrypto.Attestation, error) {
	e, k, err := r.named(ctx, name)
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	a, err := ability[hwcrypto.Attester](e, k, "its provider attests nothing")
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	return a.Attest(ctx, nonce)
}

// ActivateCredential opens what a verifier has made for the endorsement key and the attestation key of [key.NAME]'s chip.
func (r *Ring) ActivateCredential(ctx context.Context, name string, credential []byte) ([]byte, error) {
	e, k, err := r.named(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := ability[hwcrypto.Challenged](e, k, "its chip has no endorsement key")
	if err != nil {
		return nil, err
	}
	return c.ActivateCredential(ctx, credential)
}
