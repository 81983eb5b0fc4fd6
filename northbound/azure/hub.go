package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const (
	hubVersion = "2021-04-12"
	hubTopic   = 1 << 10          // of the route: it becomes a property
	answerWait = 20 * time.Second // for twin requests
	renewAt    = 0.85             // of a signature's life
)

// hub is a session with an IoT Hub.
type hub struct {
	*mqtt.Session
	c      *Connector
	down   northbound.Downlink
	device string
	many   bool        // one of many devices: its name is in the topics that routes see
	timer  *time.Timer // ends the session before its signature ends; nil without one

	mu       sync.Mutex
	rid      int64                            // guarded by mu
	requests map[string]func(inbound, []byte) // guarded by mu: by $rid
}

// hubLogin makes what logging in to the hub needs, and says when it ends; zero: it does not.
func (c *Connector) hubLogin(ctx context.Context, device string) (mqtt.Address, mqtt.Options, time.Time, error) {
	o := c.options()
	var expires time.Time
	endpoint, name := c.cfg.Endpoint, device // by which keys are found and derived
	if endpoint == "" {
		name = c.registration(device)
		a, err := c.provisioned(ctx, name)
		if err != nil {
			return mqtt.Address{}, o, expires, err
		}
		endpoint, device = a.Hub, a.Device
	}
	address, err := c.address(ctx, name, endpoint, "/$iothub/websocket")
	if err != nil {
		return address, o, expires, err
	}
	host := bare(endpoint)
	o.Version, o.ClientID, o.SessionExpiry = mqtt.V311, device, 24*time.Hour
	o.Username = host + "/" + device + "/?api-version=" + hubVersion
	if c.cfg.ModelID != "" {
		o.Username += "&model-id=" + escape(c.cfg.ModelID)
	}
	if c.cfg.Auth != "x509" {
		var token string
		if token, expires, err = c.signature(ctx, name, host+"/devices/"+device, ""); err != nil {
			if c.cfg.Auth == "tpm" && errors.Is(err, hwcrypto.ErrNoKey) { // the TPM was cleared, or is another
				c.forgetAssignment(name)
			}
			return address, o, expires, err
		}
		o.Password = []byte(token)
	}
	return address, o, expires, nil
}

func (c *Connector) dialHub(ctx context.Context, device string, down northbound.Downlink) (*hub, error) {
	address, o, expires, err := c.hubLogin(ctx, device)
	if err != nil {
		return nil, err
	}
	h := &hub{c: c, down: down, device: o.ClientID, many: c.cfg.Identities == "device", requests: map[string]func(inbound, []byte){}}
	o.Lane = laneOf
	if o.Receive = h.receive; h.many {
		o.Window, o.ReadBuffer = laneWindow, laneBuffer
	}
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	if h.Session, err = mqtt.Start(ctx, conn, o); err != nil {
		if msg.IsPermanent(err) {
			c.forgetAssignment(c.registration(device))
		}
		return nil, northbound.Explain(address.Explain(err), c.hints())
	}
	if err := h.begin(ctx); err != nil {
		h.Session.Close()
		return nil, northbound.Explain(address.Explain(err), c.hints())
	}
	if !expires.IsZero() {
		life := expires.Sub(c.env.Now())
		h.timer = time.AfterFunc(time.Duration(renewAt*float64(life)), func() { h.End(northbound.ErrRenew) })
	}
	return h, nil
}

// begin subscribes to the topics that the routes need: the hub bears five.
func (h *hub) begin(ctx context.Context) error {
	wants := func(prefix string) bool {
		for _, f := range h.down.Topics() {
			if strings.HasPrefix(f, prefix) || strings.HasPrefix(f, "+/") || f == "#" {
				return true
			}
		}
		return false
	}
	filters := []string{"$iothub/twin/res/#"}
	if len(h.down.Topics()) > 0 {
		filters = append(filters, "devices/"+h.device+"/messages/devicebound/#")
	}
	if wants("methods/") {
		filters = append(filters, "$iothub/methods/POST/#")
	}
	if wants("twin/desired") {
		filters = append(filters, "$iothub/twin/PATCH/properties/desired/#")
	}
	if err := h.c.subscribe(ctx, h.Session, filters); err != nil {
		return err
	}
	if !wants("twin/desired") {
		return nil
	}
	// Changes are not kept for a device that is away: the whole twin is asked for.
	return h.ask(ctx, "$iothub/twin/GET/", nil, func(in inbound, body []byte) {
		var twin struct {
			Desired json.RawMessage `json:"desired"`
		}
		if in.status == "200" && json.Unmarshal(body, &twin) == nil {
			h.deliverDesired(h.Context(), twin.Desired, true)
		}
	})
}

