package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/config"
)

// group is a [group.NAME] that takes certificates by their names.
type group struct{ name, san, cn string }

// proof keeps what Refresh needs of the credential that made an identity.
type proof struct {
	listener string
	names    []certName
	links    []link   // of a certificate: what revocation lists name it by
	issuer   string   // of a token: its URL
	groups   []string // that a token or the authenticator brought
}

// certName is a subject alternative name of a certificate, or its common name.
type certName struct {
	text string
	cn   bool
}

// String gives the name as it stands in the certificate.
func (n certName) String() string { return n.text }

func cutFingerprint(cert string) (hex string, ok bool) { return strings.CutPrefix(cert, "sha256:") }

// fold makes names alike that differ in the case of letters, as DNS names do.
func fold(name string) string { return strings.ToLower(name) }

// certNames gives the subject alternative names of a certificate (DNS names in lower case, mail addresses, URIs, IP addresses), then its
// common name.
func certNames(c *x509.Certificate) []certName {
	var names []certName
	for _, n := range c.DNSNames {
		names = append(names, certName{text: strings.ToLower(n)})
	}
	for _, n := range c.EmailAddresses {
		names = append(names, certName{text: n})
	}
	for _, u := range c.URIs {
		names = append(names, certName{text: u.String()})
	}
	for _, ip := range c.IPAddresses {
		names = append(names, certName{text: ip.String()})
	}
	if c.Subject.CommonName != "" {
		names = append(names, certName{c.Subject.CommonName, true})
	}
	return names
}

// Certificate maps a chain that has been verified against the listener's CA to an identity: the [device] that pins its fingerprint;
// else the one [device] that one of its names is; else a device of a [group] whose pattern takes one of its names, named by that.
// A certificate that is outside its time, revoked, or whose names belong to two devices proves nobody.
func (r *Realm) Certificate(_ context.Context, listener string, chain []*x509.Certificate) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, ErrUnknown
	}
	leaf, now := chain[0], r.o.Now()
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return Identity{}, fmt.Errorf("%w: the certificate is valid from %s to %s", ErrUnknown, leaf.NotBefore.UTC(), leaf.NotAfter.UTC())
	}
	t := r.now.Load()
	p := &proof{listener: listener, names: certNames(leaf), links: links(chain)}
	if list := t.crls[listener]; list != nil {
		if err := list.check(p.links); err != nil {
			return Identity{}, err
		}
	}
	sum := sha256.Sum256(leaf.Raw)
	return t.certified(sum, p, Identity{Method: "x509", Credential: hex.EncodeToString(sum[:]), Expires: leaf.NotAfter, proof: p})
}

// certified fills in who the certificate proves.
func (t *tables) certified(sum [32]byte, p *proof, id Identity) (Identity, error) {
	d := t.fingerprints[sum]
	if d == nil {
		for _, n := range p.names {
			switch other := t.names[fold(n.text)]; {
			case other == nil || other == d:
			case d == nil:
				d = other
			default:
				return Identity{}, fmt.Errorf("%w: the certificate is that of %q and of %q", ErrUnknown, d.name, other.name)
			}
		}
	}
	id.Groups = t.groupsOf(d, p.names)
	if d != nil {
		id.Device, id.Sleepy = d.name, d.cfg.Sleepy
		return id, nil
	}
	for _, n := range p.names {
		// A name that a [device] bears is that device's alone.
		if t.devices[n.text] == nil && config.ValidDevice(n.text) && slices.ContainsFunc(t.groups, func(g group) bool { return g.takes(n) }) {
			id.Device = n.text
			return id, nil
		}
	}
	return Identity{}, fmt.Errorf("%w: no device or group has a certificate named %q", ErrUnknown, p.names)
}

// groupsOf gives the groups of the device, which may be nil, and those that take one of the names.
func (t *tables) groupsOf(d *device, names []certName) []string {
	var taken []string
	for _, g := range t.groups {
		if slices.ContainsFunc(names, g.takes) {
			taken = append(taken, g.name)
		}
	}
	return merged(d, taken)
}

// takes tells whether the group's pattern matches the name.
func (g group) takes(n certName) bool {
	if n.cn {
		return g.cn != "" && config.Glob(g.cn, n.text)
	}
	return g.san != "" && config.Glob(g.san, n.text)
}

// refreshCertificate maps what is kept of a session's certificate anew.
func (r *Realm) refreshCertificate(t *tables, id Identity) (Identity, error) {
	sum, err := config.ParseFingerprint(id.Credential)
	if err != nil {
		return Identity{}, ErrUnknown
	}
	if id.proof == nil {
		return t.restored(sum, id)
	}
	if list := t.crls[id.proof.listener]; list != nil {
		if err := list.check(id.proof.links); err != nil {
			return Identity{}, err
		}
	}
	fresh, err := t.certified(sum, id.proof, Identity{Method: id.Method, Credential: id.Credential, Expires: id.Expires, proof: id.proof})
	if err == nil && fresh.Device != id.Device {
		return Identity{}, ErrUnknown
	}
	return fresh, err
}

// restored takes an identity whose listener kept its exported fields alone, through a restart. The certificate's names are not known any
// more, so the device must still be there, or a group that takes its name; and where there are revocation lists, the device has to
// show its certificate anew.
func (t *tables) restored(sum [32]byte, id Identity) (Identity, error) {
	d := t.devices[id.Device]
	names := []certName{{text: id.Device}, {text: id.Device, cn: true}}
	fresh := Identity{Device: id.Device, Method: id.Method, Credential: id.Credential, Expires: id.Expires, Sleepy: d != nil && d.cfg.Sleepy}
	var kept []string
	for _, g := range t.groups {
		if slices.Contains(id.Groups, g.name) || slices.ContainsFunc(names, g.takes) {
			kept = append(kept, g.name)
		}
	}
	fresh.Groups = merged(d, kept)
	switch pinned := t.fingerprints[sum]; {
	case len(t.crls) > 0:
		return Identity{}, ErrUnknown
	case d == nil && !slices.ContainsFunc(t.groups, func(g group) bool { return slices.ContainsFunc(names, g.takes) }):
		return Identity{}, ErrUnknown
	case pinned != nil && pinned != d:
		return Identity{}, ErrUnknown
	case d != nil && pinned == nil && strings.HasPrefix(d.cfg.Cert, "sha256:"):
		return Identity{}, ErrUnknown
	}
	return fresh, nil
}
