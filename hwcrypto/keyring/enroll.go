package keyring

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/est"
	"github.com/drawbridge/drawbridge/internal/health"
)

// RenewalFailed says that a certificate is due and could not be renewed. Its subject is "key NAME".
var RenewalFailed = &health.Code{Name: "renewal-failed", Title: "a certificate could not be renewed", Severity: health.Degraded,
	Hint: "see what the CA says; the old certificate serves until its end; try by hand: drawbridge enroll NAME"}

// Enrolment is what a first certificate is asked for. A renewal asks for what the old one has.
type Enrolment struct {
	Subject pkix.Name
	SANs    []string
	// Prove connects by the new certificate where it is going to be used. Only when that has gone well is the old one
	// replaced. Nil: as ProveBy says where there is an old one that is valid. A connection to the EST server is made in any case.
	Prove Proof
}

// Enroll fetches a certificate for the key from its EST server: a first one, or a new one in place of the old. It makes the key where there
// is none. Whatever goes wrong, the old certificate stays.
func (r *Ring) Enroll(ctx context.Context, name string, what Enrolment) (Status, error) {
	e, err := r.entry(name)
	if err != nil {
		return Status{}, err
	}
	if e.cfg.EST == "" {
		return Status{}, hwcrypto.WithHint(fmt.Errorf("key %q: no EST server is named", name),
			fmt.Sprintf("write est = \"https://…\" into [key.%s], or have a CA sign what `drawbridge keys csr %s` prints", name, name))
	}
	if _, _, err := r.New(ctx, name, hwcrypto.ECDSAP256); err != nil {
		return Status{}, err
	}
	if err := r.enroll(ctx, e, what); err != nil {
		return Status{}, fmt.Errorf("key %q: %w", name, err)
	}
	r.reporter(name).Clear(RenewalFailed)
	return r.Status(ctx, name), nil
}

func (r *Ring) enroll(ctx context.Context, e *entry, what Enrolment) error {
	k, err := r.open(ctx, e)
	if err != nil {
		return err
	}
	client, err := r.estClient(ctx, e)
	if err != nil {
		return err
	}
	defer clear(client.Password)

	req := &x509.CertificateRequest{Subject: what.Subject}
	var ask enroller = client.Enroll
	if old, err := r.chainOf(e, k); err == nil && r.o.Now().Before(old.leaf.NotAfter) {
		// RFC 7030 section 4.2.2: subject and alternative names are those of the certificate.
		req = again(old.leaf)
		client.Certificate = r.certificate(k, old.der, old.leaf)
		ask = client.Reenroll
		what.Prove = r.proof(what.Prove)
	} else if req.DNSNames, req.EmailAddresses, req.IPAddresses, req.URIs, err = splitNames(what.SANs); err != nil {
		return err
	}
	chain, err := r.fetch(ctx, client, ask, e.name, k, req, what.Prove)
	if err != nil {
		return err
	}
	path := r.certPath(e)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return hwcrypto.WriteFile(path, est.PEM(chain))
}

// Accept takes a certificate chain (PEM) that a platform has given for the key. Where it takes the place of one that is valid it is proven
// first, as ProveBy says; whatever goes wrong, the old one stays.
func (r *Ring) Accept(ctx context.Context, name string, given []byte) error {
	e, k, err := r.named(ctx, name)
	if err != nil {
		return err
	}
	c, err := parseChain(given)
	if err == nil && !isFor(c, k) {
		err = errMismatch
	}
	if err != nil {
		return fmt.Errorf("key %q: the new certificate: %w", name, err)
	}
	if old, err := r.chainOf(e, k); err == nil && r.o.Now().Before(old.leaf.NotAfter) {
		if prove := r.proof(nil); prove != nil {
			if err := prove(ctx, name, r.certificate(k, c.der, c.leaf)); err != nil {
				return fmt.Errorf("key %q: the new certificate is not accepted, so the old one stays: %w", name, err)
			}
		}
	}
	return hwcrypto.WriteFile(r.certPath(e), given)
}

