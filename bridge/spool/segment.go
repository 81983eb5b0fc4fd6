package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	spares = 2 // segments that are kept ready for each class: one for the log to go on, one to free others by
	hoard  = 4 // how many may wait before they are deleted

	dropWithin = 2 * time.Second // how long a commit waits for the oldest to go
)

// errWrite marks what failed before anything was flushed.
var errWrite = errors.New("write")

// segment is one file. Guarded by Spool.mu, but for name, file and size, which never change.
type segment struct {
	header
	name     string
	file     file
	seed     uint32
	end      int64                // of what is committed; in a segment that was found there, its size, except for the newest
	promised int64                // end, when what is on its way is there
	holds    map[*cursor]struct{} // who has records in it; nil where unknown, since it was there
	leaves   uint64               // the change with which it was released before its turn
	busy     bool                 // it is being written, and is no main segment
	bad      bool                 // not to be used again
}

// use prepares a segment for a new life.
func (l *log) use(seg *segment, h header) {
	var b [8]byte
	rand.Read(b[:])
	l.serial++
	h.epoch, h.serial, h.size = le.Uint64(b[:]), l.serial, seg.size
	h.time = max(l.s.o.Now().UnixMilli(), 0)
	seg.header, seg.seed, seg.end, seg.promised = h, seed(h.epoch), page, page
	seg.holds = map[*cursor]struct{}{}
}

// write puts the frame of b at the end of seg and flushes it. It is called without the lock.
func (l *log) write(b *batch, seg *segment, fresh bool) (time.Duration, error) {
	b.buf = b.frame.seal(b.buf, seg.seed, l.s.o.Align)
	start := time.Now()
	if fresh {
		if _, err := seg.file.WriteAt(seg.encode(), 0); err != nil {
			return 0, fmt.Errorf("%w: %w", errWrite, err)
		}
	}
	if _, err := seg.file.WriteAt(b.buf, seg.end); err != nil {
		return 0, fmt.Errorf("%w: %w", errWrite, err)
	}
	if err := seg.file.Sync(); err != nil {
		return 0, fmt.Errorf("flush: %w", err)
	}
	return time.Since(start), nil
}

// acquire takes a segment that is free, and waits for the keeper to make or free one. It gives nil where there is no room.
//
// The last free one is taken only where that frees another, since its checkpoint then says that something is settled.
func (l *log) acquire() *segment {
	start := time.Now()
	for try := 0; ; try++ {
		n := len(l.free)
		if n > 1 || n == 1 && (l.s.closing || l.releasable()) {
			seg := l.free[0]
			l.free = l.free[1:]
			l.s.kick()
			return seg
		}
		switch {
		case l.s.closed || time.Now().Before(l.refuse):
			return nil
		case try < 3:
			l.s.round()
		case l.s.o.DropOldest && time.Since(start) < dropWithin:
			l.s.rounds.Wait() // for the class that is to give way
		default:
			return nil
		}
	}
}

// restock sees to it that there is a free segment in reserve where records are to be written, as without it what is left
// of the newest is for checkpoints alone.
func (l *log) restock() bool {
	for try := 0; len(l.free) == 0 && len(l.segs) > 0; try++ {
		if l.releasable() && l.tail() && l.commit(l.newBatch()) == nil {
			continue
		}
		if try == 3 || l.s.closed || time.Now().Before(l.refuse) {
			return false
		}
		l.s.round()
	}
	return true
}

// releasable says whether a segment would be free if things were written down as they stand.
func (l *log) releasable() bool {
	return len(l.leaving) > 0 || len(l.segs) > 1 && len(l.behind(l.segs[1].base-1)) == 0
}

// behind gives the cursors that need something of the main log up to a sequence.
func (l *log) behind(upTo uint64) (list []*cursor) {
	for _, cur := range l.cursors {
		if max(cur.settled(), cur.moved) < upTo {
			list = append(list, cur)
		}
	}
	return list
}

