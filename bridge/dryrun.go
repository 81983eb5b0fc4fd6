package bridge

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/config"
)

// Trial is what would become of a report.
type Trial struct {
	Device   string             `json:"device"`
	Groups   []string           `json:"groups"`
	Resource string             `json:"resource"`
	Allowed  bool               `json:"allowed"` // by a rule of the policy
	Route    string             `json:"route,omitempty"`
	Pattern  string             `json:"pattern,omitempty"`  // the route's resource
	Template string             `json:"template,omitempty"` // the route's topic as in the file
	Topic    string             `json:"topic,omitempty"`
	To       []string           `json:"to,omitempty"`
	Ack      string             `json:"ack,omitempty"` // "disk", "cloud"
	QoS      byte               `json:"qos"`
	Retain   bool               `json:"retain,omitempty"`
	Priority string             `json:"priority,omitempty"`
	TTL      time.Duration      `json:"ttl,omitempty"` // zero: none but the spool's
	Steps    []transform.Result `json:"-"`             // of the transform, where a payload was given
	Type     string             `json:"type,omitempty"`
	Payload  []byte             `json:"payload,omitempty"` // what the connectors would get, or, where it is sealed, what is in the envelope
	Seal     string             `json:"seal,omitempty"`    // how the payload is sealed on its way: `jwe by key "payload", A256GCM`
	Refusal  string             `json:"refusal,omitempty"` // why the answer is no; empty: it is yes
}

// Test tells what would become of a report, without doing it. A nil payload leaves the transform out.
// groups are those that the device's credential would give; those of the configuration are added.
func (t *Table) Test(policy auth.Policy, device string, groups []string, resource, typ string, payload []byte, now time.Time) Trial {
	groups = unite(t.devices[device].groups, groups)
	tr := Trial{Device: device, Groups: groups, Resource: resource}
	tr.Allowed = policy.Allowed(&auth.Identity{Device: device, Groups: groups}, auth.Report, resource)
	r, captured := t.uplink(device, groups, resource)
	if r != nil {
		tr.Route, tr.Pattern, tr.Template, tr.To, tr.QoS, tr.Retain, tr.TTL = r.name, r.resource, r.topicText, r.to, r.qos, r.retain, r.ttl
		tr.Seal = describeSeal(r.seal)
		tr.Ack, tr.Priority = "disk", [...]string{"high", "normal", "low"}[r.class]
		if r.cloudAck {
			tr.Ack = "cloud"
		}
	}
	var err error
	switch {
	case !tr.Allowed:
		tr.Refusal = "denied: no rule allows it"
	case r == nil:
		tr.Refusal = "no-route: no uplink matches"
	default:
		if tr.Topic, err = r.fill(t.gateway, device, resource, captured); err != nil {
			tr.Refusal = "unprocessable: topic: " + err.Error()
		}
	}
	if r == nil || payload == nil {
		return tr
	}
	tr.Type, tr.Payload = typ, payload
	tr.Steps = r.pipeline.Trace(transform.Input{Type: typ, Data: payload, Time: now, Device: device, Resource: resource})
	if n := len(tr.Steps); n > 0 {
		last := tr.Steps[n-1]
		tr.Type, tr.Payload = last.Type, last.Data
		if last.Err != nil && tr.Refusal == "" {
			tr.Refusal = "bad-payload: " + last.Step + ": " + last.Err.Error()
		}
	}
	return tr
}

// Route is one line of `drawbridge routes`.
type Route struct {
	Name       string   `json:"name"`
	Direction  string   `json:"direction"` // "up", "down"
	Resource   string   `json:"resource"`
	Topic      string   `json:"topic"`
	Transform  string   `json:"transform,omitempty"`
	Devices    []string `json:"devices,omitempty"`
	Groups     []string `json:"groups,omitempty"`
	Connectors []string `json:"connectors"`
	Seal       string   `json:"seal,omitempty"`   // how reports, or replies, are sealed
	Unseal     string   `json:"unseal,omitempty"` // how commands have to be sealed
}

func describeSeal(c config.Sealing) string {
	switch {
	case c.Seal == "":
		return ""
	case c.SealAs == "jws" || c.SealAs == "cose-sign1":
		return fmt.Sprintf("%s by key %q", c.SealAs, c.Seal)
	}
	return fmt.Sprintf("%s by key %q, %s", c.SealAs, c.Seal, c.SealCipher)
}

func describeUnseal(r *downRoute) string {
	switch {
	case r.unseal != "":
		return fmt.Sprintf("encrypted by key %q", r.unseal)
	case r.signedBy != "":
		return "signed by a certificate of " + r.signedBy
	}
	return ""
}

// Routes lists all routes, uplinks first, in the order in which they are tried.
func (t *Table) Routes() (list []Route) {
	seen := map[*upRoute]bool{}
	for _, e := range t.uplinks {
		if r := e.r; !seen[r] {
			seen[r] = true
			list = append(list, Route{r.name, "up", r.resource, r.topicText, r.pipeline.String(), r.devices, r.groups, r.to, describeSeal(r.seal), ""})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.downs)) {
		for _, r := range t.downs[name] {
			list = append(list, Route{r.name, "down", r.resourceText, r.topicText, r.pipeline.String(), nil, nil, []string{name}, describeSeal(r.seal), describeUnseal(r)})
		}
	}
	return list
}
