package coap

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/slots"
)

// Associations are kept in a file, so that devices go on after a restart, a kill -9 or a power cut without a handshake. What changes with each
// record is a few words of the file's memory: the highest sequence number that was accepted is stored before the record is acted upon; of
// those to send, some thousands are reserved ahead and none is used that is not reserved on disk.
//
// After a power cut the words may be older than what was last accepted. Then the first request must prove that it is
// fresh, by an Echo (RFC 9175); a device that cannot must make a new handshake. The message ids of the last requests are words, too, written
// before the answer goes out. What else survives, the package's documentation says.

// The words of a slot.
const (
	wordSent     = iota // sequence numbers below it may have been used
	wordReceived        // those below it have been accepted
	wordSeen            // when the device was heard last, Unix nanoseconds
	wordAddrHigh
	wordAddrLow
	wordPort
	wordExchanges // and those after it: the last confirmable messages that were answered

	keptExchanges = slots.Words - wordExchanges
)

const (
	reserve  = 4096
	keepFile = "associations"
	keepKey  = "associations.key"
	noSlot   = -1
	// An association ends after some requests without a proof of freshness, but not so soon that who replays them could end it
	// before the device has spoken.
	echoTries = 3
	echoFor   = 30 * time.Second
)

// kept is what a slot holds beside its words. The numbers are its format on disk.
type kept struct {
	Suite      uint16         `cbor:"1,keyasint"`
	Keys       []byte         `cbor:"2,keyasint"`
	CID        []byte         `cbor:"3,keyasint,omitempty"`
	OutCID     []byte         `cbor:"4,keyasint,omitempty"`
	Verify     []byte         `cbor:"5,keyasint"`
	FinSeq     uint16         `cbor:"6,keyasint"`
	Device     string         `cbor:"7,keyasint"`
	Method     string         `cbor:"8,keyasint"`
	Credential string         `cbor:"9,keyasint"`
	Groups     []string       `cbor:"10,keyasint,omitempty"`
	Expires    int64          `cbor:"11,keyasint,omitempty"` // Unix seconds
	Sleepy     bool           `cbor:"12,keyasint,omitempty"`
	Since      int64          `cbor:"13,keyasint"`
	Observed   []keptObserved `cbor:"14,keyasint,omitempty"`
}

type keptObserved struct {
	Resource string `cbor:"1,keyasint"`
	Token    []byte `cbor:"2,keyasint"`
	Seq      uint32 `cbor:"3,keyasint"`
}

