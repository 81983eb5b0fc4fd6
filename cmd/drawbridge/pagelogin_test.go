package main

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/status/pagetest"
)

// The page of a gateway that others can reach, in a browser: people log in at a certified OpenID provider, and may do what their role lets them.
// What an operator sees of a gateway with devices, traffic and trouble is fit for everybody.
func TestPeopleLogInToTheRealPage(t *testing.T) {
	h, m := newHouse(t), &moods{}
	b := northtest.NewBroker(h, m.options())
	tools := pagetest.Install(t)
	cert := b.CA.Certificate(h, broker.Subject{Name: "issuer", Hosts: northtest.Loopback})
	issuer := tools.Issuer(t, cert)
	key := h.identity(b.CA)
	h.write("drawbridge.toml", fmt.Appendf(nil, `[gateway]
id = "gw1"
state = "state"
[status]
listen = "0.0.0.0:0"
socket = "s"
key = "identity"
issuer = "plant"
client_id = "gateway"
roles_claim = "realm.roles"
[issuer.plant]
url = %q
audience = "gw1"
ca = %q
%s`, issuer.URL, b.CA.File(h), key+shop+toCloud+connectorTo("cloud", b.CA, h, b.Addr)))
	h.start()
	u, err := url.Parse(h.page)
	if err != nil {
		t.Fatal(err)
	}
	page := "https://" + net.JoinHostPort("localhost", u.Port())
	issuer.Serve(page + "/login/callback")
	for i := range 60 {
		c := h.device(fmt.Sprintf("th-%03d", i))
		defer c.Close()
	}
	m.set("never")
	h.report("th-100", "sensors/temp", []byte("21.5"))

	data, err := os.ReadFile(h.path("identity.crt"))
	if err != nil {
		t.Fatal(err)
	}
	own, _ := pem.Decode(data)
	w := openWindow(t, pagetest.Trusting(t, own.Bytes, cert.Certificate[0]))
	at := func(path string) { w.do(chromedp.Navigate(page + path)) }
	// fit looks for what keeps somebody from using what the browser shows.
	fit := func(what string) {
		t.Helper()
		faults, err := tools.Faults(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range faults {
			t.Errorf("%s: %s", what, f)
		}
	}
	// as logs a person in at the issuer, whose forms these are: log-in, consent.
	as := func(person string) {
		t.Helper()
		at("/devices")
		w.press("a.button", false)
		w.see("the issuer's log-in", `document.querySelector("input[name=login]")`)
		w.do(chromedp.SendKeys("input[name=login]", person), chromedp.SendKeys("input[name=password]", "x"), chromedp.Click("button[type=submit]"))
		w.see("consent", `document.querySelector("button[autofocus]") && !document.querySelector("input[name=login]")`)
		w.do(chromedp.Click("button[type=submit]"))
	}
	// answered asks for a path as the page's own script does.
	answered := func(method, path string, want int) {
		t.Helper()
		w.see(fmt.Sprintf("%s %s to be answered %d", method, path, want),
			fmt.Sprintf(`(window.asked ??= fetch(%q, {method: %q}).then(r => window.code = r.status)) && window.code === %d`, path, method, want))
		w.do(chromedp.Reload())
	}
	out := func() {
		t.Helper()
		w.press(".aside form button", false)
		w.see("to be out", `location.pathname === "/login" && document.querySelector("a.button")`)
		answered("GET", "/status.json", 401)
		w.do(chromedp.Navigate(issuer.URL+"/session/end"), chromedp.Click("button[value=yes]"))
		w.see("to be out at the issuer", `location.pathname.endsWith("/success")`)
	}

	as("operator")
	w.see("the operator to be in", `location.pathname === "/devices" && document.querySelector(".aside form").textContent.includes("operator of plant")`)
	at("/clouds")
	w.press("#listenerlist [data-do='/v1/reload']", true)
	w.said("✓ Reload")
	at("/dead")
	w.see("a dead letter with what may be done", `document.querySelector("#letterlist li [data-do='/v1/dead/drop']")`)
	for _, path := range []string{"/", "/devices", "/routes", "/clouds", "/keys", "/dead", "/log"} {
		for _, how := range []struct {
			look, lang string
			width      int64
		}{{"dark", "ko", 390}, {"light", "en", 1280}} {
			w.do(prefers(how.look), chromedp.EmulateViewport(how.width, 900))
			at(path + "?lang=" + how.lang)
			fit(path + ", " + how.look)
		}
	}
	out()
	at("/login")
	fit("the log-in")

	as("viewer")
	w.see("the viewer to be in, and offered nothing", `location.pathname === "/devices" && document.querySelectorAll("#devicelist tbody tr").length === 50 && !document.querySelector("[data-do]")`)
	answered("POST", "/v1/reload", 403)
	out()

	as("guest")
	w.see("the guest to be refused, with why", `document.querySelector(".wrong[role=alert]").textContent === "You have logged in, but have no role here: viewer or operator."`)
	fit("the refusal")
	answered("GET", "/status.json", 401)

	log := h.log.text()
	for line, times := range map[string]int{
		`msg="action: log in" part=status audit=true who="operator of plant" result=done`:    1,
		`msg="action: log in" part=status audit=true who="viewer of plant" result=done`:      1,
		`msg="action: log in" part=status audit=true who="somebody of plant" result=refused`: 1,
		`msg="action: log out"`: 2,
		`msg="action: reload"`:  1,
	} {
		if n := strings.Count(log, line); n != times {
			t.Errorf("the audit log has %d times %s:\n%s", n, line, log)
		}
	}
}
