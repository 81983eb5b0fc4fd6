// Package tpm2 reaches keys in a TPM 2.0.
//
// What always holds: keys are made in the TPM with fixedTPM, fixedParent and sensitiveDataOrigin, under a storage root key that
// goes on working in dictionary-attack lockout (noDA); what is secret crosses the bus encrypted; loaded keys take up no more than
// two of the TPM's object slots and are flushed when the gateway lets go; a TPM that was restarted gets its keys loaded again.
//
// A key that is named lies as a blob that only its TPM can open in a directory of the gateway's, in the format "TSS2 PRIVATE KEY"
// that OpenSSL's TPM providers read too. No cgo and no TSS library is needed.
package tpm2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// DefaultDevice is the kernel's resource manager.
const DefaultDevice = "/dev/tpmrm0"

// Options say where things are.
type Options struct {
	Dir     string        // for key blobs; made where it is missing
	Timeout time.Duration // of one operation; default 10s
}

// Provider opens keys of the scheme tpm. Make it with New.
type Provider struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	chips map[string]*chip // by device; guarded by mu
}

var (
	_ hwcrypto.Provider  = (*Provider)(nil)
	_ hwcrypto.Generator = (*Provider)(nil)
	_ hwcrypto.Importer  = (*Provider)(nil)
	_ hwcrypto.Lister    = (*Provider)(nil)
	_ hwcrypto.Renamer   = (*Provider)(nil)
	_ hwcrypto.Queued    = (*Provider)(nil)
)

// New makes a provider, which works until ctx ends or it is closed.
func New(ctx context.Context, o Options) *Provider {
	p := &Provider{o: o, chips: map[string]*chip{}}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Close flushes what is loaded and closes the devices.
func (p *Provider) Close() error {
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.chips {
		c.close()
	}
	return nil
}

// Queues gives the figures of every TPM's queue.
func (p *Provider) Queues() []hwcrypto.QueueStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []hwcrypto.QueueStats
	for _, c := range p.chips {
		all = append(all, c.queue.Stats())
	}
	slices.SortFunc(all, func(a, b hwcrypto.QueueStats) int { return strings.Compare(a.Chip, b.Chip) })
	return all
}

func (p *Provider) chip(u hwcrypto.URI) *chip {
	device := u.Device
	if device == "" {
		device = DefaultDevice
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.chips[device]
	if c == nil {
		c = newChip(p.ctx, device, p.o.Timeout)
		p.chips[device] = c
	}
	return c
}

// The names of a key's files: the blob, and its sealing companion.
func (p *Provider) blobPath(u hwcrypto.URI) string { return filepath.Join(p.o.Dir, stem(u)+".tpm") }
func (p *Provider) sealPath(u hwcrypto.URI) string { return filepath.Join(p.o.Dir, stem(u)+".tpmseal") }

func stem(u hwcrypto.URI) string {
	if u.Name != "" {
		return u.Name
	}
	return fmt.Sprintf("handle-%08x", u.Handle)
}

// Open reads the key's blob, or its public area at a persistent handle, and sees that the TPM takes it.
func (p *Provider) Open(ctx context.Context, u hwcrypto.URI) (hwcrypto.Key, error) {
	c := p.chip(u)
	k := &key{p: p, c: c, uri: u}
	if u.Name != "" {
		b, err := readBlob(p.blobPath(u))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%v: key %q: %w", c, u.Name, hwcrypto.ErrNoKey)
		}
		if err != nil {
			return nil, fmt.Errorf("%v: key %q: %w", c, u.Name, err)
		}
		k.obj = b.object()
	} else {
		k.obj = &object{handle: tpm2.TPMHandle(u.Handle), persistent: true}
	}
	pub, err := call(ctx, c, func(l *link) (tpm2.TPMTPublic, error) {
		h, err := l.load(k.obj)
		if err != nil {
			return tpm2.TPMTPublic{}, err
		}
		r, err := tpm2.ReadPublic{ObjectHandle: h.Handle}.Execute(l)
		if err != nil {
			return tpm2.TPMTPublic{}, err
		}
		pub, err := r.OutPublic.Contents()
		if err != nil {
			return tpm2.TPMTPublic{}, err
		}
		return *pub, nil
	})
	if errors.Is(err, tpm2.TPMRCHandle) && k.obj.persistent {
		return nil, fmt.Errorf("%v: handle %#x: %w", c, u.Handle, hwcrypto.ErrNoKey)
	}
	if err != nil {
		return nil, err
	}
	return k.ability(pub)
}

// Generate makes a key in the TPM and keeps its blob, or puts it at the persistent handle.
func (p *Provider) Generate(ctx context.Context, u hwcrypto.URI, alg hwcrypto.Algorithm) (hwcrypto.Key, error) {
	t, ok := templates()[alg]
	if !ok {
		return nil, fmt.Errorf("%v: %w: no %q", p.chip(u), hwcrypto.ErrUnsupported, alg)
	}
	return p.create(ctx, u, t, nil)
}

