package dtls

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
	"time"

	"github.com/pion/dtls/v3/pkg/crypto/clientcertificate"
	"github.com/pion/dtls/v3/pkg/crypto/signaturehash"
	pion "github.com/pion/dtls/v3/pkg/protocol/handshake"
	"golang.org/x/crypto/cryptobyte"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// ErrUnknownPSK is what Config.PSK returns for an identity that it does not know.
var ErrUnknownPSK = errors.New("unknown PSK identity")

// PSK is a pre-shared key: its octets, which the handshake wipes, or, where they do not leave a chip, what stands for them there.
type PSK struct {
	Key []byte
	MAC hwcrypto.MACer // HMAC-SHA-256 keyed with the premaster secret of a plain PSK handshake (RFC 4279 section 2); nil: Key counts
}

// Config is what handshakes need. It is not changed while handshakes use it. The functions are called from Step and may take their time.
type Config struct {
	Suites []*Suite // in order of preference
	// PSK gives the key of an identity and what the association shall carry as Peer.
	PSK func(ctx context.Context, identity string) (key PSK, peer any, err error)
	// Ephemeral makes the server's half of ECDHE in a chip, on P-256 alone. nil: it is made in memory, on any curve.
	Ephemeral func(ctx context.Context) (hwcrypto.Ephemeral, error)
	// Certificate gives the server's chain, its key a crypto.Signer.
	Certificate func(ctx context.Context) (*tls.Certificate, error)
	// ClientCAs verify the certificates that clients must show with a suite that is not a PSK suite.
	ClientCAs     *x509.CertPool
	ClientCANames [][]byte // subjects, raw; told to clients
	// Peer maps a verified chain to what the association shall carry as Peer.
	Peer         func(ctx context.Context, chain []*x509.Certificate) (any, error)
	ConnectionID bool
	MTU          int // bound of a datagram's length
	Now          func() time.Time
}

// Limits of what a client may make a handshake hold.
const (
	maxMessages = 20 << 10 // octets of messages that are not whole or not due
	maxStash    = 4
)

// Handshake is one handshake, after its cookie. It is not safe for concurrent use.
type Handshake struct {
	cfg    *Config
	cid    CID // given to the client if it asks
	suite  *Suite
	offer  offer
	random [2][32]byte // client's, server's

	transcript []byte // messages with normalized headers, from the ClientHello on
	hello      []byte // the ClientHello, until Start
	recv       reassembly
	sendSeq    uint16
	plainSeq   uint64
	flight     [][]byte // datagrams of the last flight

	key     hwcrypto.Ephemeral
	group   uint16
	chain   []*x509.Certificate
	keyAt   int // length of the transcript through ClientKeyExchange
	need    byte
	conn    *Conn
	mac     hash.Hash // HMAC keyed with the master secret
	stash   [][]byte  // datagrams with records of epoch 1 that came before the key
	peer    any
	pskUser bool
	done    bool
}

// NewHandshake takes over the hello that Gate.Admit has let in. cid routes to it, and to the association that comes of it, if the client speaks RFC 9146.
func NewHandshake(cfg *Config, h *Hello, cid CID) *Handshake {
	hs := &Handshake{cfg: cfg, cid: cid, hello: bytes.Clone(h.raw), sendSeq: h.seq, plainSeq: h.recordSeq}
	hs.recv.next = h.seq + 1
	return hs
}

// Conn gives the association once the handshake is done, and what its credential stands for. Before that conn is nil.
func (hs *Handshake) Conn() (conn *Conn, peer any) {
	if !hs.done {
		return nil, nil
	}
	return hs.conn, hs.peer
}

