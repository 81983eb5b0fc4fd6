package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/status/pagetest"
)

// window is a page in a real browser.
type window struct {
	*testing.T
	ctx context.Context
}

func openWindow(t *testing.T, more ...chromedp.ExecAllocatorOption) *window {
	t.Helper()
	return &window{t, pagetest.Browser(t, more...)}
}

func (w *window) do(steps ...chromedp.Action[chromedp.Void]) {
	w.Helper()
	if err := chromedp.Do(w.ctx, steps...); err != nil {
		w.Fatal(err)
	}
}

// see waits until what a JavaScript expression says is so.
func (w *window) see(what, expression string) {
	w.Helper()
	script := "(() => { try { return !!(" + expression + ") } catch { return false } })()"
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		// While a page is being left there is nothing to ask.
		if yes, err := chromedp.Run(w.ctx, chromedp.Evaluate[bool](script)); err == nil && yes {
			return
		}
	}
	text, _ := chromedp.Run(w.ctx, chromedp.Evaluate[string]("location + '\\n' + document.body.innerText"))
	w.Fatalf("%s: not seen; the browser shows %s", what, text)
}

// press clicks a button, and says yes where it is asked.
func (w *window) press(selector string, asked bool) {
	w.Helper()
	w.see(selector, fmt.Sprintf("document.querySelector(%q)", selector))
	w.do(chromedp.Click(selector))
	if asked {
		w.see("a question", `document.querySelector("#confirm").open`)
		w.do(chromedp.Click(`#confirm button[value=yes]`))
	}
}

func (w *window) said(want string) {
	w.Helper()
	w.see("it to say "+want, fmt.Sprintf("document.querySelector('#toast').textContent.includes(%q)", want))
}

// fleet is a gateway with real traffic: many devices with sessions, one that reports, a cloud that takes it.
func (h *house) fleet(devices int) (*northtest.Broker, *moods) {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	h.configure(h.identity(b.CA), shop, toCloud, connectorTo("cloud", b.CA, h, b.Addr), `
[device.press-with-a-name-that-is-much-longer-than-any-column-of-a-table-would-like-it-to-be]
groups = ["press"]
[[downlink]]
name = "setpoint"
from = "cloud"
topic = "cmd/{device}/setpoint"
resource = "/actuators/setpoint"
`)
	h.start()
	for i := range devices {
		name := fmt.Sprintf("th-%03d", i)
		if i == 1 {
			name = "press-with-a-name-that-is-much-longer-than-any-column-of-a-table-would-like-it-to-be"
		}
		c := h.device(name)
		h.Cleanup(func() { c.Close() })
	}
	return b, m
}

