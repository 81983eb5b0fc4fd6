package mqtt_test

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// platforms are what each preset's platform takes, and what it does not.
var platforms = map[string]struct {
	version  byte
	clientID string
	username string
	clean    bool
	good     []string
	bad      []string
	qos      byte      // of what arrives, where QoS 2 was asked for
	payload  int       // 0: any
	command  [2]string // a filter of downlinks, and a topic on which a command comes
}{
	"thingspeak": {5, "gw1", "gw1", true, []string{"channels/42/publish", "channels/42/publish/fields/field8"}, []string{"channels/42/publish/fields/field9", "dt/x"}, 0, 0, [2]string{"channels/42/subscribe/fields/+", "channels/42/subscribe/fields/field1"}},
	"kaa":        {5, "gw1", "gw1", true, []string{"kp1/app/dcx/token/json/7"}, []string{"kp1/app", "dt/x"}, 1, 0, [2]string{"kp1/app/cex/token/command/reboot/status", "kp1/app/cex/token/command/reboot/status"}},
	"hono":       {5, "gw1", "gw1", true, []string{"t", "e//th-17", "telemetry/tenant/th-17", "c//th-17/s/1/200"}, []string{"tele", "x/t"}, 1, 2048, [2]string{"c//+/q/#", "c//th-17/q/17f/set"}},
	"cumulocity": {5, "gw1", "gw1", true, []string{"s/us", "s/us/th-17", "measurement/measurements/create", "t/us"}, []string{"s/ds", "dt/x"}, 2, 16184, [2]string{"s/ds", "s/ds"}},
	"ibm-mq":     {4, "gw1", "gw1", false, []string{"any/topic"}, nil, 2, 0, [2]string{"cmd/#", "cmd/th-17/set"}},
	"emqx":       {5, "gw1", "gw1", false, []string{"any/topic"}, nil, 2, 0, [2]string{"cmd/#", "cmd/th-17/set"}},
	"hivemq":     {5, "gw1", "gw1", false, []string{"any/topic"}, nil, 2, 0, [2]string{"cmd/#", "cmd/th-17/set"}},
	"watson":     {4, "g:org:gw:gw1", "use-token-auth", false, []string{"iot-2/type/t/id/d/evt/e/fmt/json", "iot-2/evt/e/fmt/json"}, []string{"iot-2/type/t/id/d/cmd/e/fmt/json"}, 2, 0, [2]string{"iot-2/type/+/id/+/cmd/+/fmt/+", "iot-2/type/t/id/th-17/cmd/set/fmt/json"}},
}