// Start answers the ClientHello with the server's first flight. It signs, so it may take time.
func (hs *Handshake) Start(ctx context.Context) ([][]byte, error) {
	h, ok := ParseHello(Record{Type: typeHandshake, body: hs.hello})
	if !ok {
		return nil, fail(decodeError, "malformed", "ClientHello")
	}
	if !bytes.Contains(h.compress, []byte{0}) {
		return nil, fail(illegalParameter, "malformed", "no null compression")
	}
	if hs.offer, ok = h.offer(); !ok {
		return nil, fail(decodeError, "malformed", "extensions of ClientHello")
	}
	hs.offer.cid = bytes.Clone(hs.offer.cid)
	copy(hs.random[0][:], h.random)
	rand.Read(hs.random[1][:])
	hs.transcript = append(hs.transcript, hs.hello...)

	cert, scheme, err := hs.choose(ctx, &h)
	if err != nil {
		return nil, err
	}
	var f flight
	f.add(msgServerHello, hs.serverHello())
	if cert != nil {
		if f.body, err = (&pion.MessageCertificate{Certificate: cert.Certificate}).Marshal(); err != nil {
			return nil, fail(internalError, "key-unavailable", "certificate: %w", err)
		}
		f.flush(msgCertificate)
	}
	if hs.suite.ephemeral() {
		ske, err := hs.serverKeyExchange(ctx, cert, scheme)
		if err != nil {
			return nil, err
		}
		f.add(msgServerKeyExchange, ske)
	}
	hs.need = msgClientKeyExchange
	if cert != nil {
		req := pion.MessageCertificateRequest{
			CertificateTypes:            []clientcertificate.Type{clientcertificate.ECDSASign, clientcertificate.RSASign},
			SignatureHashAlgorithms:     signaturehash.Algorithms(),
			CertificateAuthoritiesNames: hs.cfg.ClientCANames,
		}
		if f.body, err = req.Marshal(); err != nil {
			return nil, fail(internalError, "key-unavailable", "certificate request: %w", err)
		}
		f.flush(msgCertificateRequest)
		hs.need = msgCertificate
	}
	f.add(msgServerHelloDone, nil)
	hs.send(&f)
	return hs.flight, nil
}

// choose picks suite, group and, for a suite with certificates, the certificate and how to sign.
func (hs *Handshake) choose(ctx context.Context, h *Hello) (cert *tls.Certificate, scheme uint16, err error) {
	hs.group = chooseGroup(hs.offer.groups, hs.cfg.Ephemeral != nil)
	var keyErr error
	for _, s := range hs.cfg.Suites {
		if !h.offers(s.ID) || s.aead == nil && !hs.offer.encryptMAC || s.ephemeral() && hs.group == 0 {
			continue
		}
		if s.UsesPSK() {
			hs.suite = s
			return nil, 0, nil
		}
		if cert == nil && keyErr == nil {
			cert, keyErr = hs.cfg.Certificate(ctx)
		}
		if keyErr != nil {
			continue
		}
		if scheme = chooseScheme(s, cert, hs.offer.schemes); scheme != 0 {
			hs.suite = s
			return cert, scheme, nil
		}
	}
	if keyErr != nil {
		return nil, 0, &Failure{internalError, "key-unavailable", keyErr}
	}
	return nil, 0, fail(handshakeFailure, "no-common-suite", "client offers %x", []byte(h.suites))
}

func (hs *Handshake) serverHello() []byte {
	var b cryptobyte.Builder
	b.AddUint16(0xfefd)
	b.AddBytes(hs.random[1][:])
	b.AddUint8(0) // no session to resume
	b.AddUint16(hs.suite.ID)
	b.AddUint8(0) // null compression
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		ext := func(typ uint16, body ...byte) {
			b.AddUint16(typ)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(body) })
		}
		if hs.offer.renegotiation {
			ext(extRenegotiation, 0)
		}
		if hs.offer.masterSecret {
			ext(extMasterSecret)
		}
		if hs.offer.pointFormats && hs.suite.ephemeral() {
			ext(extPointFormats, 1, 0)
		}
		if hs.suite.aead == nil {
			ext(extEncryptThenMAC)
		}
		if hs.usesCID() {
			ext(extConnectionID, append([]byte{CIDLen}, hs.cid[:]...)...)
		}
	})
	return b.BytesOrPanic()
}

func (hs *Handshake) usesCID() bool { return hs.cfg.ConnectionID && hs.offer.hasCID }

