package azure_test

import (
	"encoding/base64"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// The peer that the connector is tested against is a hub to Microsoft's own SDK too, and both report in the same words.
func TestHubOfTheTestsIsOneToTheVendorsSDK(t *testing.T) {
	h := northtest.NewHub(t, key)
	h.Desire(map[string]any{"th-1": 20})
	sdk := northtest.NewSDK(t, "hub.mjs", h.CA.File(t), local(h.Addr), base64.StdEncoding.EncodeToString(key))
	if got := sdk.Said(t, "desired"); got != 20.0 {
		t.Fatalf("desired %v", got)
	}
	sdk.Said(t, "sent")
	if got := h.Reported()["firmware"]; got != "1.2" {
		t.Fatalf("reported %v", got)
	}
	if got := h.Call(t, "setpoint", `{"value":20}`); got.Status != 200 || got.Body != `{"was":19}` {
		t.Fatalf("method: %+v", got)
	}
	h.Message("%24.mid=m2&%24.to=%2Fdevices%2Fgw1&topic=cmd%2Fx", "hello")
	if got := sdk.Said(t, "message"); got != "hello" {
		t.Fatalf("message %v", got)
	}
	h.Desire(map[string]any{"th-1": 21})
	for sdk.Said(t, "patch") != 21.0 { // the SDK first tells what it had at the start
	}

	ours := northtest.Dial(t, connector(t, h.Broker, nil, bySAS), &northtest.Downlink{})
	err := northtest.Send(t, ours, msg.Publication{Topic: "dt/gw1/th 1", Type: "application/json", Payload: []byte(`{"v":21.5}`), Properties: map[string]string{"unit": "°C"}})
	if err != nil {
		t.Fatal(err)
	}
	var bags []url.Values
	for _, m := range h.Messages() {
		if _, bag, ok := strings.Cut(m.Topic, "devices/gw1/messages/events/"); ok {
			values, err := url.ParseQuery(bag)
			if err != nil {
				t.Fatal(err)
			}
			values.Del("$.mid")
			bags = append(bags, values)
			t.Log(m.Topic)
		}
	}
	if len(bags) != 2 || bags[0].Encode() != bags[1].Encode() {
		t.Fatalf("reports: %v", bags)
	}
}

// The provisioning service of the tests is one to Microsoft's own SDK too, and both ask it in the same words.
func TestProvisioningServiceOfTheTestsIsOneToTheVendorsSDK(t *testing.T) {
	h := northtest.NewHub(t, key)
	var mu sync.Mutex
	var asked []string
	defer h.Watch("$dps/#", func(m broker.Message) {
		if m.From != "" {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, m.Topic+" "+string(m.Payload))
		}
	})()
	sdk := northtest.NewSDK(t, "dps.mjs", h.CA.File(t), local(h.Addr), "0ne00000A0A", "gw1", base64.StdEncoding.EncodeToString(key))
	if got := sdk.Said(t, "hub"); got != local(h.Addr) {
		t.Fatalf("assigned to %v", got)
	}
	mu.Lock()
	theirs := asked
	asked = nil
	mu.Unlock()
	c := connector(t, h.Broker, nil, func(c *azure.Config) {
		bySAS(c)
		provisioned(h, c)
	})
	if _, err := c.(northbound.Provisioner).Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	words := func(list []string) (same []string) {
		rid := regexp.MustCompile(`\$rid=[^& ]*`)
		for _, s := range list {
			s = rid.ReplaceAllString(s, "$$rid=R")
			topic, body, _ := strings.Cut(s, " {")
			path, query, _ := strings.Cut(strings.TrimSpace(topic), "?")
			parts := strings.Split(query, "&")
			slices.Sort(parts)
			if line := path + "?" + strings.Join(parts, "&") + " " + body; !slices.Contains(same, line) {
				same = append(same, line)
			}
		}
		return same
	}
	if ours := words(asked); !slices.Equal(ours, words(theirs)) {
		t.Fatalf("ours   %q\ntheirs %q", ours, words(theirs))
	}
}
