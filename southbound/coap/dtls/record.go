package dtls

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
)

const (
	headerLen = 13
	maxSeq    = 1<<48 - 1
	// CIDLen is the length of the connection ids that this side gives out.
	CIDLen = 8
	// Overhead bounds what Seal adds to a payload, beside the peer's connection id: header, inner type, IV, padding, MAC.
	Overhead = headerLen + 1 + 16 + 16 + 32
)

// CID is a connection id that this side gave out.
type CID [CIDLen]byte

// NewCID makes a random connection id.
func NewCID() (c CID) {
	rand.Read(c[:])
	return c
}

// Record is one record of a datagram, not yet opened. It points into the datagram.
type Record struct {
	Type  byte
	Epoch uint16
	Seq   uint64 // 48 bits
	CID   []byte // of a record of type tls12_cid
	body  []byte
}

// NextRecord cuts the first record off a datagram. ok is false where none is left that is well formed.
func NextRecord(b []byte) (r Record, rest []byte, ok bool) {
	if len(b) < headerLen || b[0] < typeCCS || b[0] > typeCID || b[0] == 24 || b[1] != 0xfe || b[2] != 0xfd && b[2] != 0xff {
		return r, nil, false
	}
	n := headerLen
	if b[0] == typeCID {
		n += CIDLen
		if len(b) < n {
			return r, nil, false
		}
		r.CID = b[11 : 11+CIDLen]
	}
	l := int(binary.BigEndian.Uint16(b[n-2:]))
	if len(b) < n+l {
		return r, nil, false
	}
	r.Type = b[0]
	r.Epoch = binary.BigEndian.Uint16(b[3:])
	r.Seq = binary.BigEndian.Uint64(b[3:]) & maxSeq
	r.body = b[n : n+l]
	return r, b[n+l:], true
}

// half is the protection of one direction: an AEAD, or AES-CBC with encrypt-then-MAC.
type half struct {
	aead  cipher.AEAD
	iv    [12]byte // the fixed part of the nonce, left-aligned
	block cipher.Block
	mac   [sha256.Size]byte
	seq   uint64 // out: next to use; in: highest accepted
}

// make readies the ciphers.
func (h *half) make(s *Suite, key, iv, mac []byte) (err error) {
	copy(h.iv[:], iv)
	copy(h.mac[:], mac)
	if s.aead != nil {
		h.aead, err = s.aead(key)
	} else {
		h.block, err = aes.NewCipher(key)
	}
	return err
}

// Conn is the record protection of one association, epoch 1. It is not safe for concurrent use.
type Conn struct {
	suite   *Suite
	in, out half
	window  uint64 // bit i: in.seq-i was accepted
	inCID   CID    // what the peer puts in its records
	hasCID  bool
	outCID  []byte // what this side puts in its records; empty: none
	started bool   // a record has been accepted; before, in.seq means nothing
	limit   uint64 // sequence numbers below it may be used; see Reserve
	keys    []byte // the key block, kept for Export

	verify   [12]byte // verify_data of the server's Finished, to answer a repeated client flight
	finSeq   uint16   // its message_seq
	plainSeq uint64   // next sequence number of epoch 0
}

func newConn(s *Suite, keys []byte) (*Conn, error) {
	c := &Conn{suite: s, keys: keys, limit: maxSeq}
	return c, c.warm()
}

// warm readies the ciphers, which are the most of what an association takes, where Cool has let go of them.
func (c *Conn) warm() error {
	if c.in.aead != nil || c.in.block != nil {
		return nil
	}
	m, k, v := c.suite.macLen, c.suite.keyLen, c.suite.ivLen
	at := func(i, n int) []byte { return c.keys[i : i+n] }
	if err := c.out.make(c.suite, at(2*m+k, k), at(2*m+2*k+v, v), at(m, m)); err != nil {
		return err
	}
	return c.in.make(c.suite, at(2*m, k), at(2*m+2*k, v), at(0, m))
}

// Cool lets go of what can be made again from the keys. The next record makes it again.
func (c *Conn) Cool() {
	c.in.aead, c.in.block, c.out.aead, c.out.block = nil, nil, nil, nil
}

// Suite gives the association's cipher suite.
func (c *Conn) Suite() *Suite { return c.suite }

// CID gives the connection id that routes to this association, if one was negotiated.
func (c *Conn) CID() (CID, bool) { return c.inCID, c.hasCID }

