package southtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/southbound"
)

// Site is the gateway around a listener: a CA, the server's key, devices with their secrets, and rules.
// Env gives a listener its keys, its authenticator and its policy.
type Site struct {
	Dir    string         // for files of the test
	State  string         // where listeners keep their state; a folder of Dir unless changed
	CAFile string         // PEM of the CA that has signed the server and every device certificate
	Roots  *x509.CertPool // the same CA
	Log    *slog.Logger

	caCert *x509.Certificate
	caKey  crypto.Signer
	server tls.Certificate

	mu      sync.Mutex
	devices map[string]*Account                                // guarded by mu
	allowed func(id *auth.Identity, op auth.Op, s string) bool // guarded by mu; nil: everything
	awake   []string                                           // guarded by mu
}

// Account is one device of a Site.
type Account struct {
	Secret  []byte // PSK and password alike
	Groups  []string
	Expires time.Time
	Sleepy  bool
}

// NewSite makes a site with the devices "th-1" and "th-2", both of group "thermostat".
func NewSite(t testing.TB) *Site {
	t.Helper()
	dir := t.TempDir()
	s := &Site{Dir: dir, State: filepath.Join(dir, "state"), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), devices: map[string]*Account{}}
	s.caKey = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "southtest CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.caKey.Public(), s.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if s.caCert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	s.Roots = x509.NewCertPool()
	s.Roots.AddCert(s.caCert)
	s.CAFile = filepath.Join(s.Dir, "ca.pem")
	if err := os.WriteFile(s.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s.server = s.Issue(t, "gateway")
	s.AddDevice("th-1", Account{Secret: []byte("southtest-secret-of-th-1"), Groups: []string{"thermostat"}})
	s.AddDevice("th-2", Account{Secret: []byte("southtest-secret-of-th-2"), Groups: []string{"thermostat"}})
	return s
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Issue makes a certificate of the site's CA with name as CN and SAN, good for the server on loopback and for clients.
func (s *Site) Issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, "localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, s.caCert, key.Public(), s.caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// IssueFiles writes what Issue makes as PEM files, for programs that are not ours.
func (s *Site) IssueFiles(t testing.TB, name string) (certFile, keyFile string) {
	t.Helper()
	c := s.Issue(t, name)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(s.Dir, name+".crt"), filepath.Join(s.Dir, name+".key")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: c.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// Revoke makes a PEM revocation list of the site's CA that names the serials.
func (s *Site) Revoke(t testing.TB, serials ...*big.Int) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.caCert, s.caKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// AddDevice adds or replaces a device.
func (s *Site) AddDevice(name string, a Account) {
	s.mu.Lock()
	s.devices[name] = &a
	s.mu.Unlock()
}

// RemoveDevice removes a device.
func (s *Site) RemoveDevice(name string) {
	s.mu.Lock()
	delete(s.devices, name)
	s.mu.Unlock()
}

// Secret gives the secret of a device.
func (s *Site) Secret(device string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.devices[device].Secret)
}

// Allow replaces the rules; nil allows everything.
func (s *Site) Allow(allowed func(id *auth.Identity, op auth.Op, resource string) bool) {
	s.mu.Lock()
	s.allowed = allowed
	s.mu.Unlock()
}

// Awoken gives the devices that the listener has called awake, in order.
func (s *Site) Awoken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.awake)
}

// Env makes the environment of a listener at this site. Bound is left to the caller.
func (s *Site) Env(t testing.TB, name string) southbound.Env {
	t.Helper()
	state := filepath.Join(s.State, name)
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	return southbound.Env{
		Name: name, Log: s.Log.With("listener", name), State: state, Now: time.Now,
		Health: health.New(s.Log, time.Now).For("listener " + name),
		Keys:   siteKeys{s}, Auth: siteAuth{s}, Policy: sitePolicy{s},
		Awake: func(device string) {
			s.mu.Lock()
			s.awake = append(s.awake, device)
			s.mu.Unlock()
		},
	}
}

func (s *Site) identity(device, method, credential string) (auth.Identity, *Account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.devices[device]
	if a == nil {
		return auth.Identity{}, nil, auth.ErrUnknown
	}
	return auth.Identity{Device: device, Groups: a.Groups, Method: method, Credential: credential, Expires: a.Expires, Sleepy: a.Sleepy}, a, nil
}

type siteKeys struct{ s *Site }

func (k siteKeys) Certificate(_ context.Context, name string) (*tls.Certificate, error) {
	if name != "identity" {
		return nil, fmt.Errorf("key %q: there is only \"identity\"", name)
	}
	return &k.s.server, nil
}

func (k siteKeys) Sealer(_ context.Context, name string) (hwcrypto.Sealer, error) {
	return nil, fmt.Errorf("key %q: does not seal", name)
}

type siteAuth struct{ s *Site }

func (a siteAuth) PSK(_ context.Context, identity string) (auth.Identity, []byte, error) {
	id, account, err := a.s.identity(identity, "psk", identity)
	if err != nil {
		return id, nil, err
	}
	return id, slices.Clone(account.Secret), nil
}

func (a siteAuth) Certificate(_ context.Context, _ string, chain []*x509.Certificate) (auth.Identity, error) {
	sum := sha256.Sum256(chain[0].Raw)
	id, _, err := a.s.identity(chain[0].Subject.CommonName, "x509", hex.EncodeToString(sum[:]))
	return id, err
}

func (a siteAuth) Login(ctx context.Context, methods []string, c auth.Credentials) (auth.Identity, error) {
	for _, m := range methods {
		switch {
		case m == "x509" && c.Chain != nil:
			if id, err := a.Certificate(ctx, c.Listener, c.Chain); err == nil {
				return id, nil
			}
		case (m == "password" || m == "jwt") && c.User != "":
			id, account, err := a.s.identity(c.User, m, c.User)
			if err == nil && subtle.ConstantTimeCompare(account.Secret, c.Password) == 1 {
				return id, nil
			}
		case m == "anonymous" && c.ClientID != "":
			return auth.Identity{Device: c.ClientID, Method: m}, nil
		}
	}
	return auth.Identity{}, auth.ErrUnknown
}

func (a siteAuth) Refresh(_ context.Context, id auth.Identity) (auth.Identity, error) {
	if id.Method == "anonymous" {
		return id, nil
	}
	fresh, _, err := a.s.identity(id.Device, id.Method, id.Credential)
	if id.Method == "none" && err != nil {
		return id, nil
	}
	return fresh, err
}

type sitePolicy struct{ s *Site }

func (p sitePolicy) Allowed(id *auth.Identity, op auth.Op, resource string) bool {
	p.s.mu.Lock()
	allowed := p.s.allowed
	p.s.mu.Unlock()
	return allowed == nil || allowed(id, op, resource)
}

func (p sitePolicy) Commandable(_, device string, groups []string, resource string) bool {
	return p.Allowed(&auth.Identity{Device: device, Groups: groups}, auth.Command, resource)
}

func (p sitePolicy) CommandsWithin(id *auth.Identity, filter string) bool {
	return p.Allowed(id, auth.Command, "/"+filter)
}
