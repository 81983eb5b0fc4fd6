package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of the store.
var (
	bucketMail = []byte("mail") // a bucket for each device: sequence → command
	bucketDead = []byte("dead") // a bucket for each connector: message id → letter

	bucketWire   = []byte("wire")   // connector → its account
	bucketOpened = []byte("opened") // openedKey → Unix seconds until which it is remembered
	bucketSeen   = []byte("seen")   // keySeen → what a person has seen of it
)

// store is the file that keeps mailboxes and dead letters.
type store struct {
	db      *bolt.DB
	damaged string // where a file that could not be read was put; empty: there was none
}

// openStore opens the file in dir. One that cannot be read is put aside: what it held is lost to the gateway, not to a person.
func openStore(dir string, now time.Time) (*store, error) {
	path := filepath.Join(dir, "bridge.db")
	db, err := openDB(path)
	if err == nil {
		return &store{db: db}, nil
	}
	if !errors.Is(err, errUnreadable) {
		return nil, err
	}
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405Z")
	if err := os.Rename(path, aside); err != nil {
		return nil, err
	}
	if db, err = openDB(path); err != nil {
		return nil, err
	}
	return &store{db: db, damaged: aside}, nil
}

var errUnreadable = errors.New("the file is damaged")

func openDB(path string) (*bolt.DB, error) {
	if err := verifyDB(path); err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMail, bucketDead, bucketWire, bucketOpened, bucketSeen} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

const lockWait = 5 * time.Second // for another process to let go of the file

// verifyDB reads all of the file, if there is one. A file that ends before its own pages do is refused before
// anything reads there: the fault would end the process.
func verifyDB(path string) (err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer func() {
		if v := recover(); v != nil { // bbolt panics on some damage
			err = fmt.Errorf("%s: %w: %v", path, errUnreadable, v)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, ReadOnly: true})
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrVersionMismatch) || errors.Is(err, bolterrors.ErrChecksum) {
		return fmt.Errorf("%s: %w: %w", path, errUnreadable, err)
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) (err error) {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return fmt.Errorf("%s: %w: it is too short", path, errUnreadable)
		}
		for e := range tx.Check() { // to the end: its goroutine uses tx until then
			err = fmt.Errorf("%s: %w: %w", path, errUnreadable, e)
		}
		return err
	})
}

func (s *store) close() error { return s.db.Close() }
