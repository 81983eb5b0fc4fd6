package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/supervise"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// tokens serves an issuer's endpoints. It answers with an error while down.
type tokenServer struct {
	*httptest.Server
	down atomic.Bool
	n    atomic.Int64
}

func (h *house) tokenServer(ca northtest.CA) *tokenServer {
	s := &tokenServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		answer := map[string]any{}
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			answer = map[string]any{"issuer": s.URL, "authorization_endpoint": s.URL + "/authorize", "token_endpoint": s.URL + "/token", "device_authorization_endpoint": s.URL + "/device", "jwks_uri": s.URL + "/jwks"}
		case "/device":
			answer = map[string]any{"device_code": "d", "user_code": "u", "verification_uri": s.URL, "expires_in": 600, "interval": 1}
		case "/token":
			n := s.n.Add(1)
			answer = map[string]any{"access_token": fmt.Sprint("access-token-", n), "token_type": "Bearer", "expires_in": 600, "refresh_token": fmt.Sprint("refresh ", n)}
		case "/jwks":
			answer = map[string]any{"keys": []any{}}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answer)
	}))
	s.TLS = ca.Server(h)
	s.TLS.ClientAuth = 0
	s.StartTLS()
	h.Cleanup(s.Close)
	return s
}

// toHook gives the sections of a web service that is shown a token, and of a route to it.
func toHook(hook *northtest.Webhook, ca string) string {
	return fmt.Sprintf(`[connector.hook]
type = "http"
url = %q
key = "hook"
ca = %q
token = "access"
[[uplink]]
name = "hook"
resource = "/hook/{kind}"
to = ["hook"]
topic = "dt/{device}/{kind}"
`, hook.URL, ca)
}

func (h *house) tokensFail() {
	hook := northtest.NewWebhook(h)
	s := h.tokenServer(hook.CA)
	ca := hook.CA.File(h)
	h.write("secret", []byte("client secret"))
	h.configure(h.key("hook", hook.CA, broker.Subject{Name: "gw1"}), shop, toHook(hook, ca), fmt.Sprintf(`[token.access]
token_url = "%s/token"
client_id = "gw1"
client_auth = "client_secret_post"
client_secret = "file:secret"
ca = %q
`, s.URL, ca))
	s.down.Store(true)
	h.start()
	defer h.hurry("hook")()
	device := h.device("th-1")
	defer device.Close()
	defer h.meanwhile(func() { device.publish5("hook/x", []byte("1")) })()
	h.brings("token-missing", "token access", func() {}, func() {
		s.down.Store(false)
		h.pass(6 * time.Minute)
	})
	h.brings("token-late", "token access", func() {
		s.down.Store(true)
		h.pass(9 * time.Minute) // of 10
	}, func() {
		s.down.Store(false)
		h.pass(time.Minute)
	})
}

