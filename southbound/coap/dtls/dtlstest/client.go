// Package dtlstest is a small DTLS 1.2 client for tests and benchmarks that need thousands of devices, or need to see what is on the wire.
//
// It knows the suites of package dtls with a PSK, and with ECDHE on P-256 and ECDSA certificates on both sides; the extended master secret
// always; a connection id where it is asked to. It trusts a CA that it is given, and nothing else. After the handshake the association is
// a dtls.Conn and the caller's.
package dtlstest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pion/dtls/v3/pkg/crypto/prf"
	"golang.org/x/crypto/cryptobyte"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
)

// Options say who connects and how.
type Options struct {
	Suite       string // IANA's name
	Identity    string
	PSK         []byte
	Certificate *tls.Certificate // with a suite that is not a PSK suite
	Roots       *x509.CertPool   // that the server's certificate leads to
	CID         bool             // ask the server for a connection id
	// Retransmit is how long the client waits for an answer; 0: a second.
	Retransmit time.Duration
}

// The message types and content types that it needs.
const (
	clientHello, serverHello, verifyRequest, certificate, serverKeyExchange = 1, 2, 3, 11, 12
	certificateRequest, helloDone, certificateVerify, clientKeyExchange     = 13, 14, 15, 16
	finished                                                                = 20
	changeCipher, handshake                                                 = 20, 22
)

// client is one handshake.
type client struct {
	o          Options
	c          net.Conn
	hash       func() hash.Hash
	id         uint16
	random     [2][32]byte
	transcript []byte
	msgSeq     uint16
	recordSeq  uint64
	flight     [][]byte
	got        map[uint16]*message
	next       uint16
	buf        []byte

	key    *ecdh.PrivateKey
	cid    []byte
	peer   *x509.Certificate
	point  []byte
	asked  bool // for a certificate
	master []byte
}

type message struct {
	typ  byte
	body []byte
	left int
}

// Handshake makes an association over c, a connected socket. It ends when ctx does.
func Handshake(ctx context.Context, c net.Conn, o Options) (*dtls.Conn, error) {
	h, err := begin(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return h.finish(ctx)
}

// Leave makes a handshake until the server has answered the hello that had its cookie, and no further.
func Leave(ctx context.Context, c net.Conn, o Options) error {
	_, err := begin(ctx, c, o)
	return err
}

func begin(ctx context.Context, c net.Conn, o Options) (*client, error) {
	s := dtls.SuiteByName(o.Suite)
	if s == nil {
		return nil, fmt.Errorf("suite %q: not known", o.Suite)
	}
	if o.Retransmit == 0 {
		o.Retransmit = time.Second
	}
	h := &client{o: o, c: c, id: s.ID, hash: sha256.New, buf: make([]byte, 4096), got: map[uint16]*message{}}
	if strings.HasSuffix(o.Suite, "SHA384") {
		h.hash = sha512.New384
	}
	rand.Read(h.random[0][:])
	h.say(clientHello, h.hello(nil))
	typ, body, err := h.receive(ctx)
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if typ != verifyRequest || len(body) < 3 {
		return nil, fmt.Errorf("hello: answered by message %d", typ)
	}
	h.flight, h.transcript = nil, nil
	h.say(clientHello, h.hello(body[3:]))
	for typ != helloDone {
		if typ, body, err = h.receive(ctx); err != nil {
			return nil, fmt.Errorf("after the hello: %w", err)
		}
		if err := h.take(typ, body); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *client) finish(ctx context.Context) (*dtls.Conn, error) {
	conn, verify, err := h.answer()
	if err != nil {
		return nil, err
	}
	for again := time.Now().Add(h.o.Retransmit); ; {
		b, err := h.read(ctx, again)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			h.send()
			again = time.Now().Add(h.o.Retransmit)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("finished: %w", err)
		}
		for rest := b; ; {
			r, next, ok := dtls.NextRecord(rest)
			if !ok {
				break
			}
			if r.Epoch == 0 && r.Type == 21 {
				return nil, fmt.Errorf("alert %x", rest[13:15])
			}
			rest = next
			if r.Epoch != 1 {
				continue
			}
			typ, data, _, err := conn.Open(r)
			if err != nil || typ != handshake || len(data) != 24 || data[0] != finished {
				return nil, fmt.Errorf("finished: record of type %d, %w", typ, err)
			}
			if !bytes.Equal(data[12:], verify) {
				return nil, errors.New("finished: the server has seen another handshake")
			}
			return conn, nil
		}
	}
}

func (h *client) hello(cookie []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint16(0xfefd)
	b.AddBytes(h.random[0][:])
	b.AddUint8(0)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(cookie) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(h.id); b.AddUint16(0xff) })
	b.AddBytes([]byte{1, 0})
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		ext := func(typ uint16, body ...byte) {
			b.AddUint16(typ)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(body) })
		}
		ext(23)
		ext(10, 0, 2, 0, 23)
		ext(11, 1, 0)
		ext(13, 0, 2, 4, 3)
		ext(22)
		if h.o.CID {
			ext(54, 0) // none in what it receives
		}
	})
	return b.BytesOrPanic()
}

