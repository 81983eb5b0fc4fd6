//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Provider opens keys of the scheme pkcs11. Make it with New.
type Provider struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex         // guards what follows
	modules map[string]*module // by path
	tokens  []*token
	closed  bool
}

var (
	_ hwcrypto.Provider  = (*Provider)(nil)
	_ hwcrypto.Generator = (*Provider)(nil)
	_ hwcrypto.Importer  = (*Provider)(nil)
	_ hwcrypto.Lister    = (*Provider)(nil)
	_ hwcrypto.Renamer   = (*Provider)(nil)
	_ hwcrypto.Queued    = (*Provider)(nil)
)

// New makes a provider, which works until ctx ends or it is closed. It loads nothing yet.
func New(ctx context.Context, o Options) *Provider {
	p := &Provider{o: o, modules: map[string]*module{}}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Open finds the key that u names.
func (p *Provider) Open(ctx context.Context, u hwcrypto.URI) (hwcrypto.Key, error) {
	t, err := p.token(ctx, u)
	if err != nil {
		return nil, err
	}
	return t.open(ctx, u)
}

// Queues gives the figures of every token's queue.
func (p *Provider) Queues() []hwcrypto.QueueStats {
	p.mu.Lock()
	tokens := slices.Clone(p.tokens)
	p.mu.Unlock()
	var all []hwcrypto.QueueStats
	for _, t := range tokens {
		all = append(all, t.queue.Stats())
	}
	return all
}

// Close closes the sessions. The modules stay loaded and initialized: others in the process may use them.
func (p *Provider) Close() error {
	p.cancel()
	p.mu.Lock()
	p.closed = true
	tokens := p.tokens
	p.tokens = nil
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { // a module that hangs does not hold up the end of the process
		defer close(done)
		for _, t := range tokens {
			t.close()
		}
	}()
	select {
	case <-done:
		return nil
	case <-time.After(settle):
		return fmt.Errorf("PKCS#11: %w: sessions are left open", hwcrypto.ErrTimeout)
	}
}

func (p *Provider) module(path string) (*module, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("PKCS#11: closed")
	}
	m := p.modules[path]
	if m == nil {
		var err error
		if m, err = load(path); err != nil {
			return nil, err
		}
		p.modules[path] = m
	}
	return m, nil
}

// token finds the one token that u describes. A token that was found before is given again, so that
// its queue, its log-in and its sessions are shared.
func (p *Provider) token(ctx context.Context, u hwcrypto.URI) (*token, error) {
	paths, err := modulePaths(p.o.root(), u)
	if err != nil {
		return nil, err
	}
	// Loading and looking may hang, like all that chips do.
	type found struct {
		list []place
		err  error
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.o.timeout(), fmt.Errorf("PKCS#11 module %s: %w", strings.Join(paths, ", "), hwcrypto.ErrTimeout))
	defer cancel()
	ch := make(chan found, 1)
	go func() {
		list, err := p.scan(ctx, paths, u)
		ch <- found{list, err}
	}()
	var f found
	select {
	case f = <-ch:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	switch {
	case len(f.list) == 1:
		return p.share(f.list[0], u)
	case len(f.list) > 1:
		var names []string
		for _, i := range f.list {
			names = append(names, fmt.Sprintf("%q serial %s", i.label, i.serial))
		}
		return nil, fmt.Errorf("PKCS#11: %w: tokens %s", hwcrypto.ErrAmbiguous, strings.Join(names, ", "))
	case f.err != nil:
		return nil, f.err
	}
	return nil, fmt.Errorf("PKCS#11 token %s: %w: no slot of %s holds it", describe(u), hwcrypto.ErrNoToken, strings.Join(paths, ", "))
}

func describe(u hwcrypto.URI) string {
	switch {
	case u.Token != "":
		return fmt.Sprintf("%q", u.Token)
	case u.Serial != "":
		return "with serial " + u.Serial
	case u.SlotID != nil:
		return fmt.Sprintf("in slot %d", *u.SlotID)
	}
	return "(any)"
}

// scan looks through the modules. Trouble with one module counts only where no other has the token.
func (p *Provider) scan(ctx context.Context, paths []string, u hwcrypto.URI) (list []place, err error) {
	for _, path := range paths {
		m, e := p.module(path)
		if e == nil {
			var some []place
			if some, e = m.find(ctx, u); e == nil && len(some) == 0 {
				// A module may list only what was there when it was initialized.
				if m.mayBeginAnew(time.Now()) && m.initialize(ctx, m.generation()) == nil {
					some, e = m.find(ctx, u)
				}
			}
			list = append(list, some...)
		}
		if e != nil && err == nil {
			err = e
		}
	}
	return list, err
}

func (p *Provider) share(at place, u hwcrypto.URI) (*token, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("PKCS#11: closed")
	}
	for _, t := range p.tokens {
		if t.id == at.identity {
			return t, nil
		}
	}
	t := newToken(p.ctx, p.o, at, u)
	p.tokens = append(p.tokens, t)
	return t, nil
}

