package coap

import (
	"bytes"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

const (
	maxBlockSZX   = 6 // 1024 octets
	bertSZX       = 7 // over a stream, any number of them (RFC 8323 section 6)
	maxAssemblies = 4 // of one device
	maxAssembling = 32 << 20
)

// block is the value of a Block1 or Block2 option (RFC 7959 section 2.2).
type block struct {
	num  uint32
	more bool
	szx  uint8
}

func (b block) size() int   { return 16 << min(b.szx, maxBlockSZX) }
func (b block) offset() int { return int(b.num) * b.size() }

func (b block) option(id message.OptionID) message.Option {
	n := b.num<<4 | uint32(b.szx)
	if b.more {
		n |= 8
	}
	return uintOption(id, n)
}

// fits tells whether a payload of n octets may be the block's.
func (b block) fits(n int) bool {
	switch size := b.size(); {
	case b.szx == bertSZX:
		return !b.more || n > 0 && n%size == 0
	case b.more:
		return n == size
	default:
		return n <= size
	}
}

// block reads a block option. szx 7 on a datagram gives ok false with there true.
func (p *packet) block(id message.OptionID) (b block, there, ok bool) {
	n, there := p.number(id)
	b = block{num: n >> 4, more: n&8 != 0, szx: uint8(n & 7)}
	return b, there, b.szx <= maxBlockSZX || p.bert
}

// assembly is a payload of which blocks are still to come. It is known by method, path and Request-Tag, not by token: a client may
// change that from block to block.
type assembly struct {
	code    codes.Code
	key     string // path, and the tags after a zero octet each
	payload []byte
	last    int // where the last block begins
	at      time.Time
}

func (p *packet) assemblyKey(path []byte) string {
	key := bytes.Clone(path)
	for _, o := range p.options {
		if o.ID == requestTag {
			key = append(append(key, 0), o.Value...)
		}
	}
	return string(key)
}

// assemble gives the payload of a report, and the Block1 to echo. ok is false where it is not whole yet or cannot be, and has been answered.
func (t *turn) assemble(s *session, p *packet, path []byte) (payload []byte, echo message.Option, ok bool) {
	limit := int(t.l.cfg.MaxPayload)
	b, there, sound := p.block(message.Block1)
	size, _ := p.number(message.Size1)
	switch {
	case !sound || there && !b.fits(len(p.payload)):
		t.say(s, p, codes.BadRequest, []byte("block"))
		return nil, echo, false
	case len(p.payload) > limit || there && (b.offset()+len(p.payload) > limit || int64(size) > int64(limit)):
		t.say(s, p, codes.RequestEntityTooLarge, nil, uintOption(message.Size1, uint32(limit)))
		return nil, echo, false
	case !there:
		return p.payload, echo, true
	}
	echo = b.option(message.Block1)
	if b.num == 0 && !b.more {
		return p.payload, echo, true
	}
	key := p.assemblyKey(path)
	i := slices.IndexFunc(s.parts, func(a *assembly) bool { return a.code == p.code && a.key == key })
	if b.num == 0 {
		if i >= 0 {
			t.l.discard(s, i)
		}
		if t.l.assembling >= maxAssembling {
			t.say(s, p, codes.ServiceUnavailable, nil, uintOption(message.MaxAge, 10))
			return nil, echo, false
		}
		if len(s.parts) >= maxAssemblies {
			t.l.discard(s, 0)
		}
		s.parts = append(s.parts, &assembly{code: p.code, key: key})
		i = len(s.parts) - 1
	}
	if i < 0 {
		t.say(s, p, codes.RequestEntityIncomplete, nil)
		return nil, echo, false
	}
	a := s.parts[i]
	a.at = t.now
	switch b.offset() {
	case len(a.payload):
		a.last = len(a.payload)
		a.payload = append(a.payload, p.payload...)
		t.l.assembling += len(p.payload)
	case a.last: // the last one again
		if a.last+len(p.payload) == len(a.payload) {
			break
		}
		fallthrough
	default:
		t.l.discard(s, i)
		t.say(s, p, codes.RequestEntityIncomplete, nil)
		return nil, echo, false
	}
	if b.more {
		t.say(s, p, codes.Continue, nil, echo)
		return nil, echo, false
	}
	t.l.discard(s, i)
	return a.payload, echo, true
}

func (l *listener) discard(s *session, i int) {
	l.assembling -= len(s.parts[i].payload)
	s.parts = slices.Delete(s.parts, i, i+1)
	if len(s.parts) == 0 {
		s.parts = nil
	}
}

// sweepParts discards what nobody has gone on with.
func (l *listener) sweepParts(s *session, now time.Time) {
	for i := len(s.parts) - 1; i >= 0; i-- {
		if now.Sub(s.parts[i].at) > exchangeLifetime*time.Second {
			l.discard(s, i)
		}
	}
}

// sayContent answers with a representation, cut into blocks where it is long or the device asks for it.
func (t *turn) sayContent(s *session, p *packet, content []byte, opts ...message.Option) {
	b, there, ok := p.block(message.Block2)
	szx, most, whole := s.room(0)
	if !there {
		b = block{szx: szx}
	}
	if !ok || b.offset() >= len(content) && b.num > 0 {
		t.say(s, p, codes.BadRequest, []byte("block"))
		return
	}
	if b.szx < bertSZX {
		most = b.size()
	}
	part := content[b.offset():]
	if there || len(part) > whole {
		if b.more = len(part) > most; b.more {
			part = part[:most]
		}
		opts = append(opts, b.option(message.Block2))
		if b.num == 0 {
			opts = append(opts, uintOption(message.Size2, uint32(len(content))))
		}
	}
	t.say(s, p, codes.Content, part, sorted(opts)...)
}

// The other way round, a command's payload goes in blocks and its answer comes in blocks.

// prepare adds to a command's request the block that is due, and its payload.
func (c *command) prepare(s *session, m *message.Message) {
	if c.fetched > 0 { // the payload has been sent; the answer is fetched
		m.Options = append(m.Options, block{num: uint32(c.fetched / c.fetch.size()), szx: c.fetch.szx}.option(message.Block2))
		return
	}
	m.Payload = c.m.Payload
	if f, ok := contentFormat(c.m.Type); ok && c.m.Type != "" && len(c.m.Payload) > 0 {
		m.Options = append(m.Options, uintOption(message.ContentFormat, f))
	}
	if szx, most, whole := s.room(len(c.m.Resource)); len(c.m.Payload) > whole {
		if c.block.num == 0 {
			c.block.szx = szx
		}
		if c.block.szx < bertSZX {
			most = c.block.size()
		}
		rest := c.m.Payload[c.block.offset():]
		c.block.more = len(rest) > most
		m.Payload = rest[:min(most, len(rest))]
		c.given = c.block.offset() + len(m.Payload)
		m.Options = append(m.Options, c.block.option(message.Block1))
		if c.block.num == 0 {
			m.Options = append(m.Options, uintOption(message.Size1, uint32(len(c.m.Payload))))
		}
	}
}

// proceed takes an answer and tells whether another block has to be asked for or sent; if not, c.answer holds the whole answer.
// bad tells that the blocks do not fit together or are too many.
func (c *command) proceed(p *packet, limit int) (again, bad bool) {
	if b, there, ok := p.block(message.Block1); there && p.code == codes.Continue {
		if !ok || !c.block.more || b.num != c.block.num || b.szx > c.block.szx {
			return false, true
		}
		c.block = block{num: uint32(c.given / b.size()), szx: b.szx}
		return true, false
	}
	b, there, ok := p.block(message.Block2)
	if !there {
		c.answer = append(c.answer, p.payload...)
		return false, false
	}
	etag, _ := p.option(message.ETag)
	if c.fetched == 0 {
		c.etag = bytes.Clone(etag)
	} else if len(etag) > 0 && !bytes.Equal(etag, c.etag) { // of another representation (RFC 7959 section 2.4)
		return false, true
	}
	if !ok || b.offset() != len(c.answer) || !b.fits(len(p.payload)) || len(c.answer)+len(p.payload) > limit {
		return false, true
	}
	c.answer = append(c.answer, p.payload...)
	c.fetched, c.fetch = len(c.answer), b
	return b.more, false
}
