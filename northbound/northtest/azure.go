package northtest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// HMAC is a symmetric key in memory with the ability of one in a chip.
type HMAC []byte

// MAC is hwcrypto.MACer's.
func (k HMAC) MAC(_ context.Context, data []byte) ([]byte, error) {
	h := hmac.New(sha256.New, k)
	h.Write(data)
	return h.Sum(nil), nil
}

// Hub is an Azure IoT Hub in this process, named "localhost", with the device "gw1". It is also its Device Provisioning Service.
type Hub struct {
	*Broker
	Key   HMAC // of the device; nil: it shows a certificate with its id as common name
	Group bool // Key is that of an enrolment group: every device is known

	services chan broker.Message
	mu       sync.Mutex
	expires  time.Time              // guarded by mu: of the last signature
	desired  map[string]any         // guarded by mu
	reported map[string]any         // guarded by mu
	version  int                    // guarded by mu: of desired
	calls    map[string]chan Answer // guarded by mu: direct methods by $rid
	serial   int                    // guarded by mu
	polls    int                    // guarded by mu: of the provisioning service
	known    map[string]string      // guarded by mu: the registration of a device that has registered
	Refuse   string                 // why the provisioning service refuses; empty: it assigns
}

// Answer is that of a direct method.
type Answer struct {
	Status int
	Body   string
}

// NewHub starts one.
func NewHub(t testing.TB, key HMAC) *Hub {
	t.Helper()
	h := &Hub{
		Key: key, services: make(chan broker.Message, 10_000), desired: map[string]any{}, reported: map[string]any{},
		version: 1, calls: map[string]chan Answer{}, known: map[string]string{},
	}
	h.Broker = NewBroker(t, broker.Options{Admit: h.admit, Published: h.judge, Subscribed: h.subscribed})
	config := h.CA.Server(t)
	if key != nil {
		config.ClientAuth = tls.NoClientCert
	}
	h.Listen(t, config)
	var stops []func()
	for _, f := range []string{"$iothub/#", "$dps/#"} {
		stops = append(stops, h.Watch(f, func(m broker.Message) {
			if m.From != "" {
				h.services <- m
			}
		}))
	}
	var served sync.WaitGroup
	served.Go(func() {
		for m := range h.services {
			h.serve(m)
		}
	})
	t.Cleanup(func() {
		for _, stop := range stops {
			stop()
		}
		close(h.services)
		served.Wait()
	})
	return h
}

// Web serves MQTT over WebSocket from then on.
func (h *Hub) Web(t testing.TB) {
	t.Helper()
	config := h.CA.Server(t)
	if h.Key != nil {
		config.ClientAuth = tls.NoClientCert
	}
	h.ListenWeb(t, config)
}

func (h *Hub) admit(l *broker.Login) broker.Answer {
	no := broker.Answer{Code: 0x87}
	if l.Version != 4 {
		return broker.Answer{Code: 0x84}
	}
	id := l.ClientID
	resource, policy := "localhost/devices/"+id, ""
	if name, _, _ := strings.Cut(l.Username, "&ClientVersion="); name == "0ne00000A0A/registrations/"+id+"/api-version=2019-03-31" {
		resource, policy = "0ne00000A0A/registrations/"+id, "registration"
	} else if !strings.HasPrefix(l.Username, "localhost/"+id+"/?api-version=2021-04-12") {
		return no
	}
	if id == "" || id != "gw1" && !h.Group || strings.HasPrefix(id, "stranger") || l.KeepAlive > 1177 {
		return no
	}
	if h.Key == nil {
		if l.TLS == nil || len(l.TLS.PeerCertificates) == 0 || l.TLS.PeerCertificates[0].Subject.CommonName != id || len(l.Password) > 0 {
			return no
		}
		return broker.Answer{}
	}
	key := h.Key
	if h.Group {
		h.mu.Lock()
		name, ok := h.known[id]
		h.mu.Unlock()
		if !ok {
			name = id
		}
		group := hmac.New(sha256.New, h.Key)
		group.Write([]byte(name))
		key = group.Sum(nil)
	}
	if !h.signed(key, string(l.Password), resource, policy) {
		return no
	}
	return broker.Answer{}
}

