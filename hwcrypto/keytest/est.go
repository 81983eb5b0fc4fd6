package keytest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// EST is a CA that enrols by RFC 7030, with a knob per fault.
type EST struct {
	URL string
	CA  *CA

	t testing.TB

	mu       sync.Mutex // guards what follows
	valid    time.Duration
	age      time.Duration // of a new certificate
	refuse   string        // why requests are refused; "": they are not
	later    time.Duration
	other    bool // certifies another key
	enrolled int
	renewed  int
}

// NewEST starts one. user and password are those of the first enrolment.
func NewEST(t testing.TB, user, password string) *EST {
	t.Helper()
	e := &EST{CA: NewCA(t), t: t, valid: time.Hour, age: time.Minute}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/est/cacerts", func(w http.ResponseWriter, _ *http.Request) { e.send(w, e.CA.Cert) })
	mux.HandleFunc("GET /.well-known/est/csrattrs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/csrattrs")
		// The example of RFC 7030 section 4.5.2.
		io.WriteString(w, "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw==")
	})
	enroll := func(count *int, allowed func(*http.Request) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			e.mu.Lock()
			defer e.mu.Unlock()
			if !allowed(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="est"`)
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			switch {
			case e.refuse != "":
				http.Error(w, e.refuse, http.StatusForbidden)
				return
			case e.later > 0:
				w.Header().Set("Retry-After", strconv.Itoa(int(e.later/time.Second)))
				w.WriteHeader(http.StatusAccepted)
				return
			}
			body, _ := io.ReadAll(r.Body)
			der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(body)), ""))
			var csr *x509.CertificateRequest
			if err == nil {
				csr, err = x509.ParseCertificateRequest(der)
			}
			if err == nil {
				err = csr.CheckSignature()
			}
			if err != nil || r.Header.Get("Content-Type") != "application/pkcs10" {
				http.Error(w, "bad request", http.StatusBadRequest)
				return
			}
			pub := csr.PublicKey
			if e.other {
				pub = e.CA.key.Public()
			}
			block, _ := pem.Decode(e.CA.issue(e.t, pub, csr.Subject.CommonName, e.age, e.valid))
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			*count++
			e.send(w, e.CA.Cert, cert) // in an order that means nothing
		}
	}
	mux.Handle("POST /.well-known/est/simpleenroll", enroll(&e.enrolled, func(r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		return ok && u == user && p == password
	}))
	mux.Handle("POST /.well-known/est/simplereenroll", enroll(&e.renewed, func(r *http.Request) bool { return len(r.TLS.VerifiedChains) > 0 }))
	srv := httptest.NewUnstartedServer(mux)
	own := NewSoftwareCertificate(t, e.CA, "localhost")
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: e.CA.Pool, ClientAuth: tls.VerifyClientCertIfGiven}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	e.URL = srv.URL + "/.well-known/est"
	return e
}

func (e *EST) send(w http.ResponseWriter, certs ...*x509.Certificate) {
	b, err := CertsOnly(certs...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Header().Set("Content-Transfer-Encoding", "base64")
	s := base64.StdEncoding.EncodeToString(b)
	for len(s) > 76 {
		io.WriteString(w, s[:76]+"\r\n")
		s = s[76:]
	}
	io.WriteString(w, s+"\r\n")
}

// CertsOnly writes certificates as a degenerate SignedData (RFC 5751 section 3.7), DER.
func CertsOnly(certs ...*x509.Certificate) ([]byte, error) {
	var raw []byte
	for _, c := range certs {
		raw = append(raw, c.Raw...)
	}
	empty := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
	content, err := asn1.Marshal(struct{ Type asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}}) // data
	if err != nil {
		return nil, err
	}
	sd, err := asn1.Marshal(struct {
		Version      int
		Digests      asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue
		Signers      asn1.RawValue
	}{1, empty, asn1.RawValue{FullBytes: content}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: raw}, empty})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: sd}})
}

// Refuse has requests refused for a reason; "" ends it.
func (e *EST) Refuse(why string) { e.mu.Lock(); e.refuse = why; e.mu.Unlock() }

// Later has requests answered by 202: the client is to ask again after d; zero ends it.
func (e *EST) Later(d time.Duration) { e.mu.Lock(); e.later = d; e.mu.Unlock() }

// CertifyAnother has another key than the request's certified.
func (e *EST) CertifyAnother(on bool) { e.mu.Lock(); e.other = on; e.mu.Unlock() }

// Valid is for how long certificates are made.
func (e *EST) Valid(d time.Duration) { e.mu.Lock(); e.valid = d; e.mu.Unlock() }

// Aged has certificates begin so long ago.
func (e *EST) Aged(d time.Duration) { e.mu.Lock(); e.age = d; e.mu.Unlock() }

// Counts are how many were enrolled and renewed.
func (e *EST) Counts() (enrolled, renewed int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.enrolled, e.renewed
}
