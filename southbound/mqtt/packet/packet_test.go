package packet

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// decode reads one whole packet of a client and gives what it says in a form that can be compared.
func decode(v Version, b []byte) (any, error) {
	h, head, total, err := Scan(b, 1<<20)
	if err != nil {
		return nil, err
	}
	if total == 0 || total > len(b) {
		return nil, errors.New("incomplete")
	}
	body := b[head:total]
	switch h.Type {
	case Connect:
		var p ConnectPacket
		err := DecodeConnect(body, &p)
		return p, err
	case Publish:
		var p PublishPacket
		err := DecodePublish(v, h, body, &p)
		return p, err
	case Puback, Pubrec, Pubrel, Pubcomp:
		return DecodeAck(v, body)
	case Subscribe:
		return DecodeSubscribe(v, body)
	case Unsubscribe:
		return DecodeUnsubscribe(v, body)
	case Disconnect:
		return DecodeDisconnect(v, body)
	case Auth:
		return DecodeAuth(body)
	case Pingreq:
		return nil, DecodeEmpty(body)
	}
	return nil, protocol("not from a client")
}

func TestWhatIsWrongHasItsCode(t *testing.T) {
	for name, c := range map[string]struct {
		v    Version
		b    string
		code Code
	}{
		"type 0":                                      {V5, "\x00\x00", MalformedPacket},
		"QoS 3":                                       {V5, "\x36\x03\x00\x01a", MalformedPacket},
		"QoS 0 with DUP":                              {V5, "\x38\x04\x00\x01a\x00", MalformedPacket},
		"flags of PUBREL":                             {V5, "\x60\x02\x00\x01", MalformedPacket},
		"flags of SUBSCRIBE":                          {V5, "\x80\x02\x00\x01", MalformedPacket},
		"flags of PINGREQ":                            {V5, "\xc1\x00", MalformedPacket},
		"remaining length of five octets":             {V5, "\x30\xff\xff\xff\xff\x01", MalformedPacket},
		"larger than allowed":                         {V5, "\x30\xff\xff\xff\x7f", PacketTooLarge},
		"PUBLISH without topic":                       {V5, "\x30\x03\x00\x00\x00", ProtocolError},
		"PUBLISH without topic in 3.1.1":              {V311, "\x30\x02\x00\x00", ProtocolError},
		"PUBLISH to a wildcard":                       {V5, "\x30\x06\x00\x03a/#\x00", TopicNameInvalid},
		"PUBLISH with identifier 0":                   {V5, "\x32\x06\x00\x01a\x00\x00\x00", MalformedPacket},
		"topic with U+0000":                           {V5, "\x30\x05\x00\x02a\x00\x00", MalformedPacket},
		"topic with a surrogate":                      {V5, "\x30\x06\x00\x03\xed\xa0\x80\x00", MalformedPacket},
		"topic alias 0":                               {V5, "\x30\x07\x00\x01a\x03\x23\x00\x00", TopicAliasInvalid},
		"property twice":                              {V5, "\x30\x08\x00\x01a\x04\x01\x00\x01\x00", ProtocolError},
		"property of another packet":                  {V5, "\x30\x07\x00\x01a\x03\x21\x00\x01", ProtocolError},
		"unknown property":                            {V5, "\x30\x06\x00\x01a\x02\x7e\x00", ProtocolError},
		"subscription identifier from a client":       {V5, "\x30\x06\x00\x01a\x02\x0b\x01", ProtocolError},
		"payload format 2":                            {V5, "\x30\x06\x00\x01a\x02\x01\x02", ProtocolError},
		"response topic with a wildcard":              {V5, "\x30\x08\x00\x01a\x04\x08\x00\x01#", ProtocolError},
		"properties longer than the packet":           {V5, "\x30\x04\x00\x01a\x05", MalformedPacket},
		"SUBSCRIBE without filters":                   {V5, "\x82\x03\x00\x01\x00", ProtocolError},
		"SUBSCRIBE without options":                   {V5, "\x82\x06\x00\x01\x00\x00\x01a", MalformedPacket},
		"SUBSCRIBE with QoS 3":                        {V311, "\x82\x06\x00\x01\x00\x01a\x03", MalformedPacket},
		"SUBSCRIBE with reserved options":             {V5, "\x82\x07\x00\x01\x00\x00\x01a\x40", MalformedPacket},
		"SUBSCRIBE 3.1.1 with options of 5":           {V311, "\x82\x06\x00\x01\x00\x01a\x04", MalformedPacket},
		"SUBSCRIBE with retain handling 3":            {V5, "\x82\x07\x00\x01\x00\x00\x01a\x30", ProtocolError},
		"SUBSCRIBE shared and no local":               {V5, "\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04", ProtocolError},
		"SUBSCRIBE with subscription identifier 0":    {V5, "\x82\x09\x00\x01\x02\x0b\x00\x00\x01a\x00", ProtocolError},
		"UNSUBSCRIBE without filters":                 {V311, "\xa2\x02\x00\x01", ProtocolError},
		"acknowledgement without identifier":          {V5, "\x40\x00", MalformedPacket},
		"acknowledgement with more than its fields":   {V311, "\x40\x03\x00\x01\x00", MalformedPacket},
		"CONNECT of another protocol":                 {V5, "\x10\x0a\x00\x04HTTP\x05\x00\x00\x00", UnsupportedVersion},
		"CONNECT of MQTT 3.1":                         {V5, "\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00", UnsupportedVersion},
		"CONNECT of MQTT 6":                           {V5, "\x10\x0c\x00\x04MQTT\x06\x02\x00\x3c\x00\x00", UnsupportedVersion},
		"CONNECT with the reserved flag":              {V5, "\x10\x0c\x00\x04MQTT\x04\x03\x00\x3c\x00\x00", MalformedPacket},
		"CONNECT with will QoS and no will":           {V5, "\x10\x0c\x00\x04MQTT\x04\x0a\x00\x3c\x00\x00", MalformedPacket},
		"CONNECT with will QoS 3":                     {V5, "\x10\x11\x00\x04MQTT\x04\x1e\x00\x3c\x00\x00\x00\x01a\x00\x00", MalformedPacket},
		"CONNECT 3.1.1 with a password and no user":   {V5, "\x10\x0e\x00\x04MQTT\x04\x42\x00\x3c\x00\x00\x00\x00", MalformedPacket},
		"CONNECT with receive maximum 0":              {V5, "\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x00", ProtocolError},
		"CONNECT with maximum packet size 0":          {V5, "\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x00\x00\x00", ProtocolError},
		"CONNECT with data of no method":              {V5, "\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x04\x16\x00\x01x\x00\x00", ProtocolError},
		"CONNECT with a will on a wildcard":           {V5, "\x10\x11\x00\x04MQTT\x04\x06\x00\x3c\x00\x00\x00\x01#\x00\x00", TopicNameInvalid},
		"DISCONNECT with a server reference":          {V5, "\xe0\x06\x00\x04\x1c\x00\x01x", ProtocolError},
		"DISCONNECT 3.1.1 with a body":                {V311, "\xe0\x01\x00", MalformedPacket},
		"PINGREQ with a body":                         {V5, "\xc0\x01\x00", MalformedPacket},
		"variable byte integer of five octets inside": {V5, "\x30\x08\x00\x01a\x80\x80\x80\x80\x01", MalformedPacket},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := decode(c.v, []byte(c.b))
			bad, ok := errors.AsType[*Error](err)
			if !ok || bad.Code != c.code {
				t.Fatalf("%q: %+v, %v; want code 0x%02x", c.b, p, err, byte(c.code))
			}
		})
	}
}

