package mqtt_test

import (
	"strings"
	"testing"

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
	qos      byte // of what arrives, where QoS 2 was asked for
	payload  int  // 0: any
}{
	"thingspeak": {5, "gw1", "gw1", true, []string{"channels/42/publish", "channels/42/publish/fields/field8"}, []string{"channels/42/publish/fields/field9", "dt/x"}, 0, 0},
	"kaa":        {5, "gw1", "gw1", true, []string{"kp1/app/dcx/token/json/7"}, []string{"kp1/app", "dt/x"}, 1, 0},
	"hono":       {5, "gw1", "gw1", true, []string{"t", "e//th-17", "telemetry/tenant/th-17", "c//th-17/s/1/200"}, []string{"tele", "x/t"}, 1, 2048},
	"cumulocity": {5, "gw1", "gw1", true, []string{"s/us", "s/us/th-17", "measurement/measurements/create", "t/us"}, []string{"s/ds", "dt/x"}, 2, 16184},
	"ibm-mq":     {4, "gw1", "gw1", false, []string{"any/topic"}, nil, 2, 0},
	"watson":     {4, "g:org:gw:gw1", "use-token-auth", false, []string{"iot-2/type/t/id/d/evt/e/fmt/json", "iot-2/evt/e/fmt/json"}, []string{"iot-2/type/t/id/d/cmd/e/fmt/json"}, 2, 0},
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
			s, err := c.Dial(t.Context(), &northtest.Downlink{})
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
				if m.QoS != p.qos || m.Retain && name != "ibm-mq" {
					t.Errorf("%s arrived with QoS %d, retain %v", m.Topic, m.QoS, m.Retain)
				}
			}
			if limits := c.(northbound.Limited).Limits(); limits.Payload != p.payload {
				t.Errorf("limits %+v", limits)
			}
		})
	}
}

func TestMistakesWithPresets(t *testing.T) {
	for lines, want := range map[string]string{
		`preset = "thingspek"`:                     `did you mean "thingspeak"?`,
		`preset = "thingspeak"`:                    `password: thingspeak asks for a user name and a password`,
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
