package azure

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// DevicesRefused is the problem of devices that the hub does not let in. What they report goes to the dead letters.
var DevicesRefused = health.Code{
	Name:     "azure-devices-refused",
	Title:    "IoT Hub does not let some devices in",
	Severity: health.Degraded,
	Hint:     "enrol or enable the device in the hub; then replay its dead letters",
}

const (
	laneWindow = 32      // publications in flight for one device
	laneBuffer = 2 << 10 // octets
	laneDial   = 30 * time.Second
	fleetMax   = 8192           // publications that wait or are in flight for all devices
	fleetFile  = "devices.json" // in the state directory: who has reported
	farewell   = time.Second    // how long Close waits for confirmations
	firstPause = time.Second
	lastPause  = time.Minute
)

// fleet is a session that is made of one for each device. The pump knows one session, so unlike any other it mends its parts itself:
// one device's connection may end, or be refused, without the others hearing of it.
type fleet struct {
	c    *Connector
	down northbound.Downlink
	work context.Context // ends first
	stop context.CancelFunc
	ctx  context.Context // ends when every lane has
	end  context.CancelCauseFunc
	gone chan struct{}

	mu      sync.Mutex
	room    *sync.Cond       // with mu
	lanes   map[string]*lane // guarded by mu
	running sync.WaitGroup   // lanes; added to with mu held and over nil
	held    int              // guarded by mu: publications that are not done
	up      int              // guarded by mu: lanes with a session
	next    time.Time        // guarded by mu: when the next log-in may be made
	refused map[string]bool  // guarded by mu
	over    error            // guarded by mu
}

// lane is one device's part. All of it is guarded by fleet.mu.
type lane struct {
	device string
	queue  []*letter // not given to a session
	flying []*letter // given to the session, in order; some are done
	kick   chan struct{}
	tried  chan struct{} // closed after the first log-in, however it ended
}

// letter is a publication and whom to tell.
type letter struct {
	p    msg.Publication
	done func(error)
	told bool // guarded by fleet.mu
}

func (c *Connector) dialFleet(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	if c.cfg.Endpoint != "" { // whether the hub is there at all is told at once
		address, err := c.address(ctx, c.deviceID(), c.cfg.Endpoint, "/$iothub/websocket")
		if err != nil {
			return nil, err
		}
		conn, err := address.Dial(ctx, nil)
		if err != nil {
			return nil, err
		}
		conn.Close()
	}
	f := &fleet{c: c, down: down, lanes: map[string]*lane{}, refused: map[string]bool{}, gone: make(chan struct{})}
	f.room = sync.NewCond(&f.mu)
	base := context.WithoutCancel(ctx)
	f.work, f.stop = context.WithCancel(base)
	f.ctx, f.end = context.WithCancelCause(base)
	f.running.Add(1) // the fleet itself, until it is over
	go func() {
		f.running.Wait()
		f.end(f.over)
		close(f.gone)
	}()
	if len(down.Topics()) == 0 {
		return f, nil
	}
	var own *lane
	f.mu.Lock()
	for _, device := range c.known() {
		if l := f.lane(device); device == c.deviceID() {
			own = l
		}
	}
	f.mu.Unlock()
	if own != nil { // the gateway's own connection proves the way; the others come as the pace allows
		select {
		case <-own.tried:
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
	return f, nil
}

// known lists the devices that have reported before: commands for them may wait in the hub.
func (c *Connector) known() (devices []string) {
	data, err := os.ReadFile(filepath.Join(c.env.State, fleetFile))
	if err != nil || json.Unmarshal(data, &devices) != nil {
		return nil
	}
	return devices
}

// remember notes a device that was let in.
func (f *fleet) remember(device string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	devices := f.c.known()
	if slices.Contains(devices, device) {
		return
	}
	path := filepath.Join(f.c.env.State, fleetFile)
	data, err := json.Marshal(append(devices, device))
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.c.env.Log.Warn("the list of devices cannot be kept: commands reach a device after its next report only", "error", err)
	}
}

// Context is northbound.Session's.
func (f *fleet) Context() context.Context { return f.ctx }

// Close is northbound.Session's.
func (f *fleet) Close() error {
	late := false
	timer := time.AfterFunc(farewell, func() {
		f.mu.Lock()
		late = true
		f.room.Broadcast()
		f.mu.Unlock()
	})
	f.mu.Lock()
	for f.over == nil && !late && f.held > 0 {
		f.room.Wait()
	}
	f.mu.Unlock()
	timer.Stop()
	f.fail(mqtt.ErrClosed)
	<-f.gone
	return nil
}

func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over != nil {
		return
	}
	f.over = err
	f.stop()
	f.room.Broadcast()
	f.running.Done()
}

