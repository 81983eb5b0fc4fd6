package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// ClockWrong is the problem of a system clock that stands in the past.
var ClockWrong = health.Code{Name: "clock-wrong", Title: "the system's clock stands in the past", Severity: health.Notice,
	Hint: "the gateway goes by certificates and issuers instead; see that NTP runs, and whether the battery of the clock is empty"}

const (
	keepEvery = time.Hour        // the time is written down
	lookEvery = 10 * time.Second // whether the clock has leapt
)

// Clock tells the time to all who check certificates and tokens, on a machine whose own clock may stand at 1970 after a power cut.
//
// The system's clock is believed unless it stands before a moment that is known to have passed: the program was built then, or
// ran then, or a certificate that a trusted CA has signed was valid from then on. While it is not believed, time goes on from the latest
// such moment, or from what an answer over TLS has told. So it is never set back, a certificate whose end is known to have passed is never
// taken, and one that has begun since the last run does not lock the gateway out.
//
// What it cannot tell, it cannot tell: while the true time is unknown, a certificate that ended since that moment still passes.
//
// When the true time comes, the clock leaps. What was dated before the leap is then not as old as its date says: see Correct.
type Clock struct {
	system  func() time.Time
	elapsed func() time.Duration // as no clock that is set can tell it
	path    string
	leaps   leaps

	mu    sync.Mutex
	floor time.Time     // guarded by mu; known to have passed
	at    time.Time     // guarded by mu; the system's clock when floor was set, to go on from there
	ahead time.Duration // guarded by mu; of the system's clock, as learnt; zero: not yet
}

// OpenClock makes a clock that keeps the time in the file at path. built is when the program was built; system is time.Now.
func OpenClock(path string, built time.Time, system func() time.Time) (*Clock, error) {
	began := time.Now()
	c := &Clock{system: system, elapsed: func() time.Duration { return time.Since(began) }, path: path, floor: built, at: system()}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("clock: %w", err)
	}
	first, rest, _ := strings.Cut(string(data), "\n")
	kept, err := time.Parse(time.RFC3339, first)
	if err == nil && kept.After(built) { // a file that was torn is as good as none
		c.floor = kept
	}
	now, believed := c.now()
	c.leaps.open(rest, kept, now, c.elapsed(), believed)
	return c, nil
}

// Now gives the time.
func (c *Clock) Now() time.Time {
	now, _ := c.now()
	return now
}

// now tells too whether it is the system's own.
func (c *Clock) now() (now time.Time, believed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.system()
	if !s.Before(c.floor) {
		return s, true
	}
	if t := s.Add(c.ahead); c.ahead > 0 && !t.Before(c.floor) {
		return t, false
	}
	return c.floor.Add(max(s.Sub(c.at), 0)), false
}

// Learn takes the time from an answer of a server whose certificate has been verified. It counts only while the system's clock is
// not believed, and never sets the time back beyond what is known.
func (c *Clock) Learn(date time.Time) {
	if _, believed := c.now(); believed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !date.Before(c.floor) {
		c.ahead = date.Sub(c.system())
	}
}

// Excuse looks at the error of a TLS handshake and tells whether to try again: the server's certificate was not valid yet by a clock that is
// not believed, and a CA among roots (nil: the system's) has signed it, which proves that its time has come.
func (c *Clock) Excuse(err error, roots *x509.CertPool) bool {
	v, ok := errors.AsType[*tls.CertificateVerificationError](err)
	now, believed := c.now()
	if !ok || believed || len(v.UnverifiedCertificates) == 0 {
		return false
	}
	begun := now
	pool := x509.NewCertPool()
	for i, cert := range v.UnverifiedCertificates {
		if cert.NotBefore.After(begun) {
			begun = cert.NotBefore
		}
		if i > 0 {
			pool.AddCert(cert)
		}
	}
	if !begun.After(now) {
		return false
	}
	if _, err := v.UnverifiedCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, CurrentTime: begun}); err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if begun.After(c.floor) {
		c.floor, c.at = begun, c.system()
	}
	return true
}

// Transport gives wire as one to an issuer that tells c the time, where that is not nil; see OverTLS.
func (c *Clock) Transport(wire *http.Transport) http.RoundTripper {
	if c == nil {
		return OverTLS(wire)
	}
	return OverTLS(&timing{c, wire})
}

// timing repeats a request whose server's certificate seemed not to be valid yet, and learns from the answer.
type timing struct {
	clock *Clock
	wire  *http.Transport
}

func (t *timing) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.wire.RoundTrip(req)
	if err != nil && (req.Body == nil || req.GetBody != nil) && t.clock.Excuse(err, t.wire.TLSClientConfig.RootCAs) {
		again := req.Clone(req.Context())
		if req.GetBody != nil {
			if again.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		res, err = t.wire.RoundTrip(again)
	}
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		t.clock.Learn(date)
	}
	return res, nil
}

// Correct gives the time that a date stands for which Now has given: where the clock has leapt since then, by as much later.
// It is for what was stored and is asked how old it is.
func (c *Clock) Correct(date time.Time) time.Time {
	now, believed := c.now()
	c.leaps.look(now, c.elapsed(), believed)
	return c.leaps.correct(date)
}

// Run writes the time down every hour, at a leap and at the end, and reports a system's clock that is not believed, until ctx ends.
func (c *Clock) Run(ctx context.Context, reporter *health.Reporter) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var kept time.Duration
	for first := true; ; first = false {
		now, believed := c.now()
		c.leaps.look(now, c.elapsed(), believed)
		if believed {
			reporter.Clear(&ClockWrong)
		} else {
			reporter.Set(&ClockWrong, "it says "+c.system().UTC().Format(time.RFC3339)+", and it is at least "+now.UTC().Format(time.RFC3339))
		}
		if e := c.elapsed(); c.leaps.changed() || first || e-kept >= keepEvery || ctx.Err() != nil {
			kept = e
			if err := hwcrypto.WriteFile(c.path, []byte(now.UTC().Format(time.RFC3339)+"\n"+c.leaps.text())); err != nil {
				return fmt.Errorf("clock: %w", err)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
}
