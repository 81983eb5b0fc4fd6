package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func TestContractMQTT5(t *testing.T)   { southtest.Run(t, driver5) }
func TestContractMQTT311(t *testing.T) { southtest.Run(t, driver3) }
func TestContractCertificate(t *testing.T) {
	d := driver5
	d.Dial = func(ctx context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		conf := clientTLS(s)
		if string(secret) == string(s.Secret(device)) {
			conf.Certificates = []tls.Certificate{s.Issue(discard{}, device)}
		} else {
			conf.Certificates = []tls.Certificate{s.Issue(discard{}, "nobody")}
		}
		return dial5(ctx, addr, conf, &paho5.Connect{ClientID: device + "-1", CleanStart: true, KeepAlive: 30})
	}
	southtest.Run(t, d)
}

// discard is a testing.TB for what only needs one to complain.
type discard struct{ testing.TB }

func (discard) Helper() {}

func configure(s *southtest.Site, cfg any, listen string) {
	c := cfg.(*Config)
	c.Listen, c.Key, c.DeviceCA = listen, "identity", config.Path(s.CAFile)
}

func clientTLS(s *southtest.Site) *tls.Config {
	return &tls.Config{RootCAs: s.Roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

var driver5 = southtest.Driver{
	Kind:      func() southbound.Kind { return NewKind() },
	Configure: configure,
	Method:    "POST",
	Codes: map[msg.Reason]string{
		0: "0x00", msg.Denied: "0x87", msg.NoRoute: "0x10", msg.Full: "0x97", msg.BadPayload: "0x99", msg.TooLarge: "0x95",
		msg.Unavailable: "0x80", msg.Unconfirmed: "0x80", msg.Unprocessable: "0x83",
	},
	NotReadyRefused: true,
	Noise:           noise,
	Dial: func(ctx context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		return dial5(ctx, addr, clientTLS(s), &paho5.Connect{
			ClientID: device + "-1", CleanStart: true, KeepAlive: 30, Username: device, UsernameFlag: true, Password: secret, PasswordFlag: true,
		})
	},
}

type device5 struct{ c *paho5.Client }

func dial5(ctx context.Context, addr net.Addr, conf *tls.Config, cp *paho5.Connect) (*device5, error) {
	nc, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	c := paho5.NewClient(paho5.ClientConfig{Conn: packets5.NewThreadSafeConn(nc)})
	ack, err := c.Connect(ctx, cp)
	if err != nil {
		nc.Close()
		return nil, err
	}
	if ack.ReasonCode != 0 {
		return nil, fmt.Errorf("CONNACK 0x%02x", ack.ReasonCode)
	}
	return &device5{c}, nil
}

func (d *device5) Report(ctx context.Context, resource, mediaType string, payload []byte) (string, error) {
	p := &paho5.Publish{Topic: strings.TrimPrefix(resource, "/"), QoS: 1, Payload: payload, Properties: &paho5.PublishProperties{ContentType: mediaType}}
	r, err := d.c.Publish(ctx, p)
	if r != nil {
		return fmt.Sprintf("0x%02x", r.ReasonCode), nil
	}
	return "", err
}

func (d *device5) Expose(ctx context.Context, resource string, answer func([]byte) []byte) error {
	topic := strings.TrimPrefix(resource, "/")
	d.c.AddOnPublishReceived(func(r paho5.PublishReceived) (bool, error) {
		if r.Packet.Topic != topic {
			return false, nil
		}
		if a := answer(r.Packet.Payload); a != nil {
			reply := &paho5.Publish{Topic: r.Packet.Properties.ResponseTopic, Payload: a, Properties: &paho5.PublishProperties{
				CorrelationData: r.Packet.Properties.CorrelationData,
			}}
			_, err := d.c.Publish(ctx, reply)
			return true, err
		}
		return true, nil
	})
	_, err := d.c.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: topic, QoS: 1}}})
	return err
}

func (d *device5) Close() error { return d.c.Disconnect(&paho5.Disconnect{}) }

// driver3 is a client of MQTT 3.1.1: it hears no as the end of its connection.
var driver3 = func() southtest.Driver {
	d := driver5
	d.NoMediaType = true
	d.Codes = map[msg.Reason]string{0: "yes", msg.NoRoute: "yes"}
	d.Dial = func(_ context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		o := paho3.NewClientOptions().AddBroker("tls://" + addr.String()).SetClientID(device).SetUsername(device).SetPassword(string(secret)).
			SetTLSConfig(clientTLS(s)).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience).SetOrderMatters(false).
			SetWriteTimeout(5 * time.Second) // else a publish as the connection ends may wait for half a minute
		c := paho3.NewClient(o)
		token := c.Connect()
		token.Wait()
		return &device3{c}, token.Error()
	}
	return d
}()

type device3 struct{ c paho3.Client }

func (d *device3) Report(ctx context.Context, resource, _ string, payload []byte) (string, error) {
	token := d.c.Publish(strings.TrimPrefix(resource, "/"), 1, false, payload)
	select {
	case <-token.Done():
		if token.Error() != nil {
			return "", token.Error()
		}
		return "yes", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (d *device3) Expose(_ context.Context, resource string, answer func([]byte) []byte) error {
	topic := strings.TrimPrefix(resource, "/")
	token := d.c.Subscribe(topic, 1, func(c paho3.Client, m paho3.Message) {
		if a := answer(m.Payload()); a != nil {
			c.Publish(topic+"/reply", 1, false, a).Wait()
		}
	})
	token.Wait()
	return token.Error()
}

func (d *device3) Close() error {
	d.c.Disconnect(0)
	return nil
}

// noise sends what is not MQTT, or not quite, before and after log-in.
func noise(ctx context.Context, t *testing.T, s *southtest.Site, addr net.Addr) {
	secret := string(s.Secret("th-2"))
	login := "\x10" + string(rune(22+len(secret))) + "\x00\x04MQTT\x05\xc2\x00\x3c\x00" + "\x00\x01x" + "\x00\x04th-2" + "\x00" + string(rune(len(secret))) + secret
	var wg sync.WaitGroup
	for _, bytes := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x10\xff\xff\xff\xff", "\x10\xff\xff\xff\x7f", "\x00\x00", "\x30\x00", "\xf0\x00", "\x10\x00",
		login + "\x82\x03\x00\x01\x00", login + "\x82\x06\x00\x01\x00\x00\x01a", login + "\x36\x00", login + "\x30\x02\x00\x05",
		login + "\x62\x00", login + login, login + "\x10\x00", login + "\x30\xff\xff\xff\x7f", login + "\xa2\x02\x00\x00",
	} {
		wg.Go(func() {
			nc, err := (&tls.Dialer{Config: clientTLS(s)}).DialContext(ctx, "tcp", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			if _, err := io.WriteString(nc, bytes); err != nil {
				return
			}
			nc.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%q: the connection stays open", bytes)
			}
		})
	}
	plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	if err == nil {
		io.WriteString(plain, "not a TLS hello at all\n")
		plain.Close()
	}
	wg.Wait()
}
