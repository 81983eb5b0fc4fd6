package auth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
)

// authority is a test CA.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, now time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
	}
	return &authority{t, key, sign(t, tmpl, tmpl, key.Public(), key)}
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a chain for a device.
func (a *authority) issue(serial int64, cn string, sans ...string) []*x509.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotBefore.Add(100 * time.Hour)}
	for _, s := range sans {
		if u, err := url.Parse(s); err == nil && u.Scheme != "" {
			tmpl.URIs = append(tmpl.URIs, u)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, s)
		}
	}
	return []*x509.Certificate{sign(a.t, tmpl, a.cert, key.Public(), a.key), a.cert}
}

func (a *authority) crl(number int64, next time.Time, serials ...int64) []byte {
	a.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: a.cert.NotBefore, NextUpdate: next}
	for _, s := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: a.cert.NotBefore})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

const certFile = `
[device.press-3]
groups = ["press"]
[device.boiler]
cert = "boiler.plant7.example"
[device.pinned]
cert = "sha256:FINGERPRINT"
[device.keyed]
psk = "file:keyed.psk"
cert = "elsewhere"
[group.meter]
san = "*.meters.plant7.example"
[group.all-plant7]
san = "*.meters.plant7.example"
[group.pump]
cn = "pump-*"
`

func TestCertificates(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ca := newAuthority(t, now)
	pinned := ca.issue(7, "whatever")
	sum := sha256.Sum256(pinned[0].Raw)
	b := newBench(t, strings.Replace(certFile, "FINGERPRINT", hex.EncodeToString(sum[:]), 1), map[string]string{"keyed.psk": "k"})
	for name, c := range map[string]struct {
		chain  []*x509.Certificate
		device string
		groups string
	}{
		"a device's name as the CN":                        {ca.issue(2, "press-3"), "press-3", "press"},
		"a device's name as a SAN":                         {ca.issue(2, "", "press-3"), "press-3", "press"},
		"a SAN that a device names":                        {ca.issue(2, "x", "boiler.plant7.example"), "boiler", ""},
		"DNS names in any case":                            {ca.issue(2, "x", "Boiler.Plant7.Example"), "boiler", ""},
		"the name of a device that names another":          {ca.issue(2, "boiler"), "", ""},
		"a pinned fingerprint":                             {pinned, "pinned", ""},
		"the name of a pinned device on another":           {ca.issue(2, "pinned"), "", ""},
		"a SAN that two groups take":                       {ca.issue(2, "x", "m1.meters.plant7.example"), "m1.meters.plant7.example", "all-plant7,meter"},
		"a SAN in capitals names the device in small":      {ca.issue(2, "x", "M1.meters.PLANT7.example"), "m1.meters.plant7.example", "all-plant7,meter"},
		"a star takes one label":                           {ca.issue(2, "x", "a.b.meters.plant7.example"), "", ""},
		"a star takes not nothing":                         {ca.issue(2, "x", ".meters.plant7.example"), "", ""},
		"a CN is no SAN":                                   {ca.issue(2, "m1.meters.plant7.example"), "", ""},
		"a CN that a group takes":                          {ca.issue(2, "pump-9"), "pump-9", "pump"},
		"a SAN is no CN":                                   {ca.issue(2, "", "pump-9"), "", ""},
		"a name with a slash is no device's":               {ca.issue(2, "pump-a/b"), "", ""},
		"names of two devices":                             {ca.issue(2, "press-3", "boiler.plant7.example"), "", ""},
		"a device that is in a group by its certificate":   {ca.issue(2, "press-3", "m2.meters.plant7.example"), "press-3", "all-plant7,meter,press"},
		"a group cannot give the name of a device":         {ca.issue(2, "x", "nobody"), "", ""},
		"the name of a device whose certificate is other":  {ca.issue(2, "keyed"), "", ""},
		"the name that such a device gives its credential": {ca.issue(2, "elsewhere"), "keyed", ""},
		"nothing at all":                                   {nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := b.realm.Certificate(t.Context(), "l", c.chain)
			if c.device == "" {
				if !errors.Is(err, auth.ErrUnknown) {
					t.Errorf("taken for %+v, %v", id, err)
				}
				return
			}
			if err != nil || id.Device != c.device || strings.Join(id.Groups, ",") != c.groups {
				t.Fatalf("%+v, %v", id, err)
			}
			if id.Method != "x509" || len(id.Credential) != 64 || !id.Expires.Equal(c.chain[0].NotAfter) {
				t.Errorf("%+v", id)
			}
			// A session that lives on, and one whose listener kept what it could through a restart.
			kept := auth.Identity{Device: id.Device, Groups: id.Groups, Method: id.Method, Credential: id.Credential, Expires: id.Expires}
			for _, id := range []auth.Identity{id, kept} {
				again, err := b.realm.Refresh(t.Context(), id)
				if err != nil || again.Device != id.Device || !slices.Equal(again.Groups, id.Groups) {
					t.Errorf("after a refresh: %+v, %v", again, err)
				}
			}
		})
	}
	chain := ca.issue(2, "press-3")
	id, err := b.realm.Certificate(t.Context(), "l", chain)
	if err != nil {
		t.Fatal(err)
	}
	b.advance(200 * time.Hour)
	if _, err := b.realm.Certificate(t.Context(), "l", chain); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("an expired certificate: %v", err)
	}
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("a session whose certificate has expired: %v", err)
	}
}

