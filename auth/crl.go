package auth

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// What can be wrong with a revocation list.
var (
	CRLUnreadable = health.Code{Name: "crl-unreadable", Title: "the revocation list cannot be read", Severity: health.Degraded,
		Hint: "the list read before stays in force; mend the file that device_crl names"}
	CRLStale = health.Code{Name: "crl-stale", Title: "the revocation list is out of date", Severity: health.Degraded,
		Hint: "certificates revoked since are still taken; fetch the CA's present list into the file that device_crl names"}
)

// crlEvery is how often the file is looked at, at most.
const crlEvery = 10 * time.Second

// link is one certificate of a chain as a revocation list names it, and who issued it.
type link struct {
	serial string
	issuer *x509.Certificate
}

func links(chain []*x509.Certificate) []link {
	var list []link
	for i := range len(chain) - 1 {
		list = append(list, link{string(chain[i].SerialNumber.Bytes()), chain[i+1]})
	}
	return list
}

// crl is the revocation lists of one file, read again when it changes.
type crl struct {
	path   string
	now    func() time.Time
	health *health.Reporter

	mu     sync.Mutex
	looked time.Time // guarded by mu, as all below
	stamp  time.Time
	size   int64
	lists  []*revocations
}

type revocations struct {
	list    *x509.RevocationList
	serials map[string]bool
	signed  map[*x509.Certificate]bool // whether that issuer's key has signed the list
}

func (r *Realm) openCRL(listener, path string) (*crl, error) {
	c := &crl{path: path, now: r.o.Now}
	if r.o.Health != nil {
		c.health = r.o.Health.For("listener " + listener)
	}
	if err := c.read(); err != nil {
		return nil, fmt.Errorf("listener %q: revocation list: %w", listener, err)
	}
	return c, nil
}

// read takes the file in, if it has changed. The caller holds c.mu or is alone.
func (c *crl) read() error {
	info, err := os.Stat(c.path)
	if err != nil {
		return err
	}
	if info.ModTime().Equal(c.stamp) && info.Size() == c.size {
		return nil
	}
	data, err := os.ReadFile(c.path)
	if err != nil {
		return err
	}
	var lists []*revocations
	for len(data) > 0 {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		list, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return fmt.Errorf("%q: %w", c.path, err)
		}
		rev := &revocations{list: list, serials: map[string]bool{}, signed: map[*x509.Certificate]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			rev.serials[string(e.SerialNumber.Bytes())] = true
		}
		lists = append(lists, rev)
	}
	if len(lists) == 0 {
		return fmt.Errorf("%q: %w", c.path, errors.New("it holds no PEM block X509 CRL"))
	}
	c.lists, c.stamp, c.size = lists, info.ModTime(), info.Size()
	return nil
}

// check gives an error where one of the certificates is revoked. A list counts for the certificates of the CA that signed it.
func (c *crl) check(chain []link) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= crlEvery || now.Before(c.looked) {
		c.looked = now
		if err := c.read(); err != nil {
			c.health.Fail(&CRLUnreadable, err)
		} else {
			c.health.Clear(&CRLUnreadable)
		}
		c.age(now)
	}
	for _, l := range chain {
		for _, rev := range c.lists {
			if string(rev.list.RawIssuer) == string(l.issuer.RawSubject) && rev.serials[l.serial] && rev.signedBy(l.issuer) {
				return fmt.Errorf("%w: the certificate of serial %x is revoked", ErrUnknown, l.serial)
			}
		}
	}
	return nil
}

func (c *crl) age(now time.Time) {
	for _, rev := range c.lists {
		if next := rev.list.NextUpdate; !next.IsZero() && now.After(next) {
			c.health.Set(&CRLStale, "it was to be renewed by "+next.UTC().Format(time.RFC3339))
			return
		}
	}
	c.health.Clear(&CRLStale)
}

func (r *revocations) signedBy(issuer *x509.Certificate) bool {
	ok, known := r.signed[issuer]
	if !known {
		ok = r.list.CheckSignatureFrom(issuer) == nil
		if len(r.signed) > 64 {
			clear(r.signed) // clients send intermediates of their own
		}
		r.signed[issuer] = ok
	}
	return ok
}
