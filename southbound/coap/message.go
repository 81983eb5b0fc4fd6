package coap

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// Codes and options that go-coap has no name for.
const (
	fetch  codes.Code = 5 // RFC 8132
	patch  codes.Code = 6
	ipatch codes.Code = 7

	conflict            codes.Code = 4<<5 | 9
	unprocessableEntity codes.Code = 4<<5 | 22

	echo       message.OptionID = 252 // RFC 9175
	requestTag message.OptionID = 292
)

const maxOptions = 64

var (
	errFormat  = errors.New("message format error")
	errVersion = errors.New("unknown version")
)

// packet is a message as it came. It points into the datagram.
type packet struct {
	typ     message.Type
	code    codes.Code
	mid     uint16
	token   []byte
	options message.Options
	payload []byte
	bert    bool // it came over a stream: blocks may be of szx 7
}

// parse reads b into p, whose option slice is used again.
// errFormat leaves type and message id set, for the RST (RFC 7252 section 4.2).
func (p *packet) parse(b []byte) error {
	if len(b) < 4 || b[0]>>6 != 1 {
		return errVersion
	}
	p.typ, p.code, p.mid = message.Type(b[0]>>4&3), codes.Code(b[1]), binary.BigEndian.Uint16(b[2:])
	n := int(b[0] & 15)
	p.token, p.payload, p.options = nil, nil, p.options[:0]
	if n > message.MaxTokenSize || len(b) < 4+n || p.code == codes.Empty && len(b) > 4 {
		return errFormat
	}
	p.token = b[4 : 4+n]
	return p.parseRest(b[4+n:])
}

// parseRest reads options and payload.
func (p *packet) parseRest(b []byte) error {
	if cap(p.options) == 0 {
		p.options = make(message.Options, 0, maxOptions)
	}
	// Without definitions the codec leaves no option out, so that a critical one of a bad length is seen.
	n, err := p.options.Unmarshal(b, nil)
	if err != nil {
		return errFormat
	}
	p.payload = b[n:]
	if len(p.payload) == 0 && n > 0 && b[n-1] == 0xff {
		end := 0 // of the last option: is the last octet a payload marker without a payload?
		if k := len(p.options); k > 0 {
			last := p.options[k-1].Value
			end = cap(b) - cap(last) + len(last)
		}
		if end < n {
			return errFormat
		}
	}
	return nil
}

// optionLengths gives the lengths that an option may have; ok is false for one that is not known here.
func optionLengths(id message.OptionID) (least, most int, ok bool) {
	switch id {
	case message.IfMatch:
		return 0, 8, true
	case message.URIHost, message.ProxyScheme:
		return 1, 255, true
	case message.ETag:
		return 1, 8, true
	case message.IfNoneMatch:
		return 0, 0, true
	case message.Observe, message.Block1, message.Block2:
		return 0, 3, true
	case message.URIPort, message.ContentFormat, message.Accept:
		return 0, 2, true
	case message.URIPath, message.URIQuery, message.LocationPath, message.LocationQuery:
		return 0, 255, true
	case message.MaxAge, message.Size1, message.Size2:
		return 0, 4, true
	case message.ProxyURI:
		return 1, 1034, true
	case message.NoResponse:
		return 0, 1, true
	case echo:
		return 1, 40, true
	case requestTag:
		return 0, 8, true
	}
	return 0, 0, false
}

func repeatable(id message.OptionID) bool {
	switch id {
	case message.IfMatch, message.ETag, message.URIPath, message.URIQuery, message.LocationPath, message.LocationQuery, requestTag:
		return true
	}
	return false
}

// vet drops the elective options that are not known, repeated against the rules or of a bad length, and gives the number of the
// first critical one that is (RFC 7252 section 5.4), else 0.
func (p *packet) vet() (critical message.OptionID) {
	kept := p.options[:0]
	var last message.OptionID
	for _, o := range p.options {
		least, most, ok := optionLengths(o.ID)
		ok = ok && len(o.Value) >= least && len(o.Value) <= most && (o.ID != last || repeatable(o.ID))
		last = o.ID
		if ok {
			kept = append(kept, o)
		} else if o.ID&1 == 1 {
			return o.ID
		}
	}
	p.options = kept
	return 0
}

// option gives the value of the first option of the number; ok is false where there is none.
func (p *packet) option(id message.OptionID) (value []byte, ok bool) {
	for _, o := range p.options {
		if o.ID == id {
			return o.Value, true
		}
	}
	return nil, false
}

// number gives an option's value as an uint (RFC 7252 section 3.2).
func (p *packet) number(id message.OptionID) (n uint32, ok bool) {
	v, ok := p.option(id)
	for _, b := range v {
		n = n<<8 | uint32(b)
	}
	return n, ok
}

const maxPath = 1024

// path appends "/a/b" for the Uri-Path options a and b. ok is false for a path that is not a resource: an empty segment, a slash or a
// control character in one, or something that is not UTF-8.
func (p *packet) path(dst []byte) (path []byte, ok bool) {
	start := len(dst)
	for _, o := range p.options {
		if o.ID != message.URIPath {
			continue
		}
		if len(o.Value) == 0 {
			return dst, false
		}
		for _, c := range o.Value {
			if c < 0x20 || c == 0x7f || c == '/' {
				return dst, false
			}
		}
		if !utf8.Valid(o.Value) {
			return dst, false
		}
		dst = append(append(dst, '/'), o.Value...)
	}
	if len(dst) == start {
		dst = append(dst, '/')
	}
	return dst, len(dst)-start <= maxPath
}

