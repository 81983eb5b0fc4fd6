package status

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/southbound"
)

// browser starts a real browser.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no chromium")
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), chromedp.Headless, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.NoSandbox, chromedp.ExecPath(path))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// busy is a gateway where something happens: the more time has gone, the more has crossed.
func busy() *gateway {
	g := unwell()
	began := time.Now()
	g.tick = func(s *Snapshot) {
		gone := time.Since(began).Seconds()
		n := uint64(gone * 38)
		s.Time = noon.Add(time.Since(began))
		s.Ledger[0].Accepted, s.Ledger[0].Delivered = 81203+n, 81193+n
		s.Ledger[1].Accepted, s.Ledger[1].Pending = 81203+n, 12345+n
		s.Spool.Records = 12353 + n
		s.Spool.PendingBytes["plant"] = 300 << 20
	}
	for i := range 137 {
		d := southbound.DeviceInfo{Device: fmt.Sprintf("th-%03d", i), Groups: []string{"thermostat"}, Listener: "field", Auth: "psk", Connected: true,
			Address: fmt.Sprintf("10.0.%d.%d:5683", i/250, i%250+1), Protocol: "DTLS 1.2 TLS_PSK_WITH_AES_128_CCM_8 CID", Since: noon.Add(-time.Hour),
			LastSeen: noon.Add(-time.Duration(i) * time.Second)}
		if i%9 == 4 {
			d.Device, d.Groups, d.Listener, d.Auth, d.Protocol = fmt.Sprintf("press-%d", i), []string{"press", "hall-2"}, "shop", "password", "MQTT 5, TLS 1.3"
			d.Connected, d.Queued = false, 2
		}
		g.devices = append(g.devices, d)
	}
	g.devices = append(g.devices, southbound.DeviceInfo{Device: evil, Listener: "shop", Address: "10.0.9.9:40100", Auth: "x509", Connected: true, LastSeen: noon})
	g.letters = []DeadLetter{
		{ID: "0193539e-8f00-7a10-9c11-0a0b0c0d0e0f", Connector: "cloud", Route: "sensors", Device: "th-017", Topic: "dt/plant7-gw1/th-017/temp",
			Reason: "payload of 131090 octets is more than the platform's 131072", Accepted: noon.Add(-2 * time.Hour), Died: noon.Add(-2*time.Hour + time.Second),
			Type: "application/json", Payload: []byte(`{"t":21.5}`)},
		{ID: "0193539e-8f01-7a10-9c11-0a0b0c0d0e0f", Connector: "cloud", Route: "sensors", Device: evil, Topic: "dt/x",
			Reason: "topic name is invalid", Accepted: noon.Add(-time.Hour), Died: noon.Add(-time.Hour), Payload: []byte(evil)},
	}
	return g
}

const evil = `<script>document.title='owned'</script><img src=x onerror="document.title='owned'">`

// scheme sets the reader's preference for light or dark.
func scheme(value string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}}})
		return err
	})
}

// past fills the plots with a day.
func past(t *testing.T, dir string) {
	t.Helper()
	h, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*series{&h.hour, &h.day} {
		for i := range s.keep {
			at := noon.Add(-time.Duration(s.keep-i) * s.every)
			x := float64(at.Unix()) / s.every.Seconds()
			wave := 30 + 8*math.Sin(x/17) + 3*math.Sin(x/3)
			p := point{At: at, In: float32(wave), Out: float32(wave), Pending: uint32(max(0, 40*math.Sin(x/11))), Latency: time.Duration(30+10*math.Sin(x/23)) * time.Millisecond}
			if i > s.keep*9/10 {
				p.Out, p.Pending = p.Out/2, uint32((i-s.keep*9/10)*340)
			}
			s.points = append(s.points, p)
		}
	}
	if err := h.save(); err != nil {
		t.Fatal(err)
	}
}

func startBusy(t *testing.T) (string, *gateway) {
	g, dir, records := busy(), t.TempDir(), NewRecorder(200)
	past(t, dir)
	log := slog.New(records.Handler(slog.DiscardHandler))
	page, _ := start(t, g, func(o *Options) { o.State, o.Records, o.Log = dir, records, log })
	return page, g
}

// TestScreenshots makes pictures of every page for a person to look at, where SCREENSHOTS names a directory.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		t.Skip("SCREENSHOTS names no directory")
	}
	page, _ := startBusy(t)
	ctx := browser(t)
	for _, c := range []struct {
		name, scheme, lang string
		width              int64
	}{{"wide-light", "light", "en", 1280}, {"wide-dark", "dark", "ko", 1280}, {"narrow-light", "light", "ko", 390}, {"narrow-dark", "dark", "en", 390}} {
		for _, sh := range sheets {
			if err := chromedp.Do(ctx, scheme(c.scheme), chromedp.EmulateViewport(c.width, 900), chromedp.Navigate(page+sh.path+"?lang="+c.lang),
				chromedp.Sleep(1500*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, sh.name+"-"+c.name+".png"), png, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var _ = strings.Contains
