// Package senml reads Sensor Measurement Lists (RFC 8428) in JSON and CBOR and resolves them.
//
// A pack that is read without error obeys the RFC: every record has a name after resolution, at most one value, numbers that
// are finite, one version. Labels that are unknown are left out, unless they end in "_": those have to be understood (section 4.4),
// and are an error. Packs are bounded to MaxRecords, and what Resolve makes of their names and units to MaxText: a long base name in few octets
// stands before every record's.
//
// It does not read XML or EXI, nor streams (SensML).
package senml

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MaxRecords bounds the records of a pack.
const MaxRecords = 4096

// MaxText bounds the names and units of a resolved pack, in octets.
const MaxText = 1 << 20

// version is the one that RFC 8428 defines (section 4.1).
const version = 10

// Record is a SenML record (section 4). A nil pointer is a field that is absent.
type Record struct {
	BaseName    string
	BaseTime    *float64
	BaseUnit    string
	BaseValue   *float64
	BaseSum     *float64
	BaseVersion *int

	Name       string
	Unit       string
	Value      *float64
	String     *string
	Bool       *bool
	Data       []byte // vd: nil where absent
	Sum        *float64
	Time       *float64
	UpdateTime *float64
	ObjectLink *string // vlo, of LwM2M
}

// Pack is a list of records as it came or, after Resolve, with names, units, values and times complete.
type Pack []Record

// Resolve gives the pack without base fields and with absolute times, in chronological order (section 4.6).
// Times below 2^28 are relative to now (section 4.5.3); a record without any time was taken now.
func (p Pack) Resolve(now time.Time) (Pack, error) {
	if len(p) == 0 {
		return nil, errors.New("the pack has no record")
	}
	var base Record
	clock := float64(now.UnixMilli()) / 1000
	out := make(Pack, 0, len(p))
	text := 0
	for i, r := range p {
		if err := base.rebase(&r); err != nil {
			return nil, fmt.Errorf("record %d: %w", i+1, err)
		}
		if text += len(base.BaseName) + len(r.Name) + max(len(base.BaseUnit), len(r.Unit)); text > MaxText {
			return nil, fmt.Errorf("the pack has more than %d octets of names and units", MaxText)
		}
		r, err := r.resolve(&base, clock)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i+1, err)
		}
		if r != nil {
			out = append(out, *r)
		}
	}
	slices.SortStableFunc(out, func(a, b Record) int {
		switch {
		case *a.Time < *b.Time:
			return -1
		case *a.Time > *b.Time:
			return 1
		}
		return 0
	})
	return out, nil
}

// rebase takes over the base fields that r sets: they hold until another record sets them (section 4.1).
func (base *Record) rebase(r *Record) error {
	if r.BaseName != "" {
		base.BaseName = r.BaseName
	}
	if r.BaseUnit != "" {
		base.BaseUnit = r.BaseUnit
	}
	for _, f := range [...]struct{ to, from **float64 }{
		{&base.BaseTime, &r.BaseTime}, {&base.BaseValue, &r.BaseValue}, {&base.BaseSum, &r.BaseSum},
	} {
		if *f.from != nil {
			*f.to = *f.from
		}
	}
	if r.BaseVersion != nil {
		if *r.BaseVersion < 1 || *r.BaseVersion > version {
			return fmt.Errorf("version %d: only up to %d is known", *r.BaseVersion, version)
		}
		if base.BaseVersion != nil && *base.BaseVersion != *r.BaseVersion {
			return errors.New("the version changes within the pack")
		}
		base.BaseVersion = r.BaseVersion
	}
	return nil
}

