package auth

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// Options is what a Realm needs besides the file.
type Options struct {
	// Secret reads a secret that the file names ("file:/path", "credential:NAME", "sealed:/path"), without its trailing newline.
	// What it gives is wiped after use.
	Secret func(ctx context.Context, ref string) ([]byte, error)
	// MAC gives the HMAC of [key.NAME], for pre-shared keys that a chip holds; nil where devices do not connect.
	MAC func(ctx context.Context, name string) (hwcrypto.MACer, error)
	// Certificate gives the certificate of [key.NAME], for [authenticator]; nil where nobody logs in.
	Certificate func(ctx context.Context, name string) (*tls.Certificate, error)
	Log         *slog.Logger
	Health      *health.Tracker
	Now         func() time.Time // the trusted clock
	Clock       *Clock           // the same, where answers may tell it the time; nil: they do not
}

// Realm knows the devices, groups and rules of one configuration file. It is an Authenticator, a Policy, a CommandScope and a Refresher.
//
// Secrets stay where they rest: each handshake and log-in reads its own and wipes it. An identity that is not there costs the same work
// as one that is.
type Realm struct {
	o      Options
	now    atomic.Pointer[tables]
	seed   maphash.Seed
	pepper [32]byte // of this process; see passwords
	back   *backoff
	argon  chan struct{} // a token per argon2 or bcrypt that may run
	proven *proven

	mu      sync.Mutex         // of Swap
	issuers map[string]*issuer // guarded by mu; by name, kept across Swap while unchanged
}

var (
	_ Authenticator = (*Realm)(nil)
	_ Policy        = (*Realm)(nil)
	_ CommandScope  = (*Realm)(nil)
	_ Refresher     = (*Realm)(nil)
	_ ChipPSKs      = (*Realm)(nil)
)

// device is a [device.NAME] as the tables hold it.
type device struct {
	name   string
	groups []string
	cfg    *config.Device
}

// tables is everything that one file says; it never changes.
type tables struct {
	devices      map[string]*device
	psk          map[string]*device // by PSK identity
	pskDecoys    []*device          // those whose key is read
	pskInChip    bool               // there are others
	passDecoys   []*device
	fingerprints map[[32]byte]*device
	names        map[string]*device // by SAN or CN, folded
	groups       []group
	crls         map[string]*crl // by listener
	issuers      map[string]*issuer
	ask          *authenticator
	rules        *rules
}

// NewRealm makes the realm of a file that has been checked. It reads no secret and asks nobody outside.
func NewRealm(ctx context.Context, cfg *config.Config, o Options) (*Realm, error) {
	r := &Realm{o: o, seed: maphash.MakeSeed(), back: newBackoff(o.Now), argon: make(chan struct{}, hashers()), proven: newProven()}
	rand.Read(r.pepper[:])
	if err := r.Swap(ctx, cfg); err != nil {
		return nil, err
	}
	return r, nil
}

// Swap replaces everything by what cfg says, or nothing where it returns an error. It waits for nobody outside; ctx lends its values only.
func (r *Realm) Swap(ctx context.Context, cfg *config.Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &tables{
		devices: map[string]*device{}, psk: map[string]*device{}, fingerprints: map[[32]byte]*device{}, names: map[string]*device{},
		crls: map[string]*crl{}, issuers: map[string]*issuer{},
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		if err := t.add(name, cfg.Devices[name]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Groups)) {
		if g := cfg.Groups[name]; g.SAN != "" || g.CN != "" {
			t.groups = append(t.groups, group{name, g.SAN, g.CN})
		}
	}
	for name, l := range cfg.Listeners {
		if path, _ := l.Value("device_crl").(config.Path); path != "" {
			list, err := r.openCRL(name, string(path))
			if err != nil {
				return err
			}
			t.crls[name] = list
		}
	}
	fresh := map[string]*issuer{}
	for name, cfg := range cfg.Issuers {
		i := r.issuers[name]
		if i == nil || !i.same(cfg) {
			var err error
			if i, err = r.newIssuer(ctx, name, cfg); err != nil {
				return err
			}
		}
		fresh[name], t.issuers[cfg.URL] = i, i
	}
	if cfg.Ask != nil {
		var err error
		if t.ask, err = r.newAuthenticator(cfg.Ask); err != nil {
			return err
		}
	}
	var err error
	if t.rules, err = compile(cfg.Allow); err != nil {
		return err
	}
	old := r.now.Swap(t)
	if old != nil && old.ask != nil {
		old.ask.close()
	}
	for name, i := range r.issuers {
		if fresh[name] != i {
			i.close()
		}
	}
	r.issuers = fresh
	return nil
}

