package dtls

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Handshake message types (RFC 5246 section 7.4, RFC 6347 section 4.3.2).
const (
	msgClientHello        = 1
	msgServerHello        = 2
	msgHelloVerifyRequest = 3
	msgCertificate        = 11
	msgServerKeyExchange  = 12
	msgCertificateRequest = 13
	msgServerHelloDone    = 14
	msgCertificateVerify  = 15
	msgClientKeyExchange  = 16
	msgFinished           = 20
)

const messageHeaderLen = 12

func appendMessageHeader(dst []byte, typ byte, length int, seq uint16, offset, fragment int) []byte {
	dst = append(dst, typ, byte(length>>16), byte(length>>8), byte(length))
	dst = binary.BigEndian.AppendUint16(dst, seq)
	return append(dst, byte(offset>>16), byte(offset>>8), byte(offset), byte(fragment>>16), byte(fragment>>8), byte(fragment))
}

// Hello is a ClientHello in one piece. It points into the datagram.
type Hello struct {
	raw       []byte // message with its header
	seq       uint16
	recordSeq uint64
	random    []byte
	session   []byte
	cookie    []byte
	suites    cryptobyte.String
	compress  []byte
	ext       cryptobyte.String
}

// ParseHello reads the ClientHello with which a datagram begins, if it does. One that is cut into fragments is not taken: it could not be
// put together without keeping state.
func ParseHello(r Record) (h Hello, ok bool) {
	b := cryptobyte.String(r.body)
	var typ uint8
	var length, offset, fragment uint32
	if r.Type != typeHandshake || r.Epoch != 0 || !b.ReadUint8(&typ) || typ != msgClientHello || !b.ReadUint24(&length) ||
		!b.ReadUint16(&h.seq) || !b.ReadUint24(&offset) || !b.ReadUint24(&fragment) || offset != 0 || fragment != length || int(length) > len(b) {
		return h, false
	}
	h.raw = r.body[:messageHeaderLen+int(length)]
	h.recordSeq = r.Seq
	b = b[:length]
	var version uint16
	var session, cookie, compress cryptobyte.String
	if !b.ReadUint16(&version) || version>>8 != 0xfe || !b.ReadBytes(&h.random, 32) || !b.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!b.ReadUint8LengthPrefixed(&cookie) || !b.ReadUint16LengthPrefixed(&h.suites) || len(h.suites)%2 != 0 ||
		!b.ReadUint8LengthPrefixed(&compress) || !b.Empty() && (!b.ReadUint16LengthPrefixed(&h.ext) || !b.Empty()) {
		return h, false
	}
	h.session, h.cookie, h.compress = session, cookie, compress
	return h, version <= 0xfefd // DTLS versions count down: 1.2 or newer
}

// Bytes gives the message as it came. It points into the datagram.
func (h *Hello) Bytes() []byte { return h.raw }

// cookieLife is how long a cookie is good for, at least.
const cookieLife = time.Minute

// Gate tells hellos from addresses that are real from those that may be spoofed, without state. It is not safe for concurrent use.
type Gate struct {
	secrets [2]hash.Hash // HMAC under the current and the last secret
	rotate  time.Time
	head    [19]byte // scratch, as is sum: they would be allocated for each hello
	sum     [2 * sha256.Size]byte
}

// NewGate makes a gate with fresh secrets.
func NewGate(now time.Time) *Gate {
	g := &Gate{rotate: now.Add(cookieLife)}
	g.secrets[0], g.secrets[1] = freshMAC(), freshMAC()
	return g
}

func freshMAC() hash.Hash {
	var key [32]byte
	rand.Read(key[:])
	return hmac.New(sha256.New, key[:])
}

