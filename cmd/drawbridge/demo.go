package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func (a *app) demoVerb() *cobra.Command {
	d := &demo{out: a.out}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on this machine: gateway, devices, a local cloud, the page",
		Long: `Starts, in one process and on loopback alone, a gateway as run would, a TLS broker as the cloud, and a few simulated devices,
and tells in plain words what crosses. Its keys are made for the occasion, in software unless --chip names a token.
Ctrl-C ends it and leaves nothing behind.`,
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c.Context()) },
	}
	c.Flags().DurationVar(&d.length, "for", 0, "end when it has been up for this `time` (default: at Ctrl-C)")
	c.Flags().StringVar(&d.chip, "chip", "", "the `URI` under which the gateway's key is made, such as \"pkcs11:token=gw;object=demo?pin-source=file:/path\" or \"tpm:name=demo;device=unix:/path\"")
	c.Flags().BoolVar(&d.verbose, "log", false, "show the gateway's log as well")
	return c
}

// demo is one run of the demonstration.
type demo struct {
	out     io.Writer
	length  time.Duration
	chip    string
	verbose bool

	dir   string
	ports demoPorts

	mu sync.Mutex // one line at a time
}

// demoPorts are the addresses of the occasion.
type demoPorts struct{ CoAP, MQTT, Cloud, Page string }

var demoConfig = template.Must(template.New("demo").Parse(`[gateway]
id    = "demo"
state = "state"

[status]
listen = "{{.Page}}"
socket = "drawbridge.sock"

[log]
level = "{{.Level}}"

[key.identity]
uri  = {{printf "%q" .Key}}
cert = "identity.crt"

[listener.field]
type     = "coap"
listen   = "{{.CoAP}}"
security = ["psk"]
key      = "identity"

[listener.shop]
type     = "mqtt"
listen   = "{{.MQTT}}"
security = ["tls"]
key      = "identity"
auth     = ["password"]
{{range .Thermostats}}
[device.{{.}}]
groups = ["thermostat"]
psk    = "file:{{.}}.psk"
{{end}}{{range .Presses}}
[device.{{.}}]
groups   = ["press"]
password = "file:{{.}}.password"
{{end}}
[[allow]]
op        = "report"
groups    = ["thermostat", "press"]
resources = ["/sensors/{rest...}"]

[[allow]]
op         = "command"
connectors = ["cloud"]
groups     = ["thermostat", "press"]
resources  = ["/actuators/setpoint"]

[[uplink]]
name     = "sensors"
resource = "/sensors/{kind}"
to       = ["cloud"]
topic    = "dt/{gateway}/{device}/{kind}"

[[downlink]]
name     = "setpoint"
from     = "cloud"
topic    = "cmd/{gateway}/{device}/setpoint"
resource = "/actuators/setpoint"
reply    = "cmd/{gateway}/{device}/setpoint/reply"

[connector.cloud]
type = "mqtt"
url  = "mqtts://{{.Cloud}}"
key  = "identity"
ca   = "ca.crt"
`))

func (d *demo) run(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "drawbridge-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()

	began := time.Now()
	site, err := d.prepare(ctx)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}

	// Everything ends together: when ctx ends, or when a part fails.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop(nil)

	running.Go(func() {
		if err := broker.New(broker.Options{}).Serve(ctx, site.cloud); err != nil {
			stop(err)
		}
	})
	ready := make(chan struct{})
	running.Go(func() {
		var w io.Writer = io.Discard
		if d.verbose {
			w = d.out
		}
		p := parts{log: slog.New(slog.NewTextHandler(w, nil))}
		if err := serve(ctx, filepath.Join(d.dir, "drawbridge.toml"), p, func() { close(ready) }); err != nil {
			stop(err)
		}
	})
	select {
	case <-ready:
	case <-ctx.Done():
		return d.ended(ctx)
	}
	person, err := watchCloud(ctx, d.ports.Cloud, site.person, d.arrived)
	if err != nil {
		return fmt.Errorf("demo: the cloud: %w", err)
	}
	defer person.close()
	d.introduce(time.Since(began))
	for _, device := range site.devices {
		running.Go(func() { live(ctx, device, 3*time.Second, d.said) })
	}
	if d.length > 0 {
		end := time.AfterFunc(d.length, func() { stop(nil) })
		defer end.Stop()
	}
	running.Go(func() { d.command(ctx, person) })
	<-ctx.Done()
	return d.ended(ctx)
}

