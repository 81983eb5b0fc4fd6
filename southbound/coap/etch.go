package coap

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/internal/senml"
)

// FETCH, PATCH and iPATCH (RFC 8132). What part of a representation a FETCH means is known for SenML alone (RFC 8790): of a last value in
// SenML it gives the records that are asked for. A PATCH or iPATCH is a report like a POST; the uplink carries it as it is. Where its format is
// known here, it also changes the last value; else the last value is gone, for it is of the past.

// The Content-Formats that mean something here.
const (
	formatJSON      = 50
	formatMerge     = 52 // merge-patch+json, RFC 7396
	formatSenML     = 110
	formatSenMLCBOR = 112
	formatEtch      = 320 // RFC 8790
	formatEtchCBOR  = 322
)

var (
	errPatchFormat   = errors.New("no patch of the last value")
	errPatchSyntax   = errors.New("malformed")
	errUnprocessable = errors.New("unprocessable")
	errConflict      = errors.New("the last value is not what it says it is")
)

// codeOfEtch gives the answer to a selection or patch that cannot be applied (RFC 8132 section 3.4).
func codeOfEtch(err error) codes.Code {
	switch {
	case errors.Is(err, errPatchFormat):
		return codes.UnsupportedMediaType
	case errors.Is(err, errPatchSyntax):
		return codes.BadRequest
	case errors.Is(err, errConflict):
		return conflict
	}
	return unprocessableEntity
}

// fetch answers a FETCH from the last value.
func (t *turn) fetch(s *session, p *packet, path []byte) {
	body, _, ok := t.assemble(s, p, path)
	if !ok {
		return
	}
	format, _ := p.number(message.ContentFormat)
	if format != formatEtch && format != formatEtchCBOR {
		t.say(s, p, codes.UnsupportedMediaType, nil)
		return
	}
	v := t.l.values.get(t.deviceOf(s, p), string(path))
	if v == nil {
		t.say(s, p, codes.NotFound, nil)
		return
	}
	target, err := v.pack()
	if err != nil {
		t.say(s, p, codeOfEtch(err), nil)
		return
	}
	if n, ok := p.number(message.Accept); ok && int(n) != v.format {
		t.say(s, p, codes.NotAcceptable, nil)
		return
	}
	wanted, err := parseEtch(format, body)
	if err != nil {
		t.say(s, p, codeOfEtch(err), nil)
		return
	}
	for _, w := range wanted {
		if w.removes || w.hasValue() {
			t.say(s, p, codes.BadRequest, []byte("value"))
			return
		}
	}
	if len(target)*len(wanted) > maxComparisons {
		t.say(s, p, codeOfEtch(errUnprocessable), nil)
		return
	}
	selected := slices.DeleteFunc(target, func(r senml.Record) bool {
		return !slices.ContainsFunc(wanted, func(w etchRecord) bool { return w.matches(&r) })
	})
	content, err := encodePack(v.format, selected)
	if err != nil {
		t.say(s, p, codes.InternalServerError, nil)
		return
	}
	t.sayContent(s, p, content, uintOption(message.ContentFormat, uint32(v.format)), uintOption(message.MaxAge, valueMaxAge))
}

// maxComparisons bounds the records of a Fetch or Patch Pack times those of the last value: devices are answered under one lock.
const maxComparisons = 1 << 17

// pack gives a last value in SenML with names resolved.
func (v *value) pack() (senml.Pack, error) {
	var p senml.Pack
	var err error
	switch v.format {
	case formatSenML:
		p, err = senml.ParseJSON(v.payload)
	case formatSenMLCBOR:
		p, err = senml.ParseCBOR(v.payload)
	default:
		return nil, errPatchFormat
	}
	if err != nil {
		return nil, errConflict
	}
	// Times that are relative stay so.
	if p, err = p.Resolve(time.Unix(0, 0)); err != nil {
		return nil, errConflict
	}
	for i := range p {
		if *p[i].Time == 0 {
			p[i].Time = nil
		}
	}
	return p, nil
}

func encodePack(format int, p senml.Pack) ([]byte, error) {
	if format == formatSenMLCBOR {
		return p.CBOR()
	}
	return p.JSON(), nil
}

// etchRecord is a record of a Fetch or Patch Pack, its name and time resolved.
type etchRecord struct {
	senml.Record
	removes bool // its value is null
}

func (w *etchRecord) hasValue() bool {
	return w.Value != nil || w.String != nil || w.Bool != nil || w.Data != nil || w.ObjectLink != nil || w.Sum != nil
}

// matches tells whether r is meant (RFC 8790 section 3.1).
func (w *etchRecord) matches(r *senml.Record) bool {
	return r.Name == w.Name && (w.Time == nil || r.Time != nil && *r.Time == *w.Time) && (w.Unit == "" || r.Unit == w.Unit)
}