// openKept opens the file under a key that the chip has sealed.
func (l *listener) openKept(ctx context.Context) (*slots.File, error) {
	name := l.cfg.StateKey
	if name == "" {
		name = l.cfg.Key
	}
	if name == "" {
		return nil, errors.New("no key is named to seal it: set state_key")
	}
	sealer, err := l.env.Keys.Sealer(ctx, name)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(l.env.State)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	aad := []byte("drawbridge coap associations\x00" + l.env.Name)
	sealed, err := root.ReadFile(keepKey)
	switch {
	case err == nil:
		key, err := sealer.Unseal(ctx, sealed, aad)
		if err == nil && len(key) == 32 {
			return slots.Open(root, keepFile, key)
		}
		l.env.Log.Warn("associations are sealed by another key and are dropped", "err", err)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	key := make([]byte, 32)
	rand.Read(key)
	if sealed, err = sealer.Seal(ctx, key, aad); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := writeFile(root, keepKey, sealed); err != nil {
		return nil, err
	}
	return slots.Open(root, keepFile, key)
}

// writeFile replaces a file as a whole.
func writeFile(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := root.Rename(name+".new", name); err != nil {
		return err
	}
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// restore takes up the associations of the last run.
func (l *listener) restore(ctx context.Context) {
	if l.dtls == nil {
		return
	}
	file, err := l.openKept(ctx)
	if err != nil {
		l.env.Health.Fail(&notKept, err)
		return
	}
	l.env.Health.Clear(&notKept)
	began := time.Now()
	var drop []int
	t := l.begin(time.Now())
	l.file = file
	known := map[[12]byte]*session{}
	for i, b := range file.All {
		if !l.revive(ctx, t, known, i, b) {
			drop = append(drop, i)
		}
	}
	for _, i := range drop {
		file.Free(i)
	}
	n := l.count.sessions.Load()
	l.end(t)
	if err := file.Sync(); err != nil {
		l.env.Health.Fail(&notKept, err)
	}
	t = l.begin(time.Now())
	for _, list := range l.byDevice {
		for _, s := range list {
			s.conn.Reserve(file.Word(s.slot, wordSent))
		}
	}
	l.end(t)
	l.count.restored.Add(n)
	l.env.Log.Info("associations restored", "count", n, "dropped", len(drop), "took", time.Since(began).Round(time.Millisecond), "after_power_cut", n > 0 && file.Rebooted())
}

// revive makes one association again; false where it is of no use any more. known holds those that it has made, by their verify_data.
func (l *listener) revive(ctx context.Context, t *turn, known map[[12]byte]*session, slot int, b []byte) bool {
	var k kept
	if err := cbor.Unmarshal(b, &k); err != nil || len(k.Verify) != 12 {
		return false
	}
	id := auth.Identity{Device: k.Device, Method: k.Method, Credential: k.Credential, Groups: k.Groups, Sleepy: k.Sleepy}
	if k.Expires != 0 {
		id.Expires = time.Unix(k.Expires, 0)
	}
	if r, ok := l.env.Auth.(auth.Refresher); ok {
		fresh, err := r.Refresh(ctx, id)
		switch {
		case errors.Is(err, auth.ErrUnknown) || err == nil && fresh.Device != id.Device:
			return false
		case err == nil:
			id = fresh
		}
	}
	seen := time.Unix(0, int64(l.file.Word(slot, wordSeen)))
	if t.now.Sub(seen) > time.Duration(l.cfg.IdleTimeout) || !id.Expires.IsZero() && t.time().After(id.Expires) {
		return false
	}
	state := dtls.State{Suite: k.Suite, Keys: k.Keys, CID: k.CID, OutCID: k.OutCID, Verify: k.Verify, FinSeq: k.FinSeq}
	sent, received := l.file.Word(slot, wordSent), l.file.Word(slot, wordReceived)
	// An association that was being written anew may be there twice. Of what either copy says was used, nothing may be used again.
	twin := known[[12]byte(k.Verify)]
	if twin != nil {
		sent, received = max(sent, twin.conn.Sent()), max(received, twin.conn.Received())
	}
	conn, err := dtls.Restore(state, sent, received)
	if err != nil {
		return false
	}
	if twin != nil {
		twin.conn = conn
		l.file.SetWord(twin.slot, wordSent, sent+reserve)
		l.file.SetWord(twin.slot, wordReceived, received)
		return false
	}
	var ip [16]byte
	binary.BigEndian.PutUint64(ip[:8], l.file.Word(slot, wordAddrHigh))
	binary.BigEndian.PutUint64(ip[8:], l.file.Word(slot, wordAddrLow))
	addr := netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), uint16(l.file.Word(slot, wordPort)))
	s := &session{conn: conn, addr: addr, id: &id, since: time.Unix(k.Since, 0), seen: seen, credit: unlimited, slot: slot, doubted: l.file.Rebooted()}
	for _, o := range k.Observed {
		s.speak().observed = append(s.talk.observed, &observation{resource: o.Resource, token: o.Token, seq: o.Seq + 1<<16, format: anyFormat})
	}
	l.recall(s, t.now)
	l.file.SetWord(slot, wordSent, sent+reserve)
	l.add(t, s)
	known[[12]byte(k.Verify)] = s
	return true
}

// keep writes an association anew, when it is made and when what it observes changes.
func (l *listener) keep(s *session) {
	if l.file == nil || s.conn == nil {
		return
	}
	st := s.conn.State()
	k := kept{
		Suite: st.Suite, Keys: st.Keys, CID: st.CID, OutCID: st.OutCID, Verify: st.Verify, FinSeq: st.FinSeq,
		Device: s.id.Device, Method: s.id.Method, Credential: s.id.Credential, Groups: s.id.Groups, Sleepy: s.id.Sleepy, Since: s.since.Unix(),
	}
	if !s.id.Expires.IsZero() {
		k.Expires = s.id.Expires.Unix()
	}
	if s.talk != nil {
		for _, o := range s.talk.observed {
			k.Observed = append(k.Observed, keptObserved{o.resource, o.token, o.seq})
		}
	}
	var words [slots.Words]uint64
	if s.slot == noSlot {
		s.conn.Reserve(reserve)
		words[wordSent] = reserve
	} else {
		words[wordSent] = l.file.Word(s.slot, wordSent)
	}
	words[wordReceived] = s.conn.Received()
	words[wordSeen] = uint64(s.seen.UnixNano())
	words[wordAddrHigh], words[wordAddrLow], words[wordPort] = addrWords(s.addr)
	if s.slot != noSlot {
		for i := range keptExchanges {
			words[wordExchanges+i] = l.file.Word(s.slot, wordExchanges+i)
		}
	}
	slot, err := l.put(&k, words)
	if err != nil {
		if s.slot == noSlot {
			s.conn.Reserve(1 << 48)
		}
		l.env.Health.Fail(&notKept, err)
		return
	}
	if s.slot != noSlot {
		l.file.Free(s.slot)
	}
	s.slot = slot
}

// put writes as much of k as there is room for: the association first, then its groups, then what it observes.
func (l *listener) put(k *kept, words [slots.Words]uint64) (slot int, err error) {
	for {
		b, err := cbor.Marshal(k)
		if err != nil {
			return 0, err
		}
		slot, err := l.file.Put(b, words)
		switch {
		case !errors.Is(err, slots.ErrTooLong):
			return slot, err
		case len(k.Observed) > 0:
			k.Observed = k.Observed[:len(k.Observed)-1]
		case len(k.Groups) > 0:
			k.Groups = nil // Refresh finds them again
		default:
			return 0, err
		}
	}
}

