package bridge

import (
	"encoding/binary"
	"fmt"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// damage keeps how much of what damage to the disk has taken a person has seen.
type damage struct {
	db *bolt.DB

	mu   sync.Mutex
	seen uint64 // guarded by mu; of spool.Stats.Lost
}

var keySeen = []byte("lost")

// openDamage reads it. A spool that has lost less than was seen is another one.
func openDamage(db *bolt.DB, lost uint64) (*damage, error) {
	d := &damage{db: db}
	err := db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bucketSeen).Get(keySeen); len(v) == 8 {
			d.seen = binary.BigEndian.Uint64(v)
		}
		return nil
	})
	if err == nil && lost < d.seen {
		_, err = d.see(lost)
	}
	return d, err
}

// see keeps that all that is lost was seen, and tells how much of it was not before.
func (d *damage) see(lost uint64) (fresh uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err = d.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketSeen).Put(keySeen, binary.BigEndian.AppendUint64(nil, lost))
	})
	if err != nil {
		return 0, err
	}
	if lost > d.seen {
		fresh = lost - d.seen
	}
	d.seen = lost
	return fresh, nil
}

// unseen gives how much of what is lost nobody has seen.
func (d *damage) unseen(lost uint64) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return lost - min(lost, d.seen)
}

// Acknowledge ends SpoolDamaged, until more is lost: somebody knows of it. It tells how many messages that are.
func (b *Bridge) Acknowledge() (int, error) {
	n, err := b.damage.see(b.queue.Stats().Lost)
	if err != nil {
		return 0, fmt.Errorf("acknowledge: %w", err)
	}
	b.o.Health.For("").Clear(&SpoolDamaged)
	return int(n), nil
}
