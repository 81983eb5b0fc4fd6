package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	piondtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/options"
)

// demoDevice is a simulated device. run reports a reading every few seconds and obeys a set point, until ctx ends.
type demoDevice interface {
	run(ctx context.Context, each time.Duration, say func(saying)) error
	said(resource, payload string, took time.Duration, err error) saying
}

// live lets the device report until ctx ends. Where it loses the gateway it says so and connects again, as devices do.
func live(ctx context.Context, d demoDevice, each time.Duration, say func(saying)) {
	for ctx.Err() == nil {
		if err := d.run(ctx, each, say); err != nil && ctx.Err() == nil {
			say(d.said("", "", 0, err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// saying is what a device tells the view.
type saying struct {
	device, protocol string
	reported         string        // resource; empty where the device obeys a command
	payload          string        //
	took             time.Duration // until the gateway said yes
	err              error         // not nil: it could not; it tries again
}

// reading is a plausible value that wanders towards its set point.
type reading struct {
	mu         sync.Mutex
	value, set float64 // guarded by mu
}

func (r *reading) next() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value += (r.set-r.value)*0.2 + (rand.Float64()-0.5)*0.4
	return math.Round(r.value*10) / 10
}

// obey takes a set point, and gives the device's own words about it.
func (r *reading) obey(command []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := fmt.Sscan(string(command), &r.set); err != nil {
		return "not a number"
	}
	return fmt.Sprintf("set to %.1f", r.set)
}

// thermostat is a device on CoAP over DTLS with a PSK and a connection id.
type thermostat struct {
	name, address string
	psk           []byte
	reading
}

func (d *thermostat) said(resource, payload string, took time.Duration, err error) saying {
	return saying{d.name, "CoAP/DTLS PSK", resource, payload, took, err}
}

func (d *thermostat) run(ctx context.Context, each time.Duration, say func(saying)) error {
	router := mux.NewRouter()
	router.HandleFunc("/actuators/setpoint", func(w mux.ResponseWriter, r *mux.Message) {
		body, err := r.ReadBody()
		if err != nil {
			return
		}
		say(d.said("", string(body), 0, nil))
		w.SetResponse(codes.Changed, message.TextPlain, strings.NewReader(d.obey(body)))
	})
	conn, err := coapdtls.Dial(d.address, coapdtls.NewDTLSClientOptions(
		piondtls.WithPSK(func([]byte) ([]byte, error) { return d.psk, nil }),
		piondtls.WithPSKIdentityHint([]byte(d.name)),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		piondtls.WithConnectionIDGenerator(piondtls.OnlySendCIDGenerator()),
	), options.WithMux(router), options.WithContext(ctx))
	if err != nil {
		return err
	}
	defer conn.Close()
	return every(ctx, each, func() error {
		payload := fmt.Sprintf(`{"c":%.1f}`, d.next())
		began := time.Now()
		resp, err := conn.Post(ctx, "/sensors/temp", message.AppJSON, strings.NewReader(payload))
		if err == nil && resp.Code() != codes.Changed {
			err = fmt.Errorf("the gateway answered %v", resp.Code())
		}
		if err == nil {
			say(d.said("/sensors/temp", payload, time.Since(began), nil))
		}
		return err
	})
}

// press is a device on MQTT 5 over TLS with a password.
type press struct {
	name, address, password string
	tls                     *tls.Config
	reading
}

func (d *press) said(resource, payload string, took time.Duration, err error) saying {
	return saying{d.name, "MQTT 5/TLS", resource, payload, took, err}
}

func (d *press) run(ctx context.Context, each time.Duration, say func(saying)) error {
	conn, err := (&tls.Dialer{Config: d.tls}).DialContext(ctx, "tcp", d.address)
	if err != nil {
		return err
	}
	gone := make(chan error, 2)
	var client *paho.Client
	client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), // its pings would get between the pieces of other packets
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			words := d.obey(p.Packet.Payload)
			say(d.said("", string(p.Packet.Payload), 0, nil))
			if pr := p.Packet.Properties; pr != nil && pr.ResponseTopic != "" {
				answer := &paho.Publish{Topic: pr.ResponseTopic, QoS: 1, Payload: []byte(words),
					Properties: &paho.PublishProperties{CorrelationData: pr.CorrelationData}}
				go client.Publish(ctx, answer) // an answer waits for its PUBACK, which comes through this same reader
			}
			return true, nil
		}},
		OnClientError:      func(err error) { gone <- err },
		OnServerDisconnect: func(p *paho.Disconnect) { gone <- fmt.Errorf("the gateway disconnected: 0x%02x", p.ReasonCode) },
	})
	_, err = client.Connect(ctx, &paho.Connect{ClientID: d.name, Username: d.name, UsernameFlag: true,
		Password: []byte(d.password), PasswordFlag: true, KeepAlive: 30, CleanStart: true})
	if err != nil {
		return err
	}
	defer client.Disconnect(&paho.Disconnect{})
	if _, err = client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "actuators/setpoint", QoS: 1}}}); err != nil {
		return err
	}
	return every(ctx, each, func() error {
		select {
		case err := <-gone:
			return err
		default:
		}
		payload := fmt.Appendf(nil, `{"bar":%.1f}`, d.next())
		began := time.Now()
		_, err := client.Publish(ctx, &paho.Publish{Topic: "sensors/pressure", QoS: 1, Payload: payload})
		if err == nil {
			say(d.said("/sensors/pressure", string(payload), time.Since(began), nil))
		}
		return err
	})
}

// every calls f now and then every d, give or take a tenth, until it fails or ctx ends.
func every(ctx context.Context, d time.Duration, f func() error) error {
	for {
		if err := f(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d - d/10 + rand.N(d/5)):
		}
	}
}

// cloudWatch is a person at the cloud: it sees every publication and commands set points, over TLS like anybody.
type cloudWatch struct {
	client *paho.Client
}

func watchCloud(ctx context.Context, address string, conf *tls.Config, each func(topic string, payload []byte)) (*cloudWatch, error) {
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), // its pings would get between the pieces of other packets
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			each(p.Packet.Topic, bytes.Clone(p.Packet.Payload))
			return true, nil
		}},
	})
	if _, err = c.Connect(ctx, &paho.Connect{ClientID: "person", KeepAlive: 30, CleanStart: true}); err != nil {
		return nil, err
	}
	_, err = c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "dt/#", QoS: 1}, {Topic: "cmd/+/+/setpoint/reply", QoS: 1}}})
	if err != nil {
		return nil, err
	}
	return &cloudWatch{c}, nil
}

func (w *cloudWatch) command(ctx context.Context, device string, value float64) error {
	_, err := w.client.Publish(ctx, &paho.Publish{Topic: "cmd/demo/" + device + "/setpoint", QoS: 1, Payload: fmt.Appendf(nil, "%.1f", value)})
	return err
}

func (w *cloudWatch) close() { w.client.Disconnect(&paho.Disconnect{}) }

// freePort gives the port that people know where it is free, else any.
func freePort(network, wanted string) string {
	host := "127.0.0.1:"
	for _, port := range []string{wanted, "0"} {
		var c io.Closer
		var address string
		if network == "udp" {
			p, err := net.ListenPacket(network, host+port)
			if err != nil {
				continue
			}
			c, address = p, p.LocalAddr().String()
		} else {
			l, err := net.Listen(network, host+port)
			if err != nil {
				continue
			}
			c, address = l, l.Addr().String()
		}
		c.Close()
		return address
	}
	return host + wanted
}