func TestRestoredCertificates(t *testing.T) {
	a, z := strings.Repeat("aa", 32), strings.Repeat("zz", 32)
	file := strings.Replace(certFile, "FINGERPRINT", a, 1)
	b := newBench(t, file, map[string]string{"keyed.psk": "k"})
	for name, c := range map[string]struct {
		device, credential string
		want               bool
	}{
		"a device that is there":                   {"press-3", strings.Repeat("bb", 32), true},
		"a device that is gone":                    {"press-4", strings.Repeat("bb", 32), false},
		"a device that a group takes":              {"pump-1", strings.Repeat("bb", 32), true},
		"a pinned device":                          {"pinned", a, true},
		"a pinned device with another certificate": {"pinned", strings.Repeat("bb", 32), false},
		"the certificate of a pinned device":       {"press-3", a, false},
		"no fingerprint":                           {"press-3", z, false},
	} {
		id, err := b.realm.Refresh(t.Context(), auth.Identity{Device: c.device, Method: "x509", Credential: c.credential})
		if (err == nil) != c.want || c.want && id.Device != c.device {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	ca := newAuthority(t, b.now())
	b.secrets["crl.pem"] = string(ca.crl(1, b.now().Add(time.Hour), 99))
	b.swap(file + "[listener.shop]\ntype = \"test\"\ndevice_crl = \"DIR/crl.pem\"\n")
	if _, err := b.realm.Refresh(t.Context(), auth.Identity{Device: "press-3", Method: "x509", Credential: strings.Repeat("bb", 32)}); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("it cannot be told whether it is revoked: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ca, other := newAuthority(t, now), newAuthority(t, now)
	file := "[device.press-3]\n[listener.shop]\ntype = \"test\"\ndevice_crl = \"DIR/crl.pem\"\n"
	b := newBench(t, file, map[string]string{"crl.pem": string(ca.crl(1, now.Add(time.Hour), 99))})
	good, bad := ca.issue(2, "press-3"), ca.issue(99, "press-3")
	id, err := b.realm.Certificate(t.Context(), "shop", good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.realm.Certificate(t.Context(), "shop", bad); !errors.Is(err, auth.ErrUnknown) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
	if _, err := b.realm.Certificate(t.Context(), "elsewhere", bad); err != nil {
		t.Errorf("another listener has no list: %v", err)
	}

	b.write("crl.pem", other.crl(2, now.Add(time.Hour), 2, 99))
	b.advance(11 * time.Second)
	if _, err := b.realm.Certificate(t.Context(), "shop", good); err != nil {
		t.Errorf("a list that another key has signed counts: %v", err)
	}
	b.write("crl.pem", append(ca.crl(3, now.Add(time.Hour), 2), "\n"...))
	b.advance(11 * time.Second)
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("a session whose certificate has been revoked: %v", err)
	}
	if p := b.problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}

	b.write("crl.pem", []byte("no list"))
	b.advance(11 * time.Second)
	if _, err := b.realm.Certificate(t.Context(), "shop", good); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("the last good list does not stay in force: %v", err)
	}
	if p := b.problems(); !slices.Contains(p, "crl-unreadable") {
		t.Errorf("problems: %v", p)
	}
	b.advance(time.Hour)
	if b.realm.Certificate(t.Context(), "shop", good); !slices.Contains(b.problems(), "crl-stale") {
		t.Errorf("problems: %v", b.problems())
	}
}
