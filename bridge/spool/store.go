package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"sync"
	"time"
)

// Spool is an open queue. Its methods may be called from any goroutine.
type Spool struct {
	o        Options
	disk     disk
	done     chan struct{} // closed when Close begins
	kicks    chan struct{} // for the keeper
	buffers  buffers
	maxBatch int   // octets of one commit, beyond which it takes no more
	capacity int64 // what max_size and the file system leave the spool

	committers sync.WaitGroup
	keeper     sync.WaitGroup

	mu           sync.Mutex // guards what follows, and the logs, cursors and segments
	logs         [classes]*log
	consumers    map[string]*Consumer
	closing      bool
	closed       bool // the committers are done
	batches      uint64
	full         bool
	commits      uint64
	written      int64
	syncs        histogram
	used         int64  // octets of all files
	tight        bool   // a class needs more than max_size leaves it
	begun, ended uint64 // rounds of the keeper
	rounds       *sync.Cond
}

// ErrTooLarge: the record does not fit into a segment. Trying again cannot mend it.
var ErrTooLarge = errors.New("record is too large for the spool")

// String gives the name that the configuration has for the class.
func (c Class) String() string {
	switch c {
	case High:
		return "high"
	case Normal:
		return "normal"
	case Low:
		return "low"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Open opens the spool in dir, or makes it. One process at a time may have it open.
func Open(dir string, o Options) (*Spool, error) {
	d, err := openDisk(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s, err := open(d, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spool %q: %w", dir, err), d.Close())
	}
	return s, nil
}

func open(d disk, o Options) (*Spool, error) {
	s := &Spool{
		disk: d,
		done: make(chan struct{}), kicks: make(chan struct{}, 1),
		buffers: make(buffers, 4), consumers: map[string]*Consumer{},
	}
	s.o, s.capacity = o.defaults(d.Size())
	s.maxBatch = min(maxBatch, int(s.o.Segment/4))
	s.rounds = sync.NewCond(&s.mu)
	for c := range classes {
		dir, err := d.Dir(c.String(), false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			l := newLog(s, c)
			l.dir, s.logs[c] = dir, l
			err = l.recover()
		}
		if err != nil {
			s.closeFiles()
			return nil, fmt.Errorf("%v: %w", c, err)
		}
	}
	for _, c := range s.consumers {
		c.bytes = 0
		for _, cur := range c.cursors {
			if cur != nil {
				c.bytes += cur.bytes
			}
		}
	}
	for _, l := range s.logs {
		if l != nil {
			l.start()
		}
	}
	s.keeper.Go(s.keep)
	s.kick()
	return s, nil
}

// defaults completes the options for a file system of so many octets, 0 where that is unknown,
// and says how much of it there is for the spool.
func (o Options) defaults(fileSystem int64) (Options, int64) {
	if o.MaxSize <= 0 {
		o.MaxSize = 1 << 30
	}
	capacity := o.MaxSize
	if fileSystem > 0 {
		capacity = min(capacity, fileSystem)
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 168 * time.Hour
	}
	if o.Share <= 0 {
		o.Share = capacity / 4 * 3
	}
	if o.Align <= 0 {
		o.Align = page
	}
	o.Align = (o.Align + 7) &^ 7
	if o.Segment <= 0 {
		// Small where there is little, so that there are enough of them to recycle.
		o.Segment = 4 << 20
		for o.Segment > 64<<10 && o.Segment > capacity/64 {
			o.Segment /= 2
		}
	}
	o.Segment = max(o.Segment, 16*page, int64(4*o.Align)) &^ (page - 1)
	o.Segment = min(o.Segment, 1<<30)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Correct == nil {
		o.Correct = func(t time.Time) time.Time { return t }
	}
	return o, capacity
}

func (s *Spool) aligned(n int64) int64 {
	a := int64(s.o.Align)
	return (n + a - 1) / a * a
}

// maxRecord is what a record may take. With what a batch may have before it comes, that leaves a quarter of a segment
// for the header and the checkpoint.
func (s *Spool) maxRecord() int64 { return s.o.Segment / 2 }

// window is how many records one connector may have in flight in one class: as many as a checkpoint can tell apart.
func (s *Spool) window() int {
	return max(64, int(s.o.Segment/256)/max(1, len(s.consumers)))
}

// Append takes r for the connectors in r.To. It copies r and returns at once. done is called exactly once: with nil after r is on
// disk, else with the reason for which it was not taken (ErrFull, ErrTooLarge, ErrClosed, ErrAmbiguous), and then
// perhaps before Append returns. It must not wait, and the caller must not hold a lock that it needs.
func (s *Spool) Append(c Class, r *Record, done func(Pos, error)) {
	if err := s.append(c, r, done); err != nil {
		done(Pos{}, err)
	}
}

func (s *Spool) append(c Class, r *Record, done func(Pos, error)) error {
	size := int64(len(r.Data)) + recordCost + int64(len(r.Route))
	for _, name := range r.To {
		size += int64(len(name)) + 2
		if len(name) > maxName {
			return fmt.Errorf("%w: connector of %d octets", ErrTooLarge, len(name))
		}
	}
	switch {
	case c >= classes:
		return fmt.Errorf("spool: no %v", c)
	case len(r.To) == 0:
		return errors.New("spool: record for nobody")
	case len(r.To) > maxTo || len(r.Route) > maxName || size > s.maxRecord():
		return fmt.Errorf("%w: %d octets", ErrTooLarge, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	l := s.logs[c]
	if l == nil {
		l = newLog(s, c)
		s.logs[c] = l
		l.start()
	}
	return l.append(r, done)
}

// Consumer gives the reader of the records for the connector called name; the same one for the same name.
func (s *Spool) Consumer(name string) *Consumer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.consumer(name)
}

func (s *Spool) consumer(name string) *Consumer {
	c, ok := s.consumers[name]
	if !ok {
		c = &Consumer{s: s, name: name, news: make(chan struct{}, 1)}
		s.consumers[name] = c
	}
	return c
}

// Consumers names, in order, the connectors that somebody has asked for or that the disk has something of, also where the configuration
// has them no more.
func (s *Spool) Consumers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.consumers))
	for name := range s.consumers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Forget settles everything that is pending for a connector that is gone as Expired.
func (s *Spool) Forget(name string) {
	s.mu.Lock()
	c, ok := s.consumers[name]
	s.mu.Unlock()
	if !ok {
		return
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	s.mu.Lock()
	cursors := c.cursors
	s.mu.Unlock()
	for _, cur := range cursors {
		if cur != nil {
			cur.expire(func(uint64, int64) bool { return true })
		}
	}
}

// Ledger gives a line for each route and connector, in that order.
func (s *Spool) Ledger() []Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	sums := map[lineKey]Tally{}
	for _, l := range s.logs {
		if l == nil {
			continue
		}
		for k, n := range l.lines {
			t := sums[k]
			t.Route, t.Connector = k.route, k.connector
			t.Accepted += n.accepted
			t.Delivered += n.delivered
			t.Expired += n.expired
			t.Dead += n.dead
			t.Pending += n.pending()
			sums[k] = t
		}
	}
	list := make([]Tally, 0, len(sums))
	for _, t := range sums {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Tally) int {
		return cmp.Or(cmp.Compare(a.Route, b.Route), cmp.Compare(a.Connector, b.Connector))
	})
	return list
}

// Stats gives the state of the spool.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Bytes: s.used, MaxBytes: s.o.MaxSize, Full: s.full,
		Commits: s.commits, Written: s.written, SyncNanos: slices.Clone(s.syncs[:]),
		PendingBytes: make(map[string]int64, len(s.consumers)),
	}
	var oldest int64
	for _, l := range s.logs {
		if l == nil {
			continue
		}
		st.Lost += l.lost
		st.Dropped += l.dropped
		for _, cur := range l.cursors {
			st.Records += cur.pending
			if cur.pending > 0 && (oldest == 0 || cur.oldest < oldest) {
				oldest = cur.oldest
			}
		}
	}
	if oldest > 0 {
		st.Oldest = time.UnixMilli(oldest)
	}
	for name, c := range s.consumers {
		st.PendingBytes[name] = c.bytes
	}
	return st
}

