package mqtt

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// revoked is what the certificate revocation lists of device_crl name (RFC 5280 section 5).
type revoked map[string]struct{}

func revokedKey(issuer []byte, serial string) string { return string(issuer) + "\x00" + serial }

// readCRL reads PEM or DER; every list must be signed by a certificate of ca.
func readCRL(file string, ca []byte) (revoked, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var issuers []*x509.Certificate
	for block, rest := pem.Decode(ca); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			issuers = append(issuers, cert)
		}
	}
	var lists [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		lists = append(lists, block.Bytes)
	}
	if lists == nil {
		lists = [][]byte{data}
	}
	r := revoked{}
	for _, der := range lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", file, err)
		}
		if !signed(list, issuers) {
			return nil, fmt.Errorf("%q: not signed by a certificate of device_ca", file)
		}
		for _, e := range list.RevokedCertificateEntries {
			r[revokedKey(list.RawIssuer, e.SerialNumber.String())] = struct{}{}
		}
	}
	return r, nil
}

func signed(list *x509.RevocationList, issuers []*x509.Certificate) bool {
	for _, ca := range issuers {
		if list.CheckSignatureFrom(ca) == nil {
			return true
		}
	}
	return false
}

// verify is for tls.Config.VerifyConnection: it runs on resumed connections too.
func (r revoked) verify(state tls.ConnectionState) error {
	for _, chain := range state.VerifiedChains {
		for _, cert := range chain {
			if _, is := r[revokedKey(cert.RawIssuer, cert.SerialNumber.String())]; is {
				return errors.New("certificate is revoked")
			}
		}
	}
	return nil
}
