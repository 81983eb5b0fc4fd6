package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// alerts are what a peer's TLS alert means to the client that gets it. The keys are the texts of crypto/tls, which has no type for them.
var alerts = map[string]string{
	"bad certificate":                "the broker rejects our certificate",
	"unsupported certificate":        "the broker does not support our kind of certificate",
	"revoked certificate":            "the broker says that our certificate was revoked",
	"expired certificate":            "the broker says that our certificate has expired, or its clock differs",
	"unknown certificate":            "the broker does not know our certificate: is it registered and active there?",
	"unknown certificate authority":  "the broker does not trust the CA of our certificate",
	"access denied":                  "the broker knows our certificate and denies access",
	"certificate required":           "the broker wants a client certificate and got none: set key to one that has a certificate",
	"no application protocol":        "the broker does not offer the ALPN protocol that port 443 needs",
	"handshake failure":              "the broker finds no common cipher suite, or wants a client certificate: is key set?",
	"protocol version not supported": "the broker supports no TLS version that is safe",
	"unrecognized name":              "the broker does not serve that name",
	"error decrypting message":       "the broker could not verify our signature: does the certificate belong to the key?",
	"insufficient security level":    "the broker wants a stronger key or cipher suite",
}

// ours are the alerts which a person has to mend on our side or in the broker's list of clients.
var ours = []string{"certificate", "access denied", "handshake failure", "unrecognized name", "no application protocol", "error decrypting message"}

// Explain says in plain words why the broker at a could not be reached or logged in to. What a person has to mend is permanent.
func (a Address) Explain(err error) error { return explain(err, a.HostPort(), a.TLS) }

// explain says in plain words why hostport could not be reached. What a person has to mend becomes permanent. A nil error stays nil.
func explain(err error, hostport string, c *tls.Config) error {
	if err == nil || msg.IsPermanent(err) {
		return err
	}
	say := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", hostport, fmt.Sprintf(format, args...), err)
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case e.IsNotFound:
			return fmt.Errorf("%s: the name %q is not in the DNS", hostport, e.Name)
		case e.IsTimeout:
			return fmt.Errorf("%s: no DNS server answers", hostport)
		}
		return say("the name %q cannot be looked up", e.Name)
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		issuer := "nobody"
		if e.Cert != nil {
			issuer = e.Cert.Issuer.String()
		}
		return msg.Permanent(say("the broker's certificate was issued by %q, which ca does not name", issuer))
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return msg.Permanent(say("the broker's certificate is for another name"))
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired && e.Cert != nil {
			return say("the broker's certificate is good from %s to %s only, and the gateway's clock says %s",
				e.Cert.NotBefore.UTC().Format(time.DateOnly), e.Cert.NotAfter.UTC().Format(time.DateOnly), clock(c).UTC().Format(time.DateTime))
		}
		return msg.Permanent(say("the broker's certificate is not valid"))
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return msg.Permanent(say("the other side does not speak TLS"))
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		alert := strings.TrimPrefix(e.Err.Error(), "tls: ")
		words, ok := alerts[alert]
		if !ok {
			words = "the broker refuses the TLS handshake"
		}
		explained := fmt.Errorf("%s: %s (TLS alert: %s)", hostport, words, alert)
		for _, o := range ours {
			if strings.Contains(alert, o) {
				return msg.Permanent(explained)
			}
		}
		return explained
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: nobody listens there", hostport)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("%s: there is no route to it", hostport)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fmt.Errorf("%s: no answer in time", hostport)
	case errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%s: the other side has broken the connection", hostport)
	}
	return fmt.Errorf("%s: %w", hostport, err)
}

func clock(c *tls.Config) time.Time {
	if c == nil || c.Time == nil {
		return time.Now()
	}
	return c.Time()
}