// proof is how a certificate is proven that takes the place of one that is valid.
func (r *Ring) proof(own Proof) Proof {
	if own != nil {
		return own
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.prove
}

// fetch has a request for k certified, and proves the certificate before it is given back.
func (r *Ring) fetch(ctx context.Context, client *est.Client, ask enroller, name string, k hwcrypto.Key, req *x509.CertificateRequest,
	prove Proof) ([]*x509.Certificate, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, req, r.signer(k))
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	roots, err := client.CACerts(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := ask(ctx, csr, k.Public())
	if err != nil {
		return nil, err
	}
	if err := r.verify(chain, roots); err != nil {
		return nil, fmt.Errorf("the new certificate: %w", err)
	}
	fresh := r.certificate(k, nil, chain[0])
	for _, c := range chain {
		fresh.Certificate = append(fresh.Certificate, c.Raw)
	}
	again := *client
	again.Certificate = fresh
	_, err = again.CACerts(ctx)
	if err == nil && prove != nil {
		err = prove(ctx, name, fresh)
	}
	if err != nil {
		return nil, fmt.Errorf("the new certificate is not accepted, so the old one stays: %w", err)
	}
	return chain, nil
}

// enroller is Enroll or Reenroll of a client.
type enroller = func(ctx context.Context, csr []byte, pub crypto.PublicKey) ([]*x509.Certificate, error)

// again is a request for what a certificate has.
func again(l *x509.Certificate) *x509.CertificateRequest {
	return &x509.CertificateRequest{RawSubject: l.RawSubject, DNSNames: l.DNSNames, EmailAddresses: l.EmailAddresses, IPAddresses: l.IPAddresses, URIs: l.URIs}
}

// verify sees that the CA's own certificates vouch for the new one, by our clock.
func (r *Ring) verify(chain, roots []*x509.Certificate) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: r.o.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	return err
}

func (r *Ring) estClient(ctx context.Context, e *entry) (*est.Client, error) {
	c := &est.Client{URL: e.cfg.EST, User: e.cfg.ESTUser, Now: r.o.Now}
	if e.cfg.ESTCA != "" {
		b, err := os.ReadFile(r.absolute(string(e.cfg.ESTCA)))
		if err != nil {
			return nil, fmt.Errorf("est_ca: %w", err)
		}
		c.Roots = x509.NewCertPool()
		if !c.Roots.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("est_ca %q: no PEM certificate in it", e.cfg.ESTCA)
		}
	}
	if e.cfg.ESTPassword != "" {
		var err error
		if c.Password, err = r.Secret(ctx, string(e.cfg.ESTPassword)); err != nil {
			return nil, fmt.Errorf("est_password: %w", err)
		}
	}
	return c, nil
}

// due is when a certificate is to be renewed: after two thirds of its life, and up to a twentieth later, so that gateways that were
// enrolled together do not come together. The key's name decides, so it is the same at each start.
func due(name string, from, to time.Time) time.Time {
	life := to.Sub(from)
	h := fnv.New32a()
	h.Write([]byte(name))
	return from.Add(life/3*2 + time.Duration(float64(life/20)*float64(h.Sum32())/(1<<32)))
}

// renewal is what Run knows of a key's renewal.
type renewal struct{ next time.Time }

// renew renews what is due, and sets when to try again what has not gone well.
func (r *Ring) renew(ctx context.Context, state map[string]*renewal) {
	for _, name := range r.Names() {
		e, err := r.entry(name)
		if err != nil || e.cfg.EST == "" {
			continue
		}
		s := r.Status(ctx, name)
		now := r.o.Now()
		if s.Certificate == nil || now.Before(s.Certificate.RenewAt) {
			delete(state, name)
			continue
		}
		if st := state[name]; st != nil && now.Before(st.next) {
			continue
		}
		_, err = r.Enroll(ctx, name, Enrolment{})
		if err == nil {
			delete(state, name)
			r.o.Log.Info("certificate renewed", "key", name)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		left := s.Certificate.NotAfter.Sub(now)
		wait := min(max(left/20, time.Minute), time.Hour)
		var later *est.LaterError
		if errors.As(err, &later) {
			if wait = later.After; left > 0 {
				wait = min(wait, max(left/2, time.Minute)) // it is asked once more before it is too late
			}
		}
		state[name] = &renewal{now.Add(wait)}
		r.reporter(name).Set(RenewalFailed, err.Error())
	}
}