func (t *tables) add(name string, cfg *config.Device) error {
	d := &device{name: name, groups: slices.Compact(slices.Sorted(slices.Values(cfg.Groups))), cfg: cfg}
	t.devices[name] = d
	if cfg.PSK != "" {
		t.psk[cfg.PSKIdentity] = d
		if _, ok := cfg.PSK.Key(); ok {
			t.pskInChip = true
		} else {
			t.pskDecoys = append(t.pskDecoys, d)
		}
	}
	if cfg.Password != "" {
		t.passDecoys = append(t.passDecoys, d)
	}
	fp, pinned := cutFingerprint(cfg.Cert)
	switch {
	case pinned:
		sum, err := config.ParseFingerprint(fp)
		if err != nil {
			return fmt.Errorf("device %q: certificate: %w", name, err)
		}
		t.fingerprints[sum] = d
	case cfg.Cert != "":
		t.names[fold(cfg.Cert)] = d
	default:
		t.names[fold(name)] = d
	}
	return nil
}

// Close ends what runs for the realm.
func (r *Realm) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.issuers {
		i.close()
	}
	if t := r.now.Load(); t.ask != nil {
		t.ask.close()
	}
	r.issuers = nil
	return nil
}

// identity gives what proves to be d.
func (d *device) identity(method, credential string) Identity {
	return Identity{Device: d.name, Groups: d.groups, Method: method, Credential: credential, Sleepy: d.cfg.Sleepy}
}

// decoy picks a device for an identity that is not there, always the same for the same identity, so that both cost the same.
func (r *Realm) decoy(list []*device, identity string) *device {
	if len(list) == 0 {
		return nil
	}
	return list[maphash.String(r.seed, identity)%uint64(len(list))]
}

// PSK gives the key of a PSK identity. ErrUnknown where there is none. The caller wipes the key after use.
// It is read at each call: a file, or an operation of the chip.
func (r *Realm) PSK(ctx context.Context, identity string) (Identity, []byte, error) {
	t := r.now.Load()
	d := t.psk[identity]
	known := d != nil
	if !known {
		if d = r.decoy(t.pskDecoys, identity); d == nil {
			return Identity{}, nil, ErrUnknown
		}
	}
	if _, ok := d.cfg.PSK.Key(); ok {
		return Identity{}, nil, fmt.Errorf("device %q: the pre-shared key does not leave its chip", d.name)
	}
	secret, err := r.o.Secret(ctx, string(d.cfg.PSK))
	var key []byte
	if err == nil {
		key, err = config.DecodePSK(secret)
	}
	clear(secret)
	switch {
	case !known:
		clear(key)
		return Identity{}, nil, ErrUnknown
	case err != nil:
		return Identity{}, nil, fmt.Errorf("device %q: pre-shared key: %w", d.name, err)
	}
	return d.identity("psk", identity), key, nil
}

// PSKsInChip tells whether a device has its pre-shared key in a chip.
func (r *Realm) PSKsInChip() bool { return r.now.Load().pskInChip }

// PSKInChip gives what stands for the pre-shared key of an identity in its chip; nil where there is no such one.
func (r *Realm) PSKInChip(ctx context.Context, identity string) (Identity, hwcrypto.MACer, error) {
	d := r.now.Load().psk[identity]
	if d == nil {
		return Identity{}, nil, nil
	}
	name, ok := d.cfg.PSK.Key()
	if !ok {
		return Identity{}, nil, nil
	}
	m, err := r.o.MAC(ctx, name)
	if err != nil {
		return Identity{}, nil, fmt.Errorf("device %q: pre-shared key: %w", d.name, err)
	}
	return d.identity("psk", identity), m, nil
}

