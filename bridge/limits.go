package bridge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/config"
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

// CheckLimits holds the routes against the limits of the connectors, by name: the error is a config.Errors with each route whose
// topics cannot fit whatever is filled in. cfg is what t was compiled from.
func (t *Table) CheckLimits(cfg *config.Config, limits map[string]northbound.Limits) error {
	var errs config.Errors
	for _, u := range cfg.Uplinks {
		for _, name := range u.To {
			if err := t.neverFits(u.Name, limits[name]); err != nil {
				errs = append(errs, cfg.Errorf(cfg.At(u, "topic"), "topic: connector %q: %v", name, err))
			}
		}
	}
	return config.Join(errs)
}

// neverFits tells why no topic of the route can fit; nil where some can.
func (t *Table) neverFits(route string, l northbound.Limits) error {
	i := slices.IndexFunc(t.uplinks, func(e entry) bool { return e.r.name == route })
	shortest, err := t.uplinks[i].r.topic.fill(func(name string) (string, bool) {
		if name == "gateway" {
			return t.gateway, true
		}
		return "x", true
	})
	if err != nil {
		return err
	}
	return topicFits(shortest, l)
}
