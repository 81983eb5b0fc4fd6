package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/drawbridge/drawbridge/bridge/transform"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
)

var errNoKeys = errors.New("there are no keys to seal by")

// clockSkew is how far the clock of whoever seals commands may be ahead of ours.
const clockSkew = 2 * time.Minute

// chipRetry is how long a command waits between two attempts to open it by a chip that is in trouble.
const chipRetry = 500 * time.Millisecond

// unseal opens a command of a route whose commands are sealed, puts its payload in the place of the envelope, and gives by what it will be
// known again. The code of one that is refused is "bad-seal" where it is not authentic or not meant for this gateway, device and
// resource, "expired" where it is older than the route's ttl, "replayed" where it has been here, and "key-unavailable" where the chip
// does not open it within commandTime. The error is the end of ctx.
func (b *Bridge) unseal(ctx context.Context, st *state, r *downRoute, device, resource string, p *msg.Publication, now time.Time) (key openedKey, code string, err error) {
	e, code, err := b.openEnvelope(ctx, st, r, device, resource, p.Payload)
	if err != nil || code != "" {
		return key, code, err
	}
	end := e.Time.Add(r.ttl)
	if !e.Expires.IsZero() && e.Expires.Before(end) {
		end = e.Expires
	}
	switch {
	case e.Time.Sub(now) > clockSkew:
		return key, "bad-seal", nil
	case expired(end, now):
		return key, "expired", nil
	}
	key = openedKeyOf(r, &e)
	if !b.opened.begin(key, end.Add(clockSkew)) {
		return openedKey{}, "replayed", nil
	}
	if p.Expires.IsZero() || end.Before(p.Expires) {
		p.Expires = end
	}
	p.Type, p.Payload = e.Type, e.Payload
	return key, "", nil
}

// seals tells whether commands of the route come in envelopes.
func (r *downRoute) seals() bool { return r.unseal != "" || r.signedBy != "" }

