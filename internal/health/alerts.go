package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Alert is the error of a handshake that the peer ended with that alert (RFC 8446 section 6; the numbers are DTLS's too). crypto/tls's own is
// known without it.
type Alert uint8

// Error gives the alert in the words of crypto/tls.
func (a Alert) Error() string { return "alert of the peer: " + tls.AlertError(a).Error() }

// alerts are what a peer's alerts say is wrong at this end.
var alerts = map[Alert]*Meaning{
	40: {Name: "alert-handshake-failure", Stays: true, What: "the peer finds no cipher suite or certificate in common",
		Hint: "does it want a certificate of this gateway (`key = \"NAME\"`), or one of another kind, ECDSA or RSA? Over DTLS with a PSK: is the identity registered there?"},
	42: {Name: "alert-bad-certificate", Stays: true, What: "the peer refuses this gateway's certificate",
		Hint: "is it the one that is registered there, with its whole chain? `drawbridge keys list` shows which the key has"},
	43: {Name: "alert-unsupported-certificate", Stays: true, What: "the peer does not take certificates of this kind",
		Hint: "use a key of another algorithm, or have the certificate made anew for clients (extended key usage clientAuth)"},
	44: {Name: "alert-certificate-revoked", Stays: true, What: "the peer says that this gateway's certificate is revoked",
		Hint: "have another made: `drawbridge keys new NAME` and `drawbridge keys csr NAME`"},
	45: {Name: "alert-certificate-expired", Stays: true, What: "the peer says that this gateway's certificate has expired",
		Hint: "renew it: `drawbridge enroll NAME`; or the peer's clock or ours is wrong"},
	46: {Name: "alert-certificate-unknown", Stays: true, What: "the peer does not take this gateway's certificate",
		Hint: "is it the one that is registered there, and active?"},
	48: {Name: "alert-unknown-ca", Stays: true, What: "the peer does not trust the CA of this gateway's certificate",
		Hint: "register the certificate, or its CA, at the peer"},
	49: {Name: "alert-access-denied", Stays: true, What: "the peer knows this gateway and does not let it in", Hint: "look at its rights at the peer"},
	51: {Name: "alert-decrypt-error", Stays: true, What: "the peer finds this gateway's signature or pre-shared key wrong",
		Hint: "does the certificate belong to the key, and is the PSK the one that is registered there?"},
	70: {Name: "alert-protocol-version", What: "the peer speaks no version of TLS that is safe", Hint: "it needs TLS 1.2 or 1.3, over UDP DTLS 1.2"},
	71: {Name: "alert-insufficient-security", What: "the peer wants stronger cryptography", Hint: "use a key of another kind or size"},
	80: {Name: "alert-internal-error", What: "the peer has an error of its own", Hint: "its log may say which; it may pass by itself"},
	112: {Name: "alert-unrecognized-name", Stays: true, What: "the peer serves no such host name",
		Hint: "look at the host name of its address: some clouds have one for each account"},
	115: {Name: "alert-unknown-psk", Stays: true, What: "the peer does not know this PSK identity", Hint: "register the identity there, or correct it here"},
	116: {Name: "alert-certificate-required", Stays: true, What: "the peer wants a certificate of this gateway, and was shown none",
		Hint: "name a key with `key = \"NAME\"` whose [key.NAME] has a cert"},
	120: {Name: "alert-no-application-protocol", Stays: true, What: "the peer speaks another protocol on this port",
		Hint: "look at the port of its address: 8883 is MQTT over TLS, 443 HTTPS"},
}

var otherAlert = Meaning{Name: "alert-other", What: "the peer ended the handshake: {alert}", Hint: "its log may say why"}

// AlertOf gives the alert with which the peer ended a handshake or connection.
func AlertOf(err error) (Alert, bool) {
	if a, ok := errors.AsType[Alert](err); ok {
		return a, true
	}
	return alertOf(err, "remote error")
}

// alertOf gives crypto/tls's own alert, received or sent. Its type is not shown; its words are those of a type that is.
func alertOf(err error, op string) (Alert, bool) {
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == op {
		for n := range 256 {
			if e.Err.Error() == tls.AlertError(n).Error() {
				return Alert(n), true
			}
		}
	}
	return 0, false
}

func ofAlert(err error, _ time.Time) (Explanation, bool) {
	a, ok := AlertOf(err)
	if !ok {
		return Explanation{}, false
	}
	if m := alerts[a]; m != nil {
		return Explanation{Meaning: m}, true
	}
	return Explanation{&otherAlert, Values{"alert": strings.TrimPrefix(tls.AlertError(a).Error(), "tls: ")}}, true
}

// What this end finds wrong with a handshake itself.
var (
	notTLS = Meaning{Name: "not-tls", Stays: true, What: "the peer does not speak TLS on this port",
		Hint: "look at the port of its address: 8883 is MQTT over TLS, 1883 without; a device may speak plain text to a TLS port"}
	oldPeer = Meaning{Name: "tls-version", What: "the peer speaks only old versions of TLS, which are not safe",
		Hint: "have it speak TLS 1.2 or 1.3"}
	noCommonSuite = Meaning{Name: "tls-suites", What: "this end and the peer have no cipher suite in common",
		Hint: "have the peer offer one with AES-GCM or ChaCha20 and ECDHE, and one for the kind of key that this end has, ECDSA or RSA"}
	noCertificate = Meaning{Name: "tls-no-certificate", What: "the peer showed no certificate, and must", Hint: "give it one that the CA of `device_ca` has signed"}
	unreadable    = Meaning{Name: "tls-unreadable", What: "what the peer sent cannot be decrypted",
		Hint: "OpenSSL ends so where it does not trust the certificate of this end: is its CA in the peer's list? Else something on the way changes what is sent"}
	otherProtocol = Meaning{Name: "tls-protocol", What: "the peer wants another protocol of this port (ALPN)", Hint: "look at the port that it is sent to"}
)

const badRecordMAC Alert = 20

// handshakes are errors for which crypto/tls has no type. TestErrorsOfRealHandshakes has each of them made, so that a Go that says it in other
// words is noticed.
var handshakes = []struct {
	says string
	*Meaning
}{
	{"tls: server selected unsupported protocol version", &oldPeer},
	{"tls: client offered only unsupported versions", &oldPeer},
	{"tls: no cipher suite supported by both client and server", &noCommonSuite},
	{"tls: peer doesn't support the certificate custom signature algorithms", &noCommonSuite},
	{"tls: client didn't provide a certificate", &noCertificate},
	{"tls: client requested unsupported application protocols", &otherProtocol},
}

func ofHandshake(err error, _ time.Time) (Explanation, bool) {
	if a, ok := alertOf(err, "local error"); ok && a == badRecordMAC {
		return Explanation{Meaning: &unreadable}, true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return Explanation{Meaning: &notTLS}, true
	}
	text := err.Error()
	for _, h := range handshakes {
		if strings.Contains(text, h.says) {
			return Explanation{Meaning: h.Meaning}, true
		}
	}
	return Explanation{}, false
}

// Answer is the error of a request over HTTP that was answered, but not with what was asked for.
type Answer struct {
	Status int
	Proxy  bool // it is that of the proxy on the way
}

func (a *Answer) Error() string {
	s := fmt.Sprintf("HTTP status %d", a.Status)
	if text := http.StatusText(a.Status); text != "" {
		s += " " + text
	}
	if a.Proxy {
		s += " of the proxy"
	}
	return s
}

// ProxyAnswer is for http.Transport's OnProxyConnectResponse: that the proxy does not connect is then an error with its status.
func ProxyAnswer(_ context.Context, _ *url.URL, _ *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return &Answer{Status: res.StatusCode, Proxy: true}
}

// What answers over HTTP mean.
var (
	proxyLogin = Meaning{Name: "proxy-login", Stays: true, What: "the proxy on the way wants a log-in (407)",
		Hint: "name the user and password in `HTTPS_PROXY` of the service's environment, or let the proxy pass this host"}
	proxyRefuses = Meaning{Name: "proxy-refuses", What: "the proxy on the way does not connect to the peer ({status})",
		Hint: "let it pass this host and port, or name the host in `NO_PROXY` of the service's environment"}
	answers = []struct {
		from, to int
		Meaning
	}{
		{401, 401, Meaning{Name: "http-401", Stays: true, What: "the server does not take this gateway's credentials (401)",
			Hint: "look at the token, secret or key that this table names; has it ended or been changed there?"}},
		{403, 403, Meaning{Name: "http-403", Stays: true, What: "the server forbids this gateway to do that (403)",
			Hint: "look at the gateway's rights there; an allow-list of addresses says so too"}},
		{404, 404, Meaning{Name: "http-404", Stays: true, What: "the server has nothing at this path (404)", Hint: "look at the path of the URL in the file"}},
		{429, 429, Meaning{Name: "http-429", What: "the server takes fewer requests than these (429)", Hint: "it is asked again later; raise the limit there, or send less often"}},
		{500, 599, Meaning{Name: "http-5xx", What: "the server has a fault of its own, or is overloaded ({status})", Hint: "it is asked again; its log may say more"}},
		{300, 399, Meaning{Name: "http-3xx", Stays: true, What: "the server sends this gateway elsewhere ({status}), where it does not follow",
			Hint: "write the URL to which it redirects into the file, if that is the right one"}},
	}
)

func ofAnswer(err error, _ time.Time) (Explanation, bool) {
	a, ok := errors.AsType[*Answer](err)
	if !ok {
		return Explanation{}, false
	}
	status := Values{"status": fmt.Sprint(a.Status)}
	switch {
	case a.Status == http.StatusProxyAuthRequired:
		return Explanation{Meaning: &proxyLogin}, true
	case a.Proxy:
		return Explanation{&proxyRefuses, status}, true
	}
	for i := range answers {
		if x := &answers[i]; x.from <= a.Status && a.Status <= x.to {
			return Explanation{&x.Meaning, status}, true
		}
	}
	return Explanation{}, false
}
