package bridge

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
)

// head is what the routes of the tests refer to.
const head = `
[gateway]
id = "gw"
[device.th-17]
groups = ["thermostat"]
password = "file:p"
[device.press-3]
groups = ["press"]
[device.both]
groups = ["thermostat", "press"]
[group.meter]
san = "*.meters.example"
`

// parse makes a configuration without going through its checks of files and references.
func parse(t *testing.T, routes string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("/etc/x.toml", []byte(head+routes), config.Kinds{})
	if cfg == nil {
		t.Fatal(err)
	}
	return cfg
}

func TestMistakesInRoutes(t *testing.T) {
	up := func(lines ...string) *config.Config {
		cfg := &config.Config{Gateway: config.Gateway{ID: "gw"}, Devices: map[string]*config.Device{
			"th-17": {Groups: []string{"thermostat"}}, "press-3": {Groups: []string{"press"}}}}
		for i, l := range lines {
			f := strings.Fields(l)
			u := &config.Uplink{Name: fmt.Sprint("r", i+1), Resource: f[0], Topic: f[1], To: []string{"c"}}
			for _, x := range f[2:] {
				switch k, v, _ := strings.Cut(x, "="); k {
				case "device":
					u.Devices = append(u.Devices, v)
				case "group":
					u.Groups = append(u.Groups, v)
				case "transform":
					u.Transform = v
				}
			}
			cfg.Uplinks = append(cfg.Uplinks, u)
		}
		return cfg
	}
	down := func(topic, resource, reply string) *config.Config {
		return &config.Config{Gateway: config.Gateway{ID: "gw"}, Downlinks: []*config.Downlink{
			{Name: "d", From: "c", Topic: topic, Resource: resource, Reply: reply, Method: "PUT"}}}
	}
	for name, c := range map[string]struct {
		cfg  *config.Config
		want string // a part of the error; empty: there is none
	}{
		"a resource without slash":               {up("sensors t"), `a resource begins with "/"`},
		"an unknown capture in a topic":          {up("/s/{kind} dt/{knd}"), "topic: {knd} is captured nowhere (known here: {device}, {gateway}, {kind}, {resource})"},
		"a capture of what the gateway fills in": {up("/s/{gateway} dt/x"), "{gateway} is filled in by the gateway"},
		"a wildcard in a topic":                  {up("/s dt/+"), "topic: "},
		"an empty level in a topic":              {up("/s dt//x"), "topic: has an empty level"},
		"an unclosed capture":                    {up("/s dt/{device"), "topic: "},
		"an unknown transform":                   {up("/s t transform=cbor-jsn"), `transform: step "cbor-jsn": unknown`},
		"a jq expression that is none":           {up("/s t transform=jq:.["), "transform: jq: "},
		"two equal routes":                       {up("/s/{a} t", "/s/{b} t"), `uplinks "r2" and "r1" (line 0) compete: both match /s/x`},
		"two routes that share a device":         {up("/s t device=th-17", "/s t device=th-17"), "compete"},
		"two groups of one device":               {up("/s t group=thermostat", "/s t group=thermostat"), "compete"},
		"two groups without a common device":     {up("/s t group=thermostat", "/s t group=press"), ""},
		"a device and all":                       {up("/s t device=th-17", "/s t"), ""},
		"a device and a group":                   {up("/s t device=th-17", "/s t group=thermostat"), ""},
		"a literal and a capture":                {up("/s/a t", "/s/{a} t"), ""},
		"a capture and a tail":                   {up("/s/{a} t", "/s/{a...} t"), ""},
		"crossed captures":                       {up("/{a}/x t", "/x/{a} t"), ""},
		"the device's own name in a resource":    {up("/s/{device}/{k} dt/{device}/{k}"), ""},
		"a command that names no device":         {down("cmd/{gateway}/x", "/a", ""), "topic: it names no device"},
		"a command's unknown capture":            {down("cmd/{device}", "/a/{what}", ""), "resource: {what} is captured nowhere"},
		"a reply's unknown capture":              {down("cmd/{device}", "/a", "r/{what}"), "reply: {what} is captured nowhere"},
		"replies that would be commands":         {down("cmd/{device}/{rest...}", "/a", "cmd/{device}/a/reply"), `reply: downlink "d" would take replies for commands`},
		"a command for a part of a resource":     {down("cmd/{gateway}/{device}/{what}", "/a/{what}", "cmd/{gateway}/{device}/{what}/reply"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(c.cfg)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %s", err, c.want)
			}
			if _, ok := errors.AsType[config.Errors](err); !ok {
				t.Fatalf("%T is not config.Errors", err)
			}
		})
	}
}

