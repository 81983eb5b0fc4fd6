package mqtt

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/eclipse/paho.golang/packets"
	packets4 "github.com/eclipse/paho.mqtt.golang/packets"
)

// The two versions of the protocol, by the number that stands in CONNECT.
const (
	V311 byte = 4
	V5   byte = 5
)

// codec turns packets into octets and back. A session thinks in the packets of MQTT 5; what MQTT 3.1.1 has no place for is
// left out on the way out and absent on the way in.
type codec interface {
	encode(w *bytes.Buffer, p packets.Packet) error
	decode(first byte, body []byte) (packets.Packet, error)
}

func codecOf(version byte) codec {
	if version == V311 {
		return codec4{}
	}
	return codec5{}
}

var errTooLarge = errors.New("larger than the maximum packet size that was announced")

// readFrame reads one packet without decoding it. The body is scratch where it fits, and then only good until the next call.
func readFrame(r *bufio.Reader, limit int, scratch []byte) (first byte, body []byte, err error) {
	if first, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return 0, nil, errors.New("malformed packet: remaining length of more than four octets")
		}
		b, err := r.ReadByte()
		if err != nil {
			return 0, nil, unexpected(err)
		}
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
	}
	if length > limit {
		return 0, nil, fmt.Errorf("a packet of %d octets: %w", length, errTooLarge)
	}
	if length <= len(scratch) {
		body = scratch[:length]
	} else {
		body = make([]byte, length)
	}
	if _, err = io.ReadFull(r, body); err != nil {
		return 0, nil, unexpected(err)
	}
	return first, body, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unpack runs f, which reads octets of a stranger, and turns a panic of the library into an error.
func unpack(name string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("malformed %s: %v", name, v)
		}
	}()
	if err = f(); err != nil {
		return fmt.Errorf("malformed %s: %w", name, err)
	}
	return nil
}

// codec5 is MQTT 5 by paho.golang.
type codec5 struct{}

func (codec5) encode(w *bytes.Buffer, p packets.Packet) error {
	_, err := p.WriteTo(w)
	return err
}

func (codec5) decode(first byte, body []byte) (packets.Packet, error) {
	kind := first >> 4
	if kind == packets.PUBACK && len(body) == 2 { // by far the most frequent
		return &packets.Puback{PacketID: uint16(body[0])<<8 | uint16(body[1])}, nil
	}
	if kind == packets.DISCONNECT && len(body) == 0 { // section 3.14.2.1: normal disconnection
		return &packets.Disconnect{}, nil
	}
	cp := packets.NewControlPacket(kind)
	if cp == nil {
		return nil, fmt.Errorf("malformed packet: type %d", kind)
	}
	if p, ok := cp.Content.(*packets.Publish); ok {
		p.QoS, p.Duplicate, p.Retain = first>>1&3, first&8 != 0, first&1 != 0
		if p.QoS == 3 {
			return nil, errors.New("malformed PUBLISH: QoS 3")
		}
	}
	return cp.Content, unpack(cp.PacketType(), func() error { return cp.Content.Unpack(bytes.NewBuffer(body)) })
}

// codec4 is MQTT 3.1.1 by paho.mqtt.golang.
type codec4 struct{}

