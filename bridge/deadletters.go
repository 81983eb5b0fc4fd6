package bridge

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// DeadLetter is a publication that a connector could not deliver.
type DeadLetter struct {
	ID        string    `json:"id"`
	Connector string    `json:"connector"`
	Route     string    `json:"route"`
	Reason    string    `json:"reason"`
	Time      time.Time `json:"time"`  // when the message was accepted
	Since     time.Time `json:"since"` // when it was given up
	Device    string    `json:"device,omitempty"`
	Topic     string    `json:"topic,omitempty"`
	Size      int       `json:"size"` // octets of the payload
	Type      string    `json:"type,omitempty"`
	Payload   []byte    `json:"payload,omitempty"` // at most shownPayload octets of it
}

// shownPayload is how much of a dead letter's payload is shown to people.
const shownPayload = 4 << 10

// letter is a dead letter on disk. Data is the spool's record.
type letter struct {
	Serial uint64    `json:"serial"` // of the burial: a letter that died again has another
	Route  string    `json:"route"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
	Since  time.Time `json:"since"`
	Data   []byte    `json:"data"`
}

// grave names a letter as it was read.
type grave struct {
	id     msg.ID
	serial uint64 // 0: whichever
}

// Bounds of the dead letters of one connector. Where they are reached the connector waits until a person has replayed or dropped some:
// none is lost.
const (
	maxLetters     = 50_000
	maxLetterBytes = 64 << 20
)

// deadLetters keeps, for each connector, the publications that cannot be delivered, by message id: one that dies twice is kept once.
type deadLetters struct {
	db  *bolt.DB
	now func() time.Time

	mu   sync.Mutex
	size map[string]letterBox // guarded by mu; by connector
}

type letterBox struct {
	count int
	bytes int64
}

// openDeadLetters counts what is there.
func openDeadLetters(db *bolt.DB, now func() time.Time) (*deadLetters, error) {
	d := &deadLetters{db: db, now: now, size: map[string]letterBox{}}
	err := db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketDead).ForEachBucket(func(name []byte) error {
			var box letterBox
			err := tx.Bucket(bucketDead).Bucket(name).ForEach(func(_, v []byte) error {
				box.count++
				box.bytes += int64(len(v))
				return nil
			})
			d.size[string(name)] = box
			return err
		})
	})
	return d, err
}

// burial is an entry that is to become a dead letter, and why.
type burial struct {
	e      spool.Entry
	reason string
}

var errLettersFull = errors.New("there is no room for more dead letters")

// bury stores the entries durably, all or none.
func (d *deadLetters) bury(connector string, list []burial) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	box := d.size[connector]
	err := d.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.Bucket(bucketDead).CreateBucketIfNotExists([]byte(connector))
		if err != nil {
			return err
		}
		for _, l := range list {
			serial, err := b.NextSequence()
			if err != nil {
				return err
			}
			v, err := json.Marshal(letter{serial, l.e.Route, l.reason, l.e.Time, d.now(), l.e.Data})
			if err != nil {
				return err
			}
			if old := b.Get(l.e.ID[:]); old != nil {
				box.count--
				box.bytes -= int64(len(old))
			}
			if err := b.Put(l.e.ID[:], v); err != nil {
				return err
			}
			box.count++
			box.bytes += int64(len(v))
		}
		if box.count > maxLetters || box.bytes > maxLetterBytes {
			return errLettersFull
		}
		return nil
	})
	if err == nil {
		d.size[connector] = box
	}
	return err
}

// box gives how much there is for a connector.
func (d *deadLetters) box(connector string) letterBox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size[connector]
}

// remove deletes letters that are there and tells how many.
func (d *deadLetters) remove(connector string, graves []grave) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	box := d.size[connector]
	err = d.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketDead).Bucket([]byte(connector))
		if b == nil {
			return nil
		}
		for _, g := range graves {
			var l letter
			v := b.Get(g.id[:])
			if v != nil && (g.serial == 0 || json.Unmarshal(v, &l) == nil && l.Serial == g.serial) {
				n++
				box.count--
				box.bytes -= int64(len(v))
				if err := b.Delete(g.id[:]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	d.size[connector] = box
	return n, nil
}

// each calls f for the letters of a connector, oldest first, after the id after, until it returns false.
func (d *deadLetters) each(connector string, after msg.ID, f func(msg.ID, letter) bool) error {
	return d.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketDead).Bucket([]byte(connector))
		if b == nil {
			return nil
		}
		c := b.Cursor()
		k, v := c.Seek(after[:])
		if k != nil && msg.ID(k) == after {
			k, v = c.Next()
		}
		for ; k != nil; k, v = c.Next() {
			var l letter
			if err := json.Unmarshal(v, &l); err != nil {
				l = letter{Reason: "the letter itself cannot be read"}
			}
			if !f(msg.ID(k), l) {
				break
			}
		}
		return nil
	})
}

// connectors names those that have letters.
func (d *deadLetters) connectors() (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, box := range d.size {
		if box.count > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// DeadLetters lists up to max dead letters of a connector, oldest first, beginning after the one with the id after
// (empty: from the first).
func (b *Bridge) DeadLetters(connector, after string, max int) (list []DeadLetter, err error) {
	var from msg.ID
	if after != "" {
		if from, err = msg.ParseID(after); err != nil {
			return nil, err
		}
	}
	var dec decoder
	err = b.dead.each(connector, from, func(id msg.ID, l letter) bool {
		if len(list) >= max {
			return false
		}
		e := spool.Entry{ID: id, Time: l.Time, Route: l.Route, Data: l.Data}
		p, _ := dec.publication(&e) // what cannot be read is shown without device and topic
		list = append(list, DeadLetter{id.String(), connector, l.Route, l.Reason, l.Time, l.Since, p.Device, p.Topic, len(p.Payload), p.Type,
			bytes.Clone(p.Payload[:min(len(p.Payload), shownPayload)])})
		return true
	})
	return list, err
}

// Drop deletes dead letters of a connector: those with the ids, or all where there are none. It tells how many.
func (b *Bridge) Drop(connector string, ids ...string) (int, error) {
	list, err := b.graves(connector, ids)
	if err != nil {
		return 0, err
	}
	return b.dead.remove(connector, list)
}

// Replay appends dead letters to the connector's queue again, without an expiry: those with the ids, or all where there are none. Each
// counts as accepted once more. A letter goes only when it is in the queue, so a crash between may deliver it twice, never lose it.
// It stops at the first that the queue refuses, and tells how many it took.
func (b *Bridge) Replay(ctx context.Context, connector string, ids ...string) (n int, err error) {
	list, err := b.graves(connector, ids)
	if err != nil {
		return 0, err
	}
	for part := range slices.Chunk(list, 256) {
		k, err := b.replay(ctx, connector, part)
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

func (b *Bridge) replay(ctx context.Context, connector string, graves []grave) (int, error) {
	type answer struct {
		g   grave
		err error
	}
	answers := make(chan answer, len(graves))
	asked := 0
	err := b.dead.read(connector, graves, func(id msg.ID, l letter) {
		asked++
		g := grave{id, l.Serial}
		r := spool.Record{ID: id, Time: l.Time, Route: l.Route, To: []string{connector}, Data: l.Data}
		b.queue.Append(spool.Normal, &r, func(_ spool.Pos, err error) { answers <- answer{g, err} })
	})
	var taken []grave
	for range asked {
		select {
		case a := <-answers:
			if a.err == nil {
				taken = append(taken, a.g)
			} else if err == nil {
				err = fmt.Errorf("replay: %w", a.err)
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	n, failed := b.dead.remove(connector, taken)
	return n, errors.Join(err, failed)
}

// read calls f for those of the letters that are there.
func (d *deadLetters) read(connector string, graves []grave, f func(msg.ID, letter)) error {
	return d.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketDead).Bucket([]byte(connector))
		if b == nil {
			return nil
		}
		for _, g := range graves {
			var l letter
			if v := b.Get(g.id[:]); v != nil && json.Unmarshal(v, &l) == nil {
				f(g.id, l)
			}
		}
		return nil
	})
}

// graves reads ids; none stands for all that are there, in the order in which they died (ids tell time to the millisecond alone).
func (b *Bridge) graves(connector string, ids []string) (list []grave, err error) {
	for _, s := range ids {
		id, err := msg.ParseID(s)
		if err != nil {
			return nil, err
		}
		list = append(list, grave{id: id})
	}
	if len(ids) > 0 {
		return list, nil
	}
	err = b.dead.each(connector, msg.ID{}, func(id msg.ID, l letter) bool {
		list = append(list, grave{id, l.Serial})
		return true
	})
	slices.SortFunc(list, func(a, b grave) int { return cmp.Compare(a.serial, b.serial) })
	return list, err
}
