package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// The problems of a key. Their subject is "key NAME".
var (
	KeyUnavailable = &health.Code{Name: "key-unavailable", Title: "a key cannot be used", Severity: health.Failing,
		Hint: "see that the chip is there, that its PIN is right, and that the key exists: drawbridge keys list"}
	KeyInSoftware = &health.Code{Name: "key-in-software", Title: "a key lives in a file, not in a chip", Severity: health.Notice,
		Hint: "good for first runs; name a pkcs11: or tpm: URI for real ones"}
	KeyWeak = &health.Code{Name: "key-weak", Title: "a key in a chip is less protected than it could be", Severity: health.Degraded,
		Hint: "have the chip make a new one under another name: drawbridge keys new NAME"}
	CertificateMissing = &health.Code{Name: "certificate-missing", Title: "a key has no usable certificate", Severity: health.Notice,
		Hint: "have a CA sign what drawbridge keys csr NAME prints"}
	CertificateMismatch = &health.Code{Name: "certificate-mismatch", Title: "a certificate is for another key", Severity: health.Failing,
		Hint: "have a CA sign what drawbridge keys csr NAME prints"}
	CertificateExpiring = &health.Code{Name: "certificate-expiring", Title: "a certificate ends soon", Severity: health.Degraded,
		Hint: "renew it: drawbridge enroll NAME, or have a CA sign what drawbridge keys csr NAME prints"}
	CertificateExpired = &health.Code{Name: "certificate-expired", Title: "a certificate has ended or has not begun", Severity: health.Failing,
		Hint: "see that the clock is right; renew it: drawbridge enroll NAME, or drawbridge keys csr NAME"}
)

// What is wrong with a key, by its name.
var (
	unsealed = health.Meaning{Name: "key-unsealed", What: "the file that sealed: names holds no sealed secret", Hint: "drawbridge keys seal FILE"}
	noMAC    = health.Meaning{Name: "key-no-mac", What: "the key {key} is a key pair, and an HMAC key is wanted",
		Hint: "name a key of its own for the secret and import it: drawbridge keys import NAME FILE"}
	unmade = health.Meaning{Name: "key-unmade", What: "the chip holds no key {key} yet", Hint: "drawbridge keys new {key}"}

	certUnnamed = health.Meaning{Name: "key-cert-unnamed", What: "the file names no certificate for the key {key}",
		Hint: "have a CA sign what `drawbridge keys csr {key}` prints, and write cert = \"FILE\" into [key.{key}]"}
	certAbsent = health.Meaning{Name: "key-cert-absent", What: "the certificate of the key {key} is not there",
		Hint: "have a CA sign what `drawbridge keys csr {key}` prints, and put the certificate there"}
	certOfOther = health.Meaning{Name: "key-cert-other", What: "the certificate in {path} is for another key than {key}",
		Hint: "have a CA sign what `drawbridge keys csr {key}` prints"}
)

// checkEvery is how often Run looks at the keys.
const checkEvery = time.Minute

// Run checks the keys at once, after every Swap and every minute, and renews the certificates that are due, until ctx ends.
func (r *Ring) Run(ctx context.Context) error {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	state := map[string]*renewal{}
	for first := true; ; first = false {
		r.Check(ctx)
		if first {
			r.stir(ctx)
		}
		r.renew(ctx, state)
		select {
		case <-ctx.Done():
			return nil
		case <-r.swapped: // whoever reloads may have mended what was wrong with a key
		case <-t.C:
		}
	}
}

// Check looks at every key and sets or clears its problems.
func (r *Ring) Check(ctx context.Context) {
	var wg sync.WaitGroup
	for _, name := range r.Names() {
		wg.Go(func() { r.check(ctx, name) })
	}
	wg.Wait()
}

func (r *Ring) check(ctx context.Context, name string) {
	s, err := r.status(ctx, name)
	if ctx.Err() != nil {
		return
	}
	h := r.reporter(name)
	set := func(c *health.Code, when bool, detail string) {
		if when {
			h.Set(c, detail)
		} else {
			h.Clear(c)
		}
	}
	fail := func(c *health.Code, when bool) {
		if when {
			h.Fail(c, err)
		} else {
			h.Clear(c)
		}
	}
	fail(KeyUnavailable, s.Err != "")
	if s.Err != "" {
		return // of the rest nothing new is known
	}
	weak := strings.Join(s.Info.Weak, "; ")
	set(KeyInSoftware, !s.Info.Hardware, s.Info.Where)
	set(KeyWeak, s.Info.Hardware && weak != "", weak)
	mismatch := errors.Is(err, errMismatch)
	fail(CertificateMismatch, mismatch)
	fail(CertificateMissing, s.CertErr != "" && !mismatch)
	c := s.Certificate
	now := r.o.Now()
	expired := c != nil && (now.After(c.NotAfter) || now.Before(c.NotBefore))
	expiring := c != nil && !expired && now.After(renewAt(c.NotBefore, c.NotAfter))
	when := ""
	if c != nil {
		when = fmt.Sprintf("%s: valid from %s to %s", c.Path, c.NotBefore.Format(time.DateTime), c.NotAfter.Format(time.DateTime))
	}
	set(CertificateExpired, expired, when)
	set(CertificateExpiring, expiring, when)
}

// renewAt is when a certificate counts as ending soon: after five sixths of its life, but at most 30 days before the end.
// Renewal by itself begins at two thirds, so a person hears of it only when that has not worked.
func renewAt(from, to time.Time) time.Time {
	left := min(to.Sub(from)/6, 30*24*time.Hour)
	return to.Add(-left)
}

// stir mixes random octets of every chip into the kernel's generator, from which all of ours come. Whoever writes there adds, and
// takes nothing away; a chip or a kernel that will not is no trouble.
func (r *Ring) stir(ctx context.Context) {
	pool, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer pool.Close()
	for _, name := range r.Names() {
		if _, k, err := r.named(ctx, name); err == nil {
			if c, ok := k.(hwcrypto.Random); ok {
				_, _ = io.CopyN(pool, c.Rand(), 32)
			}
		}
	}
}