// ended gives the error with which the demo ends; none where a person or the clock ended it.
func (d *demo) ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// command lets the person at the cloud turn the set points up and down.
func (d *demo) command(ctx context.Context, person *cloudWatch) {
	targets := []struct {
		device string
		value  float64
	}{{"th-1", 23}, {"press-1", 6.5}, {"th-2", 19}, {"press-2", 5}, {"th-1", 20}, {"th-2", 21.5}}
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(4 * time.Second):
		}
		t := targets[i%len(targets)]
		d.line("cloud", "MQTT 5/TLS", fmt.Sprintf("commands %s: set point %.1f", t.device, t.value))
		if err := person.command(ctx, t.device, t.value); err != nil && ctx.Err() == nil {
			d.line("cloud", "MQTT 5/TLS", "command failed: "+err.Error())
		}
	}
}

// said tells what a device did.
func (d *demo) said(s saying) {
	switch {
	case s.err != nil:
		d.line(s.device, s.protocol, "has lost the gateway and tries again: "+s.err.Error())
	case s.reported == "":
		d.line(s.device, s.protocol, "obeys: set point "+s.payload)
	default:
		d.line(s.device, s.protocol, fmt.Sprintf("reports %s %s; on disk and answered yes after %s", s.reported, s.payload, milliseconds(s.took)))
	}
}

// arrived tells what came out at the cloud.
func (d *demo) arrived(topic string, payload []byte) {
	if device, ok := strings.CutSuffix(strings.TrimPrefix(topic, "cmd/demo/"), "/setpoint/reply"); ok {
		d.line("cloud", "MQTT 5/TLS", fmt.Sprintf("hears the reply of %s: %s", device, payload))
		return
	}
	d.line("cloud", "MQTT 5/TLS", fmt.Sprintf("receives %s %s", topic, payload))
}

func milliseconds(t time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(t.Microseconds())/1000)
}

func (d *demo) line(who, how, what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "%s  %-8s %-14s %s\n", time.Now().Format("15:04:05.000"), who, how, what)
}

func (d *demo) introduce(took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	coapHost, mqttPort := d.ports.CoAP, d.ports.MQTT[strings.LastIndexByte(d.ports.MQTT, ':')+1:]
	cloudPort := d.ports.Cloud[strings.LastIndexByte(d.ports.Cloud, ':')+1:]
	fmt.Fprintf(d.out, `Drawbridge is up after %.1f s: devices below, a TLS broker as the cloud above, all on loopback.

  devices  coaps://%s  (CoAP over DTLS 1.2: PSK, connection id)
           mqtts://%s  (MQTT 3.1.1 and 5 over TLS: password)
  cloud    mqtts://%s  (MQTT 5 over TLS, both sides with certificates)
  page     http://%s

Join in from another terminal:

  coap-client-openssl -m post -u guest-coap -k %s -t json -e '{"c":21.5}' coaps://%s/sensors/temp
  mosquitto_pub --cafile %s/ca.crt -h localhost -p %s -u guest-mqtt -P %s -i guest-mqtt -q 1 -t sensors/temp -m '{"c":22.5}'
  mosquitto_sub --cafile %s/ca.crt --cert %s/person.crt --key %s/person.key -h localhost -p %s -v -t 'dt/#'
  mosquitto_pub --cafile %s/ca.crt --cert %s/person.crt --key %s/person.key -h localhost -p %s -q 1 -t cmd/demo/th-1/setpoint -m 24
  go run ./cmd/drawbridge status --config %s/drawbridge.toml

Ctrl-C ends it and leaves nothing behind.

`, took.Seconds(), d.ports.CoAP, d.ports.MQTT, d.ports.Cloud, d.ports.Page,
		guestPSK, coapHost,
		d.dir, mqttPort, guestPassword,
		d.dir, d.dir, d.dir, cloudPort,
		d.dir, d.dir, d.dir, cloudPort,
		d.dir)
}

// The guest's credentials are printed for anybody who sits at this machine: they open nothing but this demo.
const (
	guestPSK      = "let-me-in-please"
	guestPassword = "let-me-in-please"
)

// demoSite is what prepare has made.
type demoSite struct {
	cloud   net.Listener
	person  *tls.Config
	devices []demoDevice
}
