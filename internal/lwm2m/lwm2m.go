// Package lwm2m reads the payload formats of OMA Lightweight M2M that are its own: TLV (TS 1.0.2 section 6.4.3), JSON of
// version 1.0 (section 6.4.4) and LwM2M CBOR (TS Core 1.2 section 7.4.7). All become a SenML pack whose names are paths such as
// "/3303/0/5700", which is what LwM2M 1.1 sends in SenML itself.
//
// What is read without error is bounded: to senml.MaxRecords values and to paths of four numbers.
//
// TLV does not say of what type a value is. That of the core objects 3 to 6 and of the reusable resources that sensors share is known
// here; any other value stays as octets.
package lwm2m

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/internal/senml"
)

// path is object, instance, resource and resource instance, as many as are given.
type path []uint16

// parsePath reads "/3303/0/5700". An empty path, "/" alone, is the root.
func parsePath(s string) (path, error) {
	s = strings.Trim(s, "/")
	if s == "" {
		return nil, nil
	}
	var p path
	for part := range strings.SplitSeq(s, "/") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || len(p) == 4 {
			return nil, errors.New("the resource is not a LwM2M path")
		}
		p = append(p, uint16(n))
	}
	return p, nil
}

func (p path) String() string {
	var b strings.Builder
	for _, n := range p {
		b.WriteByte('/')
		b.WriteString(strconv.Itoa(int(n)))
	}
	return b.String()
}

// with gives p with one more number, never sharing p's memory.
func (p path) with(n uint16) path { return append(p[:len(p):len(p)], n) }

var errTooMany = fmt.Errorf("the payload has more than %d values", senml.MaxRecords)

func add(pack senml.Pack, r senml.Record) (senml.Pack, error) {
	if len(pack) == senml.MaxRecords {
		return nil, errTooMany
	}
	return append(pack, r), nil
}

// The kinds of a TLV: bits 7 and 6 of its first octet.
const (
	objectInstance = iota
	resourceInstance
	multipleResource
	resource
)

// ParseTLV reads application/vnd.oma.lwm2m+tlv that came from a path: an object, an object instance or a resource.
func ParseTLV(from string, data []byte) (senml.Pack, error) {
	p, err := parsePath(from)
	if err != nil {
		return nil, err
	}
	if len(p) == 0 {
		return nil, errors.New("TLV comes from an object at least")
	}
	if len(p) > 2 {
		p = p[:2] // a resource holds itself
	}
	return appendTLV(nil, p, data)
}

