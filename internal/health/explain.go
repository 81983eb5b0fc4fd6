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

// Explanation is an error in plain words.
type Explanation struct {
	What string // what is wrong
	Hint string // what to do
}

// Explain says what an error of a certificate, of TLS, of a name or of a connection means; false where it knows nothing better than
// the error's own words. now is the trusted clock.
func Explain(err error, now time.Time) (Explanation, bool) {
	for _, explain := range []func(error, time.Time) (Explanation, bool){ofCertificate, ofTLS, ofConnection} {
		if e, ok := explain(err, now); ok {
			return e, true
		}
	}
	return Explanation{}, false
}

func ofCertificate(err error, now time.Time) (Explanation, bool) {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return Explanation{fmt.Sprintf("the peer's certificate is for %s, not for %s", namesOf(e.Certificate), e.Host),
			"is this the right peer? Name it as its certificate does, or have its certificate made anew with this name"}, true
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if e.Cert == nil {
			return Explanation{"the peer's certificate is signed by somebody who is not trusted here", "name the certificate of its CA with ca = \"FILE\""}, true
		}
		return Explanation{fmt.Sprintf("the peer's certificate %q is signed by %q, who is not trusted here", e.Cert.Subject, e.Cert.Issuer),
			"name the certificate of that CA with ca = \"FILE\"; if the peer is right, does it send the certificates between?"}, true
	}
	e, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok {
		return Explanation{}, false
	}
	if e.Reason != x509.Expired || e.Cert == nil {
		return Explanation{"the peer's certificate is not good for this: " + e.Error(), "have it made anew by its CA"}, true
	}
	if now.Before(e.Cert.NotBefore) {
		return Explanation{fmt.Sprintf("the peer's certificate %q begins on %s; by this clock that is in %s", e.Cert.Subject, day(e.Cert.NotBefore), rough(e.Cert.NotBefore.Sub(now))),
			fmt.Sprintf("this clock says %s: if that is wrong, set it (timedatectl); else the peer's clock made a wrong certificate", day(now))}, true
	}
	return Explanation{fmt.Sprintf("the peer's certificate %q expired on %s, %s ago", e.Cert.Subject, day(e.Cert.NotAfter), rough(now.Sub(e.Cert.NotAfter))),
		fmt.Sprintf("it must be renewed at the peer; or this clock, which says %s, is wrong", day(now))}, true
}

func namesOf(c *x509.Certificate) string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return fmt.Sprintf("%q without any host name", c.Subject)
	}
	return strings.Join(names, ", ")
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// rough says a length of time as one does.
func rough(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	default:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
}

// alerts are those of RFC 8446 section 6 that a peer sends for what is wrong at this end, in the words of crypto/tls.
var alerts = []struct {
	text string
	Explanation
}{
	{"certificate required", Explanation{"the peer wants a certificate of this gateway, and was shown none", "name a key with key = \"NAME\" whose [key.NAME] has a cert"}},
	{"unknown certificate authority", Explanation{"the peer does not trust the CA of this gateway's certificate", "register the certificate, or its CA, at the peer"}},
	{"expired certificate", Explanation{"the peer says that this gateway's certificate has expired", "renew it: `drawbridge enroll`; or the peer's clock is wrong"}},
	{"revoked certificate", Explanation{"the peer says that this gateway's certificate is revoked", "get another: `drawbridge keys new` and `drawbridge keys csr`"}},
	{"bad certificate", Explanation{"the peer refuses this gateway's certificate", "is it the one that is registered there, with its whole chain?"}},
	{"unknown certificate", Explanation{"the peer refuses this gateway's certificate", "is it the one that is registered there, and active?"}},
	{"access denied", Explanation{"the peer knows this gateway and does not let it in", "look at its rights at the peer"}},
	{"unrecognized name", Explanation{"the peer serves no such name", "look at the host name of its address"}},
	{"unknown PSK identity", Explanation{"the peer does not know this PSK identity", "register it there, or correct it here"}},
	{"no application protocol", Explanation{"the peer speaks another protocol on this port", "look at the port of its address"}},
	{"protocol version not supported", Explanation{"the peer speaks no version of TLS that is safe", "it needs TLS 1.2 or 1.3"}},
	{"insufficient security level", Explanation{"the peer wants stronger cryptography", "use a key of another kind or size"}},
	{"handshake failure", Explanation{"the peer finds no cipher suite or certificate in common", "does it want a certificate of another kind, ECDSA or RSA?"}},
}

func ofTLS(err error, _ time.Time) (Explanation, bool) {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return Explanation{"the peer does not speak TLS on this port", "look at the port of its address: 8883 is MQTT over TLS, 1883 without"}, true
	}
	// crypto/tls does not export its alerts: they are known by where and how they are wrapped.
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		for _, a := range alerts {
			if strings.HasSuffix(e.Err.Error(), a.text) {
				return a.Explanation, true
			}
		}
	}
	return Explanation{}, false
}

func ofConnection(err error, _ time.Time) (Explanation, bool) {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if e.IsNotFound {
			return Explanation{fmt.Sprintf("there is no host %q", e.Name), "is it spelled right? Does this network's DNS know it?"}, true
		}
		return Explanation{fmt.Sprintf("no DNS server answers for %q", e.Name), "is the network up? resolvectl status"}, true
	}
	for _, c := range []struct {
		err error
		Explanation
	}{
		{syscall.ECONNREFUSED, Explanation{"nothing listens at the peer's port", "is the peer running, and is the port right?"}},
		{syscall.EHOSTUNREACH, Explanation{"the peer's machine does not answer", "is it on, and on this network?"}},
		{syscall.ENETUNREACH, Explanation{"there is no way to the peer's network", "is this machine's network up? ip route"}},
		{syscall.ECONNRESET, Explanation{"the peer broke the connection off", "its log may say why"}},
		{syscall.ETIMEDOUT, Explanation{"the peer does not answer", "is it on? Does a firewall drop what is sent to this port?"}},
		{syscall.EADDRINUSE, Explanation{"another program has this address already", "which: ss -lnptu"}},
		{syscall.EADDRNOTAVAIL, Explanation{"this machine has no such address", "listen on one of its own, or on all: \":PORT\""}},
		{syscall.EACCES, Explanation{"this user may not do that", "a port below 1024 needs AmbientCapabilities=CAP_NET_BIND_SERVICE; a file needs its owner's leave"}},
		{syscall.ENOSPC, Explanation{"the disk is full", "make room: df -h"}},
		{syscall.EROFS, Explanation{"the disk is read-only", "was it remounted after an error? dmesg"}},
		{syscall.EIO, Explanation{"the device does not read or write any more", "the storage may be failing: dmesg"}},
		{context.DeadlineExceeded, Explanation{"the peer did not answer in time", "is it on? Does a firewall drop what is sent to this port?"}},
		{os.ErrDeadlineExceeded, Explanation{"the peer did not answer in time", "is it on? Does a firewall drop what is sent to this port?"}},
		{io.EOF, Explanation{"the peer closed the connection without a word", "its log may say why; some clouds do so where a policy forbids the client id or topic"}},
		{io.ErrUnexpectedEOF, Explanation{"the peer closed the connection in the middle of a word", "its log may say why"}},
	} {
		if errors.Is(err, c.err) {
			return c.Explanation, true
		}
	}
	return Explanation{}, false
}
