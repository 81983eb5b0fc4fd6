package packet

import "encoding/binary"

// UserProperty is a name and a value; the same name may come more than once.
type UserProperty struct{ Name, Value []byte }

// Properties is what a packet of MQTT 5 carries beside its fields (section 2.2.2). A field counts only where its bit in Has is set;
// the slices count by their length.
type Properties struct {
	Has Set

	PayloadFormat       byte
	RequestProblemInfo  byte
	RequestResponseInfo byte
	MaximumQoS          byte
	RetainAvailable     byte
	WildcardAvailable   byte
	SubIDAvailable      byte
	SharedAvailable     byte
	ServerKeepAlive     uint16
	ReceiveMaximum      uint16
	TopicAliasMaximum   uint16
	TopicAlias          uint16
	MessageExpiry       uint32
	SessionExpiry       uint32
	WillDelay           uint32
	MaximumPacketSize   uint32
	ContentType         []byte
	ResponseTopic       []byte
	Correlation         []byte
	AssignedClientID    []byte
	AuthMethod          []byte
	AuthData            []byte
	ResponseInfo        []byte
	ServerReference     []byte
	ReasonString        []byte
	SubscriptionIDs     []uint32
	User                []UserProperty
}

// Property is a property identifier.
type Property byte

// The property identifiers.
const (
	PayloadFormat       Property = 0x01
	MessageExpiry       Property = 0x02
	ContentType         Property = 0x03
	ResponseTopic       Property = 0x08
	Correlation         Property = 0x09
	SubscriptionID      Property = 0x0b
	SessionExpiry       Property = 0x11
	AssignedClientID    Property = 0x12
	ServerKeepAlive     Property = 0x13
	AuthMethod          Property = 0x15
	AuthData            Property = 0x16
	RequestProblemInfo  Property = 0x17
	WillDelay           Property = 0x18
	RequestResponseInfo Property = 0x19
	ResponseInfo        Property = 0x1a
	ServerReference     Property = 0x1c
	ReasonString        Property = 0x1f
	ReceiveMaximum      Property = 0x21
	TopicAliasMaximum   Property = 0x22
	TopicAlias          Property = 0x23
	MaximumQoS          Property = 0x24
	RetainAvailable     Property = 0x25
	User                Property = 0x26
	MaximumPacketSize   Property = 0x27
	WildcardAvailable   Property = 0x28
	SubIDAvailable      Property = 0x29
	SharedAvailable     Property = 0x2a
)

// Set is a set of properties.
type Set uint64

// Is tells whether the property is there.
func (s Set) Is(p Property) bool { return s>>p&1 != 0 }

// Add marks the property as there.
func (s *Set) Add(p Property) { *s |= 1 << p }

// What each packet that a client sends may carry (MQTT 5 table 2-4).
const (
	onAck     = 1<<ReasonString | 1<<User
	onConnect = 1<<SessionExpiry | 1<<AuthMethod | 1<<AuthData | 1<<RequestProblemInfo | 1<<RequestResponseInfo |
		1<<ReceiveMaximum | 1<<TopicAliasMaximum | 1<<User | 1<<MaximumPacketSize
	onWill        = 1<<PayloadFormat | 1<<MessageExpiry | 1<<ContentType | 1<<ResponseTopic | 1<<Correlation | 1<<WillDelay | 1<<User
	onPublish     = 1<<PayloadFormat | 1<<MessageExpiry | 1<<ContentType | 1<<ResponseTopic | 1<<Correlation | 1<<SubscriptionID | 1<<TopicAlias | 1<<User
	onSubscribe   = 1<<SubscriptionID | 1<<User
	onUnsubscribe = 1 << User
	onDisconnect  = 1<<SessionExpiry | 1<<ServerReference | 1<<ReasonString | 1<<User
	onAuth        = 1<<AuthMethod | 1<<AuthData | 1<<ReasonString | 1<<User
)

func (c *cursor) properties(p *Properties, allowed Set) {
	*p = Properties{}
	n := int(c.varint())
	in := cursor{b: c.take(n)}
	for len(in.b) > 0 && in.err == nil {
		id := Property(in.varint())
		if id > 63 || !allowed.Is(id) {
			in.fail(protocol("property that this packet may not carry"))
			break
		}
		if p.Has.Is(id) && id != User && id != SubscriptionID {
			in.fail(protocol("property given twice"))
			break
		}
		p.Has.Add(id)
		in.property(p, id)
	}
	if in.err != nil {
		c.fail(in.err)
	}
}

func (c *cursor) property(p *Properties, id Property) {
	switch id {
	case PayloadFormat:
		p.PayloadFormat = c.flag()
	case MessageExpiry:
		p.MessageExpiry = c.u32()
	case ContentType:
		p.ContentType = c.text()
	case ResponseTopic:
		if p.ResponseTopic = c.text(); c.err == nil && !ValidTopic(p.ResponseTopic) {
			c.fail(protocol("response topic that is not a topic name"))
		}
	case Correlation:
		p.Correlation = c.binary()
	case SubscriptionID:
		sub := c.varint()
		if sub == 0 && c.err == nil {
			c.fail(protocol("subscription identifier 0"))
		}
		p.SubscriptionIDs = append(p.SubscriptionIDs, sub)
	case SessionExpiry:
		p.SessionExpiry = c.u32()
	case AuthMethod:
		p.AuthMethod = c.text()
	case AuthData:
		p.AuthData = c.binary()
	case RequestProblemInfo:
		p.RequestProblemInfo = c.flag()
	case WillDelay:
		p.WillDelay = c.u32()
	case RequestResponseInfo:
		p.RequestResponseInfo = c.flag()
	case ServerReference:
		p.ServerReference = c.text()
	case ReasonString:
		p.ReasonString = c.text()
	case ReceiveMaximum:
		if p.ReceiveMaximum = c.u16(); p.ReceiveMaximum == 0 && c.err == nil {
			c.fail(protocol("receive maximum 0"))
		}
	case TopicAliasMaximum:
		p.TopicAliasMaximum = c.u16()
	case TopicAlias:
		if p.TopicAlias = c.u16(); p.TopicAlias == 0 && c.err == nil {
			c.fail(&Error{TopicAliasInvalid, "topic alias 0"})
		}
	case User:
		p.User = append(p.User, UserProperty{c.text(), c.text()})
	case MaximumPacketSize:
		if p.MaximumPacketSize = c.u32(); p.MaximumPacketSize == 0 && c.err == nil {
			c.fail(protocol("maximum packet size 0"))
		}
	}
}