func addrWords(a netip.AddrPort) (high, low, port uint64) {
	ip := a.Addr().As16()
	return binary.BigEndian.Uint64(ip[:8]), binary.BigEndian.Uint64(ip[8:]), uint64(a.Port())
}

// noteReceived stores, before a record is acted upon, that it has been accepted.
func (l *listener) noteReceived(s *session, moved bool) {
	if l.file == nil || s.slot == noSlot {
		return
	}
	l.file.SetWord(s.slot, wordReceived, s.conn.Received())
	l.file.SetWord(s.slot, wordSeen, uint64(s.seen.UnixNano()))
	if moved {
		high, low, port := addrWords(s.addr)
		l.file.SetWord(s.slot, wordAddrHigh, high)
		l.file.SetWord(s.slot, wordAddrLow, low)
		l.file.SetWord(s.slot, wordPort, port)
	}
}

// noteAnswered stores that a confirmable request was answered or a notification acknowledged, so that its repetition is known after a restart.
func (l *listener) noteAnswered(s *session, e *exchange, now time.Time) {
	if l.file == nil || s.slot == noSlot {
		return
	}
	l.file.SetWord(s.slot, wordExchanges+int(s.keptAt), uint64(e.mid)<<48|uint64(e.code)<<40|uint64(uint32(now.Unix())))
	s.keptAt = (s.keptAt + 1) % keptExchanges
}

// recall takes up what noteAnswered has stored.
func (l *listener) recall(s *session, now time.Time) {
	var ages [keptExchanges]int64
	for i := range ages {
		ages[i] = math.MaxInt64 // none
		if word := l.file.Word(s.slot, wordExchanges+i); word != 0 {
			ages[i] = max(0, int64(int32(uint32(now.Unix())-uint32(word))))
		}
	}
	for range ages {
		i := 0 // the oldest
		for j, age := range ages {
			if age > ages[i] {
				i = j
			}
		}
		if age := ages[i]; age >= 0 && age < exchangeLifetime {
			word := l.file.Word(s.slot, wordExchanges+i)
			s.note(exchange{at: l.seconds(now) - uint32(age), mid: uint16(word >> 48), code: uint8(word >> 40), state: answered})
		}
		ages[i] = -1
		s.keptAt = uint8(i+1) % keptExchanges
	}
}

// reserveAhead asks for more sequence numbers while there are still enough to go on with.
func (l *listener) reserveAhead(s *session) {
	if l.file == nil || s.slot == noSlot || s.reserving || s.conn.Limit()-s.conn.Sent() > reserve/2 {
		return
	}
	s.reserving = true
	l.file.SetWord(s.slot, wordSent, s.conn.Limit()+reserve)
	l.reserves = append(l.reserves, s)
	select {
	case l.syncs <- struct{}{}:
	default:
	}
}

// syncKept makes the file outlive a power cut: at once where numbers are reserved, else every second.
func (l *listener) syncKept(ctx context.Context) {
	if l.file == nil {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var seen int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.syncs:
		case <-ticker.C:
		}
		l.mu.Lock()
		list := l.reserves
		l.reserves = nil
		l.mu.Unlock()
		n := l.count.datagramsIn.Load()
		if n == seen && len(list) == 0 {
			continue
		}
		seen = n
		if err := l.file.Sync(); err != nil {
			l.env.Health.Fail(&notKept, err)
		}
		l.mu.Lock()
		for _, s := range list {
			s.reserving = false
			if !s.dead && s.slot != noSlot {
				s.conn.Reserve(l.file.Word(s.slot, wordSent))
			}
		}
		l.mu.Unlock()
	}
}

// dropKept forgets an association on disk.
func (l *listener) dropKept(s *session) {
	if l.file != nil && s.slot != noSlot {
		l.file.Free(s.slot)
		s.slot = noSlot
	}
}

// fresh tells whether a request may be acted upon. While it is open whether it is a replay, it is answered by a challenge that only the
// device itself can answer, inside the association.
func (t *turn) fresh(s *session, p *packet) bool {
	if !s.doubted {
		return true
	}
	if v, ok := p.option(echo); ok && len(s.challenge) > 0 && bytes.Equal(v, s.challenge) {
		s.doubted, s.challenge, s.tries = false, nil, 0
		return true
	}
	if s.challenge == nil {
		s.challenge, s.challenged = make([]byte, 8), t.now
		rand.Read(s.challenge)
	}
	if s.tries++; s.tries > echoTries && t.now.Sub(s.challenged) > echoFor {
		t.bye(s)
		return false
	}
	t.say(s, p, codes.Unauthorized, nil, message.Option{ID: echo, Value: s.challenge})
	return false
}