// Send is northbound.Session's.
func (f *fleet) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	defer context.AfterFunc(ctx, func() {
		f.mu.Lock()
		f.room.Broadcast()
		f.mu.Unlock()
	})()
	for i := range batch {
		f.mu.Lock()
		for f.over == nil && ctx.Err() == nil && f.held >= fleetMax {
			f.room.Wait()
		}
		if f.over != nil {
			f.mu.Unlock()
			<-f.ctx.Done()
			return context.Cause(f.ctx)
		}
		if ctx.Err() != nil {
			f.mu.Unlock()
			return context.Cause(ctx)
		}
		device := batch[i].Device
		if device == "" {
			device = f.c.deviceID()
		}
		l := f.lane(device)
		l.queue = append(l.queue, &letter{p: batch[i], done: func(err error) { done(i, err) }})
		f.held++
		l.wake()
		f.mu.Unlock()
	}
	return nil
}

// lane gives the device's lane, made where there is none; mu is held.
func (f *fleet) lane(device string) *lane {
	l := f.lanes[device]
	if l == nil {
		l = &lane{device: device, kick: make(chan struct{}, 1), tried: make(chan struct{})}
		f.lanes[device] = l
		f.running.Go(func() { f.run(l) })
	}
	return l
}

func (l *lane) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// tell settles a letter once.
func (f *fleet) tell(l *letter, err error) {
	f.mu.Lock()
	if l.told {
		f.mu.Unlock()
		return
	}
	l.told = true
	f.held--
	f.room.Broadcast()
	f.mu.Unlock()
	l.done(err)
}

// run keeps one device connected until the fleet is over.
func (f *fleet) run(l *lane) {
	pause := firstPause
	tried := sync.OnceFunc(func() { close(l.tried) })
	defer tried()
	for f.work.Err() == nil {
		if !f.turn() {
			return
		}
		began := time.Now()
		err := f.connected(l, tried)
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		if f.work.Err() != nil || err == nil {
			continue
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		pause = min(2*pause, lastPause)
		select {
		case <-timer.C:
		case <-f.work.Done():
			timer.Stop()
		}
	}
}

// turn waits until a log-in may be made: they are paced over all devices.
func (f *fleet) turn() bool {
	f.mu.Lock()
	now := time.Now()
	if f.next.Before(now) {
		f.next = now
	}
	wait := f.next.Sub(now)
	f.next = f.next.Add(time.Duration(float64(time.Second) / f.c.cfg.ConnectRate))
	f.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.work.Done():
		return false
	}
}

// connected logs the device in and serves it until its session ends. A nil error asks for the next session at once.
func (f *fleet) connected(l *lane, tried func()) error {
	ctx, cancel := context.WithTimeout(f.work, laneDial)
	h, err := f.c.dialHub(ctx, l.device, f.down)
	cancel()
	if err != nil {
		f.notConnected(l, err)
		tried()
		return err
	}
	f.mu.Lock()
	f.up++
	if delete(f.refused, l.device); len(f.refused) == 0 {
		f.c.env.Health.Clear(&DevicesRefused)
	}
	f.mu.Unlock()
	f.remember(l.device)
	tried()
	err = f.serve(l, h)
	h.Close()
	f.mu.Lock()
	f.up--
	left := slices.DeleteFunc(l.flying, func(x *letter) bool { return x.told })
	l.queue, l.flying = append(left, l.queue...), nil
	f.mu.Unlock()
	return err
}

// notConnected judges a device's failed log-in: where the hub refuses the device, its reports are dead; where nobody is connected, the fleet is over.
func (f *fleet) notConnected(l *lane, err error) {
	f.mu.Lock()
	alone := f.up == 0
	var dead []*letter
	refused := msg.IsPermanent(err) && !stranger(err)
	if refused {
		dead, l.queue = l.queue, nil
		f.refused[l.device] = true
	}
	f.mu.Unlock()
	switch {
	case f.work.Err() != nil:
	case refused:
		f.c.env.Health.Fail(&DevicesRefused, fmt.Errorf("%s: %w", l.device, err))
		for _, x := range dead {
			f.tell(x, err)
		}
	case alone:
		f.fail(err)
	}
}

// stranger tells whether it was not the hub that was met: then it has refused nobody.
func stranger(err error) bool {
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	return unverified || plain
}

// serve gives the lane's letters to the session until it ends.
func (f *fleet) serve(l *lane, h *hub) error {
	bad := make(chan error, 1)
	for {
		f.mu.Lock()
		l.flying = slices.DeleteFunc(l.flying, func(x *letter) bool { return x.told })
		batch := l.queue
		l.queue = nil
		l.flying = append(l.flying, batch...)
		f.mu.Unlock()
		if len(batch) > 0 {
			pubs := make([]msg.Publication, len(batch))
			for i, x := range batch {
				pubs[i] = x.p
			}
			err := h.Send(f.work, pubs, func(i int, err error) {
				if err == nil || msg.IsPermanent(err) {
					f.tell(batch[i], err)
					return
				}
				select { // sent again in order, in the device's next session
				case bad <- err:
				default:
				}
			})
			if err != nil {
				return err
			}
			continue
		}
		select {
		case <-l.kick:
		case err := <-bad:
			return err
		case <-h.Context().Done():
			if cause := context.Cause(h.Context()); cause != northbound.ErrRenew {
				return cause
			}
			return nil
		case <-f.work.Done():
			return f.work.Err()
		}
	}
}
