package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// A message that a cloud cannot take must not hold up those behind it for ever, and a cloud that takes nothing for hours must not
// cost a single message. So when sessions fail again and again, messages are sent alone, then in pairs, to find out which of the two it
// is. One is given up only when it has failed alone maxStrikes times, and then maxProofs times where the one behind it was taken.
const (
	maxStrikes = 3
	maxProofs  = 3
	maxDeadRun = 100 // refusals for good without a confirmation between: the cloud refuses all, so what is queued is kept
	carefulFor = 64  // messages that are sent alone after maxStrikes sessions without a confirmation
	lookBehind = 16  // messages among which one of another device is sought
)

// probe is what a pump has found out about the message at the head of its queue. Only the task uses it.
type probe struct {
	barren  int    // sessions in a row that sent something and had nothing confirmed
	refused msg.ID // the message that the cloud did not take in the last session, and said so
	times   int    // sessions in a row for which that was so
	deadRun int    // messages in a row that the cloud refused for good
	careful int    // messages still to be sent alone

	suspect msg.ID // the message at the head
	strikes int    // sessions that it failed in
	proofs  int    // how often another was taken where it failed
	next    trial
}

// trial is what is to be tried next.
type trial byte

const (
	tryHead  trial = iota // the head alone
	tryPair               // the head and the one behind it: their order is kept whatever comes of it
	tryOther              // another than the head, which makes the cloud hang up and so hides what it would do with others
	tryAgain              // the head, right after another was taken
	giveUp
)

// ended takes note of how a session ended.
func (p *probe) ended(f *flight, err error) {
	switch {
	case f.delivered > 0:
		p.barren = 0
	case f.sent > 0:
		p.barren++
	}
	n, said := errors.AsType[*notTaken](err)
	switch {
	case !said:
		p.refused, p.times = msg.ID{}, 0
	case n.id != p.refused:
		p.refused, p.times = n.id, 1
	default:
		p.times++
	}
	p.deadRun = f.deadRun
	if p.times >= maxStrikes || p.deadRun >= maxDeadRun {
		p.careful = max(p.careful, 1)
	}
	if p.barren >= maxStrikes {
		p.careful = max(p.careful, carefulFor)
	}
	if f.trying {
		p.failed(f, !said && !errors.Is(err, errStalled))
	}
}

// failed takes note that a trial failed, and whether the cloud hung up.
func (p *probe) failed(f *flight, hungUp bool) {
	p.strikes++
	switch p.next {
	case tryHead:
		if p.strikes >= maxStrikes {
			p.next = tryPair
		}
	case tryPair:
		if f.pair.took(1) {
			p.proven()
		} else if hungUp {
			p.next = tryOther
		}
	case tryOther: // the cloud is at fault
		p.next = tryPair
	case tryAgain:
		p.proven()
	}
}

// proven takes note that the fault was the head's.
func (p *probe) proven() {
	p.next = tryPair
	if p.proofs++; p.proofs >= maxProofs {
		p.next = giveUp
	}
}

// hurried tells whether the next session should follow soon, to be comparable with the last.
func (p *probe) hurried() bool { return p.careful > 0 && (p.next == tryOther || p.next == giveUp) }

// look begins with a message at the head, unless it is still the same.
func (p *probe) look(head msg.ID) {
	if head != p.suspect {
		p.suspect, p.strikes, p.proofs, p.next = head, 0, 0, tryHead
	}
}

// passed takes note that the head is out of the way.
func (p *probe) passed(h *health.Reporter) {
	p.careful--
	p.look(msg.ID{})
	h.Clear(&CloudRefusesMessage)
}

// try takes the next step, with nothing else in flight.
func (f *flight) try(ctx context.Context) error {
	if err := f.read(ctx, lookBehind); err != nil {
		return err
	}
	p, head := &f.p.probe, f.held[0]
	p.look(head.ID)
	if p.strikes >= maxStrikes {
		f.p.health.Set(&CloudRefusesMessage, fmt.Sprintf("message %s, %d times", head.ID, p.strikes))
	}
	if p.next == giveUp {
		return f.giveUp(ctx, head)
	}
	f.trying = true
	n := 1
	switch p.next {
	case tryPair:
		f.topUp(ctx)
		n = min(2, len(f.held))
	case tryOther:
		f.topUp(ctx)
		if i := f.other(); i > 0 {
			return f.tryOther(ctx, i)
		}
	}
	f.pair = f.prepare(f.held[:n])
	if err := f.alone(ctx, f.pair); err != nil {
		return err
	}
	f.held = f.held[n:]
	f.trying = false
	p.passed(f.p.health)
	if f.pair.took(0) {
		f.p.health.Clear(&CloudRefusesAll)
	}
	return nil
}

// topUp reads on where nothing is held behind the head, without waiting for long.
func (f *flight) topUp(ctx context.Context) {
	if len(f.held) > 1 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	more, _ := f.p.consumer.Read(ctx, f.p.account.lowest(f.p.b.o.Now()), lookBehind, maxInFlightBytes/8) // an end of the session shows at the next step
	f.held = append(f.held, more...)
}

// other gives the index of a held message that can be sent before the head: one of another device, so that the order of each
// device's messages is kept, else the second; 0 where there is none.
func (f *flight) other() int {
	head, _ := f.dec.publication(&f.held[0])
	for i := range f.held[1:] {
		if p, err := f.dec.publication(&f.held[i+1]); err == nil && p.Device != head.Device {
			return i + 1
		}
	}
	return min(1, len(f.held)-1)
}

// tryOther sends held message i before the head.
func (f *flight) tryOther(ctx context.Context, i int) error {
	b := f.prepare(f.held[i : i+1])
	if err := f.alone(ctx, b); err != nil {
		return err
	}
	f.held = append(f.held[:i:i], f.held[i+1:]...)
	if b.took(0) {
		f.p.probe.next = tryAgain
	}
	return nil
}

// giveUp makes a dead letter of the head.
func (f *flight) giveUp(ctx context.Context, head spool.Entry) error {
	p := &f.p.probe
	f.mu.Lock()
	f.count++
	f.bytes += len(head.Data)
	f.buryLocked(burial{head, fmt.Sprintf("the cloud did not take it in %d sessions, but took those behind it", p.strikes)})
	f.mu.Unlock()
	if err := f.landed(ctx); err != nil {
		return err
	}
	f.held = f.held[1:]
	p.passed(f.p.health)
	return nil
}

// alone sends a batch and waits until nothing is in flight.
func (f *flight) alone(ctx context.Context, b *batch) error {
	if err := f.send(ctx, b); err != nil {
		return err
	}
	return f.landed(ctx)
}

// landed waits until nothing is in flight.
func (f *flight) landed(ctx context.Context) error {
	for {
		f.mu.Lock()
		n := f.count
		f.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-f.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
