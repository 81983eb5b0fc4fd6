package onem2m

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Operations (TS-0004 clause 6.3.4.2.5).
const (
	opCreate = iota + 1
	opRetrieve
	opUpdate
	opDelete
	opNotify
)

// Types of resources.
const (
	tyACP  = 1
	tyAE   = 2
	tyCNT  = 3
	tyCIN  = 4
	tyGRP  = 9
	tyPCH  = 15
	tySUB  = 23
	tyFCNT = 28
)

// request is a request primitive in short names (TS-0004 clause 8.2.2).
type request struct {
	Op       number          `json:"op"`
	To       string          `json:"to"`
	From     string          `json:"fr,omitempty"`
	ID       string          `json:"rqi"`
	Release  string          `json:"rvi,omitempty"`
	Type     number          `json:"ty,omitempty"`
	Content  json.RawMessage `json:"pc,omitempty"`
	Result   *int            `json:"rcn,omitempty"`
	Filter   *filter         `json:"fc,omitempty"`
	Names    int             `json:"drt,omitempty"`  // 1: discovery gives structured addresses
	Deadline string          `json:"rqet,omitempty"` // requestExpirationTimestamp
	Tokens   []string        `json:"tkns,omitempty"`
	Response *responseType   `json:"rt,omitempty"`
}

// responseType says how a request is answered; absent: with its result.
type responseType struct {
	Value int      `json:"rtv"`
	To    []string `json:"nu,omitempty"` // where the result is sent
}

// filter is the filterCriteria of a request.
type filter struct {
	Use   int    `json:"fu,omitempty"` // 1: discovery
	Types []int  `json:"ty,omitempty"`
	After string `json:"cra,omitempty"` // createdAfter
}

// response is a response primitive.
type response struct {
	RSC     number          `json:"rsc"`
	ID      string          `json:"rqi"`
	Release string          `json:"rvi,omitempty"`
	To      string          `json:"to,omitempty"`
	From    string          `json:"fr,omitempty"`
	Content json.RawMessage `json:"pc,omitempty"`
}

// number is an integer that some CSEs write as 2.0 or "2".
type number int

// UnmarshalJSON is json.Unmarshaler's.
func (n *number) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<31 {
		return fmt.Errorf("%.20q is not an integer", b)
	}
	*n = number(f)
	return nil
}

// parsePrimitive reads what MQTT and a polling channel carry: a request, or a response where there is a response status code.
// The root element m2m:rqp or m2m:rsp, which some put around it, is taken off.
func parsePrimitive(data []byte) (*request, *response, error) {
	data = unwrap(data, "m2m:rqp", "m2m:rsp", "rqp", "rsp")
	var kind struct {
		RSC *number `json:"rsc"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, nil, fmt.Errorf("primitive: %w", err)
	}
	if kind.RSC != nil {
		var r response
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, nil, fmt.Errorf("response primitive: %w", err)
		}
		return nil, &r, nil
	}
	var q request
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, nil, fmt.Errorf("request primitive: %w", err)
	}
	return &q, nil, nil
}

// unwrap gives what stands under one of the names, or data itself.
func unwrap(data []byte, names ...string) []byte {
	var root map[string]json.RawMessage
	if json.Unmarshal(data, &root) != nil {
		return data
	}
	for _, n := range names {
		if inner, ok := root[n]; ok {
			return inner
		}
	}
	return data
}

// attributes reads a representation of one resource, whatever its root is called.
func attributes(data []byte) (map[string]json.RawMessage, error) {
	var root map[string]map[string]json.RawMessage
	if err := json.Unmarshal(data, &root); err != nil || len(root) != 1 {
		return nil, errors.New("not the representation of a resource")
	}
	for _, a := range root {
		return a, nil
	}
	return nil, nil
}

// text reads an attribute that is a string.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// represent makes a representation: {"m2m:NAME": attributes}.
func represent(name string, attributes map[string]any) json.RawMessage {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]any{name: attributes}); err != nil {
		return nil // strings, numbers and lists of them cannot fail
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

// Response status codes that are acted on.
const (
	rscOK             = 2000
	rscCreated        = 2001
	rscNotFound       = 4004
	rscTimeout        = 4008
	rscNoPrivilege    = 4103
	rscConflict       = 4105
	rscNotKnown       = 4106 // ORIGINATOR_NOT_AUTHENTICATED
	rscRegistered     = 4117
	rscInternal       = 5000
	rscNotReachable   = 5103
	rscExists         = 5106
	rscPeerAway       = 5107
	rscVerification   = 5204
	rscNotImplemented = 5001
)

// meaning is what a response asks of us.
type meaning int

const (
	done     meaning = iota + 1
	conflict         // it is there already
	lost             // what the request builds on is not there
	denied           // not with these credentials, or our registration is gone
	later            // the CSE may do it another time
	never            // it will not
)

// meaningOf sorts response status codes (TS-0004 clause 6.6.3).
func meaningOf(rsc number) meaning {
	switch rsc {
	case rscConflict, rscExists, rscRegistered:
		return conflict
	case rscNotFound:
		return lost
	case rscNoPrivilege, rscNotKnown, 4107:
		return denied
	case rscTimeout, rscInternal, rscNotReachable, rscPeerAway, rscVerification, 4127, 5209, 5222, 6003, 6020, 6021, 6030, 6031:
		return later
	}
	switch {
	case rsc >= 1000 && rsc < 3000:
		return done
	case rsc >= 500 && rsc < 600, rsc == 429, rsc == 408: // of something between us and the CSE
		return later
	case rsc == 401, rsc == 403, rsc == 407:
		return denied
	}
	return never
}

// refusal is a response that is not a yes.
type refusal struct {
	rsc number
	did string // "CREATE /in-cse/cse-in/gw1"
	why string // m2m:dbg, from the CSE
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("%s: response status code %d", r.did, r.rsc)
	if r.rsc < 1000 {
		s = fmt.Sprintf("%s: HTTP status %d", r.did, r.rsc)
	}
	if r.why != "" {
		s += fmt.Sprintf(" (%.200q)", r.why)
	}
	return s
}

var verbs = map[number]string{opCreate: "CREATE", opRetrieve: "RETRIEVE", opUpdate: "UPDATE", opDelete: "DELETE", opNotify: "NOTIFY"}

// refused makes the error of a response to q.
func refused(q *request, r *response) error {
	e := &refusal{rsc: r.RSC, did: verbs[q.Op] + " " + q.To}
	var debug struct {
		Text string `json:"m2m:dbg"`
	}
	if json.Unmarshal(r.Content, &debug) == nil {
		e.why = debug.Text
	}
	return e
}

// Time is written in the basic format of ISO 8601, UTC (TS-0004 clause 6.3.3).
const timeForm = "20060102T150405"

func stamp(t time.Time) string { return t.UTC().Format(timeForm) }

// parseTime reads a timestamp with or without a fraction.
func parseTime(s string) (time.Time, error) {
	whole, _, _ := strings.Cut(s, ",")
	return time.Parse(timeForm, whole)
}