// query gives the value of the query NAME=VALUE.
func (p *packet) query(name string) (value string, ok bool) {
	for _, o := range p.options {
		if o.ID == message.URIQuery {
			if k, v, _ := strings.Cut(string(o.Value), "="); k == name {
				return v, true
			}
		}
	}
	return "", false
}

// appendMessage appends m in its encoding.
func appendMessage(dst []byte, m *message.Message) ([]byte, error) {
	n, err := coder.DefaultCoder.Size(*m)
	if err != nil {
		return dst, err
	}
	start := len(dst)
	if cap(dst)-start < n {
		dst = append(make([]byte, 0, 2*cap(dst)+n), dst...)
	}
	dst = dst[:start+n]
	_, err = coder.DefaultCoder.Encode(*m, dst[start:])
	return dst, err
}

// appendShort appends a message without options or payload.
func appendShort(dst []byte, typ message.Type, code codes.Code, mid uint16, token []byte) []byte {
	dst = append(dst, 0x40|byte(typ)<<4|byte(len(token)), byte(code), byte(mid>>8), byte(mid))
	return append(dst, token...)
}

// uintOption makes an option of format uint.
func uintOption(id message.OptionID, n uint32) message.Option {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	v := b[:]
	for len(v) > 0 && v[0] == 0 {
		v = v[1:]
	}
	return message.Option{ID: id, Value: v}
}

// pathOptions makes the options of a resource's path.
func pathOptions(opts message.Options, resource string) message.Options {
	for seg := range strings.SplitSeq(strings.Trim(resource, "/"), "/") {
		if seg != "" {
			opts = append(opts, message.Option{ID: message.URIPath, Value: []byte(seg)})
		}
	}
	return opts
}

// codeText gives a code as the standard writes it: "2.04".
func codeText(c codes.Code) string {
	return string([]byte{'0' + byte(c>>5), '.', '0' + byte(c&31)/10, '0' + byte(c&31)%10})
}

// method gives the name of a request code; "" for one that is not known.
func method(c codes.Code) string {
	switch c {
	case codes.GET:
		return "GET"
	case codes.POST:
		return "POST"
	case codes.PUT:
		return "PUT"
	case codes.DELETE:
		return "DELETE"
	case fetch:
		return "FETCH"
	case patch:
		return "PATCH"
	case ipatch:
		return "iPATCH"
	}
	return ""
}

func methodCode(name string) (codes.Code, bool) {
	for _, c := range []codes.Code{codes.GET, codes.POST, codes.PUT, codes.DELETE, fetch, patch, ipatch} {
		if method(c) == name {
			return c, true
		}
	}
	return 0, false
}

// formats is the part of IANA's registry of CoAP Content-Formats that devices use, ordered by number.
// A number that is not here is carried as "application/octet-stream; content-format=NUMBER".
var formats = [...]struct {
	number    uint16
	mediaType string
}{
	{0, "text/plain"}, {16, `application/cose; cose-type="cose-encrypt0"`}, {17, `application/cose; cose-type="cose-mac0"`},
	{18, `application/cose; cose-type="cose-sign1"`}, {40, "application/link-format"}, {41, "application/xml"},
	{42, "application/octet-stream"}, {47, "application/exi"}, {50, "application/json"}, {51, "application/json-patch+json"},
	{52, "application/merge-patch+json"}, {60, "application/cbor"}, {61, "application/cwt"}, {62, "application/multipart-core"},
	{63, "application/cbor-seq"}, {110, "application/senml+json"}, {111, "application/sensml+json"}, {112, "application/senml+cbor"},
	{113, "application/sensml+cbor"}, {114, "application/senml-exi"}, {115, "application/sensml-exi"}, {310, "application/senml+xml"},
	{311, "application/sensml+xml"}, {320, "application/senml-etch+json"}, {322, "application/senml-etch+cbor"},
	{432, "application/td+json"}, {11542, "application/vnd.oma.lwm2m+tlv"}, {11543, "application/vnd.oma.lwm2m+json"},
	{11544, "application/vnd.oma.lwm2m+cbor"},
}

const otherFormat = "application/octet-stream; content-format="

// mediaType gives the media type of a Content-Format.
func mediaType(number uint32) string {
	for _, f := range formats {
		if uint32(f.number) == number {
			return f.mediaType
		}
	}
	return otherFormat + strconv.FormatUint(uint64(number), 10)
}

// contentFormat gives the Content-Format of a media type; ok is false where it has none.
func contentFormat(mediaType string) (number uint32, ok bool) {
	if n, found := strings.CutPrefix(mediaType, otherFormat); found {
		v, err := strconv.ParseUint(n, 10, 16)
		return uint32(v), err == nil
	}
	for _, f := range formats {
		if f.mediaType == mediaType {
			return uint32(f.number), true
		}
	}
	if bare, _, more := strings.Cut(mediaType, ";"); more {
		return contentFormat(strings.TrimSpace(bare))
	}
	return 0, false
}