// resolve applies the base fields. It gives nil for a record that only sets them.
func (r *Record) resolve(base *Record, now float64) (*Record, error) {
	values := 0
	for _, there := range [...]bool{r.Value != nil, r.String != nil, r.Bool != nil, r.Data != nil, r.ObjectLink != nil} {
		if there {
			values++
		}
	}
	if values > 1 {
		return nil, errors.New("has more than one value")
	}
	if values == 0 && r.Sum == nil && base.BaseSum == nil && base.BaseValue == nil {
		if r.Name == "" && r.Time == nil && r.Unit == "" {
			return nil, nil
		}
		return nil, errors.New("has neither value nor sum")
	}
	out := &Record{
		Name: base.BaseName + r.Name, Unit: r.Unit, String: r.String, Bool: r.Bool, Data: r.Data, ObjectLink: r.ObjectLink,
		UpdateTime: r.UpdateTime,
	}
	if err := checkName(out.Name); err != nil {
		return nil, err
	}
	if out.Unit == "" {
		out.Unit = base.BaseUnit
	}
	if r.Value != nil || values == 0 && base.BaseValue != nil {
		out.Value = sum(base.BaseValue, r.Value)
	}
	if r.Sum != nil || base.BaseSum != nil {
		out.Sum = sum(base.BaseSum, r.Sum)
	}
	at := *sum(base.BaseTime, r.Time)
	if at < 1<<28 {
		at += now
	}
	out.Time = &at
	for _, f := range [...]*float64{out.Value, out.Sum, out.Time, out.UpdateTime} {
		if f != nil && (math.IsNaN(*f) || math.IsInf(*f, 0)) {
			return nil, errors.New("has a number that is not finite")
		}
	}
	return out, nil
}

// sum adds what is there; nil counts as 0.
func sum(a, b *float64) *float64 {
	var s float64
	if a != nil {
		s += *a
	}
	if b != nil {
		s += *b
	}
	return &s
}

// checkName holds a resolved name against section 4.5.1, save that it may begin with "/", as those of LwM2M do
// (TS Core 1.1 section 7.4.4).
func checkName(s string) error {
	if s == "" {
		return errors.New("has no name")
	}
	for i, r := range s {
		alnum := '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
		if !alnum && (i == 0 && r != '/' || !strings.ContainsRune("-:./_", r)) {
			return errors.New("has a name with a character that names cannot have")
		}
	}
	return nil
}

// JSON writes a resolved pack in compact form, with labels in the order of the RFC's table.
func (p Pack) JSON() []byte {
	b := []byte{'['}
	for i := range p {
		if i > 0 {
			b = append(b, ',')
		}
		b = p[i].appendJSON(b)
	}
	return append(b, ']')
}

func (r *Record) appendJSON(b []byte) []byte {
	b = append(b, `{"n":`...)
	b = appendString(b, r.Name)
	if r.Unit != "" {
		b = appendString(append(b, `,"u":`...), r.Unit)
	}
	b = appendNumber(b, `,"v":`, r.Value)
	if r.String != nil {
		b = appendString(append(b, `,"vs":`...), *r.String)
	}
	if r.Bool != nil {
		b = strconv.AppendBool(append(b, `,"vb":`...), *r.Bool)
	}
	if r.Data != nil {
		b = append(b, `,"vd":"`...)
		b = append(base64.RawURLEncoding.AppendEncode(b, r.Data), '"')
	}
	if r.ObjectLink != nil {
		b = appendString(append(b, `,"vlo":`...), *r.ObjectLink)
	}
	b = appendNumber(b, `,"s":`, r.Sum)
	b = appendNumber(b, `,"t":`, r.Time)
	b = appendNumber(b, `,"ut":`, r.UpdateTime)
	return append(b, '}')
}

func appendNumber(b []byte, label string, f *float64) []byte {
	if f == nil {
		return b
	}
	b = append(b, label...)
	if a := math.Abs(*f); a != 0 && (a < 1e-6 || a >= 1e21) { // as ECMAScript and encoding/json do
		return strconv.AppendFloat(b, *f, 'e', -1, 64)
	}
	return strconv.AppendFloat(b, *f, 'f', -1, 64)
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) { // what is read is UTF-8, so the rest may stand as it is
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