func TestConnectIsReadWhole(t *testing.T) {
	b := "\x10\x46\x00\x04MQTT\x05\xf6\x00\x3c" + "\x05\x11\x00\x00\x00\x0a" + "\x00\x02id" +
		"\x05\x18\x00\x00\x00\x05" + "\x00\x04will" + "\x00\x03bye" + "\x00\x04user" + "\x00\x06secret"
	b = b[:1] + string(rune(len(b)-2)) + b[2:]
	got, err := decode(V5, []byte(b))
	if err != nil {
		t.Fatal(err)
	}
	p := got.(ConnectPacket)
	if p.Version != V5 || !p.Clean || p.KeepAlive != 60 || string(p.ClientID) != "id" || string(p.User) != "user" || string(p.Password) != "secret" ||
		p.Props.SessionExpiry != 10 || !p.Props.Has.Is(SessionExpiry) || p.Will == nil || string(p.Will.Topic) != "will" ||
		string(p.Will.Payload) != "bye" || p.Will.QoS != 2 || !p.Will.Retain || p.Will.Props.WillDelay != 5 {
		t.Errorf("read %+v, will %+v", p, p.Will)
	}
}

// TestPublishGoesAndComes writes a PUBLISH with everything and reads it again.
func TestPublishGoesAndComes(t *testing.T) {
	p := PublishPacket{QoS: 2, Dup: true, Retain: true, ID: 7, Payload: []byte(strings.Repeat("x", 200))}
	p.Props = Properties{
		PayloadFormat: 1, MessageExpiry: 5, ContentType: []byte("text/plain"), ResponseTopic: []byte("r"), Correlation: []byte{0, 1},
		TopicAlias: 3, User: []UserProperty{{[]byte("a"), []byte("1")}, {[]byte("a"), []byte("2")}},
	}
	for _, id := range []Property{PayloadFormat, MessageExpiry, ContentType, ResponseTopic, Correlation, TopicAlias, User} {
		p.Props.Has.Add(id)
	}
	for _, v := range []Version{V311, V5} {
		b := AppendPublish(nil, v, &p, "a/b")
		if v == V5 && len(b) != PublishSize(v, &p, "a/b") {
			t.Errorf("wrote %d octets, said %d", len(b), PublishSize(v, &p, "a/b"))
		}
		got, err := decode(v, b)
		if err != nil {
			t.Fatalf("version %d: %v", v, err)
		}
		q := got.(PublishPacket)
		if string(q.Topic) != "a/b" || !bytes.Equal(q.Payload, p.Payload) || q.ID != 7 || !q.Dup || !q.Retain || q.QoS != 2 {
			t.Errorf("version %d: read %+v", v, q)
		}
		if again := AppendPublish(nil, v, &q, "a/b"); !bytes.Equal(again, b) {
			t.Errorf("version %d: written again %q, first %q", v, again, b)
		}
	}
}

