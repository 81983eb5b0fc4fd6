package onem2m

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// device is what stands for a device's name in the names of credentials.
const device = "{device}"

// badge is the credential that an AE shows in the security association.
type badge struct {
	ae    string // name of the AE
	key   string // [key.NAME]; empty: no certificate
	psk   config.SecretRef
	pskID string // empty: no pre-shared key
}

// badge gives the credential of an AE, and whether it is its own.
func (c *Connector) badge(ae string) (b badge, own bool) {
	own = c.cfg.DeviceKey != "" || c.cfg.DevicePSKID != ""
	if !own || ae == c.cfg.AE {
		return badge{c.cfg.AE, c.cfg.Key, c.cfg.PSK, c.cfg.PSKID}, false
	}
	name := func(s string) string { return strings.ReplaceAll(s, device, ae) }
	return badge{ae, name(c.cfg.DeviceKey), config.SecretRef(name(c.cfg.DevicePSK)), name(c.cfg.DevicePSKID)}, true
}

// id is the AE-ID that an AE has, or will ask for.
func (c *Connector) id(ae string) string {
	if id := c.notes.id(ae); id != "" {
		return id
	}
	return c.originator(ae)
}

// tls makes the configuration of a client for each session anew: certificates are renewed while the gateway runs.
func (c *Connector) tls(ctx context.Context, b badge) (*tls.Config, error) {
	t, err := mqtt.ClientTLS(ctx, c.env, string(c.cfg.CA), b.key)
	if err != nil {
		return nil, err
	}
	if len(t.Certificates) > 0 {
		if err := c.ours(&t.Certificates[0], c.id(b.ae)); err != nil {
			return nil, msg.Permanent(fmt.Errorf("key %s: %w", b.key, err))
		}
	}
	t.ServerName = c.url.Hostname()
	if c.cfg.SP != "" {
		t.ServerName = c.cseDomain()
		t.VerifyPeerCertificate = theirs
	}
	return t, nil
}

// cseDomain is the public domain name of the CSE: its CSE-ID below the M2M-SP-ID, which a CSE-ID certificate has (TS-0003 clause 10.1.1).
func (c *Connector) cseDomain() string { return strings.TrimPrefix(c.csi, "/") + "." + c.cfg.SP }

// absolute gives the absolute form of an AE-ID (TS-0001 clause 7.2).
func (c *Connector) absolute(id string) string {
	if strings.HasPrefix(id, "C") {
		id = c.csi + "/" + id
	}
	return "//" + c.cfg.SP + "/" + strings.TrimPrefix(id, "/")
}

// ours holds our certificate against the profile of TS-0003 clause 10.1, as far as it is known who we are: what an AE-ID certificate names is
// the AE-ID, and where the M2M-SP-ID is known it has to be one.
func (c *Connector) ours(cert *tls.Certificate, id string) error {
	leaf := cert.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
	}
	if c.cfg.SP == "" {
		return nil
	}
	if err := profile(leaf); err != nil {
		return err
	}
	want := c.absolute(id)
	var named []string
	for _, u := range leaf.URIs {
		name := "//" + u.Host + u.Path
		if name == want || id == "C" || id == "S" {
			return nil
		}
		named = append(named, name)
	}
	if len(named) == 0 {
		return fmt.Errorf("the certificate names no AE-ID: its subjectAltName needs the URI %q", want)
	}
	return fmt.Errorf("the certificate names the AE-ID %q, and the AE is %q: set ae_id, or have it certified anew", strings.Join(named, ", "), want)
}

// theirs holds the CSE's certificate, whose name and chain have been verified, against the profile.
func theirs(_ [][]byte, chains [][]*x509.Certificate) error {
	for _, chain := range chains {
		if err := profile(chain[0]); err != nil {
			return msg.Permanent(fmt.Errorf("the CSE's certificate: %w", err))
		}
	}
	return nil
}

// profile is what holds for every certificate of TS-0003 clause 10.1.
func profile(leaf *x509.Certificate) error {
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || public.Curve != elliptic.P256():
		return fmt.Errorf("a key of type %s: TS-0003 asks for one on P-256", leaf.PublicKeyAlgorithm)
	case leaf.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return fmt.Errorf("signed by %s: TS-0003 asks for ECDSA-SHA256", leaf.SignatureAlgorithm)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fmt.Errorf("its key usage does not include digitalSignature")
	}
	for _, name := range leaf.DNSNames {
		if strings.Contains(name, "*") {
			return fmt.Errorf("the name %q has a wildcard, which TS-0003 does not allow", name)
		}
	}
	return nil
}

// route dials a connection of its own for an AE that has a credential of its own. One lock for each AE is held.
func (s *session) route(ctx context.Context, ae string) (wire, error) {
	b, own := s.c.badge(ae)
	if !own {
		return s.wire, nil
	}
	s.routes.Lock()
	w := s.byName[ae]
	s.routes.Unlock()
	if w != nil {
		return w, nil
	}
	w, err := s.dialWire(ctx, b)
	if err != nil {
		return nil, ofOne{fmt.Errorf("AE %s: %w", ae, err)}
	}
	s.routes.Lock()
	s.byName[ae] = w
	s.routes.Unlock()
	return w, nil
}

// carry lets a connection carry what concerns an originator.
func (s *session) carry(ctx context.Context, w wire, originator string) error {
	if err := w.join(ctx, originator); err != nil {
		return err
	}
	s.routes.Lock()
	s.byOriginator[originator] = w
	s.routes.Unlock()
	return nil
}

// via gives the connection that carries an originator's requests.
func (s *session) via(originator string) wire {
	s.routes.Lock()
	defer s.routes.Unlock()
	if w := s.byOriginator[originator]; w != nil {
		return w
	}
	return s.wire
}
