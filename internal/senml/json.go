package senml

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ParseJSON reads application/senml+json (section 5).
func ParseJSON(data []byte) (Pack, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("the payload is not a SenML pack: a JSON array")
	}
	var p Pack
	for d.More() {
		if len(p) == MaxRecords {
			return nil, fmt.Errorf("the pack has more than %d records", MaxRecords)
		}
		var r Record
		if err := r.readJSON(d); err != nil {
			return nil, fmt.Errorf("record %d: %w", len(p)+1, err)
		}
		p = append(p, r)
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("the payload is not JSON: it ends too early")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("the payload goes on after its JSON value")
	}
	return p, nil
}

func (r *Record) readJSON(d *json.Decoder) error {
	var fields map[string]json.RawMessage
	if err := d.Decode(&fields); err != nil || fields == nil {
		return errors.New("is not a JSON object")
	}
	for label, raw := range fields {
		if err := r.setJSON(label, raw); err != nil {
			return err
		}
	}
	return nil
}

func (r *Record) setJSON(label string, raw json.RawMessage) error {
	if label == "vd" {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			return wrongType(label)
		}
		data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
		if err != nil {
			return errors.New(`field "vd" is not base64url`)
		}
		r.Data = append([]byte{}, data...)
		return nil
	}
	to := r.field(label)
	if to == nil {
		return unknown(label)
	}
	if string(raw) == "null" || json.Unmarshal(raw, to) != nil {
		return wrongType(label)
	}
	return nil
}

// field gives where the value of a label goes, nil for a label that is not known.
func (r *Record) field(label string) any {
	switch label {
	case "bn":
		return &r.BaseName
	case "bt":
		return &r.BaseTime
	case "bu":
		return &r.BaseUnit
	case "bv":
		return &r.BaseValue
	case "bs":
		return &r.BaseSum
	case "bver":
		return &r.BaseVersion
	case "n":
		return &r.Name
	case "u":
		return &r.Unit
	case "v":
		return &r.Value
	case "vs":
		return &r.String
	case "vb":
		return &r.Bool
	case "s":
		return &r.Sum
	case "t":
		return &r.Time
	case "ut":
		return &r.UpdateTime
	case "vlo":
		return &r.ObjectLink
	}
	return nil
}

func wrongType(label string) error { return fmt.Errorf("field %q has the wrong type", label) }

// unknown refuses a label that has to be understood, and lets any other pass.
func unknown(label string) error {
	if strings.HasSuffix(label, "_") {
		return fmt.Errorf("field %q has to be understood and is not", label)
	}
	return nil
}
