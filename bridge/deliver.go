package bridge

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

// commandTime bounds how long a device may take for one command.
const commandTime = time.Minute

// downlink is what a connector's session gives commands to.
type downlink struct {
	b         *Bridge
	connector string
	topics    []string
}

var _ northbound.Downlink = (*downlink)(nil)

func (d *downlink) Topics() []string { return d.topics }

// Deliver carries out a command: see northbound.Downlink. The codes of refusals are "no-route", "bad-topic", "denied", "bad-payload",
// "expired", "not-connected", "no-answer" and "mailbox-full". A reply goes to the response topic that the publication names, else
// to the topic of the route's reply; a command that is put in a mailbox is replied to when it leaves it. A publication with an
// ID that was delivered within ten minutes gets the outcome of the first again.
func (d *downlink) Deliver(ctx context.Context, p msg.Publication) (msg.Reply, error) {
	d.b.count.commands.Add(1)
	if p.ID == (msg.ID{}) {
		return d.deliver(ctx, p)
	}
	return d.b.recent.once(ctx, recentKey{d.connector, p.ID}, d.b.o.Now, func() (msg.Reply, error) { return d.deliver(ctx, p) })
}

// command is a message for a device and where its reply goes. It is what a mailbox keeps.
type command struct {
	Message     msg.Message `json:"message"`
	Connector   string      `json:"connector"`
	Route       string      `json:"route"`
	ReplyTo     string      `json:"reply_to,omitempty"`
	Correlation []byte      `json:"correlation,omitempty"`

	Sealed []byte         `json:"sealed,omitempty"` // the envelope that it came in; nil: none
	Seal   config.Sealing `json:"seal,omitzero"`    // of the reply
	opened openedKey      // by which a sealed command is known again; zero: it was not sealed
}

func (d *downlink) deliver(ctx context.Context, p msg.Publication) (msg.Reply, error) {
	st, now := d.b.state.Load(), d.b.o.Now()
	c, code, err := d.command(ctx, st, p, now)
	if err != nil {
		return msg.Reply{}, err
	}
	reply, err := d.carryOut(ctx, st, c, code)
	if c.opened != (openedKey{}) {
		if e := d.b.opened.end(c.opened, err == nil); e != nil {
			d.b.o.Log.Warn("a sealed command is remembered until the next start only", "route", c.Route, "err", e)
		}
	}
	return reply, err
}

// carryOut sends a command to its device or mailbox, or refuses it with the code.
func (d *downlink) carryOut(ctx context.Context, st *state, c command, code string) (msg.Reply, error) {
	if code != "" {
		return d.b.finish(ctx, c, msg.Reply{Status: msg.Refused, Code: code})
	}
	sleepy := st.s.Table.devices[c.Message.Device].sleepy
	if sleepy && d.b.mail.has(c.Message.Device) {
		reply, err := d.b.post(ctx, c) // behind those that are waiting
		d.b.mail.follow(c.Message.Device)
		return reply, err
	}
	reply, err := d.b.toDevice(ctx, st, &c.Message)
	switch {
	case err == nil:
		return d.b.finish(ctx, c, reply)
	case ctx.Err() != nil:
		return msg.Reply{}, context.Cause(ctx)
	case sleepy:
		reply, failed := d.b.post(ctx, c)
		if errors.Is(err, southbound.ErrNotHere) {
			d.b.mail.awake(c.Message.Device) // it may have come between the attempt and the mailbox
		}
		return reply, failed
	case errors.Is(err, southbound.ErrNotHere):
		return d.b.finish(ctx, c, msg.Reply{Status: msg.Refused, Code: "not-connected"})
	}
	return d.b.finish(ctx, c, msg.Reply{Status: msg.Refused, Code: "no-answer"})
}

