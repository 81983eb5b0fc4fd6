package spool

import (
	"encoding/binary"
	"hash/crc32"
	"math"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// The layout on disk, version 1. All integers are little-endian; varint and uvarint are those of encoding/binary.
//
// The spool's directory holds a directory for each class that was ever used: high, normal, low. Each holds segments,
// NNNNNNNN.seg, of one size, filled with zeros when they are made and used again under the same name. A segment belongs to the
// class's main log, or it is a side segment: it holds what was moved out of the main log for one slow connector. Which it is, and
// where in its log it stands, is in its header alone.
//
// A segment's header takes its first 4096 octets, of which the first 512 and the 512 at 2048 are two copies of
//
//	 0  8  "DRAWSPOL"
//	 8  2  version
//	10  2  1: a side segment
//	12  4  0
//	16  8  epoch: random, new for each use of the file
//	24  8  serial: counts the uses of files in this class; of one log, a later use voids earlier ones that have the same or a higher base
//	32  8  base: sequence of the first record that may be in it
//	40  8  size of the file
//	48  8  when this use began, in ms since 1970
//	56  1  length of the connector's name (side segments)
//	57     the connector's name
//	508 4  CRC-32C of the 508 before it
//
// Frames follow, each of them one commit:
//
//	 0  4  "FRAM"
//	 4  4  CRC-32C of the epoch, of the 40 octets that follow here, and of the body; so a frame of an earlier use never passes
//	 8  4  length of the body
//	12  4  length of the whole frame with the zeros that align the next
//	16  8  sequence of the first record, or that the next would have where there is none
//	24  8  sequence of the last record; one less than the first where there is none
//	32  8  time, in ms since 1970, to which those of the records are relative
//	40  4  records
//	44  4  length of the checkpoint, which is the end of the body
//	48     body: records, checkpoint
//
// A record:
//
//	uvarint  address: an index into those of this frame; the next new index is followed by its definition,
//	         a route, the number of connectors, the connectors; each name after its length as uvarint
//	uvarint  in side segments only: how much its sequence is above the one before; elsewhere that is always 1
//	16       ID
//	varint   time, in ms after the frame's
//	uvarint  0: no expiry of its own; else 1 + the zigzag of its expiry in ms after its time
//	uvarint  length of the data, and the data
//
// A checkpoint says how things stood before the records of its frame; see checkpoint. A main segment's first frame has one, so that
// the newest segment with what follows in it is all that Open must read.
//
// What a reader does with it: a frame at or beyond the base of the next segment of the same log does not count (it was written
// again there after a failed flush), nor does one in a side segment beyond the sequence up to which the newest checkpoint says that records were moved.
// What does not pass at the end of the newest segment is torn, and is overwritten. What does not pass but has a frame of the same
// epoch after it is damage: it is passed over and the records that are missing are counted.
const (
	page         = 4096 // a segment's header, and the default alignment
	headerCopy   = 2048 // where the copy stands
	headerLen    = 512
	frameHead    = 48
	version      = 1
	maxName      = 255 // octets of a connector's or route's name
	maxTo        = 1024
	recordCost   = 32 // what a record is reckoned to take beside its data
	frameMagic   = 0x4d415246
	segmentMagic = "DRAWSPOL"
	sideFlag     = 1
)

var le = binary.LittleEndian

// castagnoli is only ever read.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what a segment says of itself.
type header struct {
	version uint16
	side    bool
	epoch   uint64
	serial  uint64
	base    uint64
	size    int64
	time    int64
	owner   string
}

// encode gives the whole first page.
func (h *header) encode() []byte {
	b := make([]byte, page)
	copy(b, segmentMagic)
	le.PutUint16(b[8:], version)
	if h.side {
		le.PutUint16(b[10:], sideFlag)
	}
	le.PutUint64(b[16:], h.epoch)
	le.PutUint64(b[24:], h.serial)
	le.PutUint64(b[32:], h.base)
	le.PutUint64(b[40:], uint64(h.size))
	le.PutUint64(b[48:], uint64(h.time))
	b[56] = byte(len(h.owner))
	copy(b[57:], h.owner)
	le.PutUint32(b[headerLen-4:], crc32.Checksum(b[:headerLen-4], castagnoli))
	copy(b[headerCopy:], b[:headerLen])
	return b
}

// parseHeader reads a page that encode made; the second copy counts where the first is damaged.
func parseHeader(b []byte) (h header, ok bool) {
	for _, at := range []int{0, headerCopy} {
		if len(b) < at+headerLen {
			break
		}
		c := b[at : at+headerLen]
		if string(c[:8]) != segmentMagic || crc32.Checksum(c[:headerLen-4], castagnoli) != le.Uint32(c[headerLen-4:]) {
			continue
		}
		size, time, base := le.Uint64(c[40:]), le.Uint64(c[48:]), le.Uint64(c[32:])
		if size > math.MaxInt64 || time > math.MaxInt64 || base == 0 {
			continue
		}
		return header{
			version: le.Uint16(c[8:]),
			side:    le.Uint16(c[10:])&sideFlag != 0,
			epoch:   le.Uint64(c[16:]),
			serial:  le.Uint64(c[24:]),
			base:    base,
			size:    int64(size),
			time:    int64(time),
			owner:   string(c[57 : 57+int(c[56])]),
		}, true
	}
	return header{}, false
}

// frame is the head of a frame.
type frame struct {
	body       uint32
	span       uint32
	first      uint64
	last       uint64
	time       int64
	count      uint32
	checkpoint uint32
}

// seed is what the CRC of the frames of an epoch starts from.
func seed(epoch uint64) uint32 {
	return crc32.Checksum(le.AppendUint64(nil, epoch), castagnoli)
}

// seal fills in the head of the frame in b, of which the body is there already, and pads it to align octets.
func (f *frame) seal(b []byte, seed uint32, align int) []byte {
	f.body = uint32(len(b) - frameHead)
	for pad := (align - len(b)%align) % align; pad > 0; {
		n := min(pad, len(zeros))
		b = append(b, zeros[:n]...)
		pad -= n
	}
	f.span = uint32(len(b))
	le.PutUint32(b[0:], frameMagic)
	le.PutUint32(b[8:], f.body)
	le.PutUint32(b[12:], f.span)
	le.PutUint64(b[16:], f.first)
	le.PutUint64(b[24:], f.last)
	le.PutUint64(b[32:], uint64(f.time))
	le.PutUint32(b[40:], f.count)
	le.PutUint32(b[44:], f.checkpoint)
	le.PutUint32(b[4:], crc32.Update(seed, castagnoli, b[8:frameHead+int(f.body)]))
	return b
}

const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// parseFrame reads a head; room is what is left in the segment from its start. The CRC is not yet looked at.
func parseFrame(b []byte, room int64) (f frame, ok bool) {
	if len(b) < frameHead || le.Uint32(b) != frameMagic {
		return f, false
	}
	f = frame{
		body:       le.Uint32(b[8:]),
		span:       le.Uint32(b[12:]),
		first:      le.Uint64(b[16:]),
		last:       le.Uint64(b[24:]),
		count:      le.Uint32(b[40:]),
		checkpoint: le.Uint32(b[44:]),
	}
	time := le.Uint64(b[32:])
	f.time = int64(time)
	ok = int64(f.span) <= room && int64(f.body)+frameHead <= int64(f.span) && f.span%8 == 0 && time <= math.MaxInt64 &&
		f.checkpoint <= f.body && f.count <= f.body &&
		f.first > 0 && f.last < math.MaxUint64 && f.last+1 >= f.first && f.last+1-f.first >= uint64(f.count) &&
		(f.count > 0) == (f.last >= f.first)
	return f, ok
}

// valid looks at the CRC of a frame of which head and body are in b.
func (f *frame) valid(b []byte, seed uint32) bool {
	return crc32.Update(seed, castagnoli, b[8:frameHead+int(f.body)]) == le.Uint32(b[4:])
}

// raw is a record as it stands in a frame.
type raw struct {
	seq     uint64
	addr    uint64
	id      msg.ID
	time    int64
	expires int64 // 0: none
	data    []byte
}

func appendName[T string | []byte](b []byte, name T) []byte {
	b = binary.AppendUvarint(b, uint64(len(name)))
	return append(b, name...)
}

// appendRecord writes all of a record after its address and its sequence.
func appendRecord(b []byte, id msg.ID, time, expires, frameTime int64, data []byte) []byte {
	b = append(b, id[:]...)
	b = binary.AppendVarint(b, time-frameTime)
	if expires == 0 {
		b = append(b, 0)
	} else {
		d := expires - time
		b = binary.AppendUvarint(b, 1+(uint64(d)<<1^uint64(d>>63)))
	}
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// records walks the records of a frame.
type records struct {
	b      []byte
	time   int64
	seq    uint64 // of the next
	left   uint32
	sparse bool
	addrs  uint64   // how many are defined
	to     [][]byte // room for a definition
}

func (f *frame) records(body []byte, sparse bool) records {
	return records{b: body[:f.body-f.checkpoint], time: f.time, seq: f.first, left: f.count, sparse: sparse}
}

// next reads a record, and calls define where an address comes up for the first time; what it is given is valid only during the call.
// It says no at the end, and also where the frame makes no sense, with left above zero.
func (it *records) next(r *raw, define func(route []byte, to [][]byte)) bool {
	if it.left == 0 {
		return false
	}
	b := decoder{b: it.b}
	r.addr = b.uvarint()
	if r.addr == it.addrs {
		route := b.name()
		n := b.uvarint()
		if n == 0 || n > maxTo {
			return false
		}
		it.to = it.to[:0]
		for range n {
			it.to = append(it.to, b.name())
		}
		if b.bad {
			return false
		}
		define(route, it.to)
		it.addrs++
	} else if r.addr > it.addrs {
		return false
	}
	r.seq = it.seq
	if it.sparse {
		r.seq += b.uvarint()
	}
	copy(r.id[:], b.take(uint64(len(r.id))))
	r.time = it.time + b.varint()
	r.expires = 0
	if e := b.uvarint(); e > 0 {
		e--
		r.expires = r.time + (int64(e>>1) ^ -int64(e&1))
	}
	r.data = b.take(b.uvarint())
	if b.bad || r.seq < it.seq {
		return false
	}
	it.b = b.b
	it.left--
	it.seq = r.seq
	if !it.sparse {
		it.seq++
	}
	return true
}

// decoder takes values off the front of b, and remembers whether one was not there.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) name() []byte {
	n := d.uvarint()
	if n > maxName {
		d.bad, d.b = true, nil
		return nil
	}
	return d.take(n)
}