// Admit tells whether the hello proves by a cookie that its sender is at the address. If not, challenge is the datagram to answer with, appended
// to dst: a HelloVerifyRequest, shorter than what it answers.
func (g *Gate) Admit(h *Hello, from netip.AddrPort, now time.Time, dst []byte) (ok bool, challenge []byte) {
	for ; !now.Before(g.rotate); g.rotate = g.rotate.Add(cookieLife) {
		if now.Sub(g.rotate) > 2*cookieLife {
			g.rotate = now
		}
		g.secrets[0], g.secrets[1] = freshMAC(), g.secrets[0]
	}
	if len(h.cookie) > 0 {
		for _, mac := range g.secrets {
			if hmac.Equal(g.cookie(mac, h, from), h.cookie) {
				return true, nil
			}
		}
	}
	var body [3 + cookieLen]byte
	body[0], body[1], body[2] = 0xfe, 0xfd, cookieLen
	copy(body[3:], g.cookie(g.secrets[0], h, from))
	var msg [messageHeaderLen + len(body)]byte
	m := appendMessageHeader(msg[:0], msgHelloVerifyRequest, len(body), 0, 0, len(body))
	// RFC 6347 section 4.2.1: the record carries the sequence number of the hello.
	return false, appendPlain(dst, typeHandshake, h.recordSeq, append(m, body[:]...))
}

const cookieLen = 20

func (g *Gate) cookie(mac hash.Hash, h *Hello, from netip.AddrPort) []byte {
	mac.Reset()
	ip := from.Addr().As16()
	copy(g.head[:], ip[:])
	binary.BigEndian.PutUint16(g.head[16:], from.Port())
	g.head[18] = byte(len(h.session))
	mac.Write(g.head[:])
	mac.Write(h.random)
	mac.Write(h.session)
	mac.Write(h.suites)
	return mac.Sum(g.sum[:0])[:cookieLen]
}

// Extensions that matter here.
const (
	extGroups         = 10
	extPointFormats   = 11
	extSignatures     = 13
	extEncryptThenMAC = 22
	extMasterSecret   = 23
	extConnectionID   = 54
	extRenegotiation  = 0xff01
)

// offer is what a ClientHello offers.
type offer struct {
	groups        []uint16 // nil where the extension is absent
	schemes       []uint16
	pointFormats  bool
	encryptMAC    bool
	masterSecret  bool
	renegotiation bool
	cid           []byte // what the client wants in the records it receives
	hasCID        bool
}

func readUint16s(s cryptobyte.String) (list []uint16, ok bool) {
	var inner cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&inner) || !s.Empty() || len(inner)%2 != 0 {
		return nil, false
	}
	list = []uint16{}
	for !inner.Empty() {
		var v uint16
		inner.ReadUint16(&v)
		list = append(list, v)
	}
	return list, true
}

func (h *Hello) offer() (o offer, ok bool) {
	const scsv = 0x00ff // RFC 5746 section 3.3
	o.renegotiation = h.offers(scsv)
	ext := h.ext
	for !ext.Empty() {
		var typ uint16
		var data cryptobyte.String
		if !ext.ReadUint16(&typ) || !ext.ReadUint16LengthPrefixed(&data) {
			return o, false
		}
		ok := true
		switch typ {
		case extGroups:
			o.groups, ok = readUint16s(data)
		case extSignatures:
			o.schemes, ok = readUint16s(data)
		case extPointFormats:
			o.pointFormats = true
		case extEncryptThenMAC:
			o.encryptMAC = true
		case extMasterSecret:
			o.masterSecret = true
		case extRenegotiation:
			o.renegotiation = true
		case extConnectionID:
			var cid cryptobyte.String
			ok = data.ReadUint8LengthPrefixed(&cid) && data.Empty()
			o.cid, o.hasCID = cid, true
		}
		if !ok {
			return o, false
		}
	}
	return o, true
}

// Effort is what Handshake.Start may take.
type Effort uint8

// The efforts.
const (
	Signing  Effort = iota // asks the server's key
	Agreeing               // may ask a chip for an ephemeral key
	Hashing                // microseconds
)

// Effort tells what it takes to answer the hello, with the suites in order of preference.
func (h *Hello) Effort(suites []*Suite) Effort {
	least := Signing
	for i, s := range suites {
		switch {
		case !h.offers(s.ID):
		case s.kx == psk && s.aead != nil && !slices.ContainsFunc(suites[:i], func(s *Suite) bool { return h.offers(s.ID) }):
			return Hashing
		case s.UsesPSK():
			least = Agreeing
		}
	}
	return least
}

// offers tells whether the hello lists the suite.
func (h *Hello) offers(id uint16) bool {
	for i := 0; i+1 < len(h.suites); i += 2 {
		if binary.BigEndian.Uint16(h.suites[i:]) == id {
			return true
		}
	}
	return false
}
