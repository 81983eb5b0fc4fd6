// Package est enrols certificates over secure transport: RFC 7030, client side.
//
// What always holds: the server is authenticated by TLS before anything is sent; what it sends is bounded; a certificate is given back
// only if it is for the key of the request.
//
// It does no full CMC, no key generation at the server, and does not decide when to renew.
package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxBody  = 1 << 20          // more than any answer has
	patience = 30 * time.Second // for one request and its answer
)

// Client speaks to one EST server.
type Client struct {
	URL         string           // "https://ca.example/.well-known/est", with the label of a CA after it where there are several
	Roots       *x509.CertPool   // nil: the system's
	Certificate *tls.Certificate // by which the client shows who it is; nil: none yet
	User        string           // HTTP Basic, for the first enrolment; "": none
	Password    []byte
	Now         func() time.Time // nil: time.Now
}

// LaterError is the server's answer that a person has to look at the request first (202).
type LaterError struct{ After time.Duration }

func (e *LaterError) Error() string {
	return fmt.Sprintf("the CA has taken the request and wants to be asked again after %v", e.After)
}

// RefusedError is the server's refusal.
type RefusedError struct {
	Status int
	Reason string // what it says, in its own words, cut and quoted
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the CA refuses: %d %s: %q", e.Status, http.StatusText(e.Status), e.Reason)
}

// CACerts gives the CA's certificates (section 4.1).
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	b, err := c.do(ctx, http.MethodGet, "cacerts", "", nil, "application/pkcs7-mime")
	if err != nil {
		return nil, err
	}
	return ParseCertsOnly(b)
}

// CSRAttrs gives the object identifiers that the CA wants to see in requests (section 4.5); nil where it says nothing.
func (c *Client) CSRAttrs(ctx context.Context) ([]asn1.ObjectIdentifier, error) {
	b, err := c.do(ctx, http.MethodGet, "csrattrs", "", nil, "application/csrattrs")
	var refused *RefusedError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound || err == nil && len(b) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseAttrs(b)
}

// Enroll has a request (DER) for the key certified (section 4.2.1), Reenroll has it certified anew by whoever has shown the
// certificate that is to be replaced (section 4.2.2). The chain begins with the key's own certificate.
func (c *Client) Enroll(ctx context.Context, csr []byte, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	return c.enroll(ctx, "simpleenroll", csr, pub)
}

// Reenroll: see Enroll.
func (c *Client) Reenroll(ctx context.Context, csr []byte, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	return c.enroll(ctx, "simplereenroll", csr, pub)
}

func (c *Client) enroll(ctx context.Context, operation string, csr []byte, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	b, err := c.do(ctx, http.MethodPost, operation, "application/pkcs10", []byte(base64.StdEncoding.EncodeToString(csr)), "application/pkcs7-mime")
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertsOnly(b)
	if err != nil {
		return nil, err
	}
	for i, cert := range certs {
		if p, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && p.Equal(pub) {
			certs[0], certs[i] = certs[i], certs[0] // the order in the message means nothing
			return order(certs), nil
		}
	}
	return nil, errors.New("EST: the CA has certified another key")
}

// order puts each certificate after the one that it has issued.
func order(certs []*x509.Certificate) []*x509.Certificate {
	for i := 1; i < len(certs); i++ {
		for j := i; j < len(certs); j++ {
			if bytes.Equal(certs[i-1].RawIssuer, certs[j].RawSubject) {
				certs[i], certs[j] = certs[j], certs[i]
				break
			}
		}
	}
	return certs
}

// PEM is a chain as a certificate file has it. A root at its end is left out: who trusts it has it.
func PEM(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for i, c := range chain {
		if i > 0 && bytes.Equal(c.RawSubject, c.RawIssuer) {
			continue
		}
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer's Write does not fail
	}
	return b.Bytes()
}

func (c *Client) do(ctx context.Context, method, operation, contentType string, body []byte, want string) ([]byte, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("EST: URL %q: want https://HOST/.well-known/est", c.URL)
	}
	u = u.JoinPath(operation)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conf := &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12, Time: c.Now}
	if c.Certificate != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil }
	}
	tr := &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: false, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	// A redirect might lead the request and its credentials to someone else.
	hc := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("EST: %w", err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Content-Transfer-Encoding", "base64")
	}
	req.Header.Set("Accept", want)
	if c.User != "" && method == http.MethodPost {
		req.SetBasicAuth(c.User, string(c.Password))
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, fmt.Errorf("EST: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("EST: %s: %w", operation, err)
	}
	if len(b) > maxBody {
		return nil, fmt.Errorf("EST: %s: answer of more than %d octets", operation, maxBody)
	}
	switch {
	case resp.StatusCode == http.StatusAccepted:
		return nil, fmt.Errorf("EST: %w", &LaterError{retryAfter(resp.Header.Get("Retry-After"))})
	case resp.StatusCode == http.StatusNoContent:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("EST: %s: %w", operation, &RefusedError{resp.StatusCode, strings.TrimSpace(string(b[:min(len(b), 200)]))})
	}
	if got, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || got != want {
		return nil, fmt.Errorf("EST: %s: answer of type %q: want %s", operation, resp.Header.Get("Content-Type"), want)
	}
	return decodeBase64(b)
}

// retryAfter reads delta-seconds, within reason: an hour where there is nothing that can be read.
func retryAfter(s string) time.Duration {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		n = 3600
	}
	return time.Duration(min(n, 7*24*3600)) * time.Second
}

func decodeBase64(b []byte) ([]byte, error) {
	compact := bytes.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, b)
	out, err := base64.StdEncoding.DecodeString(string(compact))
	if err != nil {
		return nil, errors.New("EST: the answer is not base64")
	}
	return out, nil
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version      int
	Digests      asn1.RawValue `asn1:"set"`
	Content      asn1.RawValue
	Certificates asn1.RawValue `asn1:"optional,tag:0"`
	CRLs         asn1.RawValue `asn1:"optional,tag:1"`
	Signers      asn1.RawValue `asn1:"set"`
}

// ParseCertsOnly reads the certificates in a degenerate SignedData (RFC 5751 section 3.7), DER.
func ParseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	var info contentInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 || !info.Type.Equal(oidSignedData) {
		return nil, errors.New("EST: the answer is no PKCS #7 with certificates")
	}
	var sd signedData
	if rest, err := asn1.Unmarshal(info.Content.Bytes, &sd); err != nil || len(rest) > 0 {
		return nil, errors.New("EST: the answer's PKCS #7 cannot be read")
	}
	certs, err := x509.ParseCertificates(sd.Certificates.Bytes)
	if err != nil {
		return nil, fmt.Errorf("EST: a certificate in the answer: %w", err)
	}
	if len(certs) == 0 {
		return nil, errors.New("EST: the answer holds no certificate")
	}
	return certs, nil
}

// parseAttrs reads CsrAttrs (section 4.5.2): object identifiers, alone or as the type of an attribute.
func parseAttrs(der []byte) ([]asn1.ObjectIdentifier, error) {
	var list []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &list); err != nil || len(rest) > 0 {
		return nil, errors.New("EST: the CA's CSR attributes cannot be read")
	}
	var all []asn1.ObjectIdentifier
	for _, v := range list {
		b := v.FullBytes
		if v.Tag == asn1.TagSequence && v.Class == asn1.ClassUniversal {
			b = v.Bytes
		}
		var oid asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(b, &oid); err != nil {
			return nil, errors.New("EST: the CA's CSR attributes cannot be read")
		}
		all = append(all, oid)
	}
	return all, nil
}
