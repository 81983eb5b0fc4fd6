package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// What a house has where its devices speak MQTT on loopback and its reports go to the connector cloud.
const (
	shop = `
[listener.shop]
type = "mqtt"
listen = "127.0.0.1:0"
security = ["none"]
auth = ["anonymous"]
max_packet = "2MiB"
[[allow]]
op = "report"
resources = ["/{rest...}"]
[[allow]]
op = "command"
resources = ["/{rest...}"]
[[allow]]
op = "subscribe"
resources = ["#"]
`
	toCloud = `
[[uplink]]
name = "sensors"
resource = "/sensors/{kind}"
to = ["cloud"]
topic = "dt/{device}/{kind}"
`
)

// identity gives the house a key in a file with a certificate of the authority, and gives its section.
func (h *house) identity(ca northtest.CA) string {
	h.Helper()
	return h.key("identity", ca, broker.Subject{Name: "gw1", Hosts: northtest.Loopback})
}

func (h *house) key(name string, ca northtest.CA, s broker.Subject) string {
	h.Helper()
	cert := ca.Certificate(h, s)
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		h.Fatal(err)
	}
	h.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	h.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	return fmt.Sprintf("[key.%s]\nuri = \"file:%s.key\"\ncert = \"%s.crt\"\n", name, name, name)
}

// connector gives the section of a connector to a broker.
func connectorTo(name string, ca northtest.CA, t testing.TB, address string) string {
	_, port, _ := net.SplitHostPort(address)
	return fmt.Sprintf("[connector.%s]\ntype = \"mqtt\"\nurl = \"mqtts://localhost:%s\"\nkey = \"identity\"\nca = %q\n", name, port, ca.File(t))
}

// line is a network that can be cut: what is dialled at its address ends at the target's.
type line struct {
	net.Listener
	target string

	mu    sync.Mutex
	cut   bool              // guarded by mu
	conns map[net.Conn]bool // guarded by mu
	wg    sync.WaitGroup
}

func newLine(t testing.TB, target string) *line {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{Listener: ln, target: target, conns: map[net.Conn]bool{}}
	l.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		l.set(true)
		l.wg.Wait()
	})
	return l
}

func (l *line) carry(c net.Conn) {
	defer c.Close()
	d, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer d.Close()
	l.mu.Lock()
	cut := l.cut
	l.conns[c], l.conns[d] = true, true
	l.mu.Unlock()
	if cut {
		return
	}
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{c, d}, {d, c}} {
		wg.Go(func() {
			io.Copy(pair[0], pair[1])
			pair[0].Close()
			pair[1].Close()
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	delete(l.conns, d)
}

// set cuts the line, or mends it.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for c := range l.conns {
		if cut {
			c.Close()
		}
	}
}

// meanwhile does something over and over until done is called.
func (h *house) meanwhile(do func()) (done func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				do()
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
	}
}

// hurry has the connector dial again at once, as the page's Resume does, until done is called.
func (h *house) hurry(connector string) (done func()) {
	return h.meanwhile(func() { h.gateway.bridge.Resume(connector) })
}