// command makes the command that a publication stands for. With a code, it is refused, and c holds what the reply needs.
// The error is the end of ctx.
func (d *downlink) command(ctx context.Context, st *state, p msg.Publication, now time.Time) (c command, code string, err error) {
	c = command{Connector: d.connector, ReplyTo: p.ResponseTopic, Correlation: p.Correlation}
	if _, err := parseTemplate(p.ResponseTopic, nil); err != nil || st.s.Table.commands(d.connector, p.ResponseTopic) {
		c.ReplyTo = "" // it is not a topic's name, or the reply would come back as a command, and so on for ever
	}
	r, captured := st.s.Table.downlink(d.connector, p.Topic)
	if r == nil {
		return c, "no-route", nil
	}
	device, _ := captured.get("device")
	c.Route, c.Message.Device, c.Seal = r.name, device, r.seal
	path, err := r.fill(r.resource, st.s.Table.gateway, "", captured)
	if err != nil {
		return c, "bad-topic", nil
	}
	resource := "/" + path
	c.Message.Resource = resource
	if c.ReplyTo == "" && r.reply != nil {
		if c.ReplyTo, err = r.fill(r.reply, st.s.Table.gateway, resource, captured); err != nil || st.s.Table.commands(d.connector, c.ReplyTo) {
			c.ReplyTo = ""
			return c, "bad-topic", nil
		}
	}
	if st.s.Policy == nil || !st.s.Policy.Commandable(d.connector, device, st.groups(device), resource) {
		return c, "denied", nil
	}
	if r.seals() {
		c.Sealed = p.Payload
		if c.opened, code, err = d.b.unseal(ctx, st, r, device, resource, &p, now); err != nil || code != "" {
			return c, code, err
		}
	}
	typ, payload, err := r.pipeline.Apply(transform.Input{Type: p.Type, Data: p.Payload, Time: now, Device: device, Resource: resource})
	if err != nil {
		return c, "bad-payload", nil
	}
	c.Message = msg.Message{
		ID: p.ID, Time: now, Expires: earliest(p.Expires, r.ttl, now), Device: device,
		Method: r.method, Resource: resource, Type: typ, Payload: payload, WantReply: c.ReplyTo != "",
	}
	if c.Message.ID == (msg.ID{}) {
		c.Message.ID = msg.NewID(now)
	}
	if expired(c.Message.Expires, now) {
		return c, "expired", nil
	}
	return c, "", nil
}

// groups gives what is known of a device's groups: those of the configuration, those that it has shown when it reported,
// and, where nothing is known at all, those of its session.
func (st *state) groups(device string) []string {
	known, configured := st.s.Table.devices[device]
	shown, seen := st.known.get(device)
	if !configured && !seen {
		for _, l := range st.s.Listeners {
			if inv, ok := l.(southbound.Inventory); ok {
				inv.Devices(func(i southbound.DeviceInfo) bool {
					if i.Device == device {
						shown, seen = i.Groups, true
					}
					return !seen
				})
			}
		}
		if seen {
			st.known.learn(device, shown)
		}
	}
	return unite(known.groups, shown)
}

