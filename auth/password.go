package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// ErrBackoff is returned while a user from an address has to wait after wrong passwords. It is an ErrUnknown as well.
var ErrBackoff = fmt.Errorf("%w: too many wrong passwords, wait", ErrUnknown)

// The parameters with which HashPassword hashes: the least that OWASP's Password Storage Cheat Sheet has, for a gateway has little memory.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonKey     = 32
	argonSalt    = 16
	argonMost    = 1 << 20 // KiB that a hash may ask for
)

// hashers is how many passwords may be hashed at once: each takes a core and tens of megabytes.
func hashers() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// HashPassword gives the argon2id hash of a password, as a password file may hold it.
func HashPassword(password []byte) string {
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	sum := argon2.IDKey(password, salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(sum))
}

// hashed tells whether stored is a hash rather than a password.
func hashed(stored []byte) bool {
	for _, prefix := range []string{"$argon2id$", "$2a$", "$2b$", "$2y$"} {
		if bytes.HasPrefix(stored, []byte(prefix)) {
			return true
		}
	}
	return false
}

// verifyHash tells whether password has the hash; an error where the hash is malformed.
func verifyHash(stored, password []byte) (bool, error) {
	if bytes.HasPrefix(stored, []byte("$2")) {
		err := bcrypt.CompareHashAndPassword(stored, password)
		if errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) || errors.Is(err, bcrypt.ErrPasswordTooLong) {
			return false, nil
		}
		return err == nil, err
	}
	parts := strings.Split(string(stored), "$")
	var version int
	var memory, passes uint32
	var threads uint8
	if len(parts) != 6 {
		return false, errors.New("malformed argon2id hash")
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, errors.New("argon2id hash of an unknown version")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); err != nil {
		return false, errors.New("malformed argon2id hash")
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || err2 != nil || len(sum) < 4 || len(sum) > 1024 || passes < 1 || passes > 1000 || threads < 1 || memory > argonMost {
		return false, errors.New("argon2id hash out of bounds")
	}
	own := argon2.IDKey(password, salt, passes, memory, threads, uint32(len(sum)))
	return subtle.ConstantTimeCompare(own, sum) == 1, nil
}

// password checks user name and password.
func (r *Realm) password(ctx context.Context, c *Credentials) (Identity, error) {
	if c.User == "" || len(c.Password) == 0 {
		return Identity{}, ErrUnknown
	}
	t := r.now.Load()
	d := t.devices[c.User]
	known := d != nil && d.cfg.Password != ""
	if !known {
		if d = r.decoy(t.passDecoys, c.User); d == nil {
			return Identity{}, ErrUnknown
		}
	}
	who := attempt{c.User, network(c.Remote.Addr())}
	if !r.back.begin(who) {
		return Identity{}, ErrBackoff
	}
	ok, err := r.verify(ctx, d, c.Password)
	switch {
	case known && err != nil:
		r.back.succeeded(who) // nothing was proven wrong
		return Identity{}, fmt.Errorf("device %q: password: %w", d.name, err)
	case !known || !ok:
		return Identity{}, ErrUnknown
	}
	r.back.succeeded(who)
	return d.identity("password", c.User), nil
}

// verify tells whether password is that of d.
func (r *Realm) verify(ctx context.Context, d *device, password []byte) (bool, error) {
	stored, err := r.o.Secret(ctx, string(d.cfg.Password))
	if err != nil {
		return false, err
	}
	defer clear(stored)
	if len(stored) == 0 {
		return false, errors.New("the file is empty")
	}
	// Both are hashed, so that the comparison does not tell how long the password is.
	if !hashed(stored) {
		return hmac.Equal(r.peppered(stored), r.peppered(password)), nil
	}
	mark := r.peppered(stored, password)
	if r.proven.has(d.name, mark) {
		return true, nil
	}
	select {
	case r.argon <- struct{}{}:
		defer func() { <-r.argon }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	ok, err := verifyHash(stored, password)
	if ok {
		r.proven.put(d.name, mark)
	}
	return ok, err
}

// peppered is a MAC under a key that this process has made and never writes anywhere.
func (r *Realm) peppered(parts ...[]byte) []byte {
	m := hmac.New(sha256.New, r.pepper[:])
	for _, p := range parts {
		fmt.Fprintf(m, "%d:", len(p))
		m.Write(p)
	}
	return m.Sum(nil)
}

// proven remembers for each device the MAC of hash and password that were found to belong together, so that
// thousands of devices that come back at once after a power cut need not be hashed anew.
type proven struct {
	mu    sync.Mutex
	marks map[string][]byte // guarded by mu
}

func newProven() *proven { return &proven{marks: map[string][]byte{}} }

func (p *proven) has(device string, mark []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return hmac.Equal(p.marks[device], mark)
}

func (p *proven) put(device string, mark []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.marks[device] = mark
}

// attempt is who tries from where.
type attempt struct {
	user string
	from netip.Prefix
}

// network gives what one attacker can be taken to hold: an IPv4 address, or an IPv6 /64.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

const (
	freeAttempts = 5
	firstWait    = time.Second
	longestWait  = 5 * time.Minute
	attemptsKept = 16384
)

// backoff makes those wait who give wrong passwords: five are free, then 1 s, doubling to 5 min, for that user from that address.
type backoff struct {
	now func() time.Time

	mu    sync.Mutex
	tries map[attempt]*tries // guarded by mu
}

type tries struct {
	wrong int
	until time.Time
}

func newBackoff(now func() time.Time) *backoff {
	return &backoff{now: now, tries: map[attempt]*tries{}}
}

// begin counts an attempt, as wrong until it succeeds, so that many at once gain nothing. false: it has to wait.
func (b *backoff) begin(a attempt) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	t := b.tries[a]
	if t == nil {
		if len(b.tries) >= attemptsKept {
			b.forget(now)
		}
		t = &tries{}
		b.tries[a] = t
	}
	if now.Before(t.until) {
		return false
	}
	t.wrong++
	t.until = now
	if n := t.wrong - freeAttempts; n >= 0 {
		t.until = now.Add(min(firstWait<<min(n, 16), longestWait))
	}
	return true
}

// forget makes room: those that need not wait go first, then any.
func (b *backoff) forget(now time.Time) {
	for a, t := range b.tries {
		if !now.Before(t.until) {
			delete(b.tries, a)
		}
	}
	for a := range b.tries {
		if len(b.tries) < attemptsKept/2 {
			break
		}
		delete(b.tries, a)
	}
}

func (b *backoff) succeeded(a attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.tries, a)
}
