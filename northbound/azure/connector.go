package azure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// SubscriptionRefused is the problem of a namespace that does not let the gateway wait for some commands. Reports go on.
var SubscriptionRefused = health.Code{
	Name:     "azure-subscription-refused",
	Title:    "Event Grid does not let the gateway wait for some commands",
	Severity: health.Degraded,
	Hint:     "bind the client's group as a subscriber to a topic space with these topics",
}

// Connector reaches one IoT Hub or Event Grid namespace.
type Connector struct {
	env  northbound.Env
	cfg  Config
	sent atomic.Int64
	read atomic.Int64

	bearer       *mqtt.Bearer
	leastRenewal time.Duration // between two re-authentications
	leastPoll    time.Duration // between two questions to the provisioning service

	mu       sync.Mutex
	assigned map[string]assignment // guarded by mu: what the provisioning service said, by registration
	twins    map[string]*twin      // guarded by mu: by device
}

// twin is what was delivered of a device's desired properties. Its mutex is held during deliveries: they come one by one.
type twin struct {
	mu      sync.Mutex
	version int64 // guarded by mu: $version
}

func (c *Connector) twin(device string) *twin {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.twins[device]
	if t == nil {
		t = &twin{}
		c.twins[device] = t
	}
	return t
}

func open(env northbound.Env, cfg any) (northbound.Connector, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("connector %s: configuration of type %T", env.Name, cfg)
	}
	return &Connector{
		env: env, cfg: *c, bearer: mqtt.NewBearer(env.Tokens, c.Token), leastRenewal: renewPause, leastPoll: leastPoll,
		assigned: map[string]assignment{}, twins: map[string]*twin{},
	}, nil
}

// Limits is northbound.Limited's.
func (c *Connector) Limits() northbound.Limits {
	if c.cfg.Service == "eventgrid" {
		return northbound.Limits{Payload: gridPacket - 1024, Topic: gridTopic, TopicLevels: gridLevels, KeepAlive: gridKeepAlive}
	}
	return northbound.Limits{Payload: hubPayload, Topic: hubTopic, KeepAlive: hubKeepAlive}
}

// Counters is northbound.Counters'.
func (c *Connector) Counters() map[string]int64 {
	return map[string]int64{"octets_sent": c.sent.Load(), "octets_received": c.read.Load()}
}

func (c *Connector) deviceID() string {
	if c.cfg.DeviceID != "" {
		return c.cfg.DeviceID
	}
	return c.env.Gateway
}

// Dial is northbound.Connector's.
func (c *Connector) Dial(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	if c.cfg.Service == "eventgrid" {
		return c.dialGrid(ctx, down)
	}
	if c.cfg.Identities == "device" {
		return c.dialFleet(ctx, down)
	}
	return c.dialHub(ctx, c.deviceID(), down)
}

// options are what every session of the connector has in common.
func (c *Connector) options() mqtt.Options {
	return mqtt.Options{
		KeepAlive: time.Duration(c.cfg.KeepAlive), MaxQoS: 1, Now: c.env.Now, Sent: &c.sent, Read: &c.read,
	}
}

// key gives the name of the key with which a device or registration logs in: its own, where each has one.
func (c *Connector) key(device string) string {
	gateway := device == c.deviceID() || device == c.cfg.Registration
	if c.cfg.DeviceKey == "" || gateway && c.cfg.Key != "" {
		return c.cfg.Key
	}
	return strings.ReplaceAll(c.cfg.DeviceKey, "{device}", device)
}

