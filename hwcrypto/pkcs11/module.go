//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// module is a loaded PKCS#11 library. Calls into it run at once; Initialize and Finalize run alone.
type module struct {
	path string
	ctx  *pkcs11.Ctx

	mu       sync.Mutex    // guards what follows
	gen      int           // grows with each Initialize; 0: not yet
	ours     bool          // this module was initialized by us, so we may finalize it
	calls    int           // calls that run
	sessions int           // of ours that are open
	idle     chan struct{} // closed when calls falls to 0; nil where nobody waits
	alone    chan struct{} // closed when whoever runs alone is done; nil where nobody does
	anew     time.Time     // when it was last initialized anew under open sessions
}

// disturb is how often, at most, a module is initialized anew to find a token that is missing, while sessions are open in another.
const disturb = 3 * time.Second

// settle is how long Initialize waits for running calls to return before it gives up.
const settle = 2 * time.Second

func load(path string) (*module, error) {
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, unloadable(path)
	}
	return &module{path: path, ctx: ctx}, nil
}

// enter registers a call; leave ends it. It initializes the module where that has not been done.
func (m *module) enter(ctx context.Context) (gen int, err error) {
	for {
		m.mu.Lock()
		if m.alone == nil && m.gen > 0 {
			m.calls++
			gen = m.gen
			m.mu.Unlock()
			return gen, nil
		}
		wait := m.alone
		m.mu.Unlock()
		if wait == nil {
			if err := m.initialize(ctx, 0); err != nil {
				return 0, err
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (m *module) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls--
	if m.calls == 0 && m.idle != nil {
		close(m.idle)
		m.idle = nil
	}
}

// opened counts sessions of the generation.
func (m *module) opened(gen, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gen == gen {
		m.sessions = max(0, m.sessions+n)
	}
}

// enterAlone is enter for a call beside which no other runs: what makes or destroys objects, which modules do not all bear
// beside a search (SoftHSM2 loses objects then). leaveAlone ends it.
func (m *module) enterAlone(ctx context.Context) (gen int, err error) {
	if _, err = m.enter(ctx); err != nil { // which initializes
		return 0, err
	}
	m.leave()
	if err := m.begin(ctx); err != nil {
		return 0, err
	}
	return m.generation(), nil
}

// begin waits for its turn to run alone, and for the calls that run to return.
func (m *module) begin(ctx context.Context) error {
	m.mu.Lock()
	for m.alone != nil {
		wait := m.alone
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		m.mu.Lock()
	}
	m.alone = make(chan struct{})
	var idle chan struct{}
	if m.calls > 0 {
		if m.idle == nil {
			m.idle = make(chan struct{})
		}
		idle = m.idle
	}
	m.mu.Unlock()
	if idle == nil {
		return nil
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	var err error
	select {
	case <-idle:
		return nil
	case <-timer.C:
		err = fmt.Errorf("PKCS#11 module %q: %w: a call into it hangs", m.path, hwcrypto.ErrTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	m.leaveAlone()
	return err
}

func (m *module) leaveAlone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.alone)
	m.alone = nil
}

// initialize brings the module to a generation after gen, alone. The caller must not be between enter and leave.
func (m *module) initialize(ctx context.Context, gen int) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.leaveAlone()
	m.mu.Lock()
	over, finalize := m.gen > gen, m.ours
	m.mu.Unlock()
	if over { // somebody has done it while we waited
		return nil
	}
	if finalize {
		// An error means that somebody else has finalized it, which comes to the same.
		_ = m.ctx.Finalize()
	}
	err := m.ctx.Initialize()
	already := is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
	if err != nil && !already {
		return fmt.Errorf("PKCS#11 module %q: %w", m.path, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !already {
		m.sessions = 0
		m.ours = true
	}
	m.gen++
	return nil
}

// is tells whether err is one of the return values CKR_….
func is(err error, codes ...uint) bool {
	var e pkcs11.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if uint(e) == c {
			return true
		}
	}
	return false
}