func (c *cursor) flag() byte {
	b := c.u8()
	if b > 1 {
		c.fail(protocol("flag property that is neither 0 nor 1"))
	}
	return b
}

// size gives the length of the properties without their length field.
func (p *Properties) size() (n int) {
	if p.Has == 0 && len(p.SubscriptionIDs) == 0 && len(p.User) == 0 {
		return 0
	}
	for _, w := range [...]struct {
		props Set
		size  int
	}{
		{1<<PayloadFormat | 1<<RequestProblemInfo | 1<<RequestResponseInfo | 1<<MaximumQoS | 1<<RetainAvailable |
			1<<WildcardAvailable | 1<<SubIDAvailable | 1<<SharedAvailable, 2},
		{1<<ServerKeepAlive | 1<<ReceiveMaximum | 1<<TopicAliasMaximum | 1<<TopicAlias, 3},
		{1<<MessageExpiry | 1<<SessionExpiry | 1<<WillDelay | 1<<MaximumPacketSize, 5},
	} {
		for s := p.Has & w.props; s != 0; s &= s - 1 {
			n += w.size
		}
	}
	for id, b := range p.blobs() {
		if p.Has.Is(id) {
			n += 3 + len(b)
		}
	}
	for _, id := range p.SubscriptionIDs {
		n += 1 + varintSize(id)
	}
	for _, u := range p.User {
		n += 5 + len(u.Name) + len(u.Value)
	}
	return n
}

// blobs gives the properties that are strings or binary data.
func (p *Properties) blobs() func(yield func(Property, []byte) bool) {
	return func(yield func(Property, []byte) bool) {
		_ = yield(ContentType, p.ContentType) && yield(ResponseTopic, p.ResponseTopic) && yield(Correlation, p.Correlation) &&
			yield(AssignedClientID, p.AssignedClientID) && yield(AuthMethod, p.AuthMethod) && yield(AuthData, p.AuthData) &&
			yield(ResponseInfo, p.ResponseInfo) && yield(ServerReference, p.ServerReference) && yield(ReasonString, p.ReasonString)
	}
}

// append writes the properties with their length field, which is size.
func (p *Properties) append(b []byte, size int) []byte {
	b = appendVarint(b, uint32(size))
	if p.Has != 0 {
		b = p.appendFixed(b)
		for id, v := range p.blobs() {
			if p.Has.Is(id) {
				b = appendBinary(append(b, byte(id)), v)
			}
		}
	}
	for _, id := range p.SubscriptionIDs {
		b = appendVarint(append(b, byte(SubscriptionID)), id)
	}
	for _, u := range p.User {
		b = appendBinary(appendBinary(append(b, byte(User)), u.Name), u.Value)
	}
	return b
}

func (p *Properties) appendFixed(b []byte) []byte {
	for _, f := range [...]struct {
		id Property
		v  byte
	}{
		{PayloadFormat, p.PayloadFormat}, {RequestProblemInfo, p.RequestProblemInfo}, {RequestResponseInfo, p.RequestResponseInfo},
		{MaximumQoS, p.MaximumQoS}, {RetainAvailable, p.RetainAvailable}, {WildcardAvailable, p.WildcardAvailable},
		{SubIDAvailable, p.SubIDAvailable}, {SharedAvailable, p.SharedAvailable},
	} {
		if p.Has.Is(f.id) {
			b = append(b, byte(f.id), f.v)
		}
	}
	for _, f := range [...]struct {
		id Property
		v  uint16
	}{
		{ServerKeepAlive, p.ServerKeepAlive}, {ReceiveMaximum, p.ReceiveMaximum},
		{TopicAliasMaximum, p.TopicAliasMaximum}, {TopicAlias, p.TopicAlias},
	} {
		if p.Has.Is(f.id) {
			b = binary.BigEndian.AppendUint16(append(b, byte(f.id)), f.v)
		}
	}
	for _, f := range [...]struct {
		id Property
		v  uint32
	}{
		{MessageExpiry, p.MessageExpiry}, {SessionExpiry, p.SessionExpiry}, {WillDelay, p.WillDelay}, {MaximumPacketSize, p.MaximumPacketSize},
	} {
		if p.Has.Is(f.id) {
			b = binary.BigEndian.AppendUint32(append(b, byte(f.id)), f.v)
		}
	}
	return b
}

func varintSize(n uint32) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

func appendVarint(b []byte, n uint32) []byte {
	for n >= 128 {
		b = append(b, byte(n)|128)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendBinary[T string | []byte](b []byte, v T) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
}
