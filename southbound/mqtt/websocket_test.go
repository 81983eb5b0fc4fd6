package mqtt

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// TestContractWebSocket holds MQTT over WebSocket to the same contract.
func TestContractWebSocket(t *testing.T) {
	d := driver3
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		configure(s, cfg, listen)
		cfg.(*Config).Transport = "websocket"
	}
	d.Dial = func(_ context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		o := paho3.NewClientOptions().AddBroker("wss://" + addr.String() + webPath).SetClientID(device).SetUsername(device).SetPassword(string(secret)).
			SetTLSConfig(clientTLS(s)).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second).SetOrderMatters(false)
		c := paho3.NewClient(o)
		token := c.Connect()
		token.Wait()
		return &device3{c}, token.Error()
	}
	southtest.Run(t, d)
}

func TestWebSocketElsewhere(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.Transport = "websocket" }))
	for path, want := range map[string]int{"/": http.StatusNotFound, webPath: http.StatusUpgradeRequired} {
		r, err := http.Get("http://" + b.Addr.String() + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, r.Status, want)
		}
	}
}

// TestNPM lets the client that most of Node's users take speak for itself, over TLS and over WebSocket.
func TestNPM(t *testing.T) {
	node, npm := program(t, "node"), program(t, "npm")
	dir := filepath.Join(os.TempDir(), "drawbridge-npm-mqtt-5.14.1")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "mqtt")); err != nil {
		if out, err := exec.Command(npm, "install", "--prefix", dir, "--no-audit", "--no-fund", "mqtt@5.14.1").CombinedOutput(); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("npm: %v\n%s", err, out)
			}
			t.Skipf("npm: %v", err)
		}
	}
	script := filepath.Join(dir, "client.mjs")
	if err := os.WriteFile(script, []byte(`
import mqtt from "mqtt"
import fs from "node:fs"
const [url, ca, user, password, version] = process.argv.slice(2)
const c = mqtt.connect(url, { ca: fs.readFileSync(ca), username: user, password, protocolVersion: +version, clientId: user + "-npm", reconnectPeriod: 0 })
c.on("error", e => { console.error(e); process.exit(1) })
c.on("message", (topic, m) => { console.log(topic, m.toString()); c.end() })
await new Promise(r => c.on("connect", r))
await c.subscribeAsync("shelf/#", { qos: 2 })
await c.publishAsync("shelf/a", "hello", { qos: 2 })
`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"mqtts", "wss"} {
		for _, version := range []string{"4", "5"} {
			d := driver5
			d.Configure = func(s *southtest.Site, cfg any, listen string) {
				configure(s, cfg, listen)
				if url == "wss" {
					cfg.(*Config).Transport = "websocket"
				}
			}
			b := southtest.Start(t, d)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			address := url + "://" + strings.Replace(b.Addr.String(), "127.0.0.1", "localhost", 1) + webPath
			out, err := exec.CommandContext(ctx, node, script, address, b.CAFile, "th-1", string(b.Secret("th-1")), version).CombinedOutput()
			cancel()
			if err != nil || string(out) != "shelf/a hello\n" {
				t.Errorf("%s version %s: %v\n%s", address, version, err, out)
			}
		}
	}
}
