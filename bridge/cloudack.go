package bridge

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// cloudAcks holds back the answer to devices on routes with ack = "cloud" until every connector has settled their message.
type cloudAcks struct {
	waiting atomic.Int64 // len(m), to be asked without the lock

	mu     sync.Mutex
	closed bool                 // guarded by mu
	m      map[msg.ID]*cloudAck // guarded by mu
	queue  []*cloudAck          // guarded by mu; in the order of their deadlines, settled ones included
}

type cloudAck struct {
	id       msg.ID
	missing  []string // connectors that have not confirmed
	deadline time.Time
	done     func(error)
}

// maxCloudAcks bounds the devices' messages that wait for a cloud.
const maxCloudAcks = 1 << 16

func (c *cloudAcks) add(id msg.ID, to []string, deadline time.Time, done func(error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return msg.Refuse(msg.Unavailable, "the gateway is stopping")
	}
	if len(c.m) >= maxCloudAcks {
		return &msg.Refusal{Reason: msg.Full, RetryAfter: fullRetry, Why: "too many messages wait for a cloud's confirmation"}
	}
	if c.m[id] != nil {
		return msg.Refuse(msg.Unavailable, "a message with this id is already waiting")
	}
	if c.m == nil {
		c.m = map[msg.ID]*cloudAck{}
	}
	a := &cloudAck{id, slices.Clone(to), deadline, done}
	c.m[id] = a
	c.queue = append(c.queue, a)
	c.waiting.Store(int64(len(c.m)))
	return nil
}

// settle says how a connector settled the message: nil where its cloud has confirmed it.
// An error, or the last confirmation, is the answer to the device.
func (c *cloudAcks) settle(id msg.ID, connector string, err error) {
	if c.waiting.Load() == 0 {
		return
	}
	c.mu.Lock()
	a := c.m[id]
	if a != nil {
		a.missing = slices.DeleteFunc(a.missing, func(s string) bool { return s == connector })
		if err == nil && len(a.missing) > 0 {
			a = nil
		}
	}
	if a != nil {
		c.drop(id)
	}
	c.mu.Unlock()
	if a != nil {
		a.done(err)
	}
}

func (c *cloudAcks) drop(id msg.ID) {
	delete(c.m, id)
	c.waiting.Store(int64(len(c.m)))
}

// expire answers those whose time is over.
func (c *cloudAcks) expire(now time.Time) {
	c.cut(func(a *cloudAck) bool { return now.Before(a.deadline) })
}

// closeAll answers all, and takes no more.
func (c *cloudAcks) closeAll() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cut(func(*cloudAck) bool { return false })
}

// cut answers from the front of the queue until keep says so.
func (c *cloudAcks) cut(keep func(*cloudAck) bool) {
	var late []*cloudAck
	c.mu.Lock()
	n := 0
	for _, a := range c.queue {
		if c.m[a.id] == a {
			if keep(a) {
				break
			}
			c.drop(a.id)
			late = append(late, a)
		}
		n++
	}
	c.queue = slices.Delete(c.queue, 0, n)
	c.mu.Unlock()
	for _, a := range late {
		a.done(msg.Refuse(msg.Unconfirmed, "no confirmation from %v in time; it may still arrive", a.missing))
	}
}
