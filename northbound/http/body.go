package http

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// form is how publications become a request.
type form struct {
	check func(p *msg.Publication) error // why one cannot be sent; nil: any can
	body  func(c *call, batch []*msg.Publication) (data []byte, media string, err error)
	// single says that a request carries one publication, and its topic follows the URL.
	single bool
}

// call is what a body may need beside publications.
type call struct{ secret string }

var (
	array      = form{body: arrayBody}
	payload    = form{check: pathOf, body: payloadBody, single: true}
	thingspeak = form{check: checkFields, body: thingspeakBody}
)

// message is an element of body = "array".
type message struct {
	ID         string            `json:"id"`
	Time       time.Time         `json:"time"`
	Device     string            `json:"device,omitempty"`
	Topic      string            `json:"topic"`
	Type       string            `json:"type,omitempty"`
	Payload    any               `json:"payload"` // JSON as it is, text as a string, anything else in base64
	Base64     bool              `json:"base64,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
}

func arrayBody(_ *call, batch []*msg.Publication) ([]byte, string, error) {
	list := make([]message, len(batch))
	for i, p := range batch {
		list[i] = message{ID: p.ID.String(), Time: p.Time, Device: p.Device, Topic: p.Topic, Type: p.Type, Properties: p.Properties}
		media, _, _ := strings.Cut(p.Type, ";")
		switch {
		case (media == "application/json" || strings.HasSuffix(media, "+json")) && json.Valid(p.Payload):
			list[i].Payload = json.RawMessage(p.Payload)
		case utf8.Valid(p.Payload):
			list[i].Payload = string(p.Payload)
		default:
			list[i].Payload, list[i].Base64 = base64.StdEncoding.EncodeToString(p.Payload), true
		}
	}
	data, err := json.Marshal(list)
	return data, "application/json", err
}

func payloadBody(_ *call, batch []*msg.Publication) ([]byte, string, error) {
	media := batch[0].Type
	if media == "" {
		media = "application/octet-stream"
	}
	return batch[0].Payload, media, nil
}

// pathOf says why a topic cannot follow a URL.
func pathOf(p *msg.Publication) error {
	for level := range strings.SplitSeq(p.Topic, "/") {
		if level == "" || level == "." || level == ".." || strings.ContainsAny(level, "+#") {
			return fmt.Errorf("topic %.200q: %.80q cannot be part of a path", p.Topic, level)
		}
	}
	return nil
}

// below gives the URL with a topic after it.
func below(u *url.URL, topic string) *url.URL {
	levels := strings.Split(topic, "/")
	for i := range levels {
		levels[i] = url.PathEscape(levels[i])
	}
	return u.JoinPath(levels...)
}

// Limits of a free licence of ThingSpeak.
const (
	thingspeakPause = 15 * time.Second
	thingspeakBatch = 960
)

var fieldForm = regexp.MustCompile(`^(field[1-8]|latitude|longitude|elevation|status)$`)

// fields reads what one publication says of a channel: the topic's last level is a field and the payload its value, or the payload is an
// object of fields.
func fields(p *msg.Publication) (map[string]any, error) {
	if name := p.Topic[strings.LastIndexByte(p.Topic, '/')+1:]; fieldForm.MatchString(name) {
		return map[string]any{name: string(p.Payload)}, nil
	}
	var all map[string]any
	if err := json.Unmarshal(p.Payload, &all); err != nil || len(all) == 0 {
		return nil, fmt.Errorf("topic %.200q is no field of a channel, and the payload is no object of fields", p.Topic)
	}
	for name, value := range all {
		_, object := value.(map[string]any)
		_, list := value.([]any)
		if !fieldForm.MatchString(name) || object || list {
			return nil, fmt.Errorf("%.80q is no field of a channel with a plain value", name)
		}
	}
	return all, nil
}

func checkFields(p *msg.Publication) error {
	_, err := fields(p)
	return err
}

func thingspeakBody(c *call, batch []*msg.Publication) ([]byte, string, error) {
	updates := make([]map[string]any, 0, len(batch))
	for _, p := range batch {
		update, err := fields(p)
		if err != nil {
			return nil, "", err
		}
		update["created_at"] = p.Time.UTC().Format("2006-01-02 15:04:05.000 -0700")
		updates = append(updates, update)
	}
	data, err := json.Marshal(map[string]any{"write_api_key": c.secret, "updates": updates})
	return data, "application/json", err
}