// signed checks a shared access signature. It is written from its description, not from the connector.
func (h *Hub) signed(key HMAC, token, resource, policy string) bool {
	rest, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, "&") {
		k, v, _ := strings.Cut(part, "=")
		fields[k] = v
	}
	sr, err1 := url.PathUnescape(fields["sr"])
	sig, err2 := url.PathUnescape(fields["sig"])
	sum, err3 := base64.StdEncoding.DecodeString(sig)
	se, err4 := strconv.ParseInt(fields["se"], 10, 64)
	if !ok || err1 != nil || err2 != nil || err3 != nil || err4 != nil || sr != resource || fields["skn"] != policy || time.Now().Unix() > se {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", fields["sr"], se)
	h.mu.Lock()
	h.expires = time.Unix(se, 0)
	h.mu.Unlock()
	return hmac.Equal(mac.Sum(nil), sum)
}

// Expires tells when the last signature that was shown ends.
func (h *Hub) Expires() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.expires
}

// judge closes the connection for what a hub does not take.
func (h *Hub) judge(client string, m broker.Message) broker.Verdict {
	ok := strings.HasPrefix(m.Topic, "devices/"+client+"/messages/events/") || strings.HasPrefix(m.Topic, "$iothub/") || strings.HasPrefix(m.Topic, "$dps/")
	if !ok || m.QoS > 1 || m.Retain || len(m.Topic)+len(m.Payload) > 256<<10 {
		return broker.Verdict{Drop: true}
	}
	return broker.Verdict{}
}

func (h *Hub) subscribed(client, filter string, qos byte) byte {
	if !slices.Contains([]string{
		"devices/" + client + "/messages/devicebound/#", "$iothub/twin/res/#", "$iothub/methods/POST/#",
		"$iothub/twin/PATCH/properties/desired/#", "$dps/registrations/res/#",
	}, filter) {
		return 0x80
	}
	return min(qos, 1)
}

// Cloud makes a Faulty of the hub: commands are cloud-to-device messages with the property "topic".
func (h *Hub) Cloud(topic string) Faulty {
	return &hubCloud{Faulty: MQTT(h.Broker, "devices/gw1/messages/devicebound/%24.to=%2Fdevices%2Fgw1&topic="+url.QueryEscape(topic), "gw1"), h: h}
}

type hubCloud struct {
	Faulty
	h *Hub
}

func (c *hubCloud) Received() (list []string) {
	for _, m := range c.h.Messages() {
		if strings.Contains(m.Topic, "/messages/events/") {
			list = append(list, string(m.Payload))
		}
	}
	return list
}

// Message sends a cloud-to-device message with the property bag.
func (h *Hub) Message(bag, payload string) { h.MessageTo("gw1", bag, payload) }

// MessageTo is Message for any device.
func (h *Hub) MessageTo(device, bag, payload string) {
	h.Publish(broker.Message{Topic: "devices/" + device + "/messages/devicebound/" + bag, Payload: []byte(payload), QoS: 1})
}

// Call invokes a direct method and waits for its answer.
func (h *Hub) Call(t testing.TB, method, payload string) Answer {
	t.Helper()
	h.mu.Lock()
	h.serial++
	rid := strconv.Itoa(h.serial)
	answer := make(chan Answer, 1)
	h.calls[rid] = answer
	h.mu.Unlock()
	h.Publish(broker.Message{Topic: "$iothub/methods/POST/" + method + "/?$rid=" + rid, Payload: []byte(payload), QoS: 0})
	select {
	case a := <-answer:
		return a
	case <-time.After(patience):
		t.Fatalf("method %s: no answer", method)
	}
	return Answer{}
}

// Desire changes desired properties.
func (h *Hub) Desire(patch map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(h.desired, patch)
	h.version++
	body := maps.Clone(patch)
	body["$version"] = h.version
	h.reply(fmt.Sprintf("$iothub/twin/PATCH/properties/desired/?$version=%d", h.version), body)
}

// Reported gives the reported properties.
func (h *Hub) Reported() map[string]any {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.reported)
}

