package transform

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strings"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/internal/lwm2m"
	"github.com/drawbridge/drawbridge/internal/senml"
)

// The media types that steps give.
const (
	typeJSON   = "application/json"
	typeCBOR   = "application/cbor"
	typeText   = "text/plain;charset=utf-8"
	typeOctets = "application/octet-stream"
)

const maxDepth = 32 // of nested arrays and maps

func senmlJSON(in Input) (string, []byte, error) {
	pack, err := readSenML(mediaType(in.Type), in)
	return resolve(pack, err, in)
}

func readSenML(typ string, in Input) (senml.Pack, error) {
	if strings.HasSuffix(typ, "cbor") || !strings.HasSuffix(typ, "json") && startsWith(in.Data, cborArray) {
		return senml.ParseCBOR(in.Data)
	}
	return senml.ParseJSON(in.Data)
}

func lwm2mJSON(in Input) (string, []byte, error) {
	var pack senml.Pack
	var err error
	switch typ := mediaType(in.Type); typ {
	case "application/vnd.oma.lwm2m+tlv":
		pack, err = lwm2m.ParseTLV(in.Resource, in.Data)
	case "application/vnd.oma.lwm2m+json":
		pack, err = lwm2m.ParseJSON(in.Resource, in.Data)
	case "application/vnd.oma.lwm2m+cbor":
		pack, err = lwm2m.ParseCBOR(in.Data)
	default:
		switch {
		case startsWith(in.Data, cborMap):
			pack, err = lwm2m.ParseCBOR(in.Data)
		case bytes.HasPrefix(bytes.TrimLeft(in.Data, " \t\r\n"), []byte("{")):
			pack, err = lwm2m.ParseJSON(in.Resource, in.Data)
		default:
			pack, err = readSenML(typ, in)
		}
	}
	return resolve(pack, err, in)
}

// resolve gives the resolved records of a pack, or err.
func resolve(pack senml.Pack, err error, in Input) (string, []byte, error) {
	if err == nil {
		pack, err = pack.Resolve(in.Time)
	}
	if err != nil {
		return "", nil, err
	}
	return typeJSON, pack.JSON(), nil
}

// The major types of CBOR (RFC 8949 section 3.1) that tell it from JSON text, which cannot begin with them.
const (
	cborArray = 4
	cborMap   = 5
)

func startsWith(data []byte, major byte) bool { return len(data) > 0 && data[0]>>5 == major }

var cborReader = must(cbor.DecOptions{
	DupMapKey:        cbor.DupMapKeyEnforcedAPF,
	MaxNestedLevels:  maxDepth,
	MaxArrayElements: 1 << 17,
	MaxMapPairs:      1 << 17,
	IntDec:           cbor.IntDecConvertNone,
	BigIntDec:        cbor.BigIntDecodePointer,
	TimeTagToAny:     cbor.TimeTagToRFC3339Nano,
}.DecMode())

var cborWriter = must(cbor.CoreDetEncOptions().EncMode())

// must is for options that are constants.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func cborJSON(in Input) (string, []byte, error) {
	var v any
	if err := cborReader.Unmarshal(in.Data, &v); err != nil {
		return "", nil, errors.New(strings.TrimPrefix(err.Error(), "cbor: "))
	}
	v, err := jsonable(v, base64.RawURLEncoding.EncodeToString)
	if err != nil {
		return "", nil, err
	}
	data, err := encodeJSON(v)
	return typeJSON, data, err
}