func (codec4) encode(w *bytes.Buffer, p packets.Packet) error {
	switch p := p.(type) {
	case *packets.Publish:
		q := packets4.PublishPacket{TopicName: p.Topic, MessageID: p.PacketID, Payload: p.Payload}
		q.FixedHeader = packets4.FixedHeader{MessageType: packets4.Publish, Dup: p.Duplicate, Qos: p.QoS, Retain: p.Retain}
		return q.Write(w)
	case *packets.Puback:
		return (&packets4.PubackPacket{FixedHeader: header4(packets4.Puback), MessageID: p.PacketID}).Write(w)
	case *packets.Pubrec:
		return (&packets4.PubrecPacket{FixedHeader: header4(packets4.Pubrec), MessageID: p.PacketID}).Write(w)
	case *packets.Pubrel:
		q := packets4.PubrelPacket{FixedHeader: header4(packets4.Pubrel), MessageID: p.PacketID}
		q.Qos = 1 // the flags 0010 of section 3.6.1
		return q.Write(w)
	case *packets.Pubcomp:
		return (&packets4.PubcompPacket{FixedHeader: header4(packets4.Pubcomp), MessageID: p.PacketID}).Write(w)
	case *packets.Subscribe:
		q := packets4.SubscribePacket{FixedHeader: header4(packets4.Subscribe), MessageID: p.PacketID}
		q.Qos = 1
		for _, s := range p.Subscriptions {
			q.Topics = append(q.Topics, s.Topic)
			q.Qoss = append(q.Qoss, s.QoS)
		}
		return q.Write(w)
	case *packets.Unsubscribe:
		q := packets4.UnsubscribePacket{FixedHeader: header4(packets4.Unsubscribe), MessageID: p.PacketID, Topics: p.Topics}
		q.Qos = 1
		return q.Write(w)
	case *packets.Connect:
		q := packets4.ConnectPacket{
			FixedHeader: header4(packets4.Connect), ProtocolName: "MQTT", ProtocolVersion: V311,
			CleanSession: p.CleanStart, Keepalive: p.KeepAlive, ClientIdentifier: p.ClientID,
			UsernameFlag: p.UsernameFlag, Username: p.Username, PasswordFlag: p.PasswordFlag, Password: p.Password,
		}
		return q.Write(w)
	case *packets.Pingreq:
		return (&packets4.PingreqPacket{FixedHeader: header4(packets4.Pingreq)}).Write(w)
	case *packets.Disconnect:
		return (&packets4.DisconnectPacket{FixedHeader: header4(packets4.Disconnect)}).Write(w)
	}
	return fmt.Errorf("%T: not a packet that a client of MQTT 3.1.1 sends", p)
}

func header4(kind byte) packets4.FixedHeader { return packets4.FixedHeader{MessageType: kind} }

func (codec4) decode(first byte, body []byte) (packets.Packet, error) {
	h := packets4.FixedHeader{
		MessageType: first >> 4, Dup: first&8 != 0, Qos: first >> 1 & 3, Retain: first&1 != 0, RemainingLength: len(body),
	}
	if h.MessageType == packets4.Publish && h.Qos == 3 {
		return nil, errors.New("malformed PUBLISH: QoS 3")
	}
	cp, err := packets4.NewControlPacketWithHeader(h)
	if err != nil {
		return nil, fmt.Errorf("malformed packet: %w", err)
	}
	switch h.MessageType {
	case packets4.Connack, packets4.Puback, packets4.Pubrec, packets4.Pubrel, packets4.Pubcomp, packets4.Unsuback:
		if len(body) != 2 { // the library takes what is missing for zeros
			return nil, fmt.Errorf("malformed %s: %d octets", packets4.PacketNames[h.MessageType], len(body))
		}
	}
	err = unpack(packets4.PacketNames[h.MessageType], func() error { return cp.Unpack(bytes.NewBuffer(body)) })
	if err != nil {
		return nil, err
	}
	switch q := cp.(type) {
	case *packets4.ConnackPacket:
		return &packets.Connack{SessionPresent: q.SessionPresent, ReasonCode: q.ReturnCode, Properties: &packets.Properties{}}, nil
	case *packets4.PublishPacket:
		return &packets.Publish{
			Topic: q.TopicName, PacketID: q.MessageID, Payload: q.Payload, QoS: q.Qos, Duplicate: q.Dup, Retain: q.Retain,
			Properties: &packets.Properties{},
		}, nil
	case *packets4.PubackPacket:
		return &packets.Puback{PacketID: q.MessageID}, nil
	case *packets4.PubrecPacket:
		return &packets.Pubrec{PacketID: q.MessageID}, nil
	case *packets4.PubrelPacket:
		return &packets.Pubrel{PacketID: q.MessageID}, nil
	case *packets4.PubcompPacket:
		return &packets.Pubcomp{PacketID: q.MessageID}, nil
	case *packets4.SubackPacket:
		return &packets.Suback{PacketID: q.MessageID, Reasons: q.ReturnCodes}, nil
	case *packets4.UnsubackPacket:
		return &packets.Unsuback{PacketID: q.MessageID}, nil
	case *packets4.PingrespPacket:
		return &packets.Pingresp{}, nil
	}
	return nil, fmt.Errorf("%s: not a packet that a server of MQTT 3.1.1 sends", packets4.PacketNames[h.MessageType])
}
