package tpm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/queue"
)

const (
	// slots is how many keys stay loaded. A TPM without resource manager has three slots, one of which is for making keys.
	slots = 2
	// idle is after how long a raw socket is let go: it serves one program at a time.
	idle = 300 * time.Millisecond
	// maxResponse is more than any TPM gives.
	maxResponse = 8192
)

// chip is one TPM.
type chip struct {
	ctx    context.Context // of the provider's life: crypto.Signer knows none
	device string
	queue  *queue.Queue

	mu    sync.Mutex // guards what follows
	link  *link      // the connection while nobody uses it
	since time.Time  // when it was given back
	timer *time.Timer
	armed bool // the timer will go off
	model string
	shut  bool
}

// link is a connection with what is loaded over it. One operation owns it at a time, and what it has loaded goes with it.
type link struct {
	ctx     context.Context // of the operation
	dev     io.ReadWriteCloser
	raw     bool // no resource manager between
	loaded  []*slot
	parents map[tpm2.TPMHandle]*parent
	broken  bool // nothing more comes over it
}

type slot struct {
	obj *object
	h   tpm2.NamedHandle
}

func newChip(ctx context.Context, device string, timeout time.Duration) *chip {
	c := &chip{ctx: ctx, device: device}
	c.queue = queue.New(queue.Options{Chip: c.String(), Timeout: timeout})
	return c
}

// String names the TPM.
func (c *chip) String() string { return "TPM " + c.device }

func (c *chip) close() {
	c.queue.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	c.letGo()
}

// letGo flushes and closes the free link. c.mu is held.
func (c *chip) letGo() {
	if c.link == nil {
		return
	}
	l := c.link
	c.link = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), time.Second)
	defer cancel()
	_ = l.use(ctx, func() error { l.flushAll(); return nil })
	l.dev.Close()
}

// call runs f in its turn, over a link that it owns. f is begun again after a loss of the link or of what was loaded.
func call[T any](ctx context.Context, c *chip, f func(*link) (T, error)) (T, error) {
	v, err := queue.Call(ctx, c.queue, func(ctx context.Context) (T, error) {
		var v T
		for try := 1; ; try++ {
			l, err := c.take(ctx)
			if err != nil {
				return v, err
			}
			err = l.use(ctx, func() error { var err error; v, err = f(l); return err })
			void := errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCReferenceH0)
			if void && !l.broken { // what we hold for loaded is not
				_ = l.use(ctx, func() error { l.flushAll(); clear(l.parents); return nil })
			}
			lost := l.broken || void
			c.give(l)
			if err == nil || try == 3 || !lost || ctx.Err() != nil {
				return v, err
			}
		}
	})
	if err != nil {
		err = c.explain(err)
	}
	return v, err
}

func (c *chip) explain(err error) error {
	switch {
	case errors.Is(err, hwcrypto.ErrTimeout), errors.Is(err, hwcrypto.ErrBusy):
		return err
	case errors.Is(err, tpm2.TPMRCLockout):
		err = fmt.Errorf("%w: %w", hwcrypto.ErrLocked, err)
	case errors.Is(err, tpm2.TPMRCIntegrity):
		err = foreignBlob.Of(fmt.Errorf("the blob is not of this TPM, or the TPM was cleared since: %w", err), nil)
	case errors.Is(err, tpm2.TPMRCCurve), errors.Is(err, tpm2.TPMRCScheme), errors.Is(err, tpm2.TPMRCKeySize), errors.Is(err, tpm2.TPMRCCommandCode):
		err = fmt.Errorf("%w: %w", hwcrypto.ErrUnsupported, err)
	}
	return fmt.Errorf("%v: %w", c, meant(err, c.device))
}

// take gives the free link or connects.
func (c *chip) take(ctx context.Context) (*link, error) {
	c.mu.Lock()
	l := c.link
	c.link = nil
	shut := c.shut
	c.mu.Unlock()
	if shut {
		return nil, errors.New("closed")
	}
	if l != nil {
		return l, nil
	}
	l, err := dial(ctx, c.device)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hwcrypto.ErrNoToken, err)
	}
	if err := l.use(ctx, l.begin); err != nil {
		l.dev.Close()
		return nil, err
	}
	return l, nil
}

