package bridge

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Bounds of the mailboxes.
const (
	maxMail       = 10_000   // commands in all
	maxMailDevice = 100      // commands of one device
	maxMailBytes  = 32 << 20 // in all
	mailWorkers   = 16       // devices that are served at the same time
)

var errMailboxFull = errors.New("there is no room in the mailbox")

// mailbox keeps commands on disk for devices that sleep, in order, until they wake up or the commands expire.
type mailbox struct {
	b    *Bridge
	work chan struct{} // capacity 1: ready is not empty

	mu    sync.Mutex
	boxes map[string]*box // guarded by mu; by device, none empty
	count int             // guarded by mu
	bytes int             // guarded by mu
	ready []string        // guarded by mu; devices that are to be served
}

// box is what waits for one device.
type box struct {
	items []mailItem // in the order in which they were put
	busy  bool       // in ready, or being served
	awake bool       // the device has spoken, so it may be tried
	again bool       // it has spoken while it was being served
}

type mailItem struct {
	seq     uint64
	size    int
	taken   time.Time
	expires time.Time
}

// openMailbox reads what is there.
func openMailbox(b *Bridge) (*mailbox, error) {
	m := &mailbox{b: b, work: make(chan struct{}, 1), boxes: map[string]*box{}}
	err := b.store.db.View(func(tx *bolt.Tx) error {
		mail := tx.Bucket(bucketMail)
		return mail.ForEachBucket(func(device []byte) error {
			return mail.Bucket(device).ForEach(func(k, v []byte) error {
				var c command
				if len(k) == 8 && json.Unmarshal(v, &c) == nil {
					m.add(string(device), mailItem{binary.BigEndian.Uint64(k), len(v), c.Message.Time, c.Message.Expires})
				}
				return nil
			})
		})
	})
	return m, err
}

// add takes an item into the index; the caller holds mu, or is alone.
func (m *mailbox) add(device string, it mailItem) {
	if m.boxes[device] == nil {
		m.boxes[device] = &box{}
	}
	x := m.boxes[device]
	x.items = append(x.items, it)
	slices.SortFunc(x.items, func(a, b mailItem) int { return cmp.Compare(a.seq, b.seq) })
	m.count++
	m.bytes += it.size
}

// has tells whether commands wait for the device.
func (m *mailbox) has(device string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boxes[device] != nil
}

// waiting gives how many commands wait, by device.
func (m *mailbox) waiting() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]int, len(m.boxes))
	for device, x := range m.boxes {
		all[device] = len(x.items)
	}
	return all
}