// ask publishes a twin request whose answer goes to done. Its error says that the session or ctx has ended.
func (h *hub) ask(ctx context.Context, topic string, body []byte, done func(in inbound, body []byte)) error {
	h.mu.Lock()
	h.rid++
	rid := strconv.FormatInt(h.rid, 10)
	timer := time.AfterFunc(answerWait, func() {
		if tell := h.take(rid); tell != nil {
			tell(inbound{}, nil)
		}
	})
	h.requests[rid] = func(in inbound, body []byte) {
		timer.Stop()
		done(in, body)
	}
	h.mu.Unlock()
	p := msg.Publication{Topic: topic + "?$rid=" + rid, QoS: 1, Payload: body}
	return h.Session.Send(ctx, []msg.Publication{p}, func(_ int, err error) {
		if err == nil {
			return // the answer will come
		}
		if tell := h.take(rid); tell != nil {
			tell(inbound{}, nil)
		}
	})
}

func (h *hub) take(rid string) func(inbound, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	tell := h.requests[rid]
	delete(h.requests, rid)
	return tell
}

// Close is northbound.Session's.
func (h *hub) Close() error {
	if h.timer != nil {
		h.timer.Stop()
	}
	return h.Session.Close()
}

// Send is northbound.Session's.
func (h *hub) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	part, index := make([]msg.Publication, 0, len(batch)), make([]int, 0, len(batch))
	flush := func() error {
		sent := index
		err := h.Session.Send(ctx, part, func(k int, err error) { done(sent[k], err) })
		part, index = nil, nil
		return err
	}
	for i := range batch {
		p := batch[i]
		if key, ok := strings.CutPrefix(p.Topic, "twin/reported"); ok && (key == "" || key[0] == '/') {
			if err := flush(); err != nil { // order is kept
				return err
			}
			if err := h.report(ctx, strings.TrimPrefix(key, "/"), p.Payload, func(err error) { done(i, err) }); err != nil {
				return err
			}
			continue
		}
		if err := mqtt.CheckTopic(p.Topic); err != nil {
			done(i, msg.Permanent(err))
			continue
		}
		p.Topic, p.Retain = eventsTopic(h.device, &p), false
		if n := len(p.Topic) + len(p.Payload); n > hubPayload {
			done(i, msg.Permanent(fmt.Errorf("a message of %d octets with its properties: IoT Hub takes %d", n, hubPayload)))
			continue
		}
		part, index = append(part, p), append(index, i)
	}
	return flush()
}

// report patches reported properties, the whole or one key, and is done when the twin has answered. Its own error says that the session or
// ctx has ended.
func (h *hub) report(ctx context.Context, key string, payload []byte, done func(error)) error {
	var value any
	if json.Unmarshal(payload, &value) != nil {
		done(msg.Permanent(errors.New("a twin takes JSON only")))
		return nil
	}
	if key != "" {
		if strings.ContainsAny(key, ".$# /") {
			done(msg.Permanent(fmt.Errorf("%q cannot be the name of a reported property", key)))
			return nil
		}
		body, err := json.Marshal(map[string]json.RawMessage{key: payload})
		if err != nil {
			done(msg.Permanent(err))
			return nil
		}
		payload = body
	} else if _, ok := value.(map[string]any); !ok {
		done(msg.Permanent(errors.New("reported properties are a JSON object")))
		return nil
	}
	if len(payload) > hubReported {
		done(msg.Permanent(fmt.Errorf("reported properties of %d octets: IoT Hub takes %d", len(payload), hubReported)))
		return nil
	}
	return h.ask(ctx, "$iothub/twin/PATCH/properties/reported/", payload, func(in inbound, body []byte) {
		switch {
		case in.kind == unknown:
			done(errors.New("IoT Hub has not answered"))
		case strings.HasPrefix(in.status, "2"):
			done(nil)
		case in.status == "429" || strings.HasPrefix(in.status, "5"):
			done(busy(in.status))
		default:
			done(msg.Permanent(fmt.Errorf("IoT Hub: status %s: %.200q", in.status, body)))
		}
	})
}

// receive takes what the hub sends. Nil: it is settled.
func (h *hub) receive(ctx context.Context, p msg.Publication) error {
	in := parseTopic(p.Topic)
	switch in.kind {
	case message:
		return h.message(ctx, in, p)
	case method:
		return h.method(ctx, in, p)
	case desired:
		return h.deliverDesired(ctx, p.Payload, false)
	case twinReply:
		if tell := h.take(in.rid); tell != nil {
			tell(in, p.Payload)
		}
	}
	return nil
}