// Step takes a datagram from the client and gives the datagrams to answer with. An error is a *Failure and ends the handshake.
func (hs *Handshake) Step(ctx context.Context, datagram []byte) ([][]byte, error) {
	if hs.done {
		return nil, nil
	}
	for rest := datagram; len(rest) > 0; {
		r, next, ok := NextRecord(rest)
		if !ok {
			break
		}
		whole := rest[:len(rest)-len(next)]
		rest = next
		var err error
		switch {
		case r.Epoch == 0 && r.Type == typeHandshake:
			err = hs.fragments(ctx, r.body)
		case r.Epoch == 0 && r.Type == typeAlert && len(r.body) == 2 && (r.body[0] == 2 || r.body[1] == byte(CloseNotify)):
			err = &Failure{Alert: CloseNotify, Reason: "client-alert", Err: health.Alert(r.body[1])}
		case r.Epoch == 1 && hs.need != msgFinished:
			if len(hs.stash) < maxStash {
				hs.stash = append(hs.stash, bytes.Clone(whole))
			}
		case r.Epoch == 1:
			err = hs.protected(r)
		}
		if err != nil {
			return nil, err
		}
		if hs.done {
			return hs.flight, nil
		}
	}
	return nil, nil
}

// fragments takes the handshake messages, or pieces of them, of one record.
func (hs *Handshake) fragments(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		rest, err := hs.recv.add(b)
		if err != nil {
			return err
		}
		b = rest
	}
	for {
		typ, msg := hs.recv.pop()
		if msg == nil {
			return nil
		}
		if err := hs.message(ctx, typ, msg); err != nil {
			return err
		}
	}
}

func (hs *Handshake) message(ctx context.Context, typ byte, msg []byte) error {
	if typ != hs.need {
		return fail(unexpectedMessage, "malformed", "message %d where %d is due", typ, hs.need)
	}
	body := msg[messageHeaderLen:]
	hs.transcript = append(hs.transcript, msg...)
	switch typ {
	case msgCertificate:
		if err := hs.clientCertificate(body); err != nil {
			return err
		}
		hs.need = msgClientKeyExchange
	case msgClientKeyExchange:
		hs.keyAt = len(hs.transcript)
		if err := hs.clientKeyExchange(ctx, body); err != nil {
			return err
		}
		if hs.need = msgFinished; hs.chain != nil {
			hs.need = msgCertificateVerify
		}
		return hs.unstash()
	case msgCertificateVerify:
		if err := hs.certificateVerify(ctx, body); err != nil {
			return err
		}
		hs.need = msgFinished
		return hs.unstash()
	default:
		return fail(unexpectedMessage, "malformed", "message %d without protection", typ)
	}
	return nil
}