// additional builds the additional data of AEAD ciphers (RFC 5246 section 6.2.3.3, RFC 9146 section 5.3) and, with length
// counting IV and ciphertext, what the MAC of encrypt-then-MAC begins with (RFC 7366 section 3, RFC 9146 section 5.2).
func additional(b []byte, typ byte, seq uint64, cid []byte, length int) []byte {
	if typ == typeCID {
		b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, typeCID, byte(len(cid)), typeCID, 0xfe, 0xfd)
		b = binary.BigEndian.AppendUint64(b, seq)
		b = append(b, cid...)
	} else {
		b = binary.BigEndian.AppendUint64(b, seq)
		b = append(b, typ, 0xfe, 0xfd)
	}
	return binary.BigEndian.AppendUint16(b, uint16(length))
}

func (h *half) nonce(n *[12]byte, fixed int, seq uint64) {
	*n = h.iv
	if fixed == 4 {
		binary.BigEndian.PutUint64(n[4:], seq)
		return
	}
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^seq) // RFC 7905 section 2
}

// Seal appends payload to dst as one protected record of the content type.
// ErrExhausted where no sequence number may be used: the association must end.
func (c *Conn) Seal(dst []byte, typ byte, payload []byte) ([]byte, error) {
	if c.out.seq >= c.limit {
		return dst, ErrExhausted
	}
	if err := c.warm(); err != nil {
		return dst, err
	}
	seq := 1<<48 | c.out.seq // epoch 1
	c.out.seq++
	inner := len(payload)
	outer := typ
	if len(c.outCID) > 0 {
		outer = typeCID
		inner++
	}
	dst = append(dst, outer, 0xfe, 0xfd)
	dst = binary.BigEndian.AppendUint64(dst, seq)
	if outer == typeCID {
		dst = append(dst, c.outCID...)
	}
	lengthAt := len(dst)
	dst = append(dst, 0, 0)
	start := len(dst)
	if c.out.aead != nil {
		var nonce [12]byte
		c.out.nonce(&nonce, c.suite.ivLen, seq)
		if c.suite.explicitNonce() > 0 {
			dst = binary.BigEndian.AppendUint64(dst, seq)
		}
		body := len(dst)
		dst = append(dst, payload...)
		if outer == typeCID {
			dst = append(dst, typ)
		}
		var scratch [300]byte
		dst = c.out.aead.Seal(dst[:body], nonce[:], dst[body:], additional(scratch[:0], outer, seq, c.outCID, inner))
	} else {
		dst = append(dst, make([]byte, aes.BlockSize)...)
		rand.Read(dst[start:])
		body := len(dst)
		dst = append(dst, payload...)
		if outer == typeCID {
			dst = append(dst, typ)
		}
		pad := aes.BlockSize - inner%aes.BlockSize
		dst = append(dst, bytes.Repeat([]byte{byte(pad - 1)}, pad)...)
		cipher.NewCBCEncrypter(c.out.block, dst[start:body]).CryptBlocks(dst[body:], dst[body:])
		dst = c.out.appendMAC(dst, outer, seq, c.outCID, dst[start:])
	}
	binary.BigEndian.PutUint16(dst[lengthAt:], uint16(len(dst)-start))
	return dst, nil
}

func (h *half) appendMAC(dst []byte, typ byte, seq uint64, cid, encrypted []byte) []byte {
	m := hmac.New(sha256.New, h.mac[:])
	m.Write(additional(nil, typ, seq, cid, len(encrypted)))
	m.Write(encrypted)
	return m.Sum(dst)
}

// Open authenticates and decrypts r in place. newest tells that no record sent later by the peer has been accepted yet: only such a record
// may change the peer's address (RFC 9146 section 6).
func (c *Conn) Open(r Record) (typ byte, payload []byte, newest bool, err error) {
	if r.Epoch != 1 || c.hasCID != (r.Type == typeCID) || c.hasCID && !bytes.Equal(r.CID, c.inCID[:]) {
		return 0, nil, false, ErrRecord
	}
	var back uint64
	if c.started && r.Seq <= c.in.seq {
		if back = c.in.seq - r.Seq; back >= 64 || c.window>>back&1 == 1 {
			return 0, nil, false, ErrReplayed
		}
	}
	if err := c.warm(); err != nil {
		return 0, nil, false, err
	}
	plain, err := c.decrypt(r)
	if err != nil {
		return 0, nil, false, err
	}
	typ = r.Type
	if typ == typeCID {
		i := len(plain) - 1
		for i >= 0 && plain[i] == 0 {
			i--
		}
		if i < 0 {
			return 0, nil, false, ErrRecord
		}
		typ, plain = plain[i], plain[:i]
	}
	switch newest = !c.started || r.Seq > c.in.seq; {
	case !newest:
		c.window |= 1 << back
	case !c.started:
		c.window = 1
	default:
		c.window = c.window<<(r.Seq-c.in.seq) | 1 // a shift of 64 or more gives 0
	}
	if newest {
		c.in.seq, c.started = r.Seq, true
	}
	return typ, plain, newest, nil
}

