package auth

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// issuerMost is the octets of the longest answer that an issuer has reason to give.
const issuerMost = 1 << 20

var errTooLong = errors.New("the issuer's answer has no end")

// OverTLS gives a transport for an issuer that goes nowhere without TLS, wherever its discovery or a redirect leads, and that reads answers
// of a bounded length: keys that come without TLS are anybody's, and go-oidc reads to the end whatever comes.
func OverTLS(next http.RoundTripper) http.RoundTripper { return overTLS{next} }

type overTLS struct{ next http.RoundTripper }

func (o overTLS) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%q is not https", req.URL.Scheme+"://"+req.URL.Host)
	}
	res, err := o.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	res.Body = &bounded{res.Body, issuerMost + 1}
	return res, nil
}

// bounded is a body that ends with an error after so many octets.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
