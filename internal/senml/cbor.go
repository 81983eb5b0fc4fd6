package senml

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// labels are the integers that stand for labels in CBOR (section 6, table 4).
var labels = map[int64]string{
	-1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
	0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}

var reader, readerErr = cbor.DecOptions{
	DupMapKey:        cbor.DupMapKeyEnforcedAPF,
	MaxNestedLevels:  8,
	MaxArrayElements: MaxRecords,
	MaxMapPairs:      64,
}.DecMode()

// ParseCBOR reads application/senml+cbor (section 6).
func ParseCBOR(data []byte) (Pack, error) {
	if readerErr != nil {
		return nil, readerErr
	}
	var records []map[any]cbor.RawMessage
	if err := reader.Unmarshal(data, &records); err != nil {
		return nil, errors.New("the payload is not a SenML pack: a CBOR array of maps")
	}
	p := make(Pack, len(records))
	for i, fields := range records {
		for key, raw := range fields {
			if err := p[i].setCBOR(key, raw); err != nil {
				return nil, fmt.Errorf("record %d: %w", i+1, err)
			}
		}
	}
	return p, nil
}

func (r *Record) setCBOR(key any, raw cbor.RawMessage) error {
	var label string
	switch k := key.(type) {
	case string:
		label = k
	case int64:
		label = labels[k]
	case uint64:
		label = labels[int64(min(k, 1<<62))]
	default:
		return errors.New("has a label that is neither text nor an integer")
	}
	if label == "vd" {
		if reader.Unmarshal(raw, &r.Data) != nil || r.Data == nil {
			return wrongType(label)
		}
		return nil
	}
	to := r.field(label)
	if to == nil {
		return unknown(label)
	}
	if len(raw) == 1 && (raw[0] == 0xf6 || raw[0] == 0xf7) || reader.Unmarshal(raw, to) != nil { // null, undefined
		return wrongType(label)
	}
	return nil
}

// cborRecord is a resolved record with the labels of section 6.
type cborRecord struct {
	Name       string   `cbor:"0,keyasint"`
	Unit       string   `cbor:"1,keyasint,omitempty"`
	Value      *float64 `cbor:"2,keyasint,omitempty"`
	String     *string  `cbor:"3,keyasint,omitempty"`
	Bool       *bool    `cbor:"4,keyasint,omitempty"`
	Sum        *float64 `cbor:"5,keyasint,omitempty"`
	Time       *float64 `cbor:"6,keyasint,omitempty"`
	UpdateTime *float64 `cbor:"7,keyasint,omitempty"`
	Data       *[]byte  `cbor:"8,keyasint,omitempty"`
	ObjectLink *string  `cbor:"vlo,omitempty"`
}

// CBOR writes a resolved pack.
func (p Pack) CBOR() ([]byte, error) {
	list := make([]cborRecord, len(p))
	for i, r := range p {
		list[i] = cborRecord{
			Name: r.Name, Unit: r.Unit, Value: r.Value, String: r.String, Bool: r.Bool, Sum: r.Sum, Time: r.Time, UpdateTime: r.UpdateTime,
			ObjectLink: r.ObjectLink,
		}
		if r.Data != nil {
			list[i].Data = &r.Data
		}
	}
	return cbor.Marshal(list)
}