func (h *house) diskFull() {
	state := h.path("state")
	if err := os.Mkdir(state, 0o700); err != nil {
		h.Fatal(err)
	}
	mountSmall(h, state)
	h.Cleanup(func() {
		if h.stop != nil {
			h.stop()
		}
	})
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	hook := northtest.NewWebhook(h)
	s := h.tokenServer(hook.CA)
	ca := hook.CA.File(h)
	h.configure(h.identity(b.CA), h.key("hook", hook.CA, broker.Subject{Name: "gw1"}), shop, toCloud, toHook(hook, ca),
		connectorTo("cloud", b.CA, h, b.Addr), fmt.Sprintf(`[spool]
max_size = "16MiB"
[[allow]]
op = "publish"
resources = ["#"]
[token.access]
issuer = %q
grant = "refresh_token"
client_id = "gw1"
client_auth = "none"
key = "hook"
ca = %q
`, s.URL, ca))
	h.start()
	if err := h.gateway.tokens.Enroll(h.Context(), "access", func(auth.DevicePrompt) {}); err != nil {
		h.Fatal(err)
	}
	defer h.hurry("cloud")()
	device := h.device("th-1")
	defer device.Close()
	if code, err := device.publish5("hook/x", []byte("1")); code != 0 || err != nil {
		h.Fatal(code, err)
	}
	eventually(h, "the hook to have a report, and so a token", func() bool { return len(hook.Received()) > 0 })

	h.gateway.bridge.Pause("hook")
	if code, err := device.publish5("hook/x", []byte("2")); code != 0 || err != nil {
		h.Fatal(code, err)
	}
	// A cloud that takes neither yes nor no holds a letter back that it will refuse.
	m.set("not now")
	for range 10 {
		if code, err := device.publish5("sensors/x", make([]byte, 64<<10)); code != 0 || err != nil {
			h.Fatal(code, err)
		}
	}
	filler, err := os.Create(filepath.Join(state, "filler"))
	if err != nil {
		h.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	m.set("never")
	other := h.device("th-2")
	defer other.Close()
	calm := h.meanwhile(func() {
		retained := append(mqttString(nil, "notes"), 0, 1, 0)
		other.Write(mqttPacket(0x33, append(retained, make([]byte, 512<<10)...)))
		other.readPacket(nil)
	})
	defer func() { calm() }()
	letters := h.appears("dead-letters-failing", "connector cloud")
	store := h.appears("mqtt-store-failing", "listener shop")
	h.pass(9 * time.Minute)
	h.gateway.bridge.Resume("hook")
	unkept := h.appears("token-unkept", "token access")
	if err := os.Remove(filler.Name()); err != nil {
		h.Fatal(err)
	}
	h.goes(store)
	h.goes(letters)
	h.pass(9 * time.Minute)
	if code, err := device.publish5("hook/x", []byte("3")); code != 0 || err != nil {
		h.Fatal(code, err)
	}
	h.goes(unkept)
}

// stretch finds the files below dir whose name ends so.
func stretch(dir, suffix string) (found []string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, suffix) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

func (h *house) filesDamaged() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	h.configure(h.identity(b.CA), shop, toCloud, connectorTo("cloud", b.CA, h, b.Addr))
	m.set("nobody")
	h.start()
	mark := []byte("what the device has measured")
	for range 20 {
		h.report("th-1", "sensors/x", bytes.Repeat(mark, 100))
	}
	h.stop()
	hit := false
	for _, path := range stretch(h.path("state/spool"), "") {
		data, err := os.ReadFile(path)
		if err != nil {
			h.Fatal(err)
		}
		if first := bytes.Index(data, mark); first >= 0 && !hit {
			hit = true
			at := first + 20_000 + bytes.Index(data[first+20_000:], mark)
			copy(data[at:], "a disk that lies") // in a record with others behind it
			if err := os.WriteFile(path, data, 0o600); err != nil {
				h.Fatal(err)
			}
		}
	}
	db := h.path("state/bridge/bridge.db")
	data, err := os.ReadFile(db)
	if err != nil || !hit {
		h.Fatal(err, hit)
	}
	clear(data)
	if err := os.WriteFile(db, data, 0o600); err != nil {
		h.Fatal(err)
	}
	m.set("")
	h.start()
	store := h.appears("bridge-store-damaged", "")
	queue := h.appears("spool-damaged", "")
	// The loss stays to be seen until somebody says that it was.
	h.stop()
	h.start()
	h.goes(store)
	h.appears("spool-damaged", "")
	if out, code := h.verb("spool", "acknowledge"); code != exitYes || !strings.Contains(out, "lost, which somebody knows of now\n") {
		h.Errorf("acknowledge: %d %s", code, out)
	}
	if !strings.Contains(h.log.text(), `msg="action: acknowledge damage" part=status audit=true who="uid `) {
		h.Errorf("the audit log says nothing of it:\n%s", h.log.text())
	}
	h.goes(queue)
	h.stop()
	h.start()
	if out := h.get("/status.json"); strings.Contains(out, "spool-damaged") {
		h.Errorf("after a restart nobody has seen it: %s", out)
	}
}