func TestEveryMistakeIsToldAtItsPlace(t *testing.T) {
	cfg := parse(t, `
[[uplink]]
name = "a"
resource = "/s/{x}"
to = ["cloud"]
topic = "dt/{y}"
transform = "nope"

[[uplink]]
name = "b"
resource = "/s/{z}"
to = ["cloud"]
topic = "dt/{z}"

[[uplink]]
name = "c"
resource = "/s/{q}"
to = ["cloud"]
topic = "dt"
`)
	_, err := Compile(cfg)
	list, _ := errors.AsType[config.Errors](err)
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprintf("%d:%d %s", e.Pos.Line, e.Pos.Col, e.Msg))
	}
	want := []string{
		`18:9 topic: {y} is captured nowhere`,
		`19:13 transform: step "nope": unknown; there are base64, base64-decode, cbor-json, json-cbor, json-text, lwm2m-json, senml-json, text-json and jq:EXPRESSION`,
		`29:12 uplinks "c" and "b" (line 21) compete: both match /s/x`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTopicsThatAPlatformCannotTakeAreTold(t *testing.T) {
	cfg := parse(t, `
[[uplink]]
name = "deep"
resource = "/s/{all...}"
to = ["aws", "plant"]
topic = "a/b/{gateway}/{device}/{all}"
`)
	table, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.CheckLimits(cfg, map[string]northbound.Limits{"aws": {TopicLevels: 5}}); err != nil {
		t.Error(err)
	}
	err = table.CheckLimits(cfg, map[string]northbound.Limits{"aws": {TopicLevels: 4}})
	if want := `18:9: topic: connector "aws": topic of 5 levels: the platform takes 4`; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSubscriptions(t *testing.T) {
	cfg := &config.Config{Gateway: config.Gateway{ID: "gw"}}
	for i, topic := range []string{"cmd/{gateway}/{device}/setpoint", "cmd/{gateway}/{device}/{what}", "all/{device}/{rest...}", "all/{device}/x"} {
		cfg.Downlinks = append(cfg.Downlinks, &config.Downlink{Name: fmt.Sprint("d", i), From: "cloud", Topic: topic, Resource: "/a"})
	}
	table, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := table.filters("cloud"), []string{"all/+/#", "cmd/gw/+/+"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r, c := table.downlink("cloud", "cmd/gw/th-17/setpoint")
	if device, _ := c.get("device"); r == nil || r.name != "d0" || device != "th-17" {
		t.Errorf("got %v for %q", r, device)
	}
	if r, _ := table.downlink("cloud", "cmd/other/th-17/setpoint"); r != nil {
		t.Errorf("a command to another gateway goes to %s", r.name)
	}
	if r, _ := table.downlink("plant", "cmd/gw/th-17/setpoint"); r != nil {
		t.Errorf("a command from another connector goes to %s", r.name)
	}
}

// rules is a policy for tests.
type rules struct {
	report  func(device, resource string) bool
	command func(connector, device string, groups []string, resource string) bool
}

func (r rules) Allowed(id *auth.Identity, op auth.Op, resource string) bool {
	return op == auth.Report && (r.report == nil || r.report(id.Device, resource))
}

func (r rules) Commandable(connector, device string, groups []string, resource string) bool {
	return r.command == nil || r.command(connector, device, groups, resource)
}

func TestDryRun(t *testing.T) {
	cfg := &config.Config{Gateway: config.Gateway{ID: "gw"}, Devices: map[string]*config.Device{"th-17": {Groups: []string{"thermostat"}}},
		Uplinks: []*config.Uplink{{Name: "sensors", Resource: "/sensors/{kind}", Groups: []string{"thermostat"}, To: []string{"cloud"},
			Topic: "dt/{gateway}/{device}/{kind}", Transform: "senml-json | jq:.[0].v", QoS: 1, Ack: "cloud", Priority: "high"}}}
	table, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	tr := table.Test(rules{}, "th-17", nil, "/sensors/temp", "application/senml+json", []byte(`[{"n":"t","v":21.5}]`), now)
	if !tr.Allowed || tr.Route != "sensors" || tr.Topic != "dt/gw/th-17/temp" || string(tr.Payload) != "21.5" || tr.Type != "application/json" ||
		tr.Refusal != "" || len(tr.Steps) != 2 || tr.Ack != "cloud" || tr.Priority != "high" {
		t.Errorf("got %+v", tr)
	}
	for name, c := range map[string]struct {
		device, resource, payload, want string
		policy                          rules
	}{
		"denied":          {"th-17", "/sensors/temp", "", "denied", rules{report: func(string, string) bool { return false }}},
		"no route":        {"th-17", "/other", "", "no-route", rules{}},
		"another's route": {"x", "/sensors/temp", "", "no-route", rules{}},
		"bad payload":     {"th-17", "/sensors/temp", "{", "bad-payload: senml-json: ", rules{}},
		"bad capture":     {"th-17", "/sensors/a+b", "", "unprocessable: topic: {kind}", rules{}},
	} {
		t.Run(name, func(t *testing.T) {
			var payload []byte
			if c.payload != "" {
				payload = []byte(c.payload)
			}
			if tr := table.Test(c.policy, c.device, nil, c.resource, "", payload, now); !strings.HasPrefix(tr.Refusal, c.want) {
				t.Errorf("got %q", tr.Refusal)
			}
		})
	}
}
