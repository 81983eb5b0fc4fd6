package onem2m

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Encodings in contentInfo: MEDIA-TYPE ":" ENCODING (TS-0004 clause 6.3.3).
const (
	encodingPlain  = "0"
	encodingBase64 = "1"
)

// instance makes a contentInstance of a publication. Its name is the publication's: sent again it conflicts with itself.
func instance(p *msg.Publication) json.RawMessage {
	media := p.Type
	if media == "" {
		media = "text/plain"
		if !utf8.Valid(p.Payload) {
			media = "application/octet-stream"
		}
	}
	con, encoding := string(p.Payload), encodingPlain
	if !utf8.Valid(p.Payload) {
		con, encoding = base64.StdEncoding.EncodeToString(p.Payload), encodingBase64
	}
	a := map[string]any{"con": con, "cnf": media + ":" + encoding}
	if p.ID != (msg.ID{}) {
		a["rn"] = "m-" + p.ID.String()
	}
	if !p.Expires.IsZero() {
		a["et"] = stamp(p.Expires)
	}
	return represent("m2m:cin", a)
}

// cin is a contentInstance as a CSE gives it.
type cin struct {
	ID      string          `json:"ri"`
	Name    string          `json:"rn"`
	Created string          `json:"ct"`
	Expires string          `json:"et"`
	State   number          `json:"st"`
	Creator string          `json:"cr"`
	Info    string          `json:"cnf"`
	Content json.RawMessage `json:"con"`
}

// publication makes what is delivered of it.
func (c *cin) publication(topic string) msg.Publication {
	p := msg.Publication{ID: c.identity(topic), Topic: topic, QoS: 1, Payload: c.Content}
	media, encoding, _ := strings.Cut(c.Info, ":")
	p.Type = media
	var s string
	if json.Unmarshal(c.Content, &s) != nil {
		if p.Type == "" {
			p.Type = "application/json"
		}
		return p
	}
	p.Payload = []byte(s)
	if encoding, _, _ = strings.Cut(encoding, ":"); encoding == "1" || encoding == "2" {
		if raw, err := base64.StdEncoding.DecodeString(s); err == nil {
			p.Payload = raw
		}
	}
	return p
}

// identity is the same each time that the same contentInstance is seen.
func (c *cin) identity(topic string) (id msg.ID) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", topic, c.ID, c.Created)
	copy(id[:], h.Sum(nil))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8 (RFC 9562 section 5.8)
	return id
}

// instances reads the contentInstances from a container with its children, in the order of their creation.
func instances(data []byte) ([]cin, error) {
	a, err := attributes(data)
	if err != nil {
		return nil, err
	}
	raw := bytes.TrimSpace(a["m2m:cin"])
	if len(raw) == 0 {
		return nil, nil
	}
	if raw[0] == '{' {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	var list []cin
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("contentInstances: %w", err)
	}
	slices.SortStableFunc(list, func(x, y cin) int {
		return cmp.Or(strings.Compare(x.Created, y.Created), cmp.Compare(x.State, y.State))
	})
	return list, nil
}

// segments splits a topic into the names of containers.
func segments(topic string) ([]string, error) {
	names := strings.Split(topic, "/")
	for _, n := range names {
		switch {
		case !nameForm.MatchString(n) || n == "." || n == "..":
			return nil, fmt.Errorf("topic %.200q: %.80q cannot be the name of a resource", topic, n)
		case n == "la" || n == "ol" || n == "-" || n == "pcu" || n == "fopt":
			return nil, fmt.Errorf("topic %.200q: %q is the name of a virtual resource", topic, n)
		case len(n) > 255:
			return nil, fmt.Errorf("topic %.200q: a name of %d octets", topic, len(n))
		}
	}
	return names, nil
}

// notification is what a NOTIFY carries (m2m:sgn).
type notification struct {
	Verify  bool   `json:"vrq"`
	Deleted bool   `json:"sud"`
	Sub     string `json:"sur"`
	Event   struct {
		Type number                     `json:"net"`
		Rep  map[string]json.RawMessage `json:"rep"`
	} `json:"nev"`
}

// parseNotifications reads one notification or an aggregation of several, with or without the roots that the standard asks for.
func parseNotifications(data []byte) ([]notification, error) {
	raw := bytes.TrimSpace(unwrap(unwrap(data, "m2m:agn", "agn"), "m2m:sgn", "sgn"))
	if len(raw) == 0 || raw[0] != '[' {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, fmt.Errorf("notification: %w", err)
	}
	if len(parts) == 0 {
		return nil, errors.New("notification: there is none")
	}
	list := make([]notification, len(parts))
	for i, one := range parts {
		if err := json.Unmarshal(unwrap(one, "m2m:sgn", "sgn"), &list[i]); err != nil {
			return nil, fmt.Errorf("notification: %w", err)
		}
	}
	return list, nil
}
