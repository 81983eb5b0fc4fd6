// Package transform turns payloads from one format into another, as a route's transform says.
//
// What always holds:
//   - The same input gives the same output; nothing is read from the environment, the network or a clock.
//   - Input, output, nesting and time are bounded; what exceeds a bound is an error, never a truncated payload.
//   - Bytes that do not have the format that a step reads are an error that says why; it never contains the payload.
//
// A pipeline is written as steps separated by '|':
//
//	senml-json     SenML (RFC 8428) in JSON or CBOR → resolved records in JSON
//	lwm2m-json     the formats of OMA LwM2M (TLV, JSON, CBOR, SenML) → resolved records in JSON, named by their paths
//	cbor-json      CBOR (RFC 8949) → JSON, by the advice of its section 6.1; times become RFC 3339 text
//	json-cbor      JSON → CBOR, deterministically encoded (section 4.2.1)
//	text-json      text → a JSON number, true, false or null where it reads as one, else a JSON string
//	json-text      a JSON string → its text; any other JSON → compact JSON as text
//	base64         octets → base64 text (RFC 4648 section 4)
//	base64-decode  base64 text, with or without padding, plain or URL-safe → octets
//	jq:EXPRESSION  JSON → what the jq expression makes of it; $device, $resource and $time (Unix seconds) are set
//
// A jq expression extends to the end of the pipeline, or to the '|' before the name of another step. Its instructions are counted, but
// one instruction may build something large: an expression that assigns at an index, or repeats a string by a factor, that it takes from
// the payload gives the sender power over memory, and has to check that number first.
package transform

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"slices"
	"strings"
	"time"
)

// MaxSize bounds the payload that goes into a step and the one that comes out, in octets.
const MaxSize = 1 << 20

// Input is a payload and what is known of it.
type Input struct {
	Type     string // media type; empty where the sender did not say
	Data     []byte
	Time     time.Time // when it was taken: relative times are resolved against it
	Device   string
	Resource string
}

// ErrNothing is the error of a jq expression that yields nothing: by it a route filters messages out.
var ErrNothing = errors.New("the expression yields nothing")

// Pipeline is the steps of a transform. A nil Pipeline leaves payloads as they are.
// It may be used by many goroutines.
type Pipeline struct{ steps []step }

type step struct {
	name string
	run  func(in Input) (typ string, data []byte, err error)
}

var codecs = map[string]func(Input) (string, []byte, error){
	"senml-json":    senmlJSON,
	"lwm2m-json":    lwm2mJSON,
	"cbor-json":     cborJSON,
	"json-cbor":     jsonCBOR,
	"text-json":     textJSON,
	"json-text":     jsonText,
	"base64":        base64Encode,
	"base64-decode": base64Decode,
}

// Parse reads a pipeline; empty text gives nil.
func Parse(text string) (*Pipeline, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var p Pipeline
	parts := strings.Split(text, "|")
	for i := 0; i < len(parts); i++ {
		name := strings.TrimSpace(parts[i])
		if expr, ok := strings.CutPrefix(name, "jq:"); ok {
			for i+1 < len(parts) && !isStep(parts[i+1]) {
				i++
				expr += "|" + parts[i]
			}
			run, err := compileJQ(expr)
			if err != nil {
				return nil, err
			}
			p.steps = append(p.steps, step{"jq:" + strings.TrimSpace(expr), run})
			continue
		}
		run := codecs[name]
		if run == nil {
			return nil, fmt.Errorf("step %q: unknown; there are %s and jq:EXPRESSION", name, strings.Join(slices.Sorted(maps.Keys(codecs)), ", "))
		}
		p.steps = append(p.steps, step{name, run})
	}
	return &p, nil
}

func isStep(part string) bool {
	part = strings.TrimSpace(part)
	return codecs[part] != nil || strings.HasPrefix(part, "jq:")
}

// String gives the pipeline as it may be written in a configuration.
func (p *Pipeline) String() string {
	if p == nil {
		return ""
	}
	names := make([]string, len(p.steps))
	for i, s := range p.steps {
		names[i] = s.name
	}
	return strings.Join(names, " | ")
}

// Result is what a step gave.
type Result struct {
	Step string
	Type string
	Data []byte
	Err  error
}

// Apply runs the steps and gives the media type and payload that come out.
func (p *Pipeline) Apply(in Input) (typ string, data []byte, err error) {
	if p == nil {
		return in.Type, in.Data, nil
	}
	for _, s := range p.steps {
		if in.Type, in.Data, err = s.apply(in); err != nil {
			return "", nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return in.Type, in.Data, nil
}

// Trace is Apply with the result of every step, the last of which may be an error.
func (p *Pipeline) Trace(in Input) (results []Result) {
	if p == nil {
		return nil
	}
	for _, s := range p.steps {
		var err error
		in.Type, in.Data, err = s.apply(in)
		results = append(results, Result{s.name, in.Type, in.Data, err})
		if err != nil {
			break
		}
	}
	return results
}

func (s step) apply(in Input) (string, []byte, error) {
	if len(in.Data) > MaxSize {
		return "", nil, fmt.Errorf("payload of more than %d octets", MaxSize)
	}
	typ, data, err := s.run(in)
	if err == nil && len(data) > MaxSize {
		err = fmt.Errorf("the result has more than %d octets", MaxSize)
	}
	if err != nil {
		return "", nil, err
	}
	return typ, data, nil
}

// mediaType gives the type in lower case without its parameters.
func mediaType(s string) string {
	t, _, err := mime.ParseMediaType(s)
	if err != nil {
		return strings.ToLower(strings.TrimSpace(s))
	}
	return t
}