// parseEtchPack reads a Fetch or Patch Pack as the SenML that it is but for values of null, and tells which records have one.
func parseEtchPack(format uint32, body []byte) (p senml.Pack, removes []bool, err error) {
	if format == formatEtchCBOR {
		var records []map[any]cbor.RawMessage
		if cbor.Unmarshal(body, &records) != nil {
			return nil, nil, errPatchSyntax
		}
		removes = make([]bool, len(records))
		for i, r := range records {
			for _, label := range []any{uint64(2), uint64(3), uint64(4), uint64(8), "v", "vs", "vb", "vd"} {
				if raw := r[label]; len(raw) == 1 && raw[0] == 0xf6 {
					removes[i] = true
					delete(r, label)
				}
			}
		}
		if body, err = cbor.Marshal(records); err == nil {
			p, err = senml.ParseCBOR(body)
		}
	} else {
		var records []map[string]json.RawMessage
		if json.Unmarshal(body, &records) != nil {
			return nil, nil, errPatchSyntax
		}
		removes = make([]bool, len(records))
		for i, r := range records {
			for _, label := range []string{"v", "vs", "vb", "vd"} {
				if string(r[label]) == "null" {
					removes[i] = true
					delete(r, label)
				}
			}
		}
		if body, err = json.Marshal(records); err == nil {
			p, err = senml.ParseJSON(body)
		}
	}
	if err != nil || len(p) == 0 {
		return nil, nil, errPatchSyntax
	}
	return p, removes, nil
}

// parseEtch reads a Fetch or Patch Pack.
func parseEtch(format uint32, body []byte) ([]etchRecord, error) {
	p, removes, err := parseEtchPack(format, body)
	if err != nil {
		return nil, err
	}
	var base senml.Record
	text := 0
	list := make([]etchRecord, len(p))
	for i, r := range p {
		if r.BaseName != "" {
			base.BaseName = r.BaseName
		}
		if r.BaseTime != nil {
			base.BaseTime = r.BaseTime
		}
		if r.BaseUnit != "" {
			base.BaseUnit = r.BaseUnit
		}
		if r.BaseValue != nil || r.BaseSum != nil {
			return nil, errUnprocessable
		}
		if text += len(base.BaseName) + len(r.Name) + max(len(base.BaseUnit), len(r.Unit)); text > senml.MaxText {
			return nil, errUnprocessable
		}
		r.Name = base.BaseName + r.Name
		if r.Name == "" {
			return nil, errUnprocessable
		}
		if r.Unit == "" {
			r.Unit = base.BaseUnit
		}
		if r.Time != nil || base.BaseTime != nil {
			var at float64
			for _, f := range []*float64{r.Time, base.BaseTime} {
				if f != nil {
					at += *f
				}
			}
			r.Time = &at
		}
		list[i] = etchRecord{r, removes[i]}
	}
	return list, nil
}

// patch gives what a patch makes of the last value. v may be nil. An error tells that nothing is known of the new one.
func (v *value) patch(format int, body []byte) ([]byte, error) {
	switch format {
	case formatMerge:
		change, err := readJSON(body)
		if err != nil {
			return nil, errPatchSyntax
		}
		if v == nil || v.format != formatJSON {
			return nil, errPatchFormat
		}
		target, err := readJSON(v.payload)
		if err != nil {
			return nil, errConflict
		}
		return json.Marshal(mergePatch(target, change))
	case formatEtch, formatEtchCBOR:
		changes, err := parseEtch(uint32(format), body)
		if err != nil {
			return nil, err
		}
		for _, c := range changes {
			if !c.removes && !c.hasValue() {
				return nil, errUnprocessable
			}
		}
		if v == nil {
			return nil, errPatchFormat
		}
		target, err := v.pack()
		if err != nil {
			return nil, err
		}
		return encodeChanged(v.format, target, changes)
	}
	return nil, errPatchFormat
}

// encodeChanged replaces, removes and adds records (RFC 8790 section 3.2).
func encodeChanged(format int, target senml.Pack, changes []etchRecord) ([]byte, error) {
	if (len(target)+len(changes))*len(changes) > maxComparisons {
		return nil, errUnprocessable
	}
	for _, c := range changes {
		found := false
		target = slices.DeleteFunc(target, func(r senml.Record) bool {
			if !c.matches(&r) {
				return false
			}
			found = true
			return c.removes
		})
		switch {
		case c.removes:
		case !found:
			target = append(target, c.Record)
		default:
			for i := range target {
				if r := &target[i]; c.matches(r) {
					r.Value, r.String, r.Bool, r.Data, r.ObjectLink, r.Sum = c.Value, c.String, c.Bool, c.Data, c.ObjectLink, c.Sum
				}
			}
		}
	}
	for i := range target {
		target[i].BaseName, target[i].BaseUnit, target[i].BaseTime, target[i].BaseVersion = "", "", nil, nil
	}
	if len(target) > 0 {
		if _, err := target.Resolve(time.Unix(0, 0)); err != nil { // a name, or a number that is not finite
			return nil, errUnprocessable
		}
	}
	return encodePack(format, target)
}

// readJSON keeps numbers as they are written.
func readJSON(b []byte) (v any, err error) {
	if !json.Valid(b) {
		return nil, errPatchSyntax
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

// mergePatch is the algorithm of RFC 7396 section 2.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = map[string]any{}
	}
	for name, change := range changes {
		if change == nil {
			delete(object, name)
		} else {
			object[name] = mergePatch(object[name], change)
		}
	}
	return object
}

// patchable tells whether a PATCH or iPATCH fits the last value, where there is one and the format is known.
func (v *value) patchable(p *packet, body []byte) error {
	n, ok := p.number(message.ContentFormat)
	if !ok || n != formatMerge && n != formatEtch && n != formatEtchCBOR {
		return nil
	}
	_, err := v.patch(int(n), body)
	if v == nil && errors.Is(err, errPatchFormat) {
		return nil
	}
	return err
}