// message delivers a cloud-to-device message. Properties of the system lose their "$.".
func (h *hub) message(ctx context.Context, in inbound, p msg.Publication) error {
	p.Properties = map[string]string{}
	for k, v := range in.bag {
		p.Properties[strings.TrimPrefix(k, "$.")] = v
	}
	p.Type = in.bag["$.ct"]
	if id := in.bag["$.cid"]; id != "" {
		p.Correlation = []byte(id)
	}
	if until, err := time.Parse(time.RFC3339, in.bag["$.exp"]); err == nil {
		p.Expires = until
	}
	if p.Topic = in.bag["topic"]; p.Topic == "" {
		p.Topic = h.named("devicebound")
	}
	_, err := h.down.Deliver(ctx, p)
	return err
}

// named puts the device's name after a topic where the session is one of many.
func (h *hub) named(topic string) string {
	if h.many {
		return topic + "/" + h.device
	}
	return topic
}

// method delivers a direct method and answers it. Whoever called waits for a time of its own, so a method is never tried again.
func (h *hub) method(ctx context.Context, in inbound, p msg.Publication) error {
	wait, cancel := context.WithTimeout(ctx, time.Duration(h.c.cfg.MethodTimeout))
	defer cancel()
	p.Topic, p.Type = methodTopic(in.name), "application/json"
	if h.many {
		p.Topic = h.named("methods") + "/" + in.name
	}
	p.Expires = h.c.env.Now().Add(time.Duration(h.c.cfg.MethodTimeout))
	reply, err := h.down.Deliver(wait, p)
	if ctx.Err() != nil {
		return nil // the caller hears it from the hub
	}
	status, body := methodAnswer(reply, err)
	answer := msg.Publication{Topic: "$iothub/methods/res/" + strconv.Itoa(status) + "/?$rid=" + in.rid, QoS: 1, Payload: body}
	if err := h.Publish(ctx, answer); err != nil {
		h.c.env.Log.Warn("the answer to a direct method did not arrive", "method", in.name, "error", err)
	}
	return nil
}

// methodAnswer is the status and body of a method's answer: the device's own payload where it is JSON.
func methodAnswer(reply msg.Reply, err error) (int, []byte) {
	status := 500
	code := reply.Code
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		status, code = 504, "no answer in time"
	case err != nil:
		status, code = 503, "the gateway cannot deliver now"
	case reply.Status == msg.Done:
		status = 200
	case reply.Status == msg.Queued:
		status = 202
	case code == "denied":
		status = 403
	case code == "no-route", code == "unknown-device":
		status = 404
	case code == "not-connected":
		status = 503
	case len(code) == 4 && code[1] == '.' && (code[0] == '4' || code[0] == '5'): // CoAP's codes are nearly HTTP's
		if n, err := strconv.Atoi(code[:1] + code[2:]); err == nil {
			status = n
		}
	}
	if len(reply.Payload) > 0 && json.Valid(reply.Payload) {
		return status, reply.Payload
	}
	word := reply.Status.String()
	if err != nil {
		word = "unconfirmed"
	}
	body, _ := json.Marshal(struct { // strings alone: it cannot fail
		Status string `json:"status"`
		Code   string `json:"code,omitempty"`
		Answer string `json:"answer,omitempty"`
	}{word, code, string(reply.Payload)})
	return status, body
}

// deliverDesired delivers desired properties key by key: all of them (whole), or what has changed. Of changes, a version that has been
// delivered or is older is not delivered again.
func (h *hub) deliverDesired(ctx context.Context, body []byte, whole bool) error {
	var keys map[string]json.RawMessage
	if json.Unmarshal(body, &keys) != nil {
		return nil
	}
	var version int64
	if json.Unmarshal(keys["$version"], &version) != nil {
		version = 0
	}
	t := h.c.twin(h.device)
	t.mu.Lock()
	defer t.mu.Unlock()
	if version != 0 && (version == t.version || version < t.version && !whole) {
		return nil
	}
	maps.DeleteFunc(keys, func(k string, _ json.RawMessage) bool { return strings.HasPrefix(k, "$") })
	if h.many { // the device's own twin, in one piece
		piece, err := json.Marshal(keys)
		if err != nil {
			return nil
		}
		keys = map[string]json.RawMessage{h.device: piece}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		now := h.c.env.Now()
		_, err := h.down.Deliver(ctx, msg.Publication{
			ID: msg.NewID(now), Time: now, Topic: "twin/desired/" + key, QoS: 1, Type: "application/json", Payload: keys[key],
			Properties: map[string]string{"version": strconv.FormatInt(version, 10)},
		})
		if err != nil {
			return err
		}
	}
	t.version = version
	return nil
}