// address makes the way of a device to host (HOST or HOST:PORT); path is that of MQTT over WebSocket at port 443.
func (c *Connector) address(ctx context.Context, device, host, path string) (mqtt.Address, error) {
	a := mqtt.Address{URL: &url.URL{Scheme: "mqtts", Host: host}, TLS: &tls.Config{MinVersion: tls.VersionTLS12, Time: c.env.Now}, Net: c.env.Dial}
	if _, port, err := net.SplitHostPort(host); err == nil && port == "443" {
		a.URL.Scheme, a.URL.Path = "wss", path
		a.TLS.NextProtos = []string{"http/1.1"}
	}
	if c.cfg.CA != "" {
		roots, err := mqtt.LoadCA(string(c.cfg.CA))
		if err != nil {
			return a, err
		}
		a.TLS.RootCAs = roots
	}
	if c.cfg.Auth == "x509" {
		cert, err := c.env.Keys.Certificate(ctx, c.key(device))
		if err != nil {
			return a, c.noKey(device, err)
		}
		a.TLS.Certificates = []tls.Certificate{*cert}
	}
	return a, nil
}

// signature makes a shared access signature of a device (or registration) for resource, and says when it ends.
func (c *Connector) signature(ctx context.Context, device, resource, policy string) (string, time.Time, error) {
	key, err := c.env.Keys.MAC(ctx, c.key(device))
	if err == nil && c.cfg.Group {
		key, err = auth.DeviceKey(ctx, key, device)
	}
	if err != nil {
		return "", time.Time{}, c.noKey(device, err)
	}
	expires := c.env.Now().Add(time.Duration(c.cfg.TokenLife)).Truncate(time.Second)
	token, err := auth.SharedAccessSignature(ctx, key, resource, policy, expires)
	if err != nil {
		return "", time.Time{}, c.noKey(device, err)
	}
	return token, expires, nil
}

// noKey is the error of a key that cannot be used. One of many devices for which the file names none is refused: the others go on.
func (c *Connector) noKey(device string, err error) error {
	err = fmt.Errorf("key %s: %w", c.key(device), err)
	if errors.Is(err, hwcrypto.ErrNoKey) && c.key(device) != c.cfg.Key {
		return msg.Permanent(err)
	}
	return err
}

// bare gives the host without its port.
func bare(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// subscribe asks for filters. What is refused is a problem, not an end.
func (c *Connector) subscribe(ctx context.Context, s *mqtt.Session, filters []string) error {
	err := s.Subscribe(ctx, filters...)
	if _, refused := errors.AsType[*mqtt.RefusedFilter](err); refused {
		c.env.Health.Set(&SubscriptionRefused, err.Error())
		return nil
	}
	if err == nil {
		c.env.Health.Clear(&SubscriptionRefused)
	}
	return err
}

// Examine is northbound.Examined's. A hub has one connection for each device, so examining it ends the session of a gateway that runs
// for a moment; and it passes nothing back, so there is no echo.
func (c *Connector) Examine(ctx context.Context, step func(northbound.Step)) {
	step = northbound.ExplainSteps(step, c.hints())
	if c.cfg.Service == "eventgrid" {
		address, o, _, err := c.gridLogin(ctx)
		if err != nil {
			step(northbound.Step{Name: "log-in", Err: err})
			return
		}
		if conn, err := address.Dial(ctx, step); err == nil {
			mqtt.Examine(ctx, conn, o, address, "drawbridge/"+c.env.Gateway+"/doctor", step)
		}
		return
	}
	began := time.Now()
	told := func(name, note string, err error) {
		step(northbound.Step{Name: name, Took: time.Since(began), Note: note, Err: err})
		began = time.Now()
	}
	address, o, _, err := c.hubLogin(ctx, c.deviceID())
	if err != nil {
		told("log-in", "", err)
		return
	}
	conn, err := address.Dial(ctx, step)
	if err != nil {
		return // the step that failed has been told
	}
	began = time.Now()
	s, err := mqtt.Start(ctx, conn, o)
	if err != nil {
		told("log-in", o.Username, address.Explain(err))
		return
	}
	defer s.Close()
	told("log-in", o.Username, nil)
	p := msg.Publication{ID: msg.NewID(c.env.Now()), Time: c.env.Now(), Topic: "drawbridge/doctor", QoS: 1}
	p.Topic = eventsTopic(o.ClientID, &p)
	told("publish", p.Topic, s.Publish(ctx, p))
}