// The page of a gateway that works: every part by clicks, each with what it does to devices and cloud.
func TestThePageOfARealGateway(t *testing.T) {
	h := newHouse(t)
	b, m := h.fleet(120)
	reporter := h.device("reporter")
	defer reporter.Close()
	report := func(payload string) {
		t.Helper()
		if code, err := reporter.publish5("sensors/temp", []byte(payload)); code != 0 || err != nil {
			t.Fatal(code, err)
		}
	}
	arrived := func(payload string) bool {
		for _, m := range b.Messages() {
			if string(m.Payload) == payload {
				return true
			}
		}
		return false
	}
	w := openWindow(t)
	at := func(path string) { w.do(chromedp.Navigate(h.page + path)) }

	at("/?lang=en")
	w.see("verdict", `document.querySelector("#verdict h1").textContent.includes("121 devices, 1 cloud up")`)
	w.see("problem with its hint", `document.querySelector("#problems article[data-key='key-in-software key identity'] .hint")`)
	w.see("the path at rest", `document.querySelectorAll(".picture.wide .node").length === 6 && !document.querySelector(".picture.wide .edge.moving")`)
	w.see("no rate", `(window.was = document.querySelector("#figures div:nth-child(2) dd").textContent) === "0.0 /s"`)
	told := h.liveFigure()
	began := time.Now()
	calm := h.meanwhile(func() { reporter.publish5("sensors/temp", []byte("21.5")) })
	w.see("live values", `document.querySelector("#figures div:nth-child(2) dd").textContent !== window.was`)
	inBrowser := time.Since(began)
	t.Logf("prove: the page was told of the first report after %v, and a browser showed it after %v at most, on a busy machine; what changes is told once a second",
		(<-told).Sub(began).Round(time.Millisecond), inBrowser.Round(time.Millisecond))
	w.see("the path in motion", `document.querySelectorAll(".picture.wide .edge.moving").length >= 4`)
	h.pass(11 * time.Second) // a point of the plots is for 10 s
	w.see("a plot", `document.querySelector("#plots .curve").getAttribute("d").startsWith("M")`)
	calm()

	at("/devices")
	w.see("the first page of devices", `document.querySelectorAll("#devicelist tbody tr").length === 50 && document.querySelector("#devicelist h2").textContent === "121 devices"`)
	w.do(chromedp.SendKeys("#search", "TH-11"), chromedp.Click("form.search button"))
	w.see("what is searched", `document.querySelector("#devicelist h2").textContent === "10 devices"`)
	gone := h.device("th-200")
	defer gone.Close()
	at("/devices?search=th-200")
	w.press("#devicelist tbody tr button", true)
	gone.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		if _, _, err := gone.readPacket(nil); err != nil {
			if os.IsTimeout(err) {
				t.Error("the device was not disconnected")
			}
			break
		}
	}
	w.see("the device to be gone", `document.querySelector("#devicelist .none")`)

	at("/routes")
	w.do(chromedp.SendKeys("#device", "th-017"), chromedp.SendKeys("#resource", "/sensors/temp"), chromedp.SendKeys("#payload", "21.5"), chromedp.Click("form.try button"))
	w.see("a report that would be taken", `document.querySelector(".tried.ok").textContent.includes("dt/th-017/temp") && document.querySelector(".tried pre").textContent === "21.5"`)
	at("/routes")
	w.do(chromedp.SendKeys("#device", "th-017"), chromedp.SendKeys("#resource", "/nowhere"), chromedp.Click("form.try button"))
	w.see("one that would not", `document.querySelector(".tried.bad")`)

	at("/clouds")
	w.press("#cloudlist [data-do='/v1/connectors/pause']", true)
	w.see("paused", `document.querySelector("#cloudlist .state").textContent.includes("paused")`)
	report("while it is paused")
	w.see("what waits", `document.querySelector("#cloudlist").innerText.match(/Waiting\s+1\b/)`)
	w.press("#cloudlist [data-do='/v1/connectors/resume']", false)
	eventually(t, "what waited to arrive", func() bool { return arrived("while it is paused") })
	w.press("#cloudlist [data-do='/v1/connectors/probe']", false)
	w.said("✓ Send a test")
	w.press("#listenerlist [data-do='/v1/reload']", true)
	w.said("✓ Reload")

	at("/keys")
	w.see("the key", `document.querySelector("#keylist").innerText.includes("CN=gw1") && document.querySelector("#keylist").innerText.includes("in a file")`)

	const script = `<img src=x onerror="document.title='owned'">`
	m.set("never")
	report("first refused")
	if code, err := reporter.publish5("sensors/"+script, []byte(script)); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	at("/dead")
	w.see("two letters", `document.querySelectorAll("#letterlist li").length === 2`)
	m.set("")
	w.do(chromedp.Click("#letterlist summary"))
	w.see("a letter's payload", `document.querySelector("#letterlist details[open] pre").textContent === "first refused"`)
	w.do(chromedp.Click("#letterlist li:nth-of-type(2) summary"))
	w.see("a script in topic and payload to be text", `document.querySelectorAll("#letterlist details[open] pre")[1].textContent.startsWith("<img") && document.title !== "owned" && !document.querySelector("#letterlist img")`)
	w.press("#letterlist li:first-of-type [data-do='/v1/dead/replay']", false)
	eventually(t, "the letter to arrive", func() bool { return arrived("first refused") })
	w.see("one letter", `document.querySelectorAll("#letterlist li").length === 1`)
	w.press("#letterlist > .acts .danger", true)
	w.see("no letter", `document.querySelector("#letterlist .none")`)
	if arrived(script) {
		t.Error("what was dropped has arrived")
	}

	at("/log")
	for _, action := range []string{"disconnect device", "pause connector", "resume connector", "probe connector", "reload", "replay dead letters", "drop dead letters"} {
		w.see("the audit of "+action, fmt.Sprintf(`[...document.querySelectorAll("#loglist li")].some(l => l.textContent.includes("action: %s") && l.textContent.includes("who=\"local "))`, action))
	}
	at("/keys")
	w.do(chromedp.Click(".langs a[lang=ko]"))
	w.see("Korean", `document.documentElement.lang === "ko" && document.querySelector("nav [aria-current]").textContent === "키"`)
	w.see("nothing from elsewhere", `performance.getEntriesByType("resource").every(r => r.name.startsWith(location.origin))`)

	w.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	for path, want := range map[string]string{"/?lang=en": "121 devices", "/devices?search=th-11": "th-110", "/routes": "dt/{device}/{kind}", "/clouds": "localhost", "/keys": "CN=gw1", "/log": "action: reload"} {
		at(path)
		if text, err := chromedp.Run(w.ctx, chromedp.Text("main")); err != nil || !strings.Contains(text, want) {
			t.Errorf("without JavaScript %s lacks %q (%v):\n%s", path, want, err, text)
		}
	}
	w.screenshots(h)
}

// liveFigure follows what the page is told, and tells when the figures first change.
func (h *house) liveFigure() <-chan time.Time {
	h.Helper()
	r, err := http.NewRequestWithContext(h.Context(), http.MethodGet, h.page+"/live/overview?lang=en", nil)
	if err != nil {
		h.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		h.Fatal(err)
	}
	moved, ready := make(chan time.Time, 1), make(chan struct{})
	go func() {
		defer resp.Body.Close()
		first := ""
		lines := bufio.NewScanner(resp.Body)
		for lines.Buffer(nil, 1<<20); lines.Scan(); {
			_, accepted, ok := strings.Cut(lines.Text(), "Accepted")
			if !ok || !strings.Contains(lines.Text(), `"id":"figures"`) {
				continue
			}
			accepted = accepted[:min(len(accepted), 60)]
			if first == "" {
				first = accepted
				close(ready)
			} else if accepted != first {
				moved <- time.Now()
				return
			}
		}
	}()
	<-ready
	return moved
}

// prefers sets the reader's preference for light or dark.
func prefers(look string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look}}})
		return err
	})
}

// screenshots makes pictures for a person to look at, where SCREENSHOTS names a directory.
func (w *window) screenshots(h *house) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, look := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 390} {
			for _, name := range []string{"", "devices", "routes", "clouds", "keys", "dead", "log"} {
				w.do(prefers(look), chromedp.EmulateViewport(width, 900), chromedp.Navigate(h.page+"/"+name+"?lang=en"))
				png, err := chromedp.Run(w.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					w.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("real-%s-%s-%d.png", name, look, width)), png, 0o644); err != nil {
					w.Fatal(err)
				}
			}
		}
	}
}
