package status

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/status/pagetest"
)

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
	log := slog.New(records.Handler(slog.NewTextHandler(io.Discard, nil)))
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
	s := newSite(t)
	closed, _ := startOpen(t, s, Login{Password: password("x"), Issuer: &Issuer{Name: "plant"}})
	ctx := pagetest.Browser(t, pagetest.Trusting(t, s.cert.Certificate[0]))
	for _, c := range []struct {
		name, scheme, lang string
		width              int64
	}{{"wide-light", "light", "en", 1280}, {"wide-dark", "dark", "ko", 1280}, {"narrow-light", "light", "ko", 390}, {"narrow-dark", "dark", "en", 390}} {
		addresses := map[string]string{"login": closed + "/login"}
		for _, sh := range sheets {
			addresses[sh.name] = page + sh.path
		}
		for name, address := range addresses {
			do(t, ctx, scheme(c.scheme), chromedp.EmulateViewport(c.width, 900), chromedp.Navigate(address+"?lang="+c.lang), chromedp.Sleep(1200*time.Millisecond))
			png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name+"-"+c.name+".png"), png, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// see waits until the page holds what a JavaScript expression says.
func see(t *testing.T, ctx context.Context, what, expression string) {
	t.Helper()
	script := "(() => { try { return !!(" + expression + ") } catch { return false } })()"
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var yes bool
		// While a page is being left there is nothing to ask.
		if yes, err = chromedp.Run(ctx, chromedp.Evaluate[bool](script)); err == nil && yes {
			return
		}
	}
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("location + '\\n' + document.body.innerText"))
	t.Fatalf("%s: not seen (%v); the browser shows %s", what, err, text)
}

func do(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

func TestThePageInABrowser(t *testing.T) {
	page, g := startBusy(t)
	ctx := pagetest.Browser(t)
	did := func(want string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if done := g.done(); len(done) > 0 && done[len(done)-1] == want {
				return
			}
		}
		t.Fatalf("want %q, did %q", want, g.done())
	}
	yes := chromedp.Click(`#confirm button[value=yes]`)

	do(t, ctx, chromedp.Navigate(page+"/?lang=en"))
	see(t, ctx, "verdict", `document.querySelector("#verdict h1").textContent.includes("It works with trouble: the cloud cannot be reached")`)
	see(t, ctx, "problem with its hint", `document.querySelector("#problems .hint code").textContent === "drawbridge doctor"`)
	see(t, ctx, "a figure", `window.was = document.querySelector("#figures div:nth-child(4) dd").textContent`)
	see(t, ctx, "live values", `document.querySelector("#figures div:nth-child(4) dd").textContent !== window.was`)
	g.change(func(s *Snapshot) { s.Problems = nil; s.Listeners[1].Bound = true })
	see(t, ctx, "a problem that is gone", `document.querySelectorAll("#problems article").length === 0`)

	do(t, ctx, chromedp.Navigate(page+"/devices"))
	see(t, ctx, "first page", `document.querySelectorAll("#devicelist tbody tr").length === 50`)
	see(t, ctx, "a script in a name is text", `document.title !== "owned" && document.querySelector("#devicelist tbody th").textContent.includes("<script>")`)
	do(t, ctx, chromedp.SendKeys("#search", "press"), chromedp.Click("form.search button"))
	see(t, ctx, "search", `document.querySelector("#devicelist h2").textContent === "15 devices"`)
	do(t, ctx, chromedp.Click("#devicelist tbody tr button"))
	see(t, ctx, "question", `document.querySelector("#confirm").open && document.querySelector("#question").textContent.includes("press-103")`)
	do(t, ctx, chromedp.Click(`#confirm button[value=no]`))
	see(t, ctx, "question gone", `!document.querySelector("#confirm").open`)
	if done := g.done(); len(done) > 0 {
		t.Errorf("no means no, did %q", done)
	}
	do(t, ctx, chromedp.Click("#devicelist tbody tr button"), yes)
	did("disconnect press-103")

	do(t, ctx, chromedp.Navigate(page+"/routes"), chromedp.SendKeys("#device", "th-017"), chromedp.SendKeys("#resource", "/sensors/temp"),
		chromedp.SendKeys("#payload", "21.5"), chromedp.Click("form.try button"))
	see(t, ctx, "tried", `document.querySelector(".tried.ok").textContent.includes("dt/plant7-gw1/th-017/temp") && document.querySelector(".tried pre").textContent === '{"v":21.5}'`)

	do(t, ctx, chromedp.Navigate(page+"/clouds"), chromedp.Click("#cloudlist article:first-child [data-do='/v1/connectors/pause']"), yes)
	did("pause cloud")
	see(t, ctx, "paused", `document.querySelector("#cloudlist .state").textContent.includes("paused")`)
	do(t, ctx, chromedp.Click("#cloudlist [data-do='/v1/connectors/resume']"))
	did("resume cloud")
	do(t, ctx, chromedp.Click("#cloudlist article:nth-child(2) [data-do='/v1/connectors/probe']"))
	see(t, ctx, "probe failed", `document.querySelector("#toast").textContent.includes("not connected")`)
	do(t, ctx, chromedp.Click("#listenerlist [data-do='/v1/reload']"), yes)
	did("reload")

	do(t, ctx, chromedp.Navigate(page+"/dead"), chromedp.Click("#letterlist summary"))
	see(t, ctx, "payload", `document.querySelector("#letterlist details[open] pre").textContent === '{"t":21.5}'`)
	do(t, ctx, chromedp.Sleep(1500*time.Millisecond))
	see(t, ctx, "what is open stays open", `document.querySelector("#letterlist details[open]")`)
	do(t, ctx, chromedp.Click("#letterlist li:first-of-type [data-do='/v1/dead/replay']"))
	did(`replay 1 of "cloud"`)
	see(t, ctx, "one letter left", `document.querySelectorAll("#letterlist li").length === 1`)
	do(t, ctx, chromedp.Click("#letterlist > .acts .danger"), yes)
	did(`drop 1 of ""`)
	see(t, ctx, "none left", `document.querySelector("#letterlist .none")`)

	do(t, ctx, chromedp.Navigate(page+"/log"))
	see(t, ctx, "audit", `document.querySelector(".log").textContent.includes("action: disconnect device")`)
	do(t, ctx, chromedp.Navigate(page+"/keys"), chromedp.Click(".langs a[lang=ko]"))
	see(t, ctx, "Korean", `document.documentElement.lang === "ko" && document.querySelector("nav [aria-current]").textContent === "키"`)
	do(t, ctx, chromedp.Navigate(page+"/"))
	see(t, ctx, "the language is kept", `document.documentElement.lang === "ko"`)
	see(t, ctx, "nothing from elsewhere", `performance.getEntriesByType("resource").every(r => r.name.startsWith(location.origin))`)
}