// identity says which token it is, wherever it is plugged in.
type identity struct {
	module                             *module
	label, serial, manufacturer, model string
}

// place is where a token was seen.
type place struct {
	identity
	slot uint
	gen  int // of the module
}

func (i identity) String() string { return fmt.Sprintf("PKCS#11 token %q (%s)", i.label, i.model) }

// mayBeginAnew tells whether the module may be initialized again to see what tokens there are now. Where sessions are open in another token,
// which is then logged in again by its next operation, it may so only from time to time.
func (m *module) mayBeginAnew(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ours || m.sessions > 0 && now.Sub(m.anew) < disturb {
		return false
	}
	if m.sessions > 0 {
		m.anew = now
	}
	return true
}

func (m *module) generation() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gen
}

// find lists the tokens in the module's slots that u describes.
func (m *module) find(ctx context.Context, u hwcrypto.URI) ([]place, error) {
	gen, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	list, err := m.slots(gen, u)
	m.leave()
	if is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) { // somebody has finalized it
		if err = m.initialize(ctx, gen); err != nil {
			return nil, err
		}
		if gen, err = m.enter(ctx); err != nil {
			return nil, err
		}
		defer m.leave()
		list, err = m.slots(gen, u)
	}
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 module %q: slots: %w", m.path, err)
	}
	return list, nil
}

func (m *module) slots(gen int, u hwcrypto.URI) ([]place, error) {
	lib, err := m.ctx.GetInfo()
	if err != nil {
		return nil, err
	}
	if !match(u.LibraryDescription, lib.LibraryDescription) || !match(u.LibraryManufacturer, lib.ManufacturerID) ||
		!match(u.LibraryVersion, fmt.Sprintf("%d.%d", lib.LibraryVersion.Major, lib.LibraryVersion.Minor)) {
		return nil, nil
	}
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return nil, err
	}
	var list []place
	for _, s := range slots {
		if u.SlotID != nil && *u.SlotID != s {
			continue
		}
		t, err := m.ctx.GetTokenInfo(s)
		if err != nil || t.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // another slot's trouble
		}
		if u.SlotDescription != "" || u.SlotManufacturer != "" {
			si, err := m.ctx.GetSlotInfo(s)
			if err != nil || !match(u.SlotDescription, si.SlotDescription) || !match(u.SlotManufacturer, si.ManufacturerID) {
				continue
			}
		}
		if match(u.Token, t.Label) && match(u.Serial, t.SerialNumber) && match(u.Manufacturer, t.ManufacturerID) && match(u.Model, t.Model) {
			list = append(list, place{identity{m, pad(t.Label), pad(t.SerialNumber), pad(t.ManufacturerID), pad(t.Model)}, s, gen})
		}
	}
	return list, nil
}

// pad strips the blanks that fill PKCS#11's fields of fixed length.
func pad(s string) string { return strings.TrimRight(s, " \x00") }

func match(want, have string) bool { return want == "" || want == pad(have) }