// give takes a link back for the next operation.
func (c *chip) give(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.broken || c.shut || c.link != nil {
		l.dev.Close()
		return
	}
	c.link = l
	if l.raw {
		c.since = time.Now()
		c.watch(idle)
	}
}

// watch has the link let go once nobody has used it for long enough. The timer is not stopped for every operation, which costs
// more than to look when it goes off. c.mu is held.
func (c *chip) watch(d time.Duration) {
	switch {
	case c.armed:
	case c.timer == nil:
		c.timer = time.AfterFunc(d, c.look)
	default:
		c.timer.Reset(d)
	}
	c.armed = true
}

func (c *chip) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	if c.link == nil { // in use: who gives it back watches it again
		return
	}
	if left := idle - time.Since(c.since); left > 0 {
		c.watch(left)
		return
	}
	c.letGo()
}

func dial(ctx context.Context, device string) (*link, error) {
	l := &link{parents: map[tpm2.TPMHandle]*parent{}}
	path, isSocket := strings.CutPrefix(device, "unix:")
	if isSocket {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		l.dev, l.raw = conn, true
		return l, err
	}
	// Blocking, on purpose: in the other mode the driver answers 0 octets until the response is there.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	l.dev, l.raw = os.NewFile(uintptr(fd), path), !strings.Contains(path, "tpmrm")
	return l, nil
}

// use lends the link to f. When ctx ends before f does, the device is closed under it.
func (l *link) use(ctx context.Context, f func() error) error {
	l.ctx = ctx
	stop := context.AfterFunc(ctx, func() { l.dev.Close() })
	err := f()
	if !stop() {
		l.broken = true
	}
	return err
}

// begin brings a raw TPM into a known state: started, and with free slots. Behind a resource manager both is so.
func (l *link) begin() error {
	if !l.raw {
		return nil
	}
	err := l.makeRoom()
	if errors.Is(err, tpm2.TPMRCInitialize) {
		_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(l)
	}
	return err
}

// makeRoom frees every slot that is ours: what we have loaded, and, in a raw TPM, what a connection that was lost has left.
func (l *link) makeRoom() error {
	l.flushAll()
	if !l.raw {
		return nil
	}
	hs, err := l.handles(0x80000000)
	for _, h := range hs {
		l.flush(h)
	}
	return err
}

func (l *link) handles(from uint32) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: from, PropertyCount: 254}.Execute(l)
	if err != nil {
		return nil, err
	}
	hs, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return hs.Handle, nil
}

// Send is a transport.TPM: one command, one response. A TPM that asks to be asked again is.
func (l *link) Send(in []byte) ([]byte, error) {
	wait := 2 * time.Millisecond
	for {
		out, err := l.exchange(in)
		if err != nil {
			l.broken = true
			return nil, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(out[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded:
		default:
			return out, nil
		}
		select {
		case <-l.ctx.Done():
			return nil, context.Cause(l.ctx)
		case <-time.After(wait):
			wait = min(2*wait, 100*time.Millisecond)
		}
	}
}

func (l *link) exchange(in []byte) ([]byte, error) {
	if _, err := l.dev.Write(in); err != nil {
		return nil, err
	}
	// The device gives a response in one read, a socket perhaps in several.
	out := make([]byte, maxResponse)
	n, err := io.ReadAtLeast(l.dev, out, 10)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(out[2:]))
	if size < 10 || size > len(out) || n > size {
		return nil, fmt.Errorf("response of %d octets says that it has %d", n, size)
	}
	if n < size {
		if _, err := io.ReadFull(l.dev, out[n:size]); err != nil {
			return nil, err
		}
	}
	return out[:size], nil
}

func (l *link) flush(h tpm2.TPMHandle) {
	// What cannot be flushed is gone already, or the link is; either shows at the next command.
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(l)
}

func (l *link) flushAll() {
	for _, s := range l.loaded {
		l.flush(s.h.Handle)
	}
	l.loaded = nil
}