// Close takes no more, writes what is waiting and how far the consumers are, and closes the files. Read ends with ErrClosed.
// It must not be called from a completion, and what is settled after it has begun may not be written down.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closing = true
	close(s.done)
	for _, l := range s.logs {
		if l != nil {
			l.ready.Signal()
		}
	}
	s.mu.Unlock()
	s.committers.Wait()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.kick()
	s.keeper.Wait()
	var errs []error
	for _, l := range s.logs {
		if l != nil && l.parting != nil {
			errs = append(errs, fmt.Errorf("spool: %v: what was settled last is not written down and will be sent again: %w", l.class, l.parting))
		}
	}
	return errors.Join(append(errs, s.closeFiles(), s.disk.Close())...)
}

func (s *Spool) closeFiles() error {
	var errs []error
	for _, l := range s.logs {
		if l == nil || l.dir == nil {
			continue
		}
		segs := slices.Concat(l.segs, l.free, l.trash, l.leaving)
		for _, cur := range l.cursors {
			segs = append(segs, cur.side...)
		}
		for _, seg := range segs {
			errs = append(errs, seg.file.Close())
		}
		errs = append(errs, l.dir.Close())
	}
	return errors.Join(errs...)
}

// histogram counts durations by the bits of their nanoseconds.
type histogram [40]uint64

func (h *histogram) add(d time.Duration) {
	h[min(bits.Len64(uint64(max(d, 0))), len(h)-1)]++
}

// buffers keeps a few for reading, so that those who read seldom hold none.
type buffers chan []byte

func (p buffers) get() []byte {
	select {
	case b := <-p:
		return b
	default:
		return make([]byte, page)
	}
}

func (p buffers) put(b []byte) {
	if b == nil || cap(b) > 2*maxBatch {
		return
	}
	select {
	case p <- b:
	default:
	}
}