// put stores a command durably.
func (m *mailbox) put(c command) error {
	v, err := json.Marshal(c)
	if err != nil {
		return err
	}
	device := c.Message.Device
	if err := m.reserve(device, len(v)); err != nil {
		return err
	}
	var seq uint64
	err = m.b.store.db.Update(func(tx *bolt.Tx) error {
		mail, err := tx.Bucket(bucketMail).CreateBucketIfNotExists([]byte(device))
		if err != nil {
			return err
		}
		if seq, err = mail.NextSequence(); err != nil {
			return err
		}
		return mail.Put(binary.BigEndian.AppendUint64(nil, seq), v)
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count--
	m.bytes -= len(v)
	if err == nil {
		m.add(device, mailItem{seq, len(v), c.Message.Time, c.Message.Expires})
	}
	return err
}

// reserve takes room for a command that is to be written.
func (m *mailbox) reserve(device string, size int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.boxes[device]; x != nil && len(x.items) >= maxMailDevice {
		return errMailboxFull
	}
	if m.count >= maxMail || m.bytes+size > maxMailBytes {
		m.b.o.Health.For("").Set(&MailboxesFull, "")
		return errMailboxFull
	}
	m.count++
	m.bytes += size
	return nil
}

// remove deletes a command of a device that is being served.
func (m *mailbox) remove(device string, seq uint64) error {
	err := m.b.store.db.Update(func(tx *bolt.Tx) error {
		mail := tx.Bucket(bucketMail).Bucket([]byte(device))
		if mail == nil {
			return nil
		}
		return mail.Delete(binary.BigEndian.AppendUint64(nil, seq))
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.boxes[device]
	x.items = slices.DeleteFunc(x.items, func(it mailItem) bool {
		if it.seq != seq {
			return false
		}
		m.count--
		m.bytes -= it.size
		return true
	})
	m.b.o.Health.For("").Clear(&MailboxesFull)
	return nil
}

func (m *mailbox) read(device string, seq uint64) (c command, err error) {
	err = m.b.store.db.View(func(tx *bolt.Tx) error {
		if mail := tx.Bucket(bucketMail).Bucket([]byte(device)); mail != nil {
			if v := mail.Get(binary.BigEndian.AppendUint64(nil, seq)); v != nil {
				return json.Unmarshal(v, &c)
			}
		}
		return errors.New("it is gone")
	})
	return c, err
}

// awake has the device served. It waits for no disk.
func (m *mailbox) awake(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.boxes[device]
	switch {
	case x == nil:
	case x.busy:
		x.again = true
	default:
		x.awake = true
		m.schedule(device, x)
	}
}

// follow has a command served that was to wait behind others and finds itself alone: they have gone out meanwhile, so the device is there.
func (m *mailbox) follow(device string) {
	m.mu.Lock()
	x := m.boxes[device]
	alone := x != nil && len(x.items) == 1
	m.mu.Unlock()
	if alone {
		m.awake(device)
	}
}

// schedule puts a device into ready; the caller holds mu.
func (m *mailbox) schedule(device string, x *box) {
	x.busy = true
	m.ready = append(m.ready, device)
	signal(m.work)
}

// expire has those devices served for which a command has expired.
func (m *mailbox) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for device, x := range m.boxes {
		if !x.busy && m.late(x, now) >= 0 {
			m.schedule(device, x)
		}
	}
}

// late gives the index of an item that has expired, -1 where there is none.
func (m *mailbox) late(x *box, now time.Time) int {
	return slices.IndexFunc(x.items, func(it mailItem) bool { return m.b.ended(it.taken, it.expires, now) })
}

// next gives a device that is to be served, waiting until there is one; it is false when ctx has ended.
func (m *mailbox) next(ctx context.Context) (string, bool) {
	for {
		m.mu.Lock()
		if n := len(m.ready); n > 0 {
			device := m.ready[0]
			m.ready = m.ready[1:]
			if n > 1 {
				signal(m.work)
			}
			m.mu.Unlock()
			return device, true
		}
		m.mu.Unlock()
		select {
		case <-m.work:
		case <-ctx.Done():
			return "", false
		}
	}
}

// serve serves devices until ctx ends.
func (m *mailbox) serve(ctx context.Context) {
	for {
		device, ok := m.next(ctx)
		if !ok {
			return
		}
		for m.one(ctx, device) {
		}
		m.mu.Lock()
		x := m.boxes[device]
		x.busy, x.awake, x.again = false, x.again, false
		if len(x.items) == 0 {
			delete(m.boxes, device)
		} else if x.awake {
			m.schedule(device, x)
		}
		m.mu.Unlock()
	}
}

// one settles a command that has expired or, where the device is awake, its first; it is false where there is none or the
// device did not take it.
func (m *mailbox) one(ctx context.Context, device string) bool {
	now := m.b.o.Now()
	m.mu.Lock()
	x := m.boxes[device]
	i := m.late(x, now)
	if i < 0 && (!x.awake || len(x.items) == 0) {
		m.mu.Unlock()
		return false
	}
	seq := x.items[max(i, 0)].seq
	m.mu.Unlock()

	st := m.b.state.Load()
	c, err := m.read(device, seq)
	c.Message.Expires = corrected(m.b.o.Correct, c.Message.Time, c.Message.Expires)
	var reply msg.Reply
	switch {
	case err != nil:
		return m.remove(device, seq) == nil
	case i >= 0:
		reply = msg.Reply{Status: msg.Refused, Code: "expired"}
	case st.s.Policy == nil || !st.s.Policy.Commandable(c.Connector, device, st.groups(device), c.Message.Resource):
		reply = msg.Reply{Status: msg.Refused, Code: "denied"}
	default:
		code := ""
		if c.Sealed != nil {
			if code, err = m.b.reopen(ctx, st, &c); err != nil || code == keyUnavailable {
				return false
			}
		}
		if code != "" {
			reply = msg.Reply{Status: msg.Refused, Code: code}
		} else if reply, err = m.b.toDevice(ctx, st, &c.Message); err != nil {
			return false
		}
	}
	// First the reply, then the removal: a crash between repeats the command, it does not lose the reply.
	if _, err := m.b.finish(ctx, c, reply); err != nil {
		return false
	}
	return m.remove(device, seq) == nil
}