func TestThePageReadsWithoutJavaScript(t *testing.T) {
	page, _ := startBusy(t)
	ctx := pagetest.Browser(t)
	do(t, ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	for path, want := range map[string]string{"/": "12\u2009", "/devices?search=press&page=1": "press-103", "/routes": "dt/{gateway}/{device}/{kind}", "/clouds": "connection refused",
		"/keys": "CN=plant7-gw1", "/dead": "more than the platform's 131072"} {
		do(t, ctx, chromedp.Navigate(page+path))
		text, err := chromedp.Run(ctx, chromedp.Text("main"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", path, want, text)
		}
		if strings.Contains(text, "Disconnect") || strings.Contains(text, "Replay") {
			t.Errorf("%s offers what it cannot do", path)
		}
	}
	do(t, ctx, chromedp.Navigate(page+"/routes"), chromedp.SendKeys("#device", "th-017"), chromedp.SendKeys("#resource", "/nowhere"))
	if _, err := chromedp.Run(ctx, chromedp.WaitEvent(cdppage.LoadEventFired, func(cdppage.EventLoadEventFired) bool { return true }, chromedp.Click("form.try button"))); err != nil {
		t.Fatal(err)
	}
	if text, err := chromedp.Run(ctx, chromedp.Text(".tried")); err != nil || !strings.Contains(text, "It would be refused: no-route") {
		t.Errorf("%q, %v", text, err)
	}
}

func TestThePageFitsANarrowScreen(t *testing.T) {
	page, _ := startBusy(t)
	ctx := pagetest.Browser(t)
	do(t, ctx, chromedp.EmulateViewport(390, 844))
	for _, l := range languages {
		for _, sh := range sheets {
			do(t, ctx, chromedp.Navigate(page+sh.path+"?lang="+l.Tag))
			if width, err := chromedp.Run(ctx, chromedp.Evaluate[int]("document.documentElement.scrollWidth")); err != nil || width > 390 {
				t.Errorf("%s in %s is %d wide (%v)", sh.name, l.Tag, width, err)
			}
		}
	}
}

func TestEverybodyCanUseThePage(t *testing.T) {
	tools := pagetest.Install(t)
	page, _ := startBusy(t)
	ctx := pagetest.Browser(t)
	for _, look := range []string{"light", "dark"} {
		for _, sh := range sheets {
			do(t, ctx, scheme(look), chromedp.EmulateViewport(1280, 900), chromedp.Navigate(page+sh.path))
			faults, err := tools.Faults(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range faults {
				t.Errorf("%s, %s: %s", sh.name, look, f)
			}
		}
	}
}
