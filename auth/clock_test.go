package auth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// deadBattery is a system's clock that began at 1970 a minute ago; ahead moves it.
type deadBattery struct {
	began time.Time
	ahead atomic.Int64
}

func (d *deadBattery) now() time.Time {
	return time.Unix(60, 0).Add(time.Since(d.began) + time.Duration(d.ahead.Load()))
}

func openClock(t *testing.T, built time.Time) (*auth.Clock, *deadBattery) {
	t.Helper()
	d := &deadBattery{began: time.Now()}
	c, err := auth.OpenClock(filepath.Join(t.TempDir(), "clock"), built, d.now)
	if err != nil {
		t.Fatal(err)
	}
	return c, d
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < 5*time.Second }

func TestClockWithoutBattery(t *testing.T) {
	built := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	c, d := openClock(t, built)
	if !near(c.Now(), built) {
		t.Errorf("it is at least the time at which the program was built, not %v", c.Now())
	}
	d.ahead.Store(int64(time.Hour))
	if !near(c.Now(), built.Add(time.Hour)) {
		t.Errorf("time does not go on: %v", c.Now())
	}
	c.Learn(built.Add(-time.Hour))
	if c.Now().Before(built.Add(time.Hour)) {
		t.Errorf("it was set back: %v", c.Now())
	}
	truth := built.Add(1000 * time.Hour)
	c.Learn(truth)
	if !near(c.Now(), truth) {
		t.Errorf("it does not learn: %v", c.Now())
	}
	d.ahead.Store(int64(truth.Add(time.Minute).Sub(d.now()) + time.Hour)) // NTP is there
	c.Learn(truth)
	if !near(c.Now(), truth.Add(time.Minute)) {
		t.Errorf("the system's clock is right, and not believed: %v, not %v", c.Now(), truth.Add(time.Minute))
	}
}

func TestClockKeepsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "clock")
		tracker := health.New(slog.New(slog.DiscardHandler), time.Now)
		c, err := auth.OpenClock(path, time.Unix(0, 0), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx, tracker.For("")) }()
		time.Sleep(90 * time.Minute)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := time.Parse(time.RFC3339, string(data[:len(data)-1])); err != nil || time.Since(kept) > time.Hour {
			t.Errorf("%s, %v", data, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		dead := func() time.Time { return time.Unix(0, 0) }
		again, err := auth.OpenClock(path, time.Unix(0, 0), dead)
		if err != nil || time.Since(again.Now()) > time.Minute {
			t.Errorf("after a power cut it is %v, %v", again.Now(), err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- again.Run(ctx, tracker.For("")) }()
		synctest.Wait()
		if !hasProblem(tracker, "clock-wrong") {
			t.Error("nothing says that the system's clock is wrong")
		}
		cancel()
		<-done
		if err := os.WriteFile(path, []byte("2026-1"), 0o600); err != nil {
			t.Fatal(err)
		}
		if torn, err := auth.OpenClock(path, time.Unix(1000, 0), dead); err != nil || !torn.Now().Equal(time.Unix(1000, 0)) {
			t.Errorf("a torn file: %v, %v", torn, err)
		}
	})
}

// A gateway that boots in 1970 gets its token from an issuer whose certificate is younger than its program, and the time with it.
func TestBootIn1970(t *testing.T) {
	real := time.Now()
	built := real.Add(-1000 * time.Hour)
	for name, c := range map[string]struct {
		from, until time.Time
		stranger    bool
		believed    bool
		want        bool
	}{
		"a certificate that was valid all the time":              {built.Add(-time.Hour), real.Add(time.Hour), false, false, true},
		"a certificate that is younger than the program":         {real.Add(-time.Hour), real.Add(time.Hour), false, false, true},
		"one that had ended when the program was built":          {built.Add(-100 * time.Hour), built.Add(-time.Hour), false, false, false},
		"a young one of a CA that is not trusted":                {real.Add(-time.Hour), real.Add(time.Hour), true, false, false},
		"one that has not begun by a clock that is right":        {real.Add(time.Hour), real.Add(2 * time.Hour), false, true, false},
		"a young one by a clock that is right":                   {real.Add(-time.Hour), real.Add(time.Hour), false, true, true},
		"one that has ended by a clock that is right, not built": {built.Add(time.Hour), real.Add(-time.Hour), false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t, built.Add(-1000*time.Hour))
			signer := ca
			if c.stranger {
				signer = newAuthority(t, built.Add(-1000*time.Hour))
			}
			key := newKey(t)
			cert := sign(t, &x509.Certificate{
				SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issuer"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: c.from, NotAfter: c.until,
			}, signer.cert, key.Public(), signer.key)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ParseForm(); r.PostForm.Get("grant_type") != "client_credentials" {
					t.Errorf("the form is lost: %v", r.PostForm)
				}
				give(w, "t", 300)
			}))
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			srv.StartTLS()
			defer srv.Close()

			clock, d := openClock(t, built)
			if c.believed {
				d.ahead.Store(int64(real.Sub(d.now())))
			}
			i := &issuer{t: t, dir: t.TempDir(), chip: newChip(t)}
			i.write("ca.crt", pemOf("CERTIFICATE", ca.cert.Raw))
			i.chip.secrets["file:/s"] = "s"
			tokens, err := auth.NewTokens(t.Context(), map[string]*config.Token{"cloud": {
				TokenURL: srv.URL, ClientID: "gw", Grant: "client_credentials", ClientAuth: "client_secret_basic", ClientSecret: "file:/s", CA: config.Path(filepath.Join(i.dir, "ca.crt")),
			}}, auth.TokenOptions{Keys: i.chip, State: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: clock.Now, Clock: clock})
			if err != nil {
				t.Fatal(err)
			}
			defer tokens.Close()
			_, expires, err := tokens.Token(t.Context(), "cloud")
			if (err == nil) != c.want {
				t.Fatalf("%v", err)
			}
			if !c.want {
				if now := clock.Now(); !c.believed && !near(now, built) {
					t.Errorf("the clock was moved to %v", now)
				}
				return
			}
			if !near(clock.Now(), time.Now()) || !near(expires, time.Now().Add(300*time.Second)) {
				t.Errorf("it is %v, and the token ends at %v", clock.Now(), expires)
			}
		})
	}
}