func TestPresets(t *testing.T) {
	for name, p := range platforms {
		t.Run(name, func(t *testing.T) {
			logins := make(chan *broker.Login, 10)
			b := northtest.NewBroker(t, broker.Options{Admit: func(l *broker.Login) broker.Answer {
				logins <- l
				return broker.Answer{}
			}})
			c := connector(t, b.CA, b.Addr, func(c *mqtt.Config) {
				c.Preset, c.ClientID = name, p.clientID
				if p.username != "use-token-auth" {
					c.Username = p.username
				}
			})
			d := &northtest.Downlink{Filters: p.command[:1]}
			s, err := c.Dial(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if l := <-logins; l.Version != p.version || l.ClientID != p.clientID || l.Username != p.username || l.Clean != p.clean && p.version == 4 {
				t.Errorf("log-in %+v", l)
			}
			send := func(topic string, size int) error {
				o := northtest.NewOutcome(1)
				if err := s.Send(t.Context(), []msg.Publication{{Topic: topic, QoS: 2, Retain: true, Payload: make([]byte, size)}}, o.Done); err != nil {
					t.Fatal(err)
				}
				o.Await(t)
				_, err := o.Err(0)
				return err
			}
			for _, topic := range p.good {
				if err := send(topic, 10); err != nil {
					t.Errorf("%s: %v", topic, err)
				}
			}
			for _, topic := range p.bad {
				if err := send(topic, 10); !msg.IsPermanent(err) {
					t.Errorf("%s: %v", topic, err)
				}
			}
			if p.payload > 0 {
				if err := send(p.good[0], p.payload); err != nil {
					t.Errorf("%d octets: %v", p.payload, err)
				}
				if err := send(p.good[0], p.payload+1); !msg.IsPermanent(err) {
					t.Errorf("%d octets: %v", p.payload+1, err)
				}
			}
			northtest.Await(t, "all that was taken", func() bool { return len(b.Messages()) >= len(p.good) })
			for _, m := range b.Messages() {
				if m.QoS != p.qos || m.Retain && !slices.Contains([]string{"emqx", "hivemq", "ibm-mq"}, name) {
					t.Errorf("%s arrived with QoS %d, retain %v", m.Topic, m.QoS, m.Retain)
				}
			}
			b.Publish(broker.Message{Topic: p.command[1], Payload: []byte("21"), QoS: 1})
			northtest.Await(t, "the command", func() bool { return len(d.Got()) == 1 })
			if got := d.Got()[0]; got.Topic != p.command[1] || string(got.Payload) != "21" {
				t.Errorf("command %+v", got)
			}
			if limits := c.(northbound.Limited).Limits(); limits.Payload != p.payload {
				t.Errorf("limits %+v", limits)
			}
		})
	}
}

// jwts is a source whose tokens live for a moment.
type jwts struct {
	given, rejected atomic.Int64
	life            time.Duration
}

func (j *jwts) Token(context.Context, string) (string, time.Time, error) {
	return "jwt-" + string('0'+rune(j.given.Add(1))), time.Now().Add(j.life), nil
}

func (j *jwts) Reject(string, string) { j.rejected.Add(1) }

func TestATokenAsThePassword(t *testing.T) {
	for _, version := range []int{5, 4} {
		logins := make(chan *broker.Login, 10)
		b := northtest.NewBroker(t, broker.Options{Admit: func(l *broker.Login) broker.Answer {
			logins <- l
			if string(l.Password) == "jwt-1" {
				return broker.Answer{Code: 0x87}
			}
			return broker.Answer{}
		}})
		tokens := &jwts{life: time.Second}
		env, _ := northtest.Env(t, &northtest.Keys{})
		env.Tokens = tokens
		cfg := mqtt.Kind().Config().(*mqtt.Config)
		cfg.URL, cfg.CA, cfg.Preset, cfg.Token, cfg.Version = "mqtts://"+b.Addr, pathOf(b.CA.File(t)), "emqx", "plant", version
		b.Listen(t, plainTLS(t, b))
		cfg.URL = "mqtts://" + b.Addr
		c, err := mqtt.Kind().Open(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := c.Dial(t.Context(), &northtest.Downlink{}); err == nil {
			s.Close()
			t.Fatal("a token that is refused was taken")
		} else if msg.IsPermanent(err) || tokens.rejected.Load() != 1 {
			t.Errorf("the first token: %v, rejected %d", err, tokens.rejected.Load())
		}
		s, err := c.Dial(t.Context(), &northtest.Downlink{})
		if err != nil {
			t.Fatal(err)
		}
		<-logins
		if l := <-logins; string(l.Password) != "jwt-2" || (l.Username != "") != (version == 4) {
			t.Errorf("log-in %+v", l)
		}
		northtest.Await(t, "the end of the session before that of the token", func() bool { return s.Context().Err() != nil })
		if cause := context.Cause(s.Context()); !errors.Is(cause, northbound.ErrRenew) {
			t.Errorf("ended: %v", cause)
		}
		s.Close()
	}
}

// plainTLS asks nobody for a certificate.
func plainTLS(t *testing.T, b *northtest.Broker) *tls.Config {
	c := b.CA.Server(t)
	c.ClientAuth = tls.NoClientCert
	return c
}

func TestMistakesWithPresets(t *testing.T) {
	for lines, want := range map[string]string{
		`preset = "thingspek"`:                     `did you mean "thingspeak"?`,
		`preset = "thingspeak"`:                    `password: thingspeak asks for a user name and a password`,
		"token = \"plnt\"":                         `"plnt"`,
		"preset = \"ibm-mq\"\nversion = 5":         `version: ibm-mq speaks MQTT 3.1.1 only`,
		"preset = \"watson\"\nclient_id = \"gw1\"": `client_id: "gw1" is not the client id`,
	} {
		t.Run(lines, func(t *testing.T) {
			_, err := parse(t, "[connector.plant]\ntype = \"mqtt\"\nurl = \"mqtts://b.example\"\n"+lines+"\n")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant %s", err, want)
			}
		})
	}
}