// unstash opens what came too early, once the Finished is due.
func (hs *Handshake) unstash() error {
	if hs.need != msgFinished {
		return nil
	}
	stash := hs.stash
	hs.stash = nil
	for _, d := range stash {
		if r, _, ok := NextRecord(d); ok && !hs.done {
			if err := hs.protected(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// clientKeyExchange derives the keys (RFC 5246 section 8.1, RFC 4279, RFC 5489, RFC 7627).
func (hs *Handshake) clientKeyExchange(ctx context.Context, body []byte) error {
	b := cryptobyte.String(body)
	var identity, point cryptobyte.String
	if hs.suite.UsesPSK() && !b.ReadUint16LengthPrefixed(&identity) || hs.suite.ephemeral() && !b.ReadUint8LengthPrefixed(&point) || !b.Empty() {
		return fail(decodeError, "malformed", "ClientKeyExchange")
	}
	var shared []byte
	if hs.suite.ephemeral() {
		pub, err := hs.key.PublicKey().Curve().NewPublicKey(point)
		if err != nil {
			return &Failure{illegalParameter, "malformed", err}
		}
		if shared, err = hs.key.ECDH(ctx, pub); err != nil {
			if hs.cfg.Ephemeral != nil {
				return &Failure{internalError, "key-unavailable", err}
			}
			return &Failure{illegalParameter, "malformed", err}
		}
		defer clear(shared)
		hs.Close(ctx)
	}
	premaster := shared
	var mac hwcrypto.MACer
	if hs.suite.UsesPSK() {
		key, err := hs.lookup(ctx, string(identity))
		if err != nil {
			return err
		}
		mac = key.MAC
		switch {
		case mac != nil && !hs.suite.PSKInChip():
			return fail(insufficientSecurity, "psk-in-chip", "identity %q: its key stays in the chip, which cannot compute %s; the client must offer a plain PSK suite with SHA-256",
				[]byte(identity), hs.suite.Name)
		case mac != nil:
		case shared == nil:
			if premaster, err = hwcrypto.PSKPremaster(key.Key); err != nil {
				return &Failure{internalError, "key-unavailable", err}
			}
		default:
			premaster = make([]byte, 0, 4+len(shared)+len(key.Key)) // of the right size: growing it would leave copies
			premaster = binary.BigEndian.AppendUint16(premaster, uint16(len(shared)))
			premaster = append(premaster, shared...)
			premaster = binary.BigEndian.AppendUint16(premaster, uint16(len(key.Key)))
			premaster = append(premaster, key.Key...)
		}
		clear(key.Key)
	}
	defer clear(premaster)
	label, seed := "master secret", slices.Concat(hs.random[0][:], hs.random[1][:])
	if hs.offer.masterSecret {
		label, seed = "extended master secret", digestOf(hs.suite.hash, hs.transcript)
	}
	var master []byte
	var err error
	if mac == nil {
		master = expand(hmac.New(hs.suite.hash, premaster), label, seed, masterLen)
	} else if master, err = hwcrypto.PRF12(ctx, mac, label, seed, masterLen); err != nil {
		return &Failure{internalError, "key-unavailable", err}
	}
	hs.mac = hmac.New(hs.suite.hash, master)
	clear(master)
	s := hs.suite
	keys := expand(hs.mac, "key expansion", slices.Concat(hs.random[1][:], hs.random[0][:]), 2*(s.macLen+s.keyLen+s.ivLen))
	if hs.conn, err = newConn(s, keys); err != nil {
		return &Failure{internalError, "internal", err}
	}
	if hs.usesCID() {
		hs.conn.inCID, hs.conn.hasCID, hs.conn.outCID = hs.cid, true, hs.offer.cid
	}
	return nil
}

// Close lets go of what a chip holds for a handshake that is given up. A second call does nothing.
func (hs *Handshake) Close(ctx context.Context) {
	if hs.key != nil {
		_ = hs.key.Close(ctx) // what cannot be destroyed ends with the chip's session
		hs.key = nil
	}
}

// lookup gives the key of an identity. One that is not known gets a random key: it fails as a wrong key does (RFC 4279 section 2).
func (hs *Handshake) lookup(ctx context.Context, identity string) (PSK, error) {
	key, peer, err := hs.cfg.PSK(ctx, identity)
	switch {
	case errors.Is(err, ErrUnknownPSK):
		hs.pskUser = true
		key = PSK{Key: make([]byte, 32)}
		rand.Read(key.Key)
		return key, nil
	case err != nil:
		return PSK{}, &Failure{internalError, "key-unavailable", err}
	case len(key.Key) == 0 && key.MAC == nil:
		return PSK{}, fail(internalError, "key-unavailable", "an empty PSK")
	}
	hs.peer = peer
	return key, nil
}

// protected takes a record of epoch 1: the Finished, and nothing else before it.
func (hs *Handshake) protected(r Record) error {
	typ, msg, _, err := hs.conn.Open(r)
	if errors.Is(err, ErrForged) && hs.suite.UsesPSK() {
		reason := "wrong-psk"
		if hs.pskUser {
			reason = "unknown-psk"
		}
		return &Failure{decryptError, reason, err}
	}
	if err != nil || typ != typeHandshake || len(msg) != messageHeaderLen+verifyLen || msg[0] != msgFinished {
		return nil // forged, or data that came before its Finished
	}
	if !hmac.Equal(hs.verify("client finished"), msg[messageHeaderLen:]) || hs.peer == nil {
		return fail(decryptError, "finished-mismatch", "verify_data")
	}
	hs.transcript = append(hs.transcript, msg...)
	c := hs.conn
	copy(c.verify[:], hs.verify("server finished"))
	c.finSeq, c.plainSeq = hs.sendSeq, hs.plainSeq
	final, err := c.FinalFlight(nil)
	if err != nil {
		return &Failure{internalError, "internal", err}
	}
	hs.flight, hs.done = [][]byte{final}, true
	hs.transcript, hs.mac, hs.hello, hs.chain = nil, nil, nil, nil
	return nil
}

// AlertDatagram gives the datagram that tells the client of a failure; nil where nothing should be said.
func (hs *Handshake) AlertDatagram(err error) []byte {
	f, ok := errors.AsType[*Failure](err)
	if !ok || f.Alert == CloseNotify {
		return nil
	}
	hs.plainSeq++
	return appendPlain(nil, typeAlert, hs.plainSeq-1, []byte{2, byte(f.Alert)})
}