func TestFilters(t *testing.T) {
	for f, want := range map[string]bool{
		"": false, "#": true, "+": true, "a/#": true, "a/+/b": true, "+/+": true, "/": true, "/a": true, "a//b": true, "$SYS/#": true,
		"a#": false, "#/a": false, "a/#/b": false, "a+": false, "+a/b": false, "a/b+": false,
		"$share/g/a": true, "$share/g/#": true, "$share//a": false, "$share/g": false, "$share/g/": false, "$share/+/a": false, "$share/g#/a": false,
	} {
		if ValidFilter(f) != want {
			t.Errorf("ValidFilter(%q) = %v", f, !want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
		"\x10\x14\x00\x04MQTT\x05\xc2\x00\x3c\x00\x00\x01x\x00\x01u\x00\x01p",
		"\x32\x0a\x00\x01a\x00\x01\x02\x01\x01hi", "\x82\x07\x00\x01\x00\x00\x01a\x01", "\xa2\x06\x00\x01\x00\x00\x01a",
		"\x40\x04\x00\x01\x10\x00", "\x62\x02\x00\x01", "\xe0\x02\x04\x00", "\xf0\x02\x19\x00", "\xc0\x00", "\x30\xff\xff\xff\x7f",
	} {
		f.Add(true, []byte(s))
		f.Add(false, []byte(s))
	}
	f.Fuzz(func(t *testing.T, five bool, b []byte) {
		v := V311
		if five {
			v = V5
		}
		got, err := decode(v, b)
		if bad, ok := errors.AsType[*Error](err); ok && bad.Code < UnspecifiedError {
			t.Fatalf("error with code 0x%02x", byte(bad.Code))
		}
		p, ok := got.(PublishPacket)
		if err != nil || !ok {
			return
		}
		// What was understood can be written and is understood the same.
		again := AppendPublish(nil, v, &p, string(p.Topic))
		q, err := decode(v, again)
		if err != nil {
			t.Fatalf("%q was written as %q: %v", b, again, err)
		}
		if !bytes.Equal(AppendPublish(nil, v, new(q.(PublishPacket)), string(p.Topic)), again) {
			t.Fatalf("%q does not come back the same", b)
		}
	})
}
