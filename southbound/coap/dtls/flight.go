package dtls

import "encoding/binary"

// flight collects the messages of one flight.
type flight struct {
	messages []message
	body     []byte // scratch for flush
}

type message struct {
	typ  byte
	body []byte
}

func (f *flight) add(typ byte, body []byte) { f.messages = append(f.messages, message{typ, body}) }

func (f *flight) flush(typ byte) { f.add(typ, f.body); f.body = nil }

// send numbers the messages, adds them to the transcript and cuts them into datagrams.
func (hs *Handshake) send(f *flight) {
	hs.flight = nil
	var datagram []byte
	emit := func() {
		if len(datagram) > 0 {
			hs.flight = append(hs.flight, datagram)
			datagram = nil
		}
	}
	for _, m := range f.messages {
		hs.transcript = appendMessageHeader(hs.transcript, m.typ, len(m.body), hs.sendSeq, 0, len(m.body))
		hs.transcript = append(hs.transcript, m.body...)
		for offset := 0; ; {
			room := hs.cfg.MTU - len(datagram) - headerLen - messageHeaderLen
			if room < min(len(m.body)-offset, 64) {
				emit()
				room = hs.cfg.MTU - headerLen - messageHeaderLen
			}
			n := min(room, len(m.body)-offset)
			piece := appendMessageHeader(nil, m.typ, len(m.body), hs.sendSeq, offset, n)
			datagram = appendPlain(datagram, typeHandshake, hs.plainSeq, append(piece, m.body[offset:offset+n]...))
			hs.plainSeq++
			if offset += n; offset >= len(m.body) {
				break
			}
		}
		hs.sendSeq++
	}
	emit()
}

// window is how many messages ahead of the next one are kept.
const window = 6

// reassembly puts the client's handshake messages together (RFC 6347 section 4.2.3).
type reassembly struct {
	next  uint16
	parts [window]*part // parts[i] is message next+i
	held  int           // octets of all parts
}

type part struct {
	typ  byte
	msg  []byte // with a header as if it had come in one piece
	have []bool
	left int
}

// add takes the first fragment of b and gives the rest of b.
func (a *reassembly) add(b []byte) (rest []byte, err error) {
	if len(b) < messageHeaderLen {
		return nil, fail(decodeError, "malformed", "handshake message of %d octets", len(b))
	}
	length := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	seq := binary.BigEndian.Uint16(b[4:])
	offset := int(b[6])<<16 | int(b[7])<<8 | int(b[8])
	n := int(b[9])<<16 | int(b[10])<<8 | int(b[11])
	if n > len(b)-messageHeaderLen || offset+n > length {
		return nil, fail(decodeError, "malformed", "handshake fragment")
	}
	typ, data, rest := b[0], b[messageHeaderLen:messageHeaderLen+n], b[messageHeaderLen+n:]
	i := seq - a.next // wraps for what has been taken already
	if i >= window {
		return rest, nil
	}
	p := a.parts[i]
	if p == nil {
		if a.held+length > maxMessages {
			return nil, fail(handshakeFailure, "malformed", "messages too large")
		}
		a.held += length
		p = &part{typ: typ, have: make([]bool, length), left: length}
		p.msg = append(appendMessageHeader(make([]byte, 0, messageHeaderLen+length), typ, length, seq, 0, length), make([]byte, length)...)
		a.parts[i] = p
	}
	if p.typ != typ || len(p.have) != length {
		return nil, fail(illegalParameter, "malformed", "fragments disagree")
	}
	copy(p.msg[messageHeaderLen+offset:], data)
	for j := offset; j < offset+n; j++ {
		if !p.have[j] {
			p.have[j] = true
			p.left--
		}
	}
	return rest, nil
}

// pop gives the next message if it is whole.
func (a *reassembly) pop() (typ byte, msg []byte) {
	p := a.parts[0]
	if p == nil || p.left > 0 {
		return 0, nil
	}
	copy(a.parts[:], a.parts[1:])
	a.parts[window-1] = nil
	a.held -= len(p.have)
	a.next++
	return p.typ, p.msg
}