// openEnvelope opens a command, which is authentic and for this gateway, device and resource where there is no code.
func (b *Bridge) openEnvelope(ctx context.Context, st *state, r *downRoute, device, resource string, sealed []byte) (e msg.Envelope, code string, err error) {
	err = b.patiently(ctx, unsealing(r.unseal), func() (err error) {
		switch {
		case b.o.Envelopes == nil:
			return errNoKeys
		case r.unseal != "":
			e, err = b.o.Envelopes.Unprotect(ctx, r.unseal, sealed)
		default:
			e, err = b.o.Envelopes.Verify(ctx, r.signedBy, sealed)
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
		return e, "", context.Cause(ctx)
	case msg.IsPermanent(err):
		return e, "bad-seal", nil
	case err != nil:
		b.o.Log.Warn("a command cannot be opened", "route", r.name, "err", err)
		return e, keyUnavailable, nil
	case e.ID == "" || e.Time.IsZero() || e.Audience != st.s.Table.gateway || e.Subject != msg.SubjectOf(device, resource):
		return e, "bad-seal", nil
	}
	return e, "", nil
}

const keyUnavailable = "key-unavailable"

// reopenTime is how long a mailbox waits for a chip: other devices are to be served, too.
const reopenTime = 10 * time.Second

// reopen opens a command that has waited in a mailbox: how old it may be and whether it has been here was seen to when it came.
func (b *Bridge) reopen(ctx context.Context, st *state, c *command) (code string, err error) {
	m := &c.Message
	r := st.s.Table.down(c.Connector, c.Route)
	if r == nil || !r.seals() {
		return "no-route", nil
	}
	ctx, cancel := context.WithTimeout(ctx, reopenTime)
	defer cancel()
	e, code, err := b.openEnvelope(ctx, st, r, m.Device, m.Resource, c.Sealed)
	if err != nil || code != "" {
		return code, err
	}
	m.Type, m.Payload, err = r.pipeline.Apply(transform.Input{Type: e.Type, Data: e.Payload, Time: m.Time, Device: m.Device, Resource: m.Resource})
	if err != nil {
		return "bad-payload", nil
	}
	return "", nil
}

// patiently calls f until its outcome is not a key's or chip's trouble, for commandTime at most, and shows that trouble.
func (b *Bridge) patiently(ctx context.Context, c config.Sealing, f func() error) error {
	end := time.NewTimer(commandTime)
	defer end.Stop()
	for {
		err := f()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c.Seal != "" && !msg.IsPermanent(err) {
			b.seals.note(c, err)
		}
		if err == nil || msg.IsPermanent(err) {
			return err
		}
		select {
		case <-time.After(chipRetry):
		case <-end.C:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sealReply seals the reply to a command of a route that wants it. One that cannot be sealed goes without what the device answered. A refusal
// without a payload says nothing that would have to be sealed.
func (b *Bridge) sealReply(ctx context.Context, c *command, reply msg.Reply) msg.Reply {
	if c.Seal.Seal == "" || reply.Status == msg.Refused && len(reply.Payload) == 0 {
		return reply
	}
	now := b.o.Now()
	e := msg.Envelope{ID: msg.NewID(now).String(), Issuer: b.state.Load().s.Table.gateway, Subject: msg.SubjectOf(c.Message.Device, c.Message.Resource),
		Time: now, Type: reply.Type, Payload: reply.Payload}
	err := b.patiently(ctx, c.Seal, func() (err error) {
		reply.Payload, reply.Type, err = b.protect(ctx, c.Seal, e)
		return err
	})
	if err != nil {
		reply.Payload, reply.Type, reply.Code = nil, "", "not-sealed"
	}
	return reply
}

// openedCommands remembers, on disk, which sealed commands have been carried out, until they are too old to come again.
type openedCommands struct {
	db *bolt.DB

	mu sync.Mutex
	m  map[openedKey]time.Time // guarded by mu; until when
}

type openedKey [16]byte

// maxOpened bounds the sealed commands that are remembered. Nobody but who seals them can fill it.
const maxOpened = 1 << 17

func openedKeyOf(r *downRoute, e *msg.Envelope) (k openedKey) {
	h := sha256.New()
	for _, s := range []string{r.unseal, r.signedBy, e.Issuer, e.ID} {
		h.Write(binary.AppendUvarint(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	copy(k[:], h.Sum(nil))
	return k
}

func openOpened(db *bolt.DB) (*openedCommands, error) {
	o := &openedCommands{db: db, m: map[openedKey]time.Time{}}
	return o, db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketOpened).ForEach(func(k, v []byte) error {
			if len(k) == len(openedKey{}) && len(v) == 8 {
				o.m[openedKey(k)] = time.Unix(int64(binary.BigEndian.Uint64(v)), 0)
			}
			return nil
		})
	})
}

// begin tells whether a command has not been here before, and remembers it. So many that there is no room count as known.
func (o *openedCommands) begin(k openedKey, until time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.m[k]; known || len(o.m) >= maxOpened {
		return false
	}
	o.m[k] = until
	return true
}

// end says how it went with a command that was begun: one that is settled is remembered across restarts, one that is not may come again.
func (o *openedCommands) end(k openedKey, settled bool) error {
	o.mu.Lock()
	until := o.m[k]
	if !settled {
		delete(o.m, k)
	}
	o.mu.Unlock()
	if !settled {
		return nil
	}
	return o.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketOpened).Put(k[:], binary.BigEndian.AppendUint64(nil, uint64(until.Unix())))
	})
}

// expire forgets what is too old to come again.
func (o *openedCommands) expire(now time.Time) error {
	var old []openedKey
	o.mu.Lock()
	for k, until := range o.m {
		if now.After(until) {
			old = append(old, k)
			delete(o.m, k)
		}
	}
	o.mu.Unlock()
	if len(old) == 0 {
		return nil
	}
	return o.db.Update(func(tx *bolt.Tx) error {
		for _, k := range old {
			if err := tx.Bucket(bucketOpened).Delete(k[:]); err != nil {
				return err
			}
		}
		return nil
	})
}