// header is that of a message in one piece.
func header(typ byte, n int, seq uint16) []byte {
	b := []byte{typ, byte(n >> 16), byte(n >> 8), byte(n)}
	b = binary.BigEndian.AppendUint16(b, seq)
	return append(b, 0, 0, 0, byte(n>>16), byte(n>>8), byte(n))
}

func (h *client) record(typ byte, payload []byte) {
	b := []byte{typ, 0xfe, 0xfd}
	b = binary.BigEndian.AppendUint64(b, h.recordSeq)
	h.recordSeq++
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	h.flight = append(h.flight, append(b, payload...))
}

// add puts a message into the flight and the transcript.
func (h *client) add(typ byte, body []byte) {
	m := append(header(typ, len(body), h.msgSeq), body...)
	h.msgSeq++
	h.transcript = append(h.transcript, m...)
	h.record(handshake, m)
}

func (h *client) send() {
	for _, b := range h.flight {
		_, _ = h.c.Write(b) // what is lost is sent again
	}
}

func (h *client) say(typ byte, body []byte) {
	h.add(typ, body)
	h.send()
}

// read waits for one datagram until the time, or the end of ctx.
func (h *client) read(ctx context.Context, until time.Time) ([]byte, error) {
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if err := h.c.SetReadDeadline(until); err != nil {
		return nil, err
	}
	n, err := h.c.Read(h.buf)
	return h.buf[:n], err
}

// receive gives the next message of the server.
func (h *client) receive(ctx context.Context) (typ byte, body []byte, err error) {
	again := time.Now().Add(h.o.Retransmit)
	for {
		if m := h.got[h.next]; m != nil && m.left <= 0 {
			delete(h.got, h.next)
			if m.typ != verifyRequest {
				h.transcript = append(append(h.transcript, header(m.typ, len(m.body), h.next)...), m.body...)
			}
			h.next++
			return m.typ, m.body, nil
		}
		b, err := h.read(ctx, again)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			h.send()
			again = time.Now().Add(h.o.Retransmit)
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		for len(b) >= 13 {
			n := 13 + int(binary.BigEndian.Uint16(b[11:]))
			if n > len(b) {
				break
			}
			if b[0] == 21 {
				return 0, nil, fmt.Errorf("alert %x", b[13:n])
			}
			if b[0] == handshake && b[4] == 0 {
				h.fragment(b[13:n])
			}
			b = b[n:]
		}
	}
}

func (h *client) fragment(b []byte) {
	for len(b) >= 12 {
		size := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		seq := binary.BigEndian.Uint16(b[4:])
		at := int(b[6])<<16 | int(b[7])<<8 | int(b[8])
		n := int(b[9])<<16 | int(b[10])<<8 | int(b[11])
		if len(b) < 12+n || at+n > size {
			return
		}
		m := h.got[seq]
		if m == nil && seq >= h.next {
			m = &message{typ: b[0], body: make([]byte, size), left: max(size, 1)}
			h.got[seq] = m
		}
		if m != nil && m.left > 0 && len(m.body) == size { // a server that repeats itself is cut alike
			copy(m.body[at:], b[12:12+n])
			m.left -= max(n, 1)
		}
		b = b[12+n:]
	}
}

// take reads a message of the server's flight.
func (h *client) take(typ byte, body []byte) error {
	b := cryptobyte.String(body)
	bad := fmt.Errorf("message %d: malformed", typ)
	switch typ {
	case serverHello:
		var random []byte
		var session, ext cryptobyte.String
		var suite uint16
		if !b.Skip(2) || !b.ReadBytes(&random, 32) || !b.ReadUint8LengthPrefixed(&session) || !b.ReadUint16(&suite) || suite != h.id || !b.Skip(1) || !b.ReadUint16LengthPrefixed(&ext) {
			return bad
		}
		copy(h.random[1][:], random)
		master := false
		for !ext.Empty() {
			var t uint16
			var data cryptobyte.String
			if !ext.ReadUint16(&t) || !ext.ReadUint16LengthPrefixed(&data) {
				return bad
			}
			master = master || t == 23
			if t == 54 {
				h.cid = bytes.Clone(data[1:])
			}
		}
		if !master {
			return errors.New("the server has no extended master secret")
		}
	case certificate:
		return h.verify(b)
	case serverKeyExchange:
		var hint cryptobyte.String
		if strings.Contains(h.o.Suite, "PSK") && !b.ReadUint16LengthPrefixed(&hint) {
			return bad
		}
		if !strings.Contains(h.o.Suite, "ECDHE") {
			return nil
		}
		params := b
		var point cryptobyte.String
		if !b.Skip(3) || !b.ReadUint8LengthPrefixed(&point) {
			return bad
		}
		h.point = point
		params = params[:len(params)-len(b)]
		if h.peer == nil {
			return nil
		}
		var sig cryptobyte.String
		pub, ok := h.peer.PublicKey.(*ecdsa.PublicKey)
		sum := sha256.Sum256(slices.Concat(h.random[0][:], h.random[1][:], params))
		if !ok || !b.Skip(2) || !b.ReadUint16LengthPrefixed(&sig) || !ecdsa.VerifyASN1(pub, sum[:], sig) {
			return errors.New("the server's key exchange is not signed by its certificate")
		}
	case certificateRequest:
		h.asked = true
	}
	return nil
}

