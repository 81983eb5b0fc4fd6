//go:build cgo

package pkcs11

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/queue"
)

const (
	workers = 8
	// patience is how long a token that was found missing is not looked for again.
	patience = time.Second
	// attempts is how often an operation is begun: each loss that it may meet (module, session, log-in, handle) once.
	attempts = 4
)

// token is one token with its sessions.
type token struct {
	ctx   context.Context // of the provider's life: crypto.Signer knows none
	o     Options
	id    identity
	uri   hwcrypto.URI // whose PIN source counts
	queue *queue.Queue

	mu       sync.Mutex // guards what follows
	slot     uint
	gen      int                  // of the module, for slot and all sessions
	epoch    int                  // grows when all sessions and handles have become void
	anchor   pkcs11.SessionHandle // kept open and not worked in: closing the last session would log out; 0: none
	free     []pkcs11.SessionHandle
	used     int // sessions that are in use
	loggedIn bool
	badPIN   [sha256.Size]byte // hash of a PIN that the token has refused
	lookAt   time.Time         // not to be looked for before
}

// session is what an operation works with.
type session struct {
	*pkcs11.Ctx
	h     pkcs11.SessionHandle
	epoch int // of the token
	gen   int // of the module
}

func newToken(ctx context.Context, o Options, at place, u hwcrypto.URI) *token {
	n := o.Workers
	if n == 0 {
		n = workers
	}
	return &token{ctx: ctx, o: o, id: at.identity, slot: at.slot, gen: at.gen, uri: u,
		queue: queue.New(queue.Options{Chip: at.identity.String(), Workers: n, Timeout: o.timeout()})}
}

func (t *token) close() {
	t.queue.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.discard()
}

// discard closes the free sessions and makes all others void. t.mu is held.
func (t *token) discard() {
	m := t.id.module
	if m.generation() == t.gen {
		for _, h := range t.free {
			_ = m.ctx.CloseSession(h) // it may be gone already
		}
		if t.anchor != 0 {
			_ = m.ctx.CloseSession(t.anchor)
		}
	}
	t.forget()
}

// drop makes all handles void, but leaves the log-in. t.mu is held.
func (t *token) drop() {
	m := t.id.module
	for _, h := range t.free {
		_ = m.ctx.CloseSession(h)
	}
	m.opened(t.gen, -len(t.free)-t.used)
	t.free, t.used = nil, 0
	t.epoch++
}

// forget makes all sessions void without closing them. t.mu is held.
func (t *token) forget() {
	n := len(t.free) + t.used
	if t.anchor != 0 {
		n++
	}
	t.id.module.opened(t.gen, -n)
	t.free, t.used, t.anchor, t.loggedIn = nil, 0, 0, false
	t.epoch++
}

// call runs f in a session, in its turn, and mends what has been lost.
func call[T any](ctx context.Context, t *token, f func(session) (T, error)) (T, error) {
	return run(ctx, t, t.id.module.enter, t.id.module.leave, f)
}

// change is call for what makes, renames or destroys objects of the token.
func change[T any](ctx context.Context, t *token, f func(session) (T, error)) (T, error) {
	return run(ctx, t, t.id.module.enterAlone, t.id.module.leaveAlone, f)
}

func run[T any](ctx context.Context, t *token, enter func(context.Context) (int, error), leave func(), f func(session) (T, error)) (T, error) {
	v, err := queue.Call(ctx, t.queue, func(ctx context.Context) (T, error) {
		var v T
		for try := 1; ; try++ {
			var err error
			v, err = attempt(ctx, t, enter, leave, f)
			if err == nil || try == attempts || ctx.Err() != nil {
				return v, err
			}
			if again, err := t.mend(ctx, err); !again {
				return v, err
			}
		}
	})
	if err != nil {
		err = t.explain(err)
	}
	return v, err
}

func attempt[T any](ctx context.Context, t *token, enter func(context.Context) (int, error), leave func(), f func(session) (T, error)) (T, error) {
	var zero T
	gen, err := enter(ctx)
	if err != nil {
		return zero, err
	}
	defer leave()
	s, err := t.session(gen)
	if err != nil {
		return zero, err
	}
	v, err := f(s)
	t.back(s, err)
	return v, err
}