func (h *house) commandsSleep() {
	b := northtest.NewBroker(h, broker.Options{})
	beds := ""
	for i := range 8 {
		beds += fmt.Sprintf("[device.bed-%d]\nsleepy = true\n", i)
	}
	h.configure(h.identity(b.CA), shop, beds, connectorTo("cloud", b.CA, h, b.Addr), `
[[downlink]]
name = "set"
from = "cloud"
topic = "cmd/{device}/set"
resource = "/set"
`)
	h.start()
	eventually(h, "the connector to take commands", func() bool {
		b.Publish(broker.Message{Topic: "cmd/bed-0/set", Payload: []byte("1"), QoS: 1})
		return strings.Contains(h.get("/metrics"), "\ndrawbridge_commands_queued ") && !strings.Contains(h.get("/metrics"), "\ndrawbridge_commands_queued 0\n")
	})
	h.brings("mailboxes-full", "", func() {
		for i := 0; !h.has("mailboxes-full"); i++ {
			if i > 1000 {
				h.Fatal("32 MiB of commands do not fill the mailboxes")
			}
			eventually(h, "the gateway to keep up", func() bool { return b.Unconfirmed("gw1") < 8 })
			b.Publish(broker.Message{Topic: fmt.Sprintf("cmd/bed-%d/set", i%8), Payload: make([]byte, 64<<10), QoS: 1})
		}
	}, func() {
		c, err := dialMQTT(h.Context(), h.at("shop"), nil, wireOptions{clientID: "bed-1"})
		if err != nil {
			h.Fatal(err)
		}
		h.Cleanup(func() { c.Close() })
		if err := c.subscribe("set", 1, func(string, []byte) {}); err != nil {
			h.Fatal(err)
		}
	})
}

func (h *house) partFails() {
	h.configure(shop)
	h.start()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.Fatal(err)
	}
	defer taken.Close()
	second := strings.NewReplacer("[listener.shop]", "[listener.yard]", "127.0.0.1:0", taken.Addr().String()).Replace(shop[:strings.Index(shop, "[[allow]]")])
	h.brings("task-failed", "task listener yard", func() {
		h.configure(shop, second)
		if out, code := h.verb("reload"); code != exitFailed || !strings.Contains(out, "reload: listener yard: ") {
			h.Fatalf("reload: %d %s", code, out)
		}
		eventually(h, "readyz to name it", func() bool { return strings.Contains(h.get("/readyz"), "listener yard: not bound: ") })
	}, func() {
		h.reload(shop, strings.Replace(second, taken.Addr().String(), "127.0.0.1:0", 1))
		eventually(h, "readyz to be content", func() bool { return h.get("/readyz") == "ready\n" })
	})
}

func (h *house) partHangs() {
	h.configure(shop)
	h.start()
	release := make(chan struct{})
	h.brings("task-stuck", "task hanging", func() {
		h.gateway.sup.Go(h.gateway.tasks, "hanging", func(ctx context.Context, t *supervise.Task) error {
			t.Progress(time.Millisecond)
			<-release
			t.Waiting()
			<-ctx.Done()
			return nil
		})
		// So the gateway looks before it feeds the watchdog.
		eventually(h, "the part to be late", func() bool { return len(h.gateway.sup.Stuck()) > 0 })
	}, func() {
		close(release)
		eventually(h, "the part to go on", func() bool { return len(h.gateway.sup.Stuck()) == 0 })
	})
}

func (h *house) clockWrong() {
	h.configure(shop)
	h.start()
	h.stop()
	look := func(ctx context.Context) error { return h.gateway.clock.Run(ctx, h.gateway.tracker.For("clock")) }
	h.brings("clock-wrong", "clock", func() {
		h.pass(-20 * 365 * 24 * time.Hour) // a battery has run out
		h.start()
	}, func() {
		h.pass(20 * 365 * 24 * time.Hour)
		h.again(look, func() {
			eventually(h, "the clock to be believed", func() bool { return !strings.Contains(h.get("/healthz"), "clock-wrong") })
		})
	})
}
