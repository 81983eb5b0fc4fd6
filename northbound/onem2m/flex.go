package onem2m

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Flex says which publications set the custom attributes of a flexContainer instead of making contentInstances.
type Flex struct {
	Topic string `toml:"topic"` // MQTT topic filter
	Type  string `toml:"type"`  // short name of the specialisation, with its prefix
	CND   string `toml:"cnd"`   // containerDefinition
}

var (
	flexForm      = regexp.MustCompile(`^[a-z0-9]+:[A-Za-z0-9]+$`)
	attributeForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
)

// notCustom are the attributes that every flexContainer has beside its own (TS-0004 clause 7.4.37).
var notCustom = []string{
	"rn", "ty", "ri", "pi", "ct", "lt", "et", "acpi", "lbl", "at", "aa", "ast", "daci", "st", "cr", "cstn", "loc", "or", "nl",
	"cnd", "cs", "cni", "cbs", "mni", "mbs", "mia", "fcied", "dgt",
}

func (c *Config) checkFlex(s *config.Scope) {
	for i, f := range c.Flex {
		levels := strings.Split(f.Topic, "/")
		if f.Topic == "" || slices.ContainsFunc(levels, func(l string) bool { return l != "+" && l != "#" && !nameForm.MatchString(l) }) {
			s.Errorf(fmt.Sprintf("flex[%d].topic", i), "flex: topic: %q is not a filter of topics that can be paths", f.Topic)
		}
		if !flexForm.MatchString(f.Type) || strings.HasPrefix(f.Type, "m2m:") {
			s.Errorf(fmt.Sprintf("flex[%d].type", i), "flex: type: %q is not the short name of a specialisation", f.Type).Hint = "such as \"cod:color\""
		}
		if f.CND == "" {
			s.Errorf(fmt.Sprintf("flex[%d].cnd", i), "flex: cnd: the containerDefinition is missing")
		}
	}
}

// flexOf tells as what flexContainer a topic is kept; nil: as a container with contentInstances.
func (c *Connector) flexOf(topic string) *Flex {
	for _, f := range c.cfg.Flex {
		if here, _ := matches(strings.Split(f.Topic, "/"), topic); here {
			return f
		}
	}
	return nil
}

// customAttributes reads those that a publication sets.
func customAttributes(payload []byte) (map[string]any, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(payload, &raw); err != nil || len(raw) == 0 {
		return nil, errors.New("the payload is no JSON object with attributes of a flexContainer")
	}
	a := make(map[string]any, len(raw))
	for name, value := range raw {
		if !attributeForm.MatchString(name) || slices.Contains(notCustom, name) {
			return nil, fmt.Errorf("%.80q cannot be a custom attribute", name)
		}
		a[name] = value
	}
	return a, nil
}

// flex sets the custom attributes of a flexContainer, which is made with its first ones. Said again it changes nothing.
func (s *session) flex(ctx context.Context, e *entity, f *Flex, p *msg.Publication) error {
	custom, err := customAttributes(p.Payload)
	if err != nil {
		return unsendable{err}
	}
	to, parent, name := e.address+"/"+p.Topic, e.address, p.Topic
	if i := strings.LastIndexByte(p.Topic, '/'); i >= 0 {
		if parent, err = s.container(ctx, e, p.Topic[:i]); err != nil {
			return err
		}
		name = p.Topic[i+1:]
	}
	if !s.tree.has(to) {
		a := maps.Clone(custom)
		maps.Copy(a, s.resource(e, name))
		a["cnd"] = f.CND
		_, err := s.report(ctx, &request{Op: opCreate, To: parent, From: e.id, Type: tyFCNT, Content: represent(f.Type, a)})
		if r, answered := errors.AsType[*refusal](err); !answered || meaningOf(r.rsc) != conflict {
			if err == nil {
				s.tree.add(to, place{root: f.Type, made: true})
			}
			return err
		}
		s.tree.add(to, place{root: f.Type})
	}
	_, err = s.report(ctx, &request{Op: opUpdate, To: to, From: e.id, Content: represent(f.Type, custom)})
	return err
}