// jsonable turns what the CBOR decoder gives into what JSON can hold (RFC 8949 section 6.1).
// octets says how byte strings are written; the tags 21 to 23 change it for what they enclose.
func jsonable(v any, octets func([]byte) string) (any, error) {
	switch v := v.(type) {
	case nil, bool, string, uint64, int64, *big.Int, json.Number:
		return v, nil
	case big.Int:
		return &v, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, nil
		}
		return v, nil
	case []byte:
		return octets(v), nil
	case cbor.SimpleValue:
		return nil, nil
	case cbor.Tag:
		switch v.Number {
		case 21:
			octets = base64.RawURLEncoding.EncodeToString
		case 22:
			octets = base64.StdEncoding.EncodeToString
		case 23:
			octets = func(b []byte) string { return fmt.Sprintf("%X", b) }
		}
		return jsonable(v.Content, octets)
	case []any:
		for i := range v {
			var err error
			if v[i], err = jsonable(v[i], octets); err != nil {
				return nil, err
			}
		}
		return v, nil
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			var name string
			switch k := k.(type) {
			case string:
				name = k
			case uint64, int64:
				name = fmt.Sprint(k)
			default:
				return nil, errors.New("a map key is neither text nor an integer")
			}
			if _, twice := m[name]; twice {
				return nil, fmt.Errorf("the map key %q occurs as text and as an integer", name)
			}
			e, err := jsonable(e, octets)
			if err != nil {
				return nil, err
			}
			m[name] = e
		}
		return m, nil
	}
	return nil, fmt.Errorf("a value of type %T has no counterpart in JSON", v)
}

// encodeJSON writes compact JSON with sorted keys, without escaping what only HTML would mind.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, errors.New("the result is not JSON")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decodeJSON reads one JSON value. Numbers are int, *big.Int or float64, as jq wants them.
func decodeJSON(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the payload is not UTF-8")
	}
	if err := shallow(data); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, notJSON(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("the payload goes on after its JSON value")
	}
	return numbers(v), nil
}

// notJSON gives an error without the payload's characters beyond the one at fault.
func notJSON(err error) error {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("the payload is not JSON: octet %d: %w", s.Offset, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the payload is not JSON: it ends too early")
	}
	return fmt.Errorf("the payload is not JSON: %w", err)
}

// shallow bounds the nesting before the decoder recurses.
func shallow(data []byte) error {
	depth, quoted, escaped := 0, false, false
	for _, c := range data {
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

// maxDigits bounds integers beyond 64 bits; longer ones become floating point.
const maxDigits = 400

func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil && int64(int(n)) == n { // an int has 32 bits on some gateways
			return int(n)
		}
		if s := v.String(); !strings.ContainsAny(s, ".eE") && len(s) <= maxDigits {
			if n, ok := new(big.Int).SetString(s, 10); ok {
				return n
			}
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

func jsonCBOR(in Input) (string, []byte, error) {
	v, err := decodeJSON(in.Data)
	if err != nil {
		return "", nil, err
	}
	data, err := cborWriter.Marshal(v)
	if err != nil {
		return "", nil, errors.New("the result is not CBOR")
	}
	return typeCBOR, data, nil
}

func textJSON(in Input) (string, []byte, error) {
	if !utf8.Valid(in.Data) {
		return "", nil, errors.New("the payload is not UTF-8")
	}
	trimmed := bytes.TrimSpace(in.Data)
	if len(trimmed) > 0 && !strings.ContainsRune("\"[{", rune(trimmed[0])) && json.Valid(trimmed) {
		return typeJSON, bytes.Clone(trimmed), nil
	}
	data, err := encodeJSON(string(in.Data))
	return typeJSON, data, err
}

func jsonText(in Input) (string, []byte, error) {
	v, err := decodeJSON(in.Data)
	if err != nil {
		return "", nil, err
	}
	if s, ok := v.(string); ok {
		return typeText, []byte(s), nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, in.Data); err != nil {
		return "", nil, notJSON(err)
	}
	return typeText, b.Bytes(), nil
}

func base64Encode(in Input) (string, []byte, error) {
	return typeText, base64.StdEncoding.AppendEncode(nil, in.Data), nil
}

func base64Decode(in Input) (string, []byte, error) {
	text := strings.TrimRight(strings.TrimSpace(string(in.Data)), "=")
	text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
	data, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return "", nil, errors.New("the payload is not base64")
	}
	return typeOctets, data, nil
}
