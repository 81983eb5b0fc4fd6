package mqtt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// replyWait is how long a device may take to publish its reply after it has acknowledged a command.
const replyWait = 2 * time.Second

// replyPrefix begins the response topic of a command; the rest is the command's id. replySuffix makes the topic on which a device
// that knows no response topics answers.
const (
	replyPrefix = "$drawbridge/reply/"
	replySuffix = "/reply"
)

// device is what all sessions of one device share. It exists as long as a session does.
type device struct {
	name string

	outstanding atomic.Int32 // len(commands), to be looked at without the lock

	mu       sync.Mutex
	sessions []*session // guarded by mu
	commands []*command // guarded by mu: those that wait for a reply or an acknowledgement
	rate     bucket     // guarded by mu: of publishes
}

func (d *device) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sessions)
}

// mayPublish tells whether the device is within its rate.
func (d *device) mayPublish(perSecond int) bool {
	if perSecond == 0 {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rate.take(time.Now(), perSecond)
}

// command is one message on its way to a device.
type command struct {
	topic  string
	reply  string       // response topic
	events chan event   // never full: see Deliver
	copies atomic.Int32 // sessions that may still acknowledge it
}

type event struct {
	code  packet.Code
	reply *msg.Reply // what the device published
	lost  bool       // no session is left that could acknowledge
}

func (k *command) tell(e event) {
	select {
	case k.events <- e:
	default: // enough is known
	}
}

// acknowledged and lost are called by a session for its copy, once.
func (k *command) acknowledged(code packet.Code) { k.tell(event{code: code}) }

func (k *command) lost() {
	if k.copies.Add(-1) == 0 {
		k.tell(event{lost: true})
	}
}

// errLost is the outcome of a command whose connection ended first: the device may have heard it.
var errLost = errors.New("the connection ended before the device acknowledged")

// Deliver implements southbound.Listener. The command is published to those sessions of the device that are connected here and have
// a subscription that matches; the first acknowledgement is the outcome. It is not kept for later.
func (l *listener) Deliver(ctx context.Context, m msg.Message) (msg.Reply, error) {
	d := l.broker.device(m.Device)
	if d == nil {
		return msg.Reply{}, southbound.ErrNotHere
	}
	k := &command{topic: strings.TrimPrefix(m.Resource, "/"), reply: replyPrefix + m.ID.String(), events: make(chan event, 8)}
	d.add(k)
	defer d.remove(k)
	here, ready, sleepy := d.publish(l, k, &m)
	switch {
	case here == 0, ready == 0 && sleepy: // a sleepy device is about to subscribe: the mailbox keeps the command until then
		return msg.Reply{}, southbound.ErrNotHere
	case ready == 0:
		return msg.Reply{Status: msg.Refused, Code: "not-subscribed"}, nil
	}
	l.count.commands.Add(1)
	return k.wait(ctx, m.WantReply)
}

// wait gives the outcome: the reply where one is wanted and comes in time, else the acknowledgement.
func (k *command) wait(ctx context.Context, wantReply bool) (msg.Reply, error) {
	done := msg.Reply{Status: msg.Done}
	var late <-chan time.Time
	for {
		select {
		case e := <-k.events:
			switch {
			case e.reply != nil:
				return *e.reply, nil
			case e.lost && late != nil:
				return done, nil
			case e.lost:
				return msg.Reply{}, errLost
			case e.code >= packet.UnspecifiedError:
				return msg.Reply{Status: msg.Refused, Code: reasonOf(e.code)}, nil
			case !wantReply:
				return done, nil
			case late == nil:
				late = time.After(replyWait)
			}
		case <-late:
			return done, nil
		case <-ctx.Done():
			if late != nil {
				return done, nil
			}
			return msg.Reply{}, context.Cause(ctx)
		}
	}
}

func (d *device) add(k *command) {
	d.mu.Lock()
	d.commands = append(d.commands, k)
	d.outstanding.Store(int32(len(d.commands)))
	d.mu.Unlock()
}

func (d *device) remove(k *command) {
	d.mu.Lock()
	d.commands = slices.DeleteFunc(d.commands, func(o *command) bool { return o == k })
	d.outstanding.Store(int32(len(d.commands)))
	d.mu.Unlock()
}

// publish sends k to the device's sessions at l. It tells how many are connected, how many of those are subscribed, and whether the device sleeps.
func (d *device) publish(l *listener, k *command, m *msg.Message) (here, ready int, sleepy bool) {
	d.mu.Lock()
	sessions := slices.Clone(d.sessions)
	d.mu.Unlock()
	message := &message{topic: k.topic, payload: slices.Clone(m.Payload), qos: 2, expires: m.Expires, props: commandProps(k, m)}
	k.copies.Store(1) // held until all have been told
	for _, s := range sessions {
		s.mu.Lock()
		if s.conn != nil && s.conn.l == l && s.conn.end.Load() == nil {
			here++
			sleepy = sleepy || s.conn.ident.Load().Sleepy
			if level, ids, ok := s.hears(k.topic); ok {
				ready++
				k.copies.Add(1)
				if !s.enqueue(&outgoing{message: message, level: level, ids: ids, command: k}) {
					k.lost()
				}
			}
		}
		s.mu.Unlock()
	}
	k.lost()
	return here, ready, sleepy
}

func commandProps(k *command, m *msg.Message) *packet.Properties {
	p := &packet.Properties{}
	if m.Type != "" {
		p.ContentType = []byte(m.Type)
		p.Has.Add(packet.ContentType)
	}
	if m.WantReply {
		p.ResponseTopic, p.Correlation = []byte(k.reply), m.ID[:]
		p.Has.Add(packet.ResponseTopic)
		p.Has.Add(packet.Correlation)
	}
	if m.Method != "" {
		p.User = []packet.UserProperty{{Name: []byte("method"), Value: []byte(m.Method)}}
		p.Has.Add(packet.User)
	}
	return p
}

// hears tells whether a subscription of the session matches, with which QoS and which identifiers.
func (s *session) hears(topic string) (level byte, ids []uint32, ok bool) { // s.mu held
	for _, sub := range s.subs {
		if !matches(sub.pattern(), topic) {
			continue
		}
		ok = true
		level = max(level, sub.qos)
		if sub.id != 0 {
			ids = append(ids, sub.id)
		}
	}
	slices.Sort(ids)
	return level, ids, ok
}

// answered tells whether p is the device's reply to a command that waits, and hands it over.
func (d *device) answered(c *conn, p *packet.PublishPacket) bool {
	if d.outstanding.Load() == 0 {
		return false
	}
	topic := c.topic.topic
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.commands {
		if topic != k.reply && topic != k.topic+replySuffix {
			continue
		}
		k.tell(event{reply: &msg.Reply{Status: msg.Done, Type: mediaType(&p.Props), Payload: slices.Clone(p.Payload)}})
		return true
	}
	return false
}
