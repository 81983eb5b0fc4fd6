// Package slots keeps small sealed records in a memory-mapped file, so that they survive the process that wrote them.
//
// A record is written whole before it counts, and what the process has stored by then is there after a kill -9. After a power cut it is
// what the last [File.Sync] has seen, or newer. A record's contents are encrypted and authenticated under a key of the caller; beside them it has
// a few plain words that are stored one by one, each atomically.
//
// The package does not protect against someone who puts an older copy of the file in the place of a newer one.
package slots

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Words is how many plain words a record has.
const Words = 14

const (
	slotLen   = 512
	headerLen = 4096
	fixedLen  = 8 + 8*Words + 2 + 12 // state, words, length, nonce
	tagLen    = 16
	// MaxRecord is the greatest length of a record's contents.
	MaxRecord = slotLen - fixedLen - tagLen

	magic = "drawbridge slots 2\n"
)

// ErrTooLong is returned for contents longer than MaxRecord.
var ErrTooLong = errors.New("record is too long")

// File is an open file. It is not safe for concurrent use, but for Sync.
type File struct {
	f        *os.File
	aead     cipher.AEAD
	mem      []byte
	free     []int
	rebooted bool
}

// Open opens or makes the file. What is in it under another key is dropped.
func Open(root *os.Root, name string, key []byte) (*File, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &File{f: f, aead: aead}
	if err := s.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func (s *File) load() error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	boot := bootID()
	size := info.Size()
	fresh := size < headerLen+slotLen || (size-headerLen)%slotLen != 0
	if fresh {
		if err := s.f.Truncate(0); err != nil {
			return err
		}
		size = headerLen + 64*slotLen
		if err := s.f.Truncate(size); err != nil {
			return err
		}
	}
	if err := s.mmap(int(size)); err != nil {
		return err
	}
	header := append([]byte(magic), boot...)
	// A header that a power cut has damaged costs no record: each shows by itself whether it is whole.
	s.rebooted = string(s.mem[:len(header)]) != string(header)
	copy(s.mem, header)
	for i := s.count() - 1; i >= 0; i-- {
		if atomic.LoadUint64(s.word(i, -1)) == 0 {
			s.free = append(s.free, i)
		}
	}
	return nil
}

// bootID tells one run of the kernel from another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return rand.Text()
	}
	return strings.TrimSpace(string(b))
}

func (s *File) mmap(size int) error {
	mem, err := unix.Mmap(int(s.f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if s.mem != nil {
		if err := unix.Munmap(s.mem); err != nil {
			return fmt.Errorf("munmap: %w", err)
		}
	}
	s.mem = mem
	return nil
}

// Rebooted tells that the kernel has started anew since the file was last opened, or that the file is new: words may be older than those last set.
func (s *File) Rebooted() bool { return s.rebooted }

func (s *File) count() int { return (len(s.mem) - headerLen) / slotLen }

func (s *File) slot(i int) []byte { return s.mem[headerLen+i*slotLen:][:slotLen] }

// word gives a plain word, -1 that of the state: 0 where the slot is free.
func (s *File) word(i, w int) *uint64 { return (*uint64)(unsafe.Pointer(&s.slot(i)[8+8*w])) }

// Put writes a record with its words and gives its slot.
func (s *File) Put(contents []byte, words [Words]uint64) (int, error) {
	if len(contents) > MaxRecord {
		return 0, ErrTooLong
	}
	if len(s.free) == 0 {
		if err := s.grow(); err != nil {
			return 0, err
		}
	}
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	b := s.slot(i)
	for w, v := range words {
		atomic.StoreUint64(s.word(i, w), v)
	}
	at := 8 + 8*Words
	binary.LittleEndian.PutUint16(b[at:], uint16(len(contents)))
	nonce := b[at+2 : fixedLen]
	rand.Read(nonce)
	s.aead.Seal(b[fixedLen:fixedLen], nonce, contents, aad(i))
	atomic.StoreUint64(s.word(i, -1), 1) // now it counts
	return i, nil
}

// aad binds a record to its slot.
func aad(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }

func (s *File) grow() error {
	n := s.count()
	size := headerLen + 2*n*slotLen
	if err := s.f.Truncate(int64(size)); err != nil {
		return err
	}
	if err := s.mmap(size); err != nil {
		return err
	}
	for i := 2*n - 1; i >= n; i-- {
		s.free = append(s.free, i)
	}
	return nil
}

// Free drops a record.
func (s *File) Free(i int) {
	atomic.StoreUint64(s.word(i, -1), 0)
	clear(s.slot(i))
	s.free = append(s.free, i)
}

// Word gives a word of a record.
func (s *File) Word(i, w int) uint64 { return atomic.LoadUint64(s.word(i, w)) }

// SetWord stores a word of a record.
func (s *File) SetWord(i, w int, v uint64) { atomic.StoreUint64(s.word(i, w), v) }

// All calls yield with each record until it returns false. A record that cannot be read is dropped.
func (s *File) All(yield func(i int, contents []byte) bool) {
	for i := range s.count() {
		if s.Word(i, -1) == 0 {
			continue
		}
		b := s.slot(i)
		at := 8 + 8*Words
		n := int(binary.LittleEndian.Uint16(b[at:]))
		if n > MaxRecord {
			s.Free(i)
			continue
		}
		contents, err := s.aead.Open(nil, b[at+2:fixedLen], b[fixedLen:fixedLen+n+tagLen], aad(i))
		if err != nil {
			s.Free(i)
			continue
		}
		if !yield(i, contents) {
			return
		}
	}
}

// Sync makes what has been written so far outlive a power cut. It may be called while other methods are.
func (s *File) Sync() error { return unix.Fdatasync(int(s.f.Fd())) }

// Size is the number of octets that one record takes.
func (s *File) Size() int { return slotLen }

// Close syncs and closes the file.
func (s *File) Close() error {
	err := s.Sync()
	return errors.Join(err, unix.Munmap(s.mem), s.f.Close())
}
