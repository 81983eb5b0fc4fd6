// Package keyring holds the keys that the configuration names: [key.NAME].
//
// What always holds: no method gives out a private key; a key is never replaced silently; a key or chip in trouble costs only those who
// use it, and shows as a problem of the subject "key NAME"; a certificate is given out only with the key that it certifies.
package keyring

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/file"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
	"github.com/drawbridge/drawbridge/internal/health"
)

// Options are what a ring is built from.
type Options struct {
	Keys        map[string]*config.Key
	BaseDir     string           // of the configuration file: relative paths are relative to it
	State       string           // the gateway's state directory; the ring keeps TPM key blobs in its folder "keys"
	Credentials string           // $CREDENTIALS_DIRECTORY
	Log         *slog.Logger     // nil: nothing is logged
	Health      *health.Tracker  // nil: problems are not reported
	Now         func() time.Time // nil: time.Now
	Timeout     time.Duration    // of one operation in a chip; zero: 10s
}

// Ring is the keys of one gateway. It is a view for the user "".
type Ring struct {
	View
	o         Options
	ctx       context.Context // of the ring's life: crypto.Signer knows no context
	cancel    context.CancelFunc
	providers map[string]hwcrypto.Provider
	swapped   chan struct{} // has Run look at the keys at once

	mu      sync.RWMutex
	entries map[string]*entry // guarded by mu; an entry replaces another, it is not changed
	baseDir string            // guarded by mu
	prove   Proof             // guarded by mu; nil: the EST server's answer is proof enough

	trial     *tls.Certificate // in the place of that of trialName; nil: none
	trialName string
}

// Proof connects by a new certificate of [key.NAME] where it is going to be used.
type Proof = func(ctx context.Context, name string, c *tls.Certificate) error

// ProveBy has every certificate that takes the place of another be proven by f first.
func (r *Ring) ProveBy(f Proof) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prove = f
}

// With is the ring with another certificate in the place of that of one key, for a proof. It is not to be closed.
func (r *Ring) With(name string, c *tls.Certificate) *Ring {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := &Ring{o: r.o, ctx: r.ctx, cancel: r.cancel, providers: r.providers, entries: r.entries, baseDir: r.baseDir, trial: c, trialName: name}
	t.View = View{r: t}
	return t
}

// entry is one key of the configuration.
type entry struct {
	name string
	cfg  config.Key
	uri  hwcrypto.URI

	mu    sync.Mutex
	key   hwcrypto.Key // guarded by mu; nil until it has been opened
	chain *chain       // guarded by mu; nil until it has been read
}

// New builds a ring. It opens no key: a chip that is away costs nobody else the start. Errors are those of the URIs.
// The ring works until ctx ends or it is closed.
func New(ctx context.Context, o Options) (*Ring, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	entries, err := build(o.Keys, o.BaseDir)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.State, "keys")
	r := &Ring{o: o, entries: entries, baseDir: o.BaseDir, swapped: make(chan struct{}, 1), providers: map[string]hwcrypto.Provider{
		"file":   file.Provider{},
		"tpm":    tpm2.New(ctx, tpm2.Options{Dir: dir, Timeout: o.Timeout}),
		"pkcs11": pkcs11.New(ctx, pkcs11.Options{Credentials: o.Credentials, Timeout: o.Timeout}),
	}}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.View = View{r: r}
	return r, nil
}

func build(keys map[string]*config.Key, base string) (map[string]*entry, error) {
	entries := make(map[string]*entry, len(keys))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		k := keys[name]
		u, err := hwcrypto.ParseURI(k.URI, base)
		if err != nil {
			errs = append(errs, fmt.Errorf("key %q: %w", name, err))
			continue
		}
		if u.Scheme == "pkcs11" && k.Module != "" {
			u.ModulePath = absolute(string(k.Module), base)
		}
		entries[name] = &entry{name: name, cfg: *k, uri: u}
	}
	return entries, errors.Join(errs...)
}

func absolute(path, base string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(base, path)
}