// session gives a free session or opens one, logged in.
func (t *token) session(gen int) (session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.id.module
	if t.gen != gen { // initialized anew since: handles and slot numbers are void
		t.forget()
		if err := t.locate(gen); err != nil {
			return session{}, err
		}
	}
	if t.anchor == 0 {
		h, err := t.openSession()
		if err != nil {
			return session{}, err
		}
		t.anchor = h
	}
	if err := t.login(); err != nil {
		return session{}, err
	}
	if n := len(t.free); n > 0 {
		h := t.free[n-1]
		t.free = t.free[:n-1]
		t.used++
		return session{m.ctx, h, t.epoch, gen}, nil
	}
	h, err := t.openSession()
	if err != nil {
		return session{}, err
	}
	t.used++
	return session{m.ctx, h, t.epoch, gen}, nil
}

func (t *token) openSession() (pkcs11.SessionHandle, error) {
	m := t.id.module
	h, err := m.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if is(err, pkcs11.CKR_TOKEN_WRITE_PROTECTED) {
		h, err = m.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION)
	}
	if err == nil {
		m.opened(t.gen, 1)
	}
	return h, err
}

// back takes a session back. One in which something went wrong may be in the middle of an operation, so it is closed.
func (t *token) back(s session, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case s.epoch == t.epoch && err == nil:
		t.used--
		t.free = append(t.free, s.h)
		return
	case s.epoch == t.epoch:
		t.used--
		t.id.module.opened(s.gen, -1)
	}
	if t.id.module.generation() == s.gen { // else the number may be another session's now
		_ = s.CloseSession(s.h)
	}
}

// locate finds the slot in which the token is now. t.mu is held, and the module entered.
func (t *token) locate(gen int) error {
	list, err := t.id.module.slots(gen, hwcrypto.URI{Token: t.id.label, Serial: t.id.serial, Manufacturer: t.id.manufacturer, Model: t.id.model})
	if err != nil {
		return err
	}
	for _, i := range list {
		if t.id == i.identity {
			t.slot, t.gen = i.slot, i.gen
			return nil
		}
	}
	return hwcrypto.ErrNoToken
}

// login logs in once. t.mu is held.
func (t *token) login() error {
	if t.loggedIn {
		return nil
	}
	m := t.id.module
	info, err := m.ctx.GetTokenInfo(t.slot)
	if err != nil {
		return err
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		t.loggedIn = true
		return nil
	}
	if s, err := m.ctx.GetSessionInfo(t.anchor); err == nil && (s.State == pkcs11.CKS_RW_USER_FUNCTIONS || s.State == pkcs11.CKS_RO_USER_FUNCTIONS) {
		t.loggedIn = true // by another user of the module in this process
		return nil
	}
	pin, err := t.pin()
	if err != nil {
		return err
	}
	defer clear(pin)
	sum := sha256.Sum256(pin)
	switch {
	case sum == t.badPIN:
		return fmt.Errorf("%w: the token has refused the PIN of %s before; it is not tried again", hwcrypto.ErrPIN, t.uri.PINSource)
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w: too many wrong PINs", hwcrypto.ErrLocked)
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return lastTry.Of(fmt.Errorf("%w: one try is left before the token locks; it is not used up", hwcrypto.ErrPIN), nil)
	}
	err = m.ctx.Login(t.anchor, pkcs11.CKU_USER, string(pin))
	switch {
	case err == nil, is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		t.loggedIn = true
		return nil
	case is(err, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE):
		t.badPIN = sum
		return fmt.Errorf("%w: the token refuses the PIN of %s", hwcrypto.ErrPIN, t.uri.PINSource)
	case is(err, pkcs11.CKR_PIN_LOCKED):
		return fmt.Errorf("%w: too many wrong PINs", hwcrypto.ErrLocked)
	}
	return fmt.Errorf("log-in: %w", err)
}