// release frees the segments that no connector needs, as the newest checkpoint on disk says, which has the changes up to the given one.
func (l *log) release(changes uint64) {
	low, free := l.last, len(l.free)+len(l.trash)
	for _, cur := range l.cursors {
		low = min(low, max(cur.saved.floor, cur.saved.moved))
		for len(cur.side) > 0 && !cur.side[0].busy && cur.sideLast(0) <= cur.saved.floor {
			l.discard(cur.side[0])
			cur.side = cur.side[1:]
		}
	}
	for len(l.segs) > 1 && l.segs[1].base-1 <= low {
		l.discard(l.segs[0])
		l.segs = l.segs[1:]
	}
	l.leaving = slices.DeleteFunc(l.leaving, func(seg *segment) bool {
		if seg.leaves > changes {
			return false
		}
		l.discard(seg)
		return true
	})
	if len(l.free)+len(l.trash) > free {
		l.refuse = time.Time{}
		old := func(s span) bool { return len(l.segs) > 0 && s.last < l.segs[0].base }
		l.holes = slices.DeleteFunc(l.holes, old)
		l.gone = slices.DeleteFunc(l.gone, old)
		l.s.kick()
	}
}

// skipAhead releases segments that are not the oldest but have nothing for those who are behind. Where one connector
// has its share pending, the others go on behind it in this way.
func (l *log) skipAhead() {
	for i := len(l.segs) - 2; i > 0; i-- {
		seg, last := l.segs[i], l.segs[i+1].base-1
		if seg.holds == nil || slices.ContainsFunc(l.behind(last), func(cur *cursor) bool {
			_, has := seg.holds[cur]
			return has
		}) {
			continue
		}
		l.changes++
		seg.leaves = l.changes
		l.gone = addSpan(l.gone, span{seg.base, last})
		l.leaving = append(l.leaving, seg)
		l.segs = slices.Delete(l.segs, i, i+1)
	}
}

// discard puts a segment that is no longer needed where it belongs.
func (l *log) discard(seg *segment) {
	if seg.bad || seg.size != l.s.o.Segment {
		l.trash = append(l.trash, seg)
	} else {
		l.free = append(l.free, seg)
	}
}

// makeSegment makes a new file full of zeros. It is called without the lock.
func makeSegment(d dir, name string, size int64) (*segment, error) {
	f, err := d.Create(name, size)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, min(size, 128<<10))
	for off := int64(0); off < size && err == nil; off += int64(len(zero)) {
		_, err = f.WriteAt(zero[:min(size-off, int64(len(zero)))], off)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = d.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), d.Remove(name))
	}
	return &segment{name: name, file: f, header: header{size: size}}, nil
}

func segmentName(n uint64) string { return fmt.Sprintf("%08d.seg", n) }

// segmentNumber reads what segmentName wrote.
func segmentNumber(name string) (n uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(digits) < 8 || len(digits) > 18 {
		return 0, false
	}
	for _, d := range []byte(digits) {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = 10*n + uint64(d-'0')
	}
	return n, true
}

// scanner reads the frames of one segment. It needs no lock.
type scanner struct {
	file file
	seed uint32
	off  int64 // of the next frame
	end  int64
	buf  []byte
}

// frame reads the frame at off; where there is none that passes, it says no. Its body is in sc.buf after the head.
func (sc *scanner) frame() (f frame, ok bool) {
	room := sc.end - sc.off
	if room < frameHead {
		return f, false
	}
	sc.buf = grow(sc.buf, page)
	n, _ := sc.file.ReadAt(sc.buf[:min(room, page)], sc.off) // what is missing does not pass
	if f, ok = parseFrame(sc.buf[:n], room); !ok {
		return f, false
	}
	if need := frameHead + int(f.body); need > n {
		sc.buf = grow(sc.buf, need)
		if m, _ := sc.file.ReadAt(sc.buf[n:need], sc.off+int64(n)); m < need-n {
			return f, false
		}
	}
	return f, f.valid(sc.buf, sc.seed)
}

// body is that of the frame that was read last.
func (sc *scanner) body(f *frame) []byte { return sc.buf[frameHead : frameHead+int(f.body)] }

// resync looks behind off for the next frame that passes, and leaves off there.
func (sc *scanner) resync() bool {
	const window = 64 << 10
	chunk := make([]byte, window)
	at := sc.off + 8
	for sc.end-at >= frameHead {
		n, _ := sc.file.ReadAt(chunk[:min(window, sc.end-at)], at)
		if n < 8 {
			// A sector that cannot be read: what is behind it may be sound.
			at += 512 - at%512
			continue
		}
		for i := 0; i+4 <= n; i += 8 {
			if le.Uint32(chunk[i:]) != frameMagic {
				continue
			}
			save := sc.off
			sc.off = at + int64(i)
			if _, ok := sc.frame(); ok {
				return true
			}
			sc.off = save
		}
		at += int64(n &^ 7)
	}
	return false
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		b = append(b[:cap(b)], make([]byte, n-cap(b))...)
	}
	return b[:max(n, len(b))]
}
