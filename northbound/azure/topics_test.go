package azure

import (
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
)

func TestParseTopic(t *testing.T) {
	for topic, want := range map[string]inbound{
		"$iothub/methods/POST/set.point/?$rid=7":               {kind: method, name: "set.point", rid: "7"},
		"$iothub/twin/res/204/?$rid=a1&$version=3":             {kind: twinReply, status: "204", rid: "a1"},
		"$iothub/twin/PATCH/properties/desired/?$version=9":    {kind: desired},
		"$dps/registrations/res/202/?$rid=1&retry-after=3":     {kind: dpsReply, status: "202", rid: "1"},
		"devices/gw1/messages/devicebound/%24.mid=x&a=b":       {kind: message},
		"devices/gw1/modules/m/messages/devicebound/%24.mid=x": {kind: message},
		"$iothub/methods/PUT/x":                                {},
		"messages/devicebound/":                                {},
	} {
		got := parseTopic(topic)
		if got.kind != want.kind || got.name != want.name || got.rid != want.rid || got.status != want.status {
			t.Errorf("%s: %+v", topic, got)
		}
	}
	if bag := parseTopic("$dps/registrations/res/202/?$rid=1&retry-after=3").bag; bag["retry-after"] != "3" {
		t.Errorf("bag %v", bag)
	}
}

func FuzzTopics(f *testing.F) {
	f.Add("$iothub/methods/POST/x/?$rid=1", []byte(`{"status":"assigned","registrationState":{"assignedHub":"h","deviceId":"d"}}`))
	f.Add("devices/d/messages/devicebound/%24.mid=1&a&b=%zz", []byte(`{"status":"assigning","operationId":"x"}`))
	f.Fuzz(func(t *testing.T, topic string, body []byte) {
		in := parseTopic(topic)
		if in.kind == unknown && in.bag != nil {
			t.Fatal("a bag of nothing")
		}
		if !strings.HasPrefix(methodTopic(in.name), "methods/") {
			t.Fatal(in.name)
		}
		if laneOf(topic) == "" && topic != "" {
			t.Fatal("no lane")
		}
		if _, a, err := readRegistration("200", body); err != nil && a.Hub != "" {
			t.Fatal("an assignment and an error")
		}
		eventsTopic("d", &msg.Publication{Topic: topic})
		if status, answer := methodAnswer(msg.Reply{Status: msg.Refused, Code: topic, Payload: body}, nil); status < 200 || status > 599 || len(answer) == 0 {
			t.Fatalf("status %d, %d octets", status, len(answer))
		}
	})
}