func appendTLV(pack senml.Pack, at path, data []byte) (_ senml.Pack, err error) {
	for len(data) > 0 {
		kind, id, value, rest, err := cutTLV(data)
		if err != nil {
			return nil, err
		}
		data = rest
		want := map[int]int{objectInstance: 1, multipleResource: 2, resource: 2, resourceInstance: 3}[kind]
		if len(at) == 1 && want == 2 {
			at = at.with(0) // the one instance of an object may be left out
		}
		if len(at) != want {
			return nil, errors.New("a TLV stands where its kind cannot")
		}
		to := at.with(id)
		if kind == objectInstance || kind == multipleResource {
			pack, err = appendTLV(pack, to, value)
		} else {
			var r senml.Record
			if r, err = typed(to, value); err == nil {
				pack, err = add(pack, r)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return pack, nil
}

// cutTLV splits off the first TLV.
func cutTLV(b []byte) (kind int, id uint16, value, rest []byte, err error) {
	short := errors.New("the payload ends within a TLV")
	first := b[0]
	b = b[1:]
	number := func(octets int) int {
		if err != nil || len(b) < octets {
			err = short
			return 0
		}
		n := 0
		for _, o := range b[:octets] {
			n = n<<8 | int(o)
		}
		b = b[octets:]
		return n
	}
	id = uint16(number(1 + int(first>>5&1)))
	n := int(first & 7)
	if octets := int(first >> 3 & 3); octets > 0 {
		n = number(octets)
	}
	if err != nil || len(b) < n {
		return 0, 0, nil, nil, short
	}
	return int(first >> 6), id, b[:n], b[n:], nil
}

// typed gives a value of TLV its type.
func typed(p path, b []byte) (r senml.Record, err error) {
	r.Name = p.String()
	wrong := fmt.Errorf("%s: the value has not the length of its type", p)
	switch typeOf(p[0], p[2]) {
	case text:
		if !utf8.Valid(b) {
			return r, fmt.Errorf("%s: the text is not UTF-8", p)
		}
		s := string(b)
		r.String = &s
	case integer:
		n, ok := signed(b)
		if !ok {
			return r, wrong
		}
		f := float64(n)
		r.Value = &f
	case float:
		var f float64
		switch len(b) {
		case 4:
			f = float64(math.Float32frombits(binary.BigEndian.Uint32(b)))
			f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'g', -1, 32), 64) // 21.5 stays 21.5, 0.1 does not become 0.10000000149
		case 8:
			f = math.Float64frombits(binary.BigEndian.Uint64(b))
		default:
			return r, wrong
		}
		r.Value = &f
	case boolean:
		if len(b) != 1 || b[0] > 1 {
			return r, wrong
		}
		v := b[0] == 1
		r.Bool = &v
	case link:
		if len(b) != 4 {
			return r, wrong
		}
		s := fmt.Sprintf("%d:%d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
		r.ObjectLink = &s
	default:
		r.Data = append([]byte{}, b...)
	}
	return r, nil
}

func signed(b []byte) (int64, bool) {
	switch len(b) {
	case 1:
		return int64(int8(b[0])), true
	case 2:
		return int64(int16(binary.BigEndian.Uint16(b))), true
	case 4:
		return int64(int32(binary.BigEndian.Uint32(b))), true
	case 8:
		return int64(binary.BigEndian.Uint64(b)), true
	}
	return 0, false
}

// ParseJSON reads application/vnd.oma.lwm2m+json, where names are relative to "bn" or, where that is missing, to the path that it came from.
func ParseJSON(from string, data []byte) (senml.Pack, error) {
	var in struct {
		BaseName *string  `json:"bn"`
		BaseTime *float64 `json:"bt"`
		Elements []struct {
			Name   string   `json:"n"`
			Time   *float64 `json:"t"`
			Value  *float64 `json:"v"`
			String *string  `json:"sv"`
			Bool   *bool    `json:"bv"`
			Link   *string  `json:"ov"`
		} `json:"e"`
	}
	if err := json.Unmarshal(data, &in); err != nil || in.Elements == nil {
		return nil, errors.New(`the payload is not LwM2M JSON: an object with an array "e"`)
	}
	base := from
	if in.BaseName != nil {
		base = *in.BaseName
	}
	var pack senml.Pack
	for _, e := range in.Elements {
		p, err := parsePath(strings.TrimSuffix(base, "/") + "/" + strings.TrimPrefix(e.Name, "/"))
		if err != nil || len(p) < 3 {
			return nil, errors.New("a name is not the path of a resource")
		}
		r := senml.Record{Name: p.String(), Time: e.Time, Value: e.Value, String: e.String, Bool: e.Bool, ObjectLink: e.Link}
		if pack == nil {
			r.BaseTime = in.BaseTime
		}
		if pack, err = add(pack, r); err != nil {
			return nil, err
		}
	}
	return pack, nil
}

var reader, readerErr = cbor.DecOptions{
	DupMapKey:       cbor.DupMapKeyEnforcedAPF,
	MaxNestedLevels: 8,
	MaxMapPairs:     senml.MaxRecords,
}.DecMode()

// ParseCBOR reads application/vnd.oma.lwm2m+cbor: maps whose keys are a number of the path or an array of several.
func ParseCBOR(data []byte) (senml.Pack, error) {
	if readerErr != nil {
		return nil, readerErr
	}
	return appendCBOR(nil, nil, data)
}

// pathKey is a key of LwM2M CBOR. It is an array of its own type, as slices cannot be keys.
type pathKey struct {
	numbers [4]uint16
	count   int
}

// UnmarshalCBOR reads a number, or an array of up to four.
func (k *pathKey) UnmarshalCBOR(data []byte) error {
	var list []uint16
	if err := reader.Unmarshal(data, &list); err != nil {
		var one uint16
		if err := reader.Unmarshal(data, &one); err != nil {
			return err
		}
		list = []uint16{one}
	}
	if k.count = copy(k.numbers[:], list); k.count == 0 || k.count < len(list) {
		return errors.New("not a path")
	}
	return nil
}

func appendCBOR(pack senml.Pack, at path, data []byte) (senml.Pack, error) {
	notIt := errors.New("the payload is not LwM2M CBOR: maps with paths as keys")
	if len(data) == 0 || data[0]>>5 != 5 { // not a map: a value
		if len(at) < 3 {
			return nil, notIt
		}
		r := senml.Record{Name: at.String()}
		if err := setCBOR(&r, data); err != nil {
			return nil, err
		}
		return add(pack, r)
	}
	var m map[pathKey]cbor.RawMessage
	if err := reader.Unmarshal(data, &m); err != nil {
		return nil, notIt
	}
	for _, k := range sorted(m) {
		to := append(at[:len(at):len(at)], k.numbers[:k.count]...)
		if len(to) > 4 {
			return nil, notIt
		}
		var err error
		if pack, err = appendCBOR(pack, to, m[k]); err != nil {
			return nil, err
		}
	}
	return pack, nil
}

// sorted gives the keys in order, so that the same payload always reads the same.
func sorted(m map[pathKey]cbor.RawMessage) []pathKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b pathKey) int {
		return cmp.Or(slices.Compare(a.numbers[:], b.numbers[:]), cmp.Compare(a.count, b.count))
	})
}

func setCBOR(r *senml.Record, data []byte) error {
	var v any
	if err := reader.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("%s: the value cannot be read", r.Name)
	}
	switch v := v.(type) {
	case time.Time:
		f := float64(v.UnixMilli()) / 1000
		r.Value = &f
	case uint64:
		f := float64(v)
		r.Value = &f
	case int64:
		f := float64(v)
		r.Value = &f
	case float64:
		r.Value = &v
	case bool:
		r.Bool = &v
	case string:
		r.String = &v
	case []byte:
		r.Data = v
	default:
		return fmt.Errorf("%s: the value has no type of LwM2M", r.Name)
	}
	return nil
}