func (h *house) cloudAway() {
	b := northtest.NewBroker(h, broker.Options{})
	way, plant := newLine(h, b.Addr), newLine(h, b.Addr)
	h.configure(h.identity(b.CA), shop, strings.Replace(toCloud, `["cloud"]`, `["cloud", "plant"]`, 1), connectorTo("cloud", b.CA, h, way.Addr().String()),
		connectorTo("plant", b.CA, h, plant.Addr().String())+"client_id = \"plant\"\n", `
[spool]
max_size = "1MiB"
[[downlink]]
name = "set"
from = "plant"
topic = "cmd/{device}/set"
resource = "/set"
reply = "cmd/{device}/reply"
`)
	h.start()
	up := func() { eventually(h, "both connectors to be up", func() bool { return len(b.Clients()) == 2 }) }
	up()
	h.brings("cloud-unreachable", "connector cloud", func() {
		way.set(true)
		h.pass(11 * time.Second)
		eventually(h, "the connector to notice", func() bool {
			h.pass(11 * time.Second)
			return h.has("cloud-unreachable")
		})
	}, func() {
		way.set(false)
		h.gateway.bridge.Resume("cloud")
	})
	up()

	device, err := dialMQTT(h.Context(), h.at("shop"), nil, wireOptions{clientID: "th-1"})
	if err != nil {
		h.Fatal(err)
	}
	defer device.Close()
	if err := device.subscribe("set", 1, func(string, []byte) {}); err != nil {
		h.Fatal(err)
	}
	b.Delay(time.Hour) // a cloud that confirms nothing
	reporter := h.device("th-2")
	defer reporter.Close()
	calm := h.meanwhile(func() {
		reporter.publish5("sensors/x", bytes.Repeat([]byte("x"), 20<<10))
		b.Publish(broker.Message{Topic: "cmd/th-1/set", Payload: []byte("1"), QoS: 1})
	})
	full := h.appears("spool-full", "")
	h.pass(2 * time.Minute)
	growing := h.appears("queue-growing", "connector cloud")
	lost := h.appears("replies-lost", "")
	calm()
	b.Delay(0)
	b.Drop("")
	defer h.hurry("cloud")()
	defer h.hurry("plant")()
	h.goes(growing)
	h.goes(full)
	h.goes(lost)
}

// moods are what a broker does to log-ins and publications; the empty one lets everything be.
type moods struct {
	mu   sync.Mutex
	mood string // guarded by mu
}

func (m *moods) set(mood string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mood = mood
}

func (m *moods) is(mood string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mood == mood
}

func (m *moods) options() broker.Options {
	return broker.Options{
		Admit: func(*broker.Login) broker.Answer {
			if m.is("nobody") {
				return broker.Answer{Code: 0x87, Why: "not authorized"}
			}
			return broker.Answer{}
		},
		Published: func(string, broker.Message) broker.Verdict {
			switch {
			case m.is("not now"):
				return broker.Verdict{Code: 0x97, Why: "quota exceeded"}
			case m.is("never"):
				return broker.Verdict{Code: 0x87, Why: "not authorized"}
			}
			return broker.Verdict{}
		},
		Subscribed: func(_, _ string, qos byte) byte {
			if m.is("no commands") {
				return 0x87
			}
			return qos
		},
	}
}

func (h *house) cloudRefuses() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	h.configure(h.identity(b.CA), shop, toCloud, connectorTo("cloud", b.CA, h, b.Addr))
	h.start()
	defer h.hurry("cloud")()
	h.brings("cloud-refuses-login", "connector cloud", func() {
		m.set("nobody")
		b.Drop("")
	}, func() { m.set("") })
	h.brings("cloud-refuses-message", "connector cloud", func() {
		m.set("not now")
		h.report("th-1", "sensors/x", []byte("1"))
	}, func() { m.set("") })
	h.brings("cloud-refuses-all", "connector cloud", func() {
		m.set("never")
		c := h.device("th-1")
		defer c.Close()
		for range 150 {
			if code, err := c.publish5("sensors/x", []byte("1")); code != 0 || err != nil {
				h.Fatal(code, err)
			}
		}
	}, func() {
		m.set("")
		h.report("th-1", "sensors/x", []byte("1")) // what the cloud takes shows that it takes something
	})
	h.brings("dead-letters", "connector cloud", func() {}, func() {
		if out, code := h.verb("spool", "drop", "cloud", "all"); code != exitYes {
			h.Fatal(out)
		}
	})
}

