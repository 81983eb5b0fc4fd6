package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// What errors of a certificate mean that this end has checked.
var (
	certificateName = Meaning{Name: "certificate-name", Stays: true,
		What: "the peer's certificate is for {names}, not for {host}",
		Hint: "is this the right peer? Name it as its certificate does, or have its certificate made anew with this name"}
	certificateUntrusted = Meaning{Name: "certificate-untrusted", Stays: true,
		What: "the peer's certificate {subject} is signed by {issuer}, who is not trusted here",
		Hint: "name the certificate of that CA with `ca = \"FILE\"`, for devices with `device_ca`; if the peer is right, does it send the certificates between?"}
	certificateWeak = Meaning{Name: "certificate-weak", Stays: true,
		What: "the certificate {subject} is signed with {algorithm}, which proves nothing any more",
		Hint: "have it made anew by its CA, with SHA-256 or better"}
	certificateEnded = Meaning{Name: "certificate-ended",
		What: "the peer's certificate {subject} expired on {end}: it was not renewed, or its clock or ours is off by {gap}",
		Hint: "have it renewed at the peer; this clock says {now}: if that is wrong, set it with `timedatectl`"}
	certificateEarly = Meaning{Name: "certificate-early",
		What: "the peer's certificate {subject} begins on {begin}: its clock or ours is off by {gap}",
		Hint: "this clock says {now}: if that is wrong, set it with `timedatectl`; else the peer's clock made a wrong certificate"}
	certificateUsage = Meaning{Name: "certificate-usage", Stays: true,
		What: "the peer's certificate {subject} is not made for this end of a connection",
		Hint: "have it made anew with the extended key usage: serverAuth for a server, clientAuth for a device"}
	certificateWrong = Meaning{Name: "certificate-wrong", Stays: true,
		What: "the chain of the peer's certificate breaks a rule of a CA, at {subject}",
		Hint: "have it made anew by its CA; `openssl verify` names the rule"}
	noRoots = Meaning{Name: "no-roots", Stays: true,
		What: "this machine has no list of the CAs that it trusts",
		Hint: "install `ca-certificates`, or name the peer's CA with `ca = \"FILE\"`"}
)

func ofCertificate(err error, now time.Time) (Explanation, bool) {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return Explanation{&certificateName, Values{"names": namesOf(e.Certificate), "host": e.Host}}, true
	}
	if _, ok := errors.AsType[x509.SystemRootsError](err); ok {
		return Explanation{Meaning: &noRoots}, true
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		chain := []*x509.Certificate{e.Cert}
		if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			chain = v.UnverifiedCertificates
		}
		for _, c := range chain {
			if c != nil && weak(c) {
				return Explanation{&certificateWeak, Values{"subject": quoted(c.Subject), "algorithm": c.SignatureAlgorithm.String()}}, true
			}
		}
		subject, issuer := "", "somebody"
		if e.Cert != nil {
			subject, issuer = quoted(e.Cert.Subject), quoted(e.Cert.Issuer)
		}
		return Explanation{&certificateUntrusted, Values{"subject": subject, "issuer": issuer}}, true
	}
	e, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || e.Cert == nil {
		return Explanation{}, false
	}
	subject := quoted(e.Cert.Subject)
	switch {
	case e.Reason == x509.IncompatibleUsage || e.Reason == x509.CANotAuthorizedForExtKeyUsage:
		return Explanation{&certificateUsage, Values{"subject": subject}}, true
	case e.Reason != x509.Expired:
		return Explanation{&certificateWrong, Values{"subject": subject}}, true
	case now.Before(e.Cert.NotBefore):
		return Explanation{&certificateEarly, Values{"subject": subject, "begin": day(e.Cert.NotBefore), "gap": e.Cert.NotBefore.Sub(now), "now": day(now)}}, true
	}
	return Explanation{&certificateEnded, Values{"subject": subject, "end": day(e.Cert.NotAfter), "gap": now.Sub(e.Cert.NotAfter), "now": day(now)}}, true
}

// weak tells whether the signature over c is of a kind that crypto/x509 refuses. That of a root over itself counts for nothing.
func weak(c *x509.Certificate) bool {
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return string(c.RawIssuer) != string(c.RawSubject)
	}
	return false
}

func quoted(name fmt.Stringer) string { return fmt.Sprintf("%q", name) }

func namesOf(c *x509.Certificate) string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return quoted(c.Subject)
	}
	return strings.Join(names, ", ")
}

