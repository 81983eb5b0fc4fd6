package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is what the spool asks of the file system. Tests put one in its place that fails, fills up and forgets.
type disk interface {
	Dir(name string, create bool) (dir, error) // fs.ErrNotExist where it is not there and not to be made
	Size() int64                               // of the whole file system, in octets; 0 where unknown
	Close() error
}

// dir holds the segments of one class.
type dir interface {
	Names() ([]string, error)
	Open(name string) (file, error)
	Create(name string, size int64) (file, error) // allocated, but not yet written
	Remove(name string) error
	Sync() error // the names
	Close() error
}

// file is a segment.
type file interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Sync() error // as fdatasync(2)
	Size() (int64, error)
	Close() error
}

type osDisk struct {
	path string
	root *os.Root
	self *os.File // holds the lock against a second process
}

func openDisk(path string) (disk, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	self, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	if err := unix.Flock(int(self.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		self.Close()
		root.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%q: another process has it open", path)
		}
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return &osDisk{path: path, root: root, self: self}, nil
}

// makeDir makes a directory with those above it, and sees to it that a power cut does not take it away again.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	above := filepath.Dir(path)
	if errors.Is(err, fs.ErrNotExist) && above != path {
		if err = makeDir(above); err == nil {
			err = os.Mkdir(path, 0o700)
		}
	}
	if err != nil {
		return err
	}
	d, err := os.Open(above)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (d *osDisk) Dir(name string, create bool) (dir, error) {
	if create {
		if err := d.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err := d.self.Sync(); err != nil {
			return nil, err
		}
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	self, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	return &osDir{root: root, self: self}, nil
}

func (d *osDisk) Size() int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.self.Fd()), &st); err != nil {
		return 0
	}
	return int64(st.Blocks) * int64(st.Bsize)
}

func (d *osDisk) Close() error { return errors.Join(d.self.Close(), d.root.Close()) }

type osDir struct {
	root *os.Root
	self *os.File
}

func (d *osDir) Names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (d *osDir) Open(name string) (file, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f, fd: int(f.Fd())}, nil
}

func (d *osDir) Create(name string, size int64) (file, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	o := &osFile{File: f, fd: int(f.Fd())}
	err = retry(func() error { return unix.Fallocate(o.fd, 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // the zeros that follow take the room
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(err, d.root.Remove(name))
	}
	return o, nil
}

func (d *osDir) Remove(name string) error { return d.root.Remove(name) }
func (d *osDir) Sync() error              { return d.self.Sync() }
func (d *osDir) Close() error             { return errors.Join(d.self.Close(), d.root.Close()) }

type osFile struct {
	*os.File
	fd int
}

func (f *osFile) Sync() error { return retry(func() error { return unix.Fdatasync(f.fd) }) }

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// retry calls again what a signal has interrupted.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// noRoom says whether the error is of the kind that ends when something is deleted.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