// Import takes an HMAC secret into the TPM. One that is longer than 64 octets is hashed first, as HMAC would (RFC 2104).
func (p *Provider) Import(ctx context.Context, u hwcrypto.URI, secret []byte) (hwcrypto.Key, error) {
	if len(secret) == 0 {
		return nil, fmt.Errorf("%v: the secret is empty", p.chip(u))
	}
	t := templates()[hwcrypto.HMACSHA256]
	t.ObjectAttributes.SensitiveDataOrigin = false
	return p.create(ctx, u, t, shorten(secret))
}

func (p *Provider) create(ctx context.Context, u hwcrypto.URI, t tpm2.TPMTPublic, secret []byte) (hwcrypto.Key, error) {
	c := p.chip(u)
	if u.Name != "" {
		if _, err := os.Lstat(p.blobPath(u)); err == nil {
			return nil, fmt.Errorf("%v: key %q: %w", c, u.Name, hwcrypto.ErrKeyExists)
		}
	}
	b, err := call(ctx, c, func(l *link) (*blob, error) {
		if u.Handle != 0 {
			if _, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(u.Handle)}).Execute(l); err == nil {
				return nil, hwcrypto.ErrKeyExists
			}
		}
		b, err := l.create(t, secret)
		if err != nil || u.Handle == 0 {
			return b, err
		}
		return b, l.persist(b, tpm2.TPMHandle(u.Handle))
	})
	if err != nil {
		return nil, err
	}
	if u.Name != "" {
		err := p.keep(p.blobPath(u), b)
		if errors.Is(err, fs.ErrExist) {
			err = hwcrypto.ErrKeyExists
		}
		if err != nil {
			return nil, fmt.Errorf("%v: key %q: %w", c, u.Name, err)
		}
	}
	return p.Open(ctx, u)
}

func (p *Provider) keep(path string, b *blob) error {
	if err := os.MkdirAll(p.o.Dir, 0o700); err != nil {
		return err
	}
	return hwcrypto.WriteNew(path, b.encode())
}

// Rename gives a blob another name. The sealing companion stays with the old name: it is the name's, not the key's.
func (p *Provider) Rename(_ context.Context, from, to hwcrypto.URI) error {
	if from.Name == "" || to.Name == "" {
		return fmt.Errorf("%v: %w: a key at a persistent handle has no name", p.chip(from), hwcrypto.ErrUnsupported)
	}
	err := os.Link(p.blobPath(from), p.blobPath(to)) // unlike a rename, a link does not replace
	if err == nil {
		err = os.Remove(p.blobPath(from))
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		err = hwcrypto.ErrKeyExists
	case errors.Is(err, fs.ErrNotExist):
		err = hwcrypto.ErrNoKey
	}
	if err != nil {
		return fmt.Errorf("%v: rename %q to %q: %w", p.chip(from), from.Name, to.Name, err)
	}
	return nil
}

// List describes the keys that have blobs, and those at persistent handles.
func (p *Provider) List(ctx context.Context, u hwcrypto.URI) ([]hwcrypto.Info, error) {
	c := p.chip(u)
	var uris []hwcrypto.URI
	files, err := filepath.Glob(filepath.Join(p.o.Dir, "*.tpm"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		uris = append(uris, hwcrypto.URI{Scheme: "tpm", Name: strings.TrimSuffix(filepath.Base(f), ".tpm"), Device: u.Device})
	}
	handles, err := call(ctx, c, func(l *link) ([]tpm2.TPMHandle, error) { return l.handles(0x81000000) })
	if err != nil {
		return nil, err
	}
	for _, h := range handles {
		uris = append(uris, hwcrypto.URI{Scheme: "tpm", Handle: uint32(h), Device: u.Device})
	}
	var all []hwcrypto.Info
	for _, u := range uris {
		k, err := p.Open(ctx, u)
		if err != nil {
			continue // a storage key, or the blob of another TPM: no key of ours
		}
		i, err := k.(hwcrypto.Describer).Describe(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

type random struct{ c *chip }

// Read gives random octets of the TPM.
func (r random) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		part, err := call(r.c.ctx, r.c, func(l *link) ([]byte, error) {
			v, err := tpm2.GetRandom{BytesRequested: uint16(min(len(b)-n, 32))}.Execute(l, l.secret(nil))
			if err != nil {
				return nil, err
			}
			return v.RandomBytes.Buffer, nil
		})
		if err == nil && len(part) == 0 {
			err = io.ErrNoProgress
		}
		if err != nil {
			return n, err
		}
		n += copy(b[n:], part)
	}
	return n, nil
}