// What errors of names and connections mean.
var (
	nameUnknown = Meaning{Name: "name-unknown", What: "there is no host {name}", Hint: "is it spelled right? Does this network's DNS know it?"}
	nameServers = Meaning{Name: "name-servers", What: "no DNS server answers for {name}", Hint: "is the network up? `resolvectl status`"}
	proxyAway   = Meaning{Name: "proxy-away", What: "the proxy of this machine's environment cannot be reached",
		Hint: "look at `HTTPS_PROXY` and `NO_PROXY` in the service's environment"}
)

// connections are what the errors of the operating system and of time mean.
var connections = []struct {
	err error
	Meaning
}{
	{syscall.ECONNREFUSED, Meaning{Name: "refused", What: "nothing listens at the peer's port", Hint: "is the peer running, and is the port right?"}},
	{syscall.EHOSTUNREACH, Meaning{Name: "host-unreachable", What: "the peer's machine does not answer", Hint: "is it on, and on this network?"}},
	{syscall.ENETUNREACH, Meaning{Name: "network-unreachable", What: "there is no way to the peer's network", Hint: "is this machine's network up? `ip route`"}},
	{syscall.ENETDOWN, Meaning{Name: "network-down", What: "this machine's network is down", Hint: "`ip link` shows which interface is; is the cable in?"}},
	{syscall.ECONNRESET, Meaning{Name: "reset", What: "the peer broke the connection off", Hint: "its log may say why"}},
	{syscall.EPIPE, Meaning{Name: "broken-pipe", What: "the peer has closed the connection while this end wrote", Hint: "its log may say why"}},
	{syscall.ETIMEDOUT, Meaning{Name: "no-answer", What: "the peer does not answer", Hint: "is it on? Does a firewall drop what is sent to this port?"}},
	{syscall.EADDRINUSE, Meaning{Name: "address-in-use", What: "another program has this address already", Hint: "which one: `ss -lnptu`"}},
	{syscall.EADDRNOTAVAIL, Meaning{Name: "address-not-here", What: "this machine has no such address", Hint: "listen on one of its own, or on all: `\":PORT\"`"}},
	{syscall.EACCES, Meaning{Name: "forbidden", What: "this user may not do that",
		Hint: "a port below 1024 needs `AmbientCapabilities=CAP_NET_BIND_SERVICE`; a file needs its owner's leave"}},
	{syscall.EPERM, Meaning{Name: "not-permitted", What: "this machine does not permit it", Hint: "does a firewall of its own forbid it? `nft list ruleset`"}},
	{syscall.EMFILE, Meaning{Name: "too-many-files", What: "the gateway has as many connections and files open as it may", Hint: "raise `LimitNOFILE` of the service"}},
	{syscall.ENOSPC, Meaning{Name: "disk-full", What: "the disk is full", Hint: "make room: `df -h`"}},
	{syscall.EROFS, Meaning{Name: "disk-read-only", What: "the disk is read-only", Hint: "was it remounted after an error? `dmesg`"}},
	{syscall.EIO, Meaning{Name: "disk-failing", What: "the device does not read or write any more", Hint: "the storage may be failing: `dmesg`"}},
	{context.DeadlineExceeded, late},
	{os.ErrDeadlineExceeded, late},
	{io.EOF, Meaning{Name: "closed", What: "the peer closed the connection without a word",
		Hint: "its log may say why; some clouds do so where a policy forbids the client id or topic"}},
	{io.ErrUnexpectedEOF, Meaning{Name: "cut-off", What: "the peer closed the connection in the middle of a word", Hint: "its log may say why"}},
}

var late = Meaning{Name: "late", What: "the peer did not answer in time", Hint: "is it on? Does a firewall drop what is sent to this port?"}

func ofConnection(err error, _ time.Time) (Explanation, bool) {
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "proxyconnect" {
		return Explanation{Meaning: &proxyAway}, true
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if e.IsNotFound {
			return Explanation{&nameUnknown, Values{"name": fmt.Sprintf("%q", e.Name)}}, true
		}
		return Explanation{&nameServers, Values{"name": fmt.Sprintf("%q", e.Name)}}, true
	}
	for i := range connections {
		if errors.Is(err, connections[i].err) {
			return Explanation{Meaning: &connections[i].Meaning}, true
		}
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return Explanation{Meaning: &late}, true
	}
	return Explanation{}, false
}