func (c *Conn) decrypt(r Record) ([]byte, error) {
	seq := uint64(r.Epoch)<<48 | r.Seq
	if c.in.aead == nil {
		return c.decryptCBC(r, seq)
	}
	explicit := c.suite.explicitNonce()
	if len(r.body) < explicit+c.in.aead.Overhead() {
		return nil, ErrRecord
	}
	var nonce [12]byte
	c.in.nonce(&nonce, c.suite.ivLen, seq)
	if explicit > 0 {
		copy(nonce[4:], r.body[:explicit]) // the peer chooses it; most use epoch and sequence number
	}
	ct := r.body[explicit:]
	var scratch [64]byte
	plain, err := c.in.aead.Open(ct[:0], nonce[:], ct, additional(scratch[:0], r.Type, seq, r.CID, len(ct)-c.in.aead.Overhead()))
	if err != nil {
		return nil, ErrForged
	}
	return plain, nil
}

func (c *Conn) decryptCBC(r Record, seq uint64) ([]byte, error) {
	n := len(r.body) - sha256.Size
	if n < 2*aes.BlockSize || n%aes.BlockSize != 0 {
		return nil, ErrRecord
	}
	var sum [sha256.Size]byte
	if !hmac.Equal(c.in.appendMAC(sum[:0], r.Type, seq, r.CID, r.body[:n]), r.body[n:]) {
		return nil, ErrForged
	}
	iv, ct := r.body[:aes.BlockSize], r.body[aes.BlockSize:n]
	cipher.NewCBCDecrypter(c.in.block, iv).CryptBlocks(ct, ct)
	pad := int(ct[len(ct)-1]) + 1 // authenticated, so no oracle
	if pad > len(ct) || subtle.ConstantTimeCompare(ct[len(ct)-pad:], bytes.Repeat([]byte{byte(pad - 1)}, pad)) != 1 {
		return nil, ErrRecord
	}
	return ct[:len(ct)-pad], nil
}

// SealAlert appends an alert as a protected record.
func (c *Conn) SealAlert(dst []byte, a Alert) ([]byte, error) {
	level := byte(2)
	if a == CloseNotify {
		level = 1
	}
	return c.Seal(dst, typeAlert, []byte{level, byte(a)})
}

// Control tells what an opened record that holds no application data asks for.
type Control uint8

// The kinds of control records.
const (
	Ignore   Control = iota
	Closed           // close_notify or a fatal alert: the association is over
	Repeated         // the client repeats its last flight: answer with FinalFlight
)

// Control reads an opened record whose type is not TypeApplication.
func (c *Conn) Control(typ byte, payload []byte) Control {
	switch {
	case typ == typeAlert && len(payload) == 2 && (payload[0] == 2 || payload[1] == byte(CloseNotify)):
		return Closed
	case typ == typeHandshake && len(payload) >= 12 && payload[0] == msgFinished && !bytes.Equal(c.verify[:], make([]byte, 12)):
		return Repeated
	}
	return Ignore
}

// FinalFlight appends the server's last flight, ChangeCipherSpec and Finished, in new records.
func (c *Conn) FinalFlight(dst []byte) ([]byte, error) {
	dst = appendPlain(dst, typeCCS, c.plainSeq, []byte{1})
	c.plainSeq++
	fin := appendMessageHeader(nil, msgFinished, len(c.verify), c.finSeq, 0, len(c.verify))
	return c.Seal(dst, typeHandshake, append(fin, c.verify[:]...))
}

// appendPlain appends an unprotected record of epoch 0.
func appendPlain(dst []byte, typ byte, seq uint64, payload []byte) []byte {
	dst = append(dst, typ, 0xfe, 0xfd)
	dst = binary.BigEndian.AppendUint64(dst, seq&maxSeq)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(payload)))
	return append(dst, payload...)
}