func (h *client) verify(b cryptobyte.String) error {
	var list, der cryptobyte.String
	if !b.ReadUint24LengthPrefixed(&list) || !list.ReadUint24LengthPrefixed(&der) {
		return errors.New("certificate: malformed")
	}
	var err error
	if h.peer, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	_, err = h.peer.Verify(x509.VerifyOptions{Roots: h.o.Roots})
	return err
}

// answer sends the client's last flight and gives the association, and what the server's Finished has to say.
func (h *client) answer() (*dtls.Conn, []byte, error) {
	h.flight = nil
	if h.asked {
		var b cryptobyte.Builder
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, der := range h.o.Certificate.Certificate {
				b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(der) })
			}
		})
		h.add(certificate, b.BytesOrPanic())
	}
	premaster, err := h.exchange()
	if err != nil {
		return nil, nil, err
	}
	if h.master, err = prf.ExtendedMasterSecret(premaster, h.sum(), h.hash); err != nil {
		return nil, nil, err
	}
	if h.asked {
		sum := sha256.Sum256(h.transcript)
		sig, err := h.o.Certificate.PrivateKey.(crypto.Signer).Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			return nil, nil, err
		}
		var b cryptobyte.Builder
		b.AddUint16(0x0403)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sig) })
		h.add(certificateVerify, b.BytesOrPanic())
	}
	h.record(changeCipher, []byte{1})
	conn, err := h.keys()
	if err != nil {
		return nil, nil, err
	}
	mine, err := prf.VerifyDataClient(h.master, h.transcript, h.hash)
	if err != nil {
		return nil, nil, err
	}
	fin := append(header(finished, len(mine), h.msgSeq), mine...)
	h.transcript = append(h.transcript, fin...)
	sealed, err := conn.Seal(nil, handshake, fin)
	if err != nil {
		return nil, nil, err
	}
	h.flight = append(h.flight, sealed)
	h.send()
	theirs, err := prf.VerifyDataServer(h.master, h.transcript, h.hash)
	return conn, theirs, err
}

func (h *client) sum() []byte {
	d := h.hash()
	d.Write(h.transcript)
	return d.Sum(nil)
}

// exchange sends the ClientKeyExchange and gives the premaster secret.
func (h *client) exchange() (premaster []byte, err error) {
	var b cryptobyte.Builder
	psk := strings.Contains(h.o.Suite, "PSK")
	if psk {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(h.o.Identity)) })
	}
	other := make([]byte, len(h.o.PSK))
	if h.point != nil {
		if h.key, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
		pub, err := ecdh.P256().NewPublicKey(h.point)
		if err != nil {
			return nil, err
		}
		if other, err = h.key.ECDH(pub); err != nil {
			return nil, err
		}
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(h.key.PublicKey().Bytes()) })
	}
	h.add(clientKeyExchange, b.BytesOrPanic())
	if !psk {
		return other, nil
	}
	premaster = binary.BigEndian.AppendUint16(nil, uint16(len(other)))
	premaster = binary.BigEndian.AppendUint16(append(premaster, other...), uint16(len(h.o.PSK)))
	return append(premaster, h.o.PSK...), nil
}

// keys makes the association: the server's, with its halves the other way round.
func (h *client) keys() (*dtls.Conn, error) {
	mac, key, iv := 0, 16, 4
	switch {
	case strings.Contains(h.o.Suite, "CBC"):
		mac, iv = 32, 0
	case strings.Contains(h.o.Suite, "CHACHA20"):
		key, iv = 32, 12
	case strings.Contains(h.o.Suite, "256_"):
		key = 32
	}
	seed := slices.Concat([]byte("key expansion"), h.random[1][:], h.random[0][:])
	k, err := prf.PHash(h.master, seed, 2*(mac+key+iv), h.hash)
	if err != nil {
		return nil, err
	}
	var turned []byte
	for _, n := range []int{mac, key, iv} {
		turned = append(append(turned, k[n:2*n]...), k[:n]...)
		k = k[2*n:]
	}
	conn, err := dtls.Restore(dtls.State{Suite: h.id, Keys: turned, OutCID: h.cid}, 0, 0)
	if err != nil {
		return nil, err
	}
	conn.Reserve(1 << 48)
	return conn, nil
}