// toDevice hands m to the listener that has the device.
func (b *Bridge) toDevice(ctx context.Context, st *state, m *msg.Message) (msg.Reply, error) {
	limit := commandTime
	if !m.Expires.IsZero() {
		limit = min(limit, m.Expires.Sub(b.o.Now()))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, name := range slices.Sorted(maps.Keys(st.s.Listeners)) {
		reply, err := st.s.Listeners[name].Deliver(ctx, *m)
		if !errors.Is(err, southbound.ErrNotHere) {
			return reply, err
		}
	}
	return msg.Reply{}, southbound.ErrNotHere
}

// post puts a command into its device's mailbox, a sealed one as it came.
func (b *Bridge) post(ctx context.Context, c command) (msg.Reply, error) {
	if c.Sealed != nil {
		c.Message.Type, c.Message.Payload = "", nil
	}
	err := b.mail.put(c)
	switch {
	case err == nil:
		return msg.Reply{Status: msg.Queued, Code: "queued"}, nil
	case errors.Is(err, errMailboxFull):
		return b.finish(ctx, c, msg.Reply{Status: msg.Refused, Code: "mailbox-full"})
	}
	return msg.Reply{}, err
}

// finish puts the reply, where somebody wants one, into the queue of the connector that the command came from. The command has
// had its effect, so a reply that finds no room is counted and reported, and the command counts as settled all the same.
func (b *Bridge) finish(ctx context.Context, c command, reply msg.Reply) (msg.Reply, error) {
	reply = b.sealReply(ctx, &c, reply) // also for a connector that answers on the wire itself
	if c.ReplyTo == "" {
		return reply, nil
	}
	now := b.o.Now()
	p := msg.Publication{
		Device: c.Message.Device, Topic: c.ReplyTo, Type: reply.Type, QoS: 1, Payload: reply.Payload, Correlation: c.Correlation,
		Properties: map[string]string{propertyStatus: reply.Status.String(), propertyCode: reply.Code},
	}
	route := c.Route
	if route == "" {
		route = replyRoute
	}
	r := spool.Record{ID: msg.NewID(now), Time: now, Route: route, To: []string{c.Connector}, Data: appendRecord(nil, &p, false)}
	stored := make(chan error, 1)
	b.queue.Append(spool.Normal, &r, func(_ spool.Pos, err error) { stored <- err })
	select {
	case err := <-stored:
		if err != nil {
			b.count.replyLost.Add(1)
			b.o.Health.For("").Set(&RepliesLost, err.Error())
		}
		return reply, nil
	case <-ctx.Done():
		return reply, context.Cause(ctx)
	}
}

// replyRoute is the route of replies to commands that no route took.
const replyRoute = "reply"

// recentCommands remembers the outcome of commands by their publication, so that one that the cloud sends again is not
// carried out again. It does so in memory alone: after a restart a command may be carried out twice.
type recentCommands struct {
	mu    sync.Mutex
	m     map[recentKey]*outcome // guarded by mu
	queue []recentKey            // guarded by mu; oldest first
}

type recentKey struct {
	connector string
	id        msg.ID
}

type outcome struct {
	at    time.Time
	ready chan struct{} // closed when reply and err are set
	reply msg.Reply
	err   error
}

const (
	recentTime  = 10 * time.Minute
	maxRecent   = 4096
	recentBytes = 4096 // of a reply's payload that is remembered
)

// once calls f unless it has been called for the key, in which case it waits for that outcome. One that was an error is forgotten.
func (r *recentCommands) once(ctx context.Context, k recentKey, now func() time.Time, f func() (msg.Reply, error)) (msg.Reply, error) {
	r.mu.Lock()
	if o := r.m[k]; o != nil {
		r.mu.Unlock()
		select {
		case <-o.ready:
			return o.reply, o.err
		case <-ctx.Done():
			return msg.Reply{}, context.Cause(ctx)
		}
	}
	o := &outcome{at: now(), ready: make(chan struct{})}
	if r.m == nil {
		r.m = map[recentKey]*outcome{}
	}
	r.m[k] = o
	r.queue = append(r.queue, k)
	for len(r.queue) > maxRecent {
		r.dropFirst()
	}
	r.mu.Unlock()
	defer close(o.ready)
	reply, err := f()
	o.reply, o.err = reply, err
	if len(reply.Payload) > recentBytes {
		o.reply.Payload = nil
	}
	if err != nil {
		r.mu.Lock()
		if r.m[k] == o {
			delete(r.m, k)
			r.queue = slices.DeleteFunc(r.queue, func(q recentKey) bool { return q == k })
		}
		r.mu.Unlock()
	}
	return reply, err
}

func (r *recentCommands) dropFirst() {
	delete(r.m, r.queue[0])
	r.queue = r.queue[1:]
}

func (r *recentCommands) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 && now.Sub(r.m[r.queue[0]].at) > recentTime {
		r.dropFirst()
	}
}
