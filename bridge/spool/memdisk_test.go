package spool

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memDisk is a file system in memory that forgets what was not flushed when the power goes, with a knob for each fault.
type memDisk struct {
	mu       sync.Mutex
	capacity int64 // 0: endless
	used     int64
	delay    time.Duration // of a flush
	dirs     map[string]*memDir
	flushes  int

	failWrite func(f *memFile, off int64) error
	failSync  func(f *memFile) error // what was written before is lost, as Linux does it
}

type memDir struct {
	d      *memDisk
	files  map[string]*memFile
	ghosts map[string]*memFile // deleted, but the directory was not flushed
}

type memFile struct {
	d       *memDisk
	name    string
	size    int64 // allocated
	now     []byte
	safe    []byte
	pending []memWrite
	named   bool // the directory was flushed
}

type memWrite struct {
	off  int64
	data []byte
}

func newMemDisk() *memDisk { return &memDisk{dirs: map[string]*memDir{}} }

func (d *memDisk) Dir(name string, create bool) (dir, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.dirs[name]
	if !ok {
		if !create {
			return nil, fs.ErrNotExist
		}
		m = &memDir{d: d, files: map[string]*memFile{}, ghosts: map[string]*memFile{}}
		d.dirs[name] = m
	}
	return m, nil
}

func (d *memDisk) Size() int64  { return d.capacity }
func (d *memDisk) Close() error { return nil }

func (m *memDir) Names() (names []string, err error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	for name := range m.files {
		names = append(names, name)
	}
	return names, nil
}

func (m *memDir) Open(name string) (file, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	f, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func (m *memDir) Create(name string, size int64) (file, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.files[name] != nil {
		return nil, fs.ErrExist
	}
	if m.d.capacity > 0 && m.d.used+size > m.d.capacity {
		return nil, unix.ENOSPC
	}
	m.d.used += size
	f := &memFile{d: m.d, name: name, size: size}
	m.files[name] = f
	return f, nil
}

func (m *memDir) Remove(name string) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	f, ok := m.files[name]
	if !ok {
		return fs.ErrNotExist
	}
	m.d.used -= f.size
	delete(m.files, name)
	m.ghosts[name] = f
	return nil
}

func (m *memDir) Sync() error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	for _, f := range m.files {
		f.named = true
	}
	clear(m.ghosts)
	return nil
}

func (m *memDir) Close() error { return nil }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.failWrite != nil {
		if err := f.d.failWrite(f, off); err != nil {
			return 0, err
		}
	}
	f.now = patch(f.now, off, p)
	f.pending = append(f.pending, memWrite{off, slices.Clone(p)})
	return len(p), nil
}

func patch(b []byte, off int64, p []byte) []byte {
	if n := int(off) + len(p); n > len(b) {
		b = append(b, make([]byte, n-len(b))...)
	}
	copy(b[off:], p)
	return b
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	n := len(f.pending)
	delay := f.d.delay
	f.d.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.flushes++
	if f.d.failSync != nil {
		if err := f.d.failSync(f); err != nil {
			f.pending = slices.Clone(f.pending[n:])
			return err
		}
	}
	for _, w := range f.pending[:n] {
		f.safe = patch(f.safe, w.off, w.data)
	}
	f.pending = slices.Clone(f.pending[n:])
	return nil
}

// framed says whether a frame waits to be flushed. The lock is held.
func (f *memFile) framed() bool {
	return slices.ContainsFunc(f.pending, func(w memWrite) bool { return le.Uint32(w.data) == frameMagic })
}

func (f *memFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.now)), nil
}

func (f *memFile) Close() error { return nil }

// cut is what becomes of writes that were not flushed when the power goes.
type cut string

const (
	cutNone    cut = "none of them is there"
	cutAll     cut = "all of them are there"
	cutPrefix  cut = "the first few are there"
	cutWhole   cut = "each is there or not"
	cutSectors cut = "each sector of 512 is there or not"
	cutPages   cut = "each page of 4096 is there or not"
	cutGarbage cut = "each page is old, new or garbage"
)

var cuts = []cut{cutNone, cutAll, cutPrefix, cutWhole, cutSectors, cutPages, cutGarbage}

// image is the disk as it is found after the power went.
func (d *memDisk) image(how cut, rnd *rand.Rand) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := newMemDisk()
	out.capacity = d.capacity
	for name, m := range d.dirs {
		n := &memDir{d: out, files: map[string]*memFile{}, ghosts: map[string]*memFile{}}
		out.dirs[name] = n
		add := func(f *memFile) {
			b := f.crash(how, rnd)
			n.files[f.name] = &memFile{d: out, name: f.name, size: f.size, now: b, safe: slices.Clone(b), named: true}
			out.used += f.size
		}
		for _, name := range sorted(m.files) {
			if f := m.files[name]; f.named || how != cutNone && rnd.IntN(2) == 0 {
				add(f)
			}
		}
		for _, name := range sorted(m.ghosts) {
			if m.files[name] == nil && rnd.IntN(2) == 0 {
				add(m.ghosts[name])
			}
		}
	}
	return out
}

func sorted(m map[string]*memFile) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (f *memFile) crash(how cut, rnd *rand.Rand) []byte {
	b := slices.Clone(f.safe)
	first := rnd.IntN(len(f.pending) + 1)
	for i, w := range f.pending {
		unit := len(w.data)
		switch how {
		case cutNone:
			continue
		case cutPrefix:
			if i >= first {
				continue
			}
		case cutWhole:
			if rnd.IntN(2) == 0 {
				continue
			}
		case cutSectors:
			unit = 512
		case cutPages, cutGarbage:
			unit = page
		}
		for o := 0; o < len(w.data); o += unit {
			part := w.data[o:min(o+unit, len(w.data))]
			switch {
			case unit == len(w.data):
				b = patch(b, w.off, part)
			case how == cutGarbage && rnd.IntN(3) == 0:
				// The page as a whole, whatever of it was to be written.
				at := (w.off + int64(o)) / page * page
				junk := make([]byte, page)
				for i := range junk {
					junk[i] = byte(rnd.Uint32())
				}
				b = patch(b, at, junk)
			case rnd.IntN(2) == 0:
				b = patch(b, w.off+int64(o), part)
			}
		}
	}
	return b
}

func (d *memDisk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// await waits for a number of flushes.
func (d *memDisk) await(flushes int) {
	for d.count() < flushes {
		time.Sleep(100 * time.Microsecond)
	}
}

func openMem(t testing.TB, d *memDisk, o Options) *Spool {
	t.Helper()
	s, err := open(d, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
