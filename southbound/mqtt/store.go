package mqtt

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// StoreFailing is the problem of a listener that cannot keep sessions and retained messages on disk.
var StoreFailing = health.Code{
	Name:     "mqtt-store-failing",
	Title:    "MQTT sessions cannot be written to disk",
	Severity: health.Degraded,
	Hint:     "make room in the state directory, or mend the disk; until then publishes that others must hear later are refused",
}

// store keeps what has to outlive the gateway: sessions, what is queued for them, what QoS 2 has got to, retained messages, wills.
//
// Changes are collected and written by one goroutine in one transaction after another, so that the cost of an fsync
// is shared by all who wait for it. What nobody waits for is written at leisure.
type store struct {
	db     *bolt.DB
	health *health.Reporter
	wake   chan struct{}
	quit   chan struct{}
	ended  chan struct{}

	// whole is held for reading while changes are put that must be written together or not at all. It is taken before session.mu.
	whole sync.RWMutex

	mu      sync.Mutex
	changes map[string][]byte   // guarded by mu: by key; nil deletes
	waiting []func(error)       // guarded by mu: called once the changes so far are on disk
	tell    map[*session]uint64 // guarded by mu: sessions with new messages, and the last of them
}

// leisure is how long a change that nobody waits for may stay in memory.
const leisure = 200 * time.Millisecond

var everything = []byte("mqtt")

// openStore opens or makes the file in dir.
func openStore(dir string, reporter *health.Reporter) (*store, error) {
	file := filepath.Join(dir, "sessions.db")
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("session store %q: %w", file, err)
	}
	if err := db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(everything)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("session store %q: %w", file, err), db.Close())
	}
	return &store{
		db: db, health: reporter, wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{}),
		changes: map[string][]byte{}, tell: map[*session]uint64{},
	}, nil
}

// put sets the value of a key; nil deletes it.
func (s *store) put(key string, value []byte) {
	s.mu.Lock()
	s.changes[key] = value
	s.mu.Unlock()
}

// queued sets the value of a message and has its session told when that is on disk.
func (s *store) queued(key string, value []byte, of *session, seq uint64) {
	s.mu.Lock()
	s.changes[key] = value
	s.tell[of] = seq
	s.mu.Unlock()
	s.hurry()
}

// sync calls done once everything that has been put so far is on disk, or could not be written. done must not block.
func (s *store) sync(done func(error)) {
	s.mu.Lock()
	s.waiting = append(s.waiting, done)
	s.mu.Unlock()
	s.hurry()
}

func (s *store) hurry() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes until close.
func (s *store) run() {
	defer close(s.ended)
	tick := time.NewTicker(leisure)
	defer tick.Stop()
	for {
		select {
		case <-s.wake:
		case <-tick.C:
		case <-s.quit:
			s.commit()
			return
		}
		s.commit()
	}
}

func (s *store) commit() {
	s.whole.Lock()
	s.mu.Lock()
	changes, waiting, tell := s.changes, s.waiting, s.tell
	some := len(changes) > 0 || len(waiting) > 0
	if some {
		s.changes, s.waiting, s.tell = map[string][]byte{}, nil, map[*session]uint64{}
	}
	s.mu.Unlock()
	s.whole.Unlock()
	if !some {
		return
	}
	err := s.write(changes)
	if err != nil {
		s.health.Fail(&StoreFailing, err)
		err = &msg.Refusal{Reason: msg.Full, RetryAfter: 5 * time.Second, Why: "sessions cannot be stored"}
		s.restore(changes, tell)
	} else {
		s.health.Clear(&StoreFailing)
		for of, seq := range tell {
			of.stored(seq)
		}
	}
	for _, done := range waiting {
		done(err)
	}
}

func (s *store) write(changes map[string][]byte) error {
	if len(changes) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(everything)
		for key, value := range changes {
			var err error
			if value == nil {
				err = b.Delete([]byte(key))
			} else {
				err = b.Put([]byte(key), value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// restore takes back what could not be written, under what has changed since.
func (s *store) restore(changes map[string][]byte, tell map[*session]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range changes {
		if _, newer := s.changes[key]; !newer {
			s.changes[key] = value
		}
	}
	for of, seq := range tell {
		if s.tell[of] < seq {
			s.tell[of] = seq
		}
	}
}

// close writes what is left.
func (s *store) close() error {
	close(s.quit)
	<-s.ended
	return s.db.Close()
}

// each calls visit with every key and value.
func (s *store) each(visit func(key, value []byte) error) error {
	return s.db.View(func(tx *bolt.Tx) error { return tx.Bucket(everything).ForEach(visit) })
}
