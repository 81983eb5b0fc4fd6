package mqtt

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	paho3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// TestContractWebSocket holds MQTT over WebSocket to the same contract.
func TestContractWebSocket(t *testing.T) {
	d := driver3
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		configure(s, cfg, listen)
		cfg.(*Config).Transport = "websocket"
		cfg.(*Config).ConnectTimeout = config.Duration(5 * time.Second) // that long garbage is waited for which is no request yet
	}
	d.Dial = func(_ context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		o := paho3.NewClientOptions().AddBroker("wss://" + addr.String() + webPath).SetClientID(device).SetUsername(device).SetPassword(string(secret)).
			SetTLSConfig(clientTLS(s)).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience).SetOrderMatters(false)
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

// TestNPM lets the client that most of Node's users take go through its options, over TLS and over WebSocket.
func TestNPM(t *testing.T) {
	node, npm := needs.Program(t, "node"), needs.Program(t, "npm")
	const dir = "testdata/npm"
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "mqtt", "package.json")); err != nil {
		install := exec.CommandContext(t.Context(), npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	var all sync.WaitGroup // as they mostly wait, all at once
	defer all.Wait()
	for _, url := range []string{"mqtts", "wss"} {
		for _, version := range []string{"4", "5"} {
			all.Go(func() {
				t.Run(url+" version "+version, func(t *testing.T) {
					d := driver5
					d.Configure = func(s *southtest.Site, cfg any, listen string) {
						configure(s, cfg, listen)
						cfg.(*Config).Auth = []string{"password", "jwt"}
						if url == "wss" {
							cfg.(*Config).Transport = "websocket"
						}
					}
					b := southtest.Start(t, d)
					b.Allow(nothingForbidden)
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
					defer cancel()
					address := url + "://" + strings.Replace(b.Addr.String(), "127.0.0.1", "localhost", 1) + webPath
					client := exec.CommandContext(ctx, node, "client.mjs", address, b.CAFile, "th-1", string(b.Secret("th-1")), version)
					client.Dir = dir
					if out, err := client.CombinedOutput(); err != nil || string(out) != "well\n" {
						t.Errorf("%v\n%s", err, out)
					}
				})
			})
		}
	}
}

// nothingForbidden lets devices do everything but what is called forbidden.
func nothingForbidden(_ *auth.Identity, _ auth.Op, s string) bool {
	return !strings.HasPrefix(strings.TrimPrefix(s, "/"), "forbidden")
}
