package azure

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// pair is one property of a bag.
type pair struct{ key, value string }

// eventsTopic is where a device's reports go, with what the publication says of itself in the property bag.
func eventsTopic(device string, p *msg.Publication) string {
	bag := []pair{{"$.mid", p.ID.String()}}
	if p.Type != "" {
		bag = append(bag, pair{"$.ct", p.Type})
		if p.Type == "application/json" || strings.HasPrefix(p.Type, "text/") {
			bag = append(bag, pair{"$.ce", "utf-8"}) // without it message routing cannot look into JSON
		}
	}
	if !p.Time.IsZero() {
		bag = append(bag, pair{"$.ctime", p.Time.UTC().Format(time.RFC3339Nano)})
	}
	if len(p.Correlation) > 0 {
		bag = append(bag, pair{"$.cid", string(p.Correlation)})
	}
	own := []pair{{"topic", p.Topic}}
	if p.Device != "" {
		own = append(own, pair{"device", p.Device})
	}
	for k, v := range p.Properties {
		if k != "topic" && k != "device" && !strings.HasPrefix(k, "$.") {
			own = append(own, pair{k, v})
		}
	}
	slices.SortFunc(own, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	var b strings.Builder
	b.WriteString("devices/" + device + "/messages/events/")
	for i, kv := range append(bag, own...) {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escape(kv.key) + "=" + escape(kv.value))
	}
	return b.String()
}

// parseBag reads the property bag of a message to the device. A key without "=" has no value.
func parseBag(s string) map[string]string {
	bag := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimPrefix(s, "?"), "&") {
		k, v, _ := strings.Cut(part, "=")
		key, err := url.PathUnescape(k)
		if err != nil || key == "" {
			continue
		}
		if value, err := url.PathUnescape(v); err == nil {
			bag[key] = value
		}
	}
	return bag
}

// kind says what an inbound topic is about.
type kind uint8

const (
	unknown   kind = iota
	message        // cloud to device; bag
	method         // direct method; name, rid
	desired        // desired properties have changed; bag: $version
	twinReply      // answer of the twin; status, rid, bag: $version
	dpsReply       // answer of the provisioning service; status, rid, bag: retry-after
)

// inbound is a parsed topic of the platform.
type inbound struct {
	kind   kind
	name   string // method
	status string
	rid    string
	bag    map[string]string
}

func parseTopic(topic string) inbound {
	cut := func(prefix string) (head, query string, ok bool) {
		rest, ok := strings.CutPrefix(topic, prefix)
		head, query, _ = strings.Cut(rest, "?")
		return strings.TrimSuffix(head, "/"), query, ok
	}
	if _, rest, ok := strings.Cut(topic, "/messages/devicebound/"); ok && strings.HasPrefix(topic, "devices/") {
		return inbound{kind: message, bag: parseBag(rest)}
	}
	if name, query, ok := cut("$iothub/methods/POST/"); ok {
		bag := parseBag(query)
		return inbound{kind: method, name: name, rid: bag["$rid"], bag: bag}
	}
	if _, query, ok := cut("$iothub/twin/PATCH/properties/desired/"); ok {
		return inbound{kind: desired, bag: parseBag(query)}
	}
	if status, query, ok := cut("$iothub/twin/res/"); ok {
		bag := parseBag(query)
		return inbound{kind: twinReply, status: status, rid: bag["$rid"], bag: bag}
	}
	if status, query, ok := cut("$dps/registrations/res/"); ok {
		bag := parseBag(query)
		return inbound{kind: dpsReply, status: status, rid: bag["$rid"], bag: bag}
	}
	return inbound{}
}

// methodTopic is the topic on which routes wait for a direct method: "methods/DEVICE/NAME" for a method "DEVICE.NAME",
// "methods/NAME" for one without a point.
func methodTopic(name string) string {
	if i := strings.LastIndexByte(name, '.'); i > 0 && i < len(name)-1 {
		return "methods/" + name[:i] + "/" + name[i+1:]
	}
	return "methods/" + name
}

// escape is encodeURIComponent of ECMAScript, as the platform's own SDK uses it.
func escape(s string) string {
	return strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(url.QueryEscape(s))
}

// laneOf keeps messages for one topic, and changes of the twin, in order: every one of them has a topic of its own.
func laneOf(topic string) string {
	switch in := parseTopic(topic); in.kind {
	case message:
		return "message " + in.bag["topic"]
	case desired:
		return "desired"
	}
	return topic
}