// Login checks what an MQTT client has shown by the methods in order; the first that proves an identity wins.
// An error that is not ErrUnknown says that a method could not be asked; it is returned only where no other one proves an identity.
func (r *Realm) Login(ctx context.Context, methods []string, c Credentials) (Identity, error) {
	var unable error
	no := ErrUnknown
	for _, m := range methods {
		id, err := r.login(ctx, m, &c)
		switch {
		case err == nil:
			return id, nil
		case errors.Is(err, ErrBackoff):
			return Identity{}, err
		case !errors.Is(err, ErrUnknown):
			unable = errors.Join(unable, fmt.Errorf("%s: %w", m, err))
		case no == ErrUnknown:
			no = err // the first that says more
		}
	}
	if unable != nil {
		return Identity{}, unable
	}
	return Identity{}, no
}

func (r *Realm) login(ctx context.Context, method string, c *Credentials) (Identity, error) {
	switch method {
	case "x509":
		if len(c.Chain) == 0 {
			return Identity{}, ErrUnknown
		}
		return r.Certificate(ctx, c.Listener, c.Chain)
	case "password":
		return r.password(ctx, c)
	case "jwt":
		return r.token(ctx, c)
	case "http":
		return r.external(ctx, c)
	case "anonymous":
		return r.anonymous(c)
	}
	return Identity{}, errors.New("no such method")
}

// anonymous names the device by its client id, where that is no device with a credential of its own.
// That it is only offered on loopback is the configuration's matter, and is held here as well.
func (r *Realm) anonymous(c *Credentials) (Identity, error) {
	if !c.Remote.Addr().Unmap().IsLoopback() || !config.ValidDevice(c.ClientID) {
		return Identity{}, ErrUnknown
	}
	id := Identity{Device: c.ClientID, Method: "anonymous"}
	if d := r.now.Load().devices[c.ClientID]; d != nil {
		if d.cfg.PSK != "" || d.cfg.Password != "" || d.cfg.Cert != "" {
			return Identity{}, ErrUnknown
		}
		id = d.identity("anonymous", "")
	}
	return id, nil
}

// Lookup gives the identity that a device of that name would have, as far as the file tells: for `routes test` and the like.
// false where the file does not know the name.
func (r *Realm) Lookup(name string) (Identity, bool) {
	t := r.now.Load()
	d := t.devices[name]
	names := []certName{{text: name}, {text: name, cn: true}}
	if d != nil && (d.cfg.PSK != "" || d.cfg.Password != "") {
		names = nil // it shows no certificate
	}
	id := Identity{Device: name, Groups: t.groupsOf(d, names), Sleepy: d != nil && d.cfg.Sleepy}
	return id, d != nil || len(id.Groups) > 0
}

// Refresh tells who a live session's device is by the present file. ErrUnknown where the device or its credential is no longer there.
func (r *Realm) Refresh(ctx context.Context, id Identity) (Identity, error) {
	t := r.now.Load()
	if !id.Expires.IsZero() && !r.o.Now().Before(id.Expires) {
		return Identity{}, ErrUnknown
	}
	d := t.devices[id.Device]
	fresh := id
	fresh.Sleepy = d != nil && d.cfg.Sleepy
	switch id.Method {
	case "psk":
		if d = t.psk[id.Credential]; d == nil || d.name != id.Device {
			return Identity{}, ErrUnknown
		}
		fresh.Groups = d.groups
	case "password":
		if d == nil || d.cfg.Password == "" {
			return Identity{}, ErrUnknown
		}
		fresh.Groups = d.groups
	case "x509":
		return r.refreshCertificate(t, id)
	case "jwt":
		if id.proof == nil || t.issuers[id.proof.issuer] == nil { // a token is short-lived: it is shown anew after a restart
			return Identity{}, ErrUnknown
		}
		fresh.Groups = merged(d, id.proof.groups)
	case "http":
		if id.proof == nil || t.ask == nil {
			return Identity{}, ErrUnknown
		}
		fresh.Groups = merged(d, id.proof.groups)
	case "anonymous":
		if d != nil && (d.cfg.PSK != "" || d.cfg.Password != "" || d.cfg.Cert != "") {
			return Identity{}, ErrUnknown
		}
		fresh.Groups = merged(d, nil)
	case "none": // a listener on loopback that asks for no credential: a name is taken as it is said
		fresh.Groups = merged(d, nil)
	}
	return fresh, nil
}

// merged gives the groups of the file and those that a token brought, sorted.
func merged(d *device, brought []string) []string {
	all := slices.Clone(brought)
	if d != nil {
		all = append(all, d.groups...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