func (h *house) deadLettersPileUp() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	h.configure(h.identity(b.CA), shop, toCloud, connectorTo("cloud", b.CA, h, b.Addr))
	h.start()
	m.set("never")
	h.brings("dead-letters-full", "connector cloud", func() {
		c := h.device("th-1")
		defer c.Close()
		for range 68 { // of 1 MiB each; there is room for 64 MiB
			if code, err := c.publish5("sensors/x", make([]byte, 1<<20)); code != 0 || err != nil {
				h.Fatal(code, err)
			}
		}
		if out, code := h.verb("spool", "cloud"); code != exitYes || !strings.Contains(out, " of 1.0 GiB on disk; ") {
			h.Error(out)
		}
		if out, code := h.verb("spool", "clod"); code != exitUsage || strings.Contains(out, "on disk") {
			h.Error(out)
		}
	}, func() {
		m.set("")
		if out, code := h.verb("spool", "drop", "cloud", "all"); code != exitYes {
			h.Fatal(out)
		}
	})
}

func (h *house) brokerCanDoLess() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	h.configure(h.identity(b.CA), shop, connectorTo("cloud", b.CA, h, b.Addr), `
[[downlink]]
name = "set"
from = "cloud"
topic = "cmd/{device}/set"
resource = "/set"
`)
	h.start()
	defer h.hurry("cloud")()
	h.brings("retain-unavailable", "connector cloud", func() {
		b.Announce(broker.Limits{NoRetain: true})
		b.Drop("")
	}, func() {
		b.Announce(broker.Limits{})
		b.Drop("")
	})
	h.brings("subscription-refused", "connector cloud", func() {
		m.set("no commands")
		b.Drop("")
	}, func() {
		m.set("")
		b.Drop("")
	})
}

func (h *house) newFiles() {
	b := northtest.NewBroker(h, broker.Options{})
	hook := northtest.NewWebhook(h)
	base := h.identity(b.CA) + h.key("hook", hook.CA, broker.Subject{Name: "gw1"}) + shop
	cloud := connectorTo("cloud", b.CA, h, b.Addr)
	h.configure(base, cloud, toCloud)
	h.start()
	act := func(path, body string) {
		resp, err := http.Post(h.page+path, "application/json", strings.NewReader(body))
		if err != nil {
			h.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			h.Fatal(path, resp.Status)
		}
	}
	h.brings("connector-paused", "connector cloud",
		func() { act("/v1/connectors/pause", `{"name":"cloud"}`) },
		func() { act("/v1/connectors/resume", `{"name":"cloud"}`) })
	h.brings("data-budget-short", "connector cloud", func() {
		h.reload(base, cloud, "[connector.cloud.budget]\nday = \"1KiB\"\n", toCloud) // its log-ins have been more
		h.report("th-1", "sensors/x", []byte("1"))
	}, func() { h.reload(base, cloud, toCloud) })
	h.brings("queue-orphaned", "", func() {
		act("/v1/connectors/pause", `{"name":"cloud"}`)
		h.report("th-1", "sensors/x", []byte("1"))
		if out, code := h.verb("spool", "forget", "cloud", "--yes"); code != exitFailed || !strings.Contains(out, "is in the file") {
			h.Errorf("forget of a cloud that is there: %d %s", code, out)
		}
		h.reload(base)
	}, func() {
		if out, code := h.tell("no\n", "spool", "forget", "cloud"); code != exitUsage || !strings.Contains(out, "given up for good") {
			h.Errorf("forget without a yes: %d %s", code, out)
		}
		if out, code := h.tell("cloud\n", "spool", "forget", "cloud"); code != exitYes || !strings.HasSuffix(out, "1 message given up\n") {
			h.Errorf("forget: %d %s", code, out)
		}
		if !strings.Contains(h.log.text(), `msg="action: forget connector" part=status audit=true who="uid `) {
			h.Errorf("the audit log says nothing of it:\n%s", h.log.text())
		}
	})
	web := fmt.Sprintf("[connector.hook]\ntype = \"http\"\nurl = %q\nkey = \"hook\"\nca = %q\n", hook.URL, hook.CA.File(h))
	h.brings("no-commands", "connector hook",
		func() {
			h.reload(base, web, "[[downlink]]\nname = \"set\"\nfrom = \"hook\"\ntopic = \"cmd/{device}\"\nresource = \"/set\"\n")
		},
		func() { h.reload(base, web) })
}