// Swap takes over other keys, all or nothing. Chips and keys that stay the same stay open.
func (r *Ring) Swap(keys map[string]*config.Key, baseDir string) error {
	entries, err := build(keys, baseDir)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, old := range r.entries {
		fresh := entries[name]
		if fresh != nil && fresh.uri.String() == old.uri.String() && fresh.cfg.Cert == old.cfg.Cert {
			fresh.put(old.opened())
			continue
		}
		r.reporter(name).ClearAll()
		// The old entry's key stays open: components that were not restarted may sign with it still.
	}
	r.entries, r.baseDir = entries, baseDir
	select {
	case r.swapped <- struct{}{}:
	default: // it will look anyway
	}
	return nil
}

// opened is the key if it has been opened.
func (e *entry) opened() hwcrypto.Key {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.key
}

func (e *entry) put(k hwcrypto.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.key = k
}

// Names lists the keys in order.
func (r *Ring) Names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.entries))
}

// Queues gives the figures of the chips' queues.
func (r *Ring) Queues() []hwcrypto.QueueStats {
	var all []hwcrypto.QueueStats
	for _, scheme := range slices.Sorted(maps.Keys(r.providers)) {
		if q, ok := r.providers[scheme].(hwcrypto.Queued); ok {
			all = append(all, q.Queues()...)
		}
	}
	return all
}

// Close lets go of the chips. Keys that were given out do not work any more.
func (r *Ring) Close() error {
	r.cancel()
	var errs []error
	for _, p := range r.providers {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// For gives a view for one listener or connector, such as "listener field": chips take turns between users.
func (r *Ring) For(user string) View { return View{r, user} }

func (r *Ring) reporter(name string) *health.Reporter {
	if r.o.Health == nil {
		return nil
	}
	return r.o.Health.For("key " + name)
}

func (r *Ring) entry(name string) (*entry, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e := r.entries[name]
	if e == nil {
		return nil, fmt.Errorf("key %q: %w: the configuration has no [key.%s]", name, hwcrypto.ErrNoKey, name)
	}
	return e, nil
}

// open gives the key of an entry, opening it where that has not been done.
func (r *Ring) open(ctx context.Context, e *entry) (hwcrypto.Key, error) {
	if k := e.opened(); k != nil {
		return k, nil
	}
	k, err := r.providers[e.uri.Scheme].Open(ctx, e.uri)
	if errors.Is(err, hwcrypto.ErrNoKey) {
		err = unmade.Of(err, health.Values{"key": e.name})
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", e.name, err)
	}
	e.put(k)
	return k, nil
}

func (r *Ring) named(ctx context.Context, name string) (*entry, hwcrypto.Key, error) {
	e, err := r.entry(name)
	if err != nil {
		return nil, nil, err
	}
	k, err := r.open(ctx, e)
	return e, k, err
}

// ability gives what a key can, or an error that says that it cannot.
func ability[T any](e *entry, k hwcrypto.Key, what string) (T, error) {
	a, ok := k.(T)
	if !ok {
		return a, fmt.Errorf("key %q: %w: %s (%s)", e.name, hwcrypto.ErrUnsupported, what, describeKind(k))
	}
	return a, nil
}

func describeKind(k hwcrypto.Key) string {
	if pub := k.Public(); pub != nil {
		return fmt.Sprintf("it is a key pair, %s", kind(pub))
	}
	return "it is a secret"
}

func kind(pub crypto.PublicKey) string { return fmt.Sprint(hwcrypto.AlgorithmOf(pub)) }

func (r *Ring) credential(name string) ([]byte, error) {
	if r.o.Credentials == "" {
		return nil, fmt.Errorf("credential %q: there is no $CREDENTIALS_DIRECTORY; the service manager gives one where the unit has LoadCredential=", name)
	}
	if name != filepath.Base(name) || name == "." || name == ".." {
		return nil, fmt.Errorf("credential %q: not a name", name)
	}
	return os.ReadFile(filepath.Join(r.o.Credentials, name))
}
