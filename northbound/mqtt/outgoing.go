package mqtt

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// outgoing turns a publication into the packet that carries it. Every error is permanent.
func (s *Session) outgoing(p *msg.Publication) (*packets.Publish, error) {
	if err := CheckTopic(p.Topic); err != nil {
		return nil, msg.Permanent(err)
	}
	q := &packets.Publish{
		Topic: p.Topic, Payload: p.Payload,
		QoS:    min(p.QoS, s.server.MaxQoS),
		Retain: p.Retain && s.server.Retain,
	}
	if s.opts.Version == V311 {
		return q, nil
	}
	props := &packets.Properties{ContentType: p.Type, ResponseTopic: p.ResponseTopic, CorrelationData: p.Correlation}
	for what, text := range map[string]string{"media type": p.Type, "response topic": p.ResponseTopic, "correlation data": string(p.Correlation)} {
		if len(text) > 65535 {
			return nil, msg.Permanent(fmt.Errorf("%s of %d octets: MQTT carries 65535", what, len(text)))
		}
	}
	if !p.Expires.IsZero() {
		// One that has expired by now goes out with a second left: whether it still counts is the pump's to say.
		left := uint32(max(1, min(int64(p.Expires.Sub(s.opts.Now())/time.Second), 1<<32-1)))
		props.MessageExpiry = &left
	}
	for key, value := range p.Properties {
		if len(key) > 65535 || len(value) > 65535 || !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, msg.Permanent(fmt.Errorf("property %.40q: not a string that MQTT carries", key))
		}
		props.User = append(props.User, packets.User{Key: key, Value: value})
	}
	slices.SortFunc(props.User, func(a, b packets.User) int { return strings.Compare(a.Key, b.Key) })
	q.Properties = props
	return q, nil
}

// CheckTopic says what is wrong with a topic name to publish to (MQTT 5 section 4.7).
func CheckTopic(topic string) error {
	switch {
	case topic == "":
		return fmt.Errorf("topic %q: empty", topic)
	case len(topic) > 65535:
		return fmt.Errorf("topic %.40q: %d octets, MQTT carries 65535", topic, len(topic))
	case strings.ContainsAny(topic, "+#"):
		return fmt.Errorf("topic %q: a wildcard in a topic name", topic)
	case strings.ContainsRune(topic, 0) || !utf8.ValidString(topic):
		return fmt.Errorf("topic %q: not a string that MQTT carries", topic)
	}
	return nil
}

// CheckFilter says what is wrong with a topic filter (MQTT 5 section 4.7.1).
func CheckFilter(filter string) error {
	switch {
	case filter == "":
		return fmt.Errorf("topic filter %q: empty", filter)
	case len(filter) > 65535:
		return fmt.Errorf("topic filter %.40q: %d octets, MQTT carries 65535", filter, len(filter))
	case strings.ContainsRune(filter, 0) || !utf8.ValidString(filter):
		return fmt.Errorf("topic filter %q: not a string that MQTT carries", filter)
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.Contains(level, "#") && (level != "#" || i != len(levels)-1) {
			return fmt.Errorf("topic filter %q: # must be the last level, alone", filter)
		}
		if strings.Contains(level, "+") && level != "+" {
			return fmt.Errorf("topic filter %q: + must fill a level", filter)
		}
	}
	return nil
}

// Match tells whether a topic name matches a topic filter (MQTT 5 section 4.7).
func Match(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false
	}
	want, have := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, level := range want {
		if level == "#" {
			return true
		}
		if i >= len(have) || level != "+" && level != have[i] {
			return false
		}
	}
	return len(want) == len(have)
}
