package mqtt

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// preset is what a platform that speaks plain MQTT takes. What it would not take is refused here, for that publication alone.
type preset struct {
	version  int            // 0: either
	topics   *regexp.Regexp // that may be published to; nil: any
	like     string         // such a topic, for messages
	payload  int            // octets; 0: any
	maxQoS   byte
	retain   bool
	keeps    bool           // the platform keeps sessions and what it could not deliver
	clientID *regexp.Regexp // nil: any
	username string         // where the file gives none
	named    bool           // a user name and a password are asked for
}

// presets are the values of preset = "...".
var presets = map[string]preset{
	"thingspeak": {
		topics: regexp.MustCompile(`^channels/[0-9]+/publish(/fields/field[1-8])?$`), like: "channels/ID/publish", named: true,
	},
	"kaa": {
		topics: regexp.MustCompile(`^kp1/[^/]+/[^/]+/[^/]+/.+`), like: "kp1/APP/dcx/TOKEN/json", maxQoS: 1,
	},
	"hono": {
		topics: regexp.MustCompile(`^(t|telemetry|e|event|c|command)(/|$)`), like: "telemetry/TENANT/DEVICE", payload: 2048, maxQoS: 1,
	},
	"cumulocity": {
		topics:  regexp.MustCompile(`^([stqc]/u[sct]|[stqc]/uat|(measurement/measurements|event/events|alarm/alarms)/create|inventory/managedObjects/update)(/|$)`),
		like:    "s/us/CHILD",
		payload: 16184, maxQoS: 2,
	},
	"emqx":   {maxQoS: 2, retain: true, keeps: true},
	"hivemq": {maxQoS: 2, retain: true, keeps: true},
	"ibm-mq": {version: int(V311), maxQoS: 2, retain: true, keeps: true},
	"watson": {
		version: int(V311), topics: regexp.MustCompile(`^iot-2/(type/[^/]+/id/[^/]+/)?evt/[^/]+/fmt/[^/]+$`), like: "iot-2/type/TYPE/id/DEVICE/evt/EVENT/fmt/json",
		maxQoS: 2, keeps: true, clientID: regexp.MustCompile(`^[dgaA]:[^:]+:[^:]+(:[^:]+)?$`), username: "use-token-auth", named: true,
	},
}

// checkPreset says what of the file does not go with the preset.
func (c *Config) checkPreset(s *config.Scope) {
	if c.Preset == "" || !s.OneOf("preset", c.Preset, slices.Sorted(maps.Keys(presets))...) {
		return
	}
	p := presets[c.Preset]
	if p.version != 0 && s.Given("version") && c.Version != p.version {
		s.Errorf("version", "version: %s speaks MQTT 3.1.1 only", c.Preset).Hint = "leave version away"
	}
	if p.named && (c.Password == "" && c.Token == "" || c.Username == "" && p.username == "") {
		s.Errorf("password", "password: %s asks for a user name and a password", c.Preset)
	}
	if p.clientID != nil && !p.clientID.MatchString(c.ClientID) {
		s.Errorf("client_id", "client_id: %q is not the client id of a device or gateway", c.ClientID).Hint = "such as \"g:ORG:TYPE:ID\""
	}
}

// withPreset gives the configuration with what the preset decides.
func (c Config) withPreset() Config {
	p, ok := presets[c.Preset]
	if !ok {
		return c
	}
	if p.version != 0 {
		c.Version = p.version
	}
	if c.Username == "" {
		c.Username = p.username
	}
	if !p.keeps {
		c.SessionExpiry = 0
	}
	return c
}

// fits makes of a publication what the platform takes, or says why it takes none of it.
func (p *preset) fits(q *msg.Publication) error {
	if p.topics != nil && !p.topics.MatchString(q.Topic) {
		return fmt.Errorf("topic %.200q: the platform takes such as %q only", q.Topic, p.like)
	}
	if p.payload > 0 && len(q.Payload) > p.payload {
		return fmt.Errorf("a payload of %d octets: the platform takes %d", len(q.Payload), p.payload)
	}
	q.QoS, q.Retain = min(q.QoS, p.maxQoS), q.Retain && p.retain
	return nil
}

// bounded is a session with a platform that has a preset.
type bounded struct {
	*Session
	preset preset
}

// Send is northbound.Session's.
func (b bounded) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	part, index := make([]msg.Publication, 0, len(batch)), make([]int, 0, len(batch))
	for i, q := range batch {
		if err := b.preset.fits(&q); err != nil {
			done(i, msg.Permanent(err))
			continue
		}
		part, index = append(part, q), append(index, i)
	}
	return b.Session.Send(ctx, part, func(k int, err error) { done(index[k], err) })
}

// bound puts the preset's bounds around a session; without a preset there are none.
func (c *Connector) bound(s *Session) northbound.Session {
	if p, ok := presets[c.cfg.Preset]; ok {
		return bounded{s, p}
	}
	return s
}