func (h *Hub) reply(topic string, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	h.Publish(broker.Message{Topic: topic, Payload: data})
}

func (h *Hub) serve(m broker.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	path, query, _ := strings.Cut(m.Topic, "?")
	values, _ := url.ParseQuery(query)
	rid := values.Get("$rid")
	switch {
	case path == "$iothub/twin/GET/":
		desired := maps.Clone(h.desired)
		desired["$version"] = h.version
		h.reply("$iothub/twin/res/200/?$rid="+rid, map[string]any{"desired": desired, "reported": h.reported})
	case path == "$iothub/twin/PATCH/properties/reported/":
		var patch map[string]any
		if json.Unmarshal(m.Payload, &patch) != nil {
			h.reply("$iothub/twin/res/400/?$rid="+rid, map[string]any{"errorCode": 400})
			return
		}
		maps.Copy(h.reported, patch)
		h.Publish(broker.Message{Topic: "$iothub/twin/res/204/?$rid=" + rid + "&$version=2"})
	case strings.HasPrefix(path, "$iothub/methods/res/"):
		status, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(path, "$iothub/methods/res/"), "/"))
		if call := h.calls[rid]; call != nil && err == nil {
			call <- Answer{status, string(m.Payload)}
			delete(h.calls, rid)
		}
	case path == "$dps/registrations/PUT/iotdps-register/":
		h.known["gw1"] = m.From
		h.reply("$dps/registrations/res/202/?$rid="+rid+"&retry-after=0", map[string]any{"operationId": "4.d0a67190.42d78160", "status": "assigning"})
	case path == "$dps/registrations/GET/iotdps-get-operationstatus/":
		h.polls++
		answer := map[string]any{"operationId": values.Get("operationId"), "status": "assigning"}
		if h.polls >= 2 && h.Refuse != "" {
			answer["status"], answer["registrationState"] = "failed", map[string]any{"errorCode": 401002, "errorMessage": h.Refuse}
		} else if h.polls >= 2 {
			answer["status"] = "assigned"
			answer["registrationState"] = map[string]any{"assignedHub": strings.Replace(h.Addr, "127.0.0.1", "localhost", 1), "deviceId": "gw1", "status": "assigned"}
		}
		code := "200"
		if answer["status"] == "assigning" {
			code = "202"
		}
		h.reply("$dps/registrations/res/"+code+"/?$rid="+rid+"&retry-after=0", answer)
	}
}

// GridOptions are those of an Event Grid namespace: MQTT 5 with its limits. Tokens are good where good says so; nil: clients show a certificate.
func GridOptions(method string, good func(token string) bool) broker.Options {
	one := byte(1)
	limits := broker.Limits{ReceiveMaximum: 100, MaximumPacketSize: 512 << 10, MaximumQoS: &one, NoRetain: true, TopicAliasMaximum: 10}
	return broker.Options{
		Admit: func(l *broker.Login) broker.Answer {
			switch {
			case l.Version != 5 || l.Username != "gw1" && l.Username != "plant7":
				return broker.Answer{Code: 0x86}
			case l.Method != method:
				return broker.Answer{Code: 0x8C}
			case good != nil && !good(string(l.Data)):
				return broker.Answer{Code: 0x87}
			}
			return broker.Answer{Limits: limits}
		},
		Auth: func(_, _ string, data []byte) (byte, []byte) {
			if !good(string(data)) {
				return 0x87, nil
			}
			return 0, nil
		},
		Published: func(_ string, m broker.Message) broker.Verdict {
			if len(m.Topic) > 256 || strings.Count(m.Topic, "/") > 7 {
				return broker.Verdict{Kick: 0x90}
			}
			return broker.Verdict{}
		},
	}
}

// NewGrid starts an Event Grid namespace; see GridOptions.
func NewGrid(t testing.TB, method string, good func(token string) bool) *Broker {
	t.Helper()
	b := NewBroker(t, GridOptions(method, good))
	if good != nil {
		config := b.CA.Server(t)
		config.ClientAuth = tls.NoClientCert
		b.Listen(t, config)
	}
	return b
}