// pin reads the PIN where the URI says that it stands.
func (t *token) pin() ([]byte, error) {
	kind, rest, _ := strings.Cut(t.uri.PINSource, ":")
	var path string
	switch kind {
	case "file":
		path = rest
	case "credential":
		if t.o.Credentials == "" {
			return nil, errors.New("PIN: there is no $CREDENTIALS_DIRECTORY")
		}
		path = filepath.Join(t.o.Credentials, rest)
	default:
		return nil, noPIN.Of(errors.New("PIN: the token wants one, and the URI names none"), nil)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, hwcrypto.Exposed(fmt.Errorf("PIN: others may read %q (mode %04o)", path, st.Mode().Perm()), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	return hwcrypto.TrimNewline(b), nil
}

// mend brings back what an operation has lost, and tells whether the operation may be begun again. If not, it gives the error
// that says best what is wrong.
func (t *token) mend(ctx context.Context, err error) (bool, error) {
	m := t.id.module
	switch {
	case is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED):
		t.mu.Lock()
		gen := t.gen
		t.mu.Unlock()
		if e := m.initialize(ctx, gen); e != nil {
			return false, fmt.Errorf("%w: %w", hwcrypto.ErrNoToken, e)
		}
		return true, nil
	case is(err, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN):
		t.mu.Lock()
		defer t.mu.Unlock()
		t.discard()
		return true, nil
	case is(err, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID):
		// A private object's handle is void after a log-out, so ask again whether we are logged in.
		t.mu.Lock()
		defer t.mu.Unlock()
		t.loggedIn = false
		t.drop()
		return true, nil
	case is(err, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR,
		pkcs11.CKR_SLOT_ID_INVALID), errors.Is(err, hwcrypto.ErrNoToken):
	case is(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED), errors.Is(err, hwcrypto.ErrNoKey):
		// Each may be all that a module says of a token that has gone; else it is an answer, and stands.
		if !t.gone(ctx) {
			return false, err
		}
	default:
		return false, err
	}
	if t.refind(ctx) {
		return true, nil
	}
	if !errors.Is(err, hwcrypto.ErrNoToken) {
		err = fmt.Errorf("%w: %v", hwcrypto.ErrNoToken, err) // %v: that there is no such key cannot be known
	}
	return false, err
}

// gone tells whether the token is no longer in its slot.
func (t *token) gone(ctx context.Context) bool {
	m := t.id.module
	if _, err := m.enter(ctx); err != nil {
		return false
	}
	defer m.leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := m.ctx.GetTokenInfo(t.slot)
	return err != nil
}

// refind looks for a token that is gone, at most once per patience.
func (t *token) refind(ctx context.Context) bool {
	m := t.id.module
	t.mu.Lock()
	if now := time.Now(); now.Before(t.lookAt) {
		t.mu.Unlock()
		return false
	} else {
		t.lookAt = now.Add(patience)
	}
	t.discard()
	t.mu.Unlock()

	find := func() error {
		gen, err := m.enter(ctx)
		if err != nil {
			return err
		}
		defer m.leave()
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.locate(gen)
	}
	err := find()
	if err != nil && m.mayBeginAnew(time.Now()) && m.initialize(ctx, m.generation()) == nil {
		err = find()
	}
	return err == nil
}

// explain puts an error into words and names the chip, unless that has been done.
func (t *token) explain(err error) error {
	var e pkcs11.Error
	switch {
	case errors.Is(err, hwcrypto.ErrTimeout), errors.Is(err, hwcrypto.ErrBusy):
		return err
	case is(err, pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
		pkcs11.CKR_CURVE_NOT_SUPPORTED):
		err = fmt.Errorf("%w: %w", hwcrypto.ErrUnsupported, err)
	case errors.As(err, &e) && uint(e) == pkcs11.CKR_SESSION_COUNT:
		err = fmt.Errorf("no free session: %w", err)
	}
	return fmt.Errorf("%v: %w", t.id, meant(err))
}

// Room tells of the token's sessions and of its PIN's counter.
func (k *key) Room(ctx context.Context) (string, error) {
	info, err := call(ctx, k.t, func(s session) (pkcs11.TokenInfo, error) {
		k.t.mu.Lock()
		slot := k.t.slot
		k.t.mu.Unlock()
		return s.GetTokenInfo(slot)
	})
	if err != nil {
		return "", err
	}
	note := "any number of sessions"
	if most := info.MaxSessionCount; most != pkcs11.CK_EFFECTIVELY_INFINITE && most != pkcs11.CK_UNAVAILABLE_INFORMATION {
		note = fmt.Sprintf("%d of %d sessions are open", info.SessionCount, most)
		if info.SessionCount >= most {
			return "", fmt.Errorf("%v: %s", k.t.id, note)
		}
	}
	switch {
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return "", fmt.Errorf("%v: one wrong PIN more locks the token", k.t.id)
	case info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		note += "; a wrong PIN was tried since the last right one"
	}
	return note, nil
}
