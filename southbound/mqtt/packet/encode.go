package packet

import "encoding/binary"

// AppendConnack writes a CONNACK. For 3.1.1 code is that of its own table, and props are left out.
func AppendConnack(b []byte, v Version, present bool, code Code, props *Properties) []byte {
	var flags byte
	if present {
		flags = 1
	}
	if v != V5 {
		return append(b, byte(Connack)<<4, 2, flags, byte(code))
	}
	size := props.size()
	b = appendVarint(append(b, byte(Connack)<<4), uint32(2+varintSize(uint32(size))+size))
	return props.append(append(b, flags, byte(code)), size)
}

// PublishSize gives the length of what AppendPublish writes.
func PublishSize(v Version, p *PublishPacket, topic string) int {
	n := publishBody(v, p, topic, p.Props.size())
	return 1 + varintSize(uint32(n)) + n
}

func publishBody(v Version, p *PublishPacket, topic string, props int) int {
	n := 2 + len(topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if v == V5 {
		n += varintSize(uint32(props)) + props
	}
	return n
}

// AppendPublish writes a PUBLISH on topic; p.Topic is not looked at.
func AppendPublish(b []byte, v Version, p *PublishPacket, topic string) []byte {
	h := byte(Publish)<<4 | p.QoS<<1
	if p.Dup {
		h |= 8
	}
	if p.Retain {
		h |= 1
	}
	size := 0
	if v == V5 {
		size = p.Props.size()
	}
	b = appendVarint(append(b, h), uint32(publishBody(v, p, topic, size)))
	b = appendBinary(b, topic)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, p.ID)
	}
	if v == V5 {
		b = p.Props.append(b, size)
	}
	return append(b, p.Payload...)
}

// AppendAck writes a PUBACK, PUBREC, PUBREL or PUBCOMP. reason may be empty; 3.1.1 has neither code nor reason.
func AppendAck(b []byte, v Version, t Type, id uint16, code Code, reason string) []byte {
	h := byte(t) << 4
	if t == Pubrel {
		h |= 2
	}
	if v != V5 || code == Success {
		return append(b, h, 2, byte(id>>8), byte(id))
	}
	if reason == "" {
		return append(b, h, 3, byte(id>>8), byte(id), byte(code))
	}
	p := reasonProps(reason)
	size := p.size()
	b = appendVarint(append(b, h), uint32(3+varintSize(uint32(size))+size))
	return p.append(append(b, byte(id>>8), byte(id), byte(code)), size)
}

func reasonProps(reason string) *Properties {
	p := &Properties{}
	if reason != "" {
		p.ReasonString = []byte(reason)
		p.Has.Add(ReasonString)
	}
	return p
}

// AppendSuback writes a SUBACK or UNSUBACK; the UNSUBACK of 3.1.1 has no codes.
func AppendSuback(b []byte, v Version, t Type, id uint16, codes []Code) []byte {
	if v != V5 && t == Unsuback {
		codes = nil
	}
	n := 2 + len(codes)
	if v == V5 {
		n++
	}
	b = appendVarint(append(b, byte(t)<<4), uint32(n))
	b = binary.BigEndian.AppendUint16(b, id)
	if v == V5 {
		b = append(b, 0)
	}
	for _, c := range codes {
		b = append(b, byte(c))
	}
	return b
}

// AppendPingresp writes a PINGRESP.
func AppendPingresp(b []byte) []byte { return append(b, byte(Pingresp)<<4, 0) }

// AppendDisconnect writes a DISCONNECT of MQTT 5; a server of 3.1.1 sends none.
func AppendDisconnect(b []byte, code Code, reason string) []byte {
	if reason == "" {
		return append(b, byte(Disconnect)<<4, 1, byte(code))
	}
	p := reasonProps(reason)
	size := p.size()
	b = appendVarint(append(b, byte(Disconnect)<<4), uint32(1+varintSize(uint32(size))+size))
	return p.append(append(b, byte(code)), size)
}

// AppendAuth writes an AUTH.
func AppendAuth(b []byte, code Code, props *Properties) []byte {
	size := props.size()
	b = appendVarint(append(b, byte(Auth)<<4), uint32(1+varintSize(uint32(size))+size))
	return props.append(append(b, byte(code)), size)
}
