package bridge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// fits holds a publication against the limits of a platform.
func fits(p *msg.Publication, l northbound.Limits) error {
	if l.Payload > 0 && len(p.Payload) > l.Payload {
		return fmt.Errorf("payload of %d octets: the platform takes %d", len(p.Payload), l.Payload)
	}
	return topicFits(p.Topic, l)
}

// maxTopic is MQTT's own limit (MQTT 5 section 1.5.4).
const maxTopic = 65535

func topicFits(topic string, l northbound.Limits) error {
	most := maxTopic
	if l.Topic > 0 {
		most = min(most, l.Topic)
	}
	if len(topic) > most {
		return fmt.Errorf("topic of %d octets: the platform takes %d", len(topic), most)
	}
	if levels := strings.Count(topic, "/") + 1; l.TopicLevels > 0 && levels > l.TopicLevels {
		return fmt.Errorf("topic of %d levels: the platform takes %d", levels, l.TopicLevels)
	}
	return nil
}

// tooLong tells which route to the connector has topics that cannot fit whatever is filled in; empty: none.
func (t *Table) tooLong(connector string, l northbound.Limits) string {
	for _, e := range t.uplinks {
		shortest, err := e.r.topic.fill(func(name string) (string, bool) {
			if name == "gateway" {
				return t.gateway, true
			}
			return "x", true
		})
		if err == nil && slices.Contains(e.r.to, connector) {
			if err := topicFits(shortest, l); err != nil {
				return fmt.Sprintf("uplink %q: %v", e.r.name, err)
			}
		}
	}
	return ""
}
