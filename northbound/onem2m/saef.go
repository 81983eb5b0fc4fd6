package onem2m

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// keyIDForm is that of a KpsaID, KmID or KpmID: NAME@FQDN (TS-0003 clauses 10.5, 10.6).
var keyIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func validKeyID(id string) bool { return len(id) <= 128 && keyIDForm.MatchString(id) }

// labels of the derivation from an enrolment key (TS-0003 clauses 10.3.2, 10.3.3).
const (
	labelKm   = "oneM2M Enrolment Key to Master Credential derivation"
	labelKpsa = "oneM2M Enrolment Key to Provisioned Secure Connection Key derivation"
)

// Kpsa derives the provisioned secure connection key for a CSE-ID or AE-ID from an enrolment key, which stays where it is.
func Kpsa(ctx context.Context, ke hwcrypto.MACer, enrolee string) ([]byte, error) {
	return derive(ctx, ke, labelKpsa, enrolee)
}

// Km derives the master credential for a MAF from an enrolment key, which stays where it is.
func Km(ctx context.Context, ke hwcrypto.MACer, maf string) ([]byte, error) {
	return derive(ctx, ke, labelKm, maf)
}

func derive(ctx context.Context, ke hwcrypto.MACer, label, id string) ([]byte, error) {
	key, err := ke.MAC(ctx, []byte(label+id))
	if err != nil {
		return nil, fmt.Errorf("derivation for %q: %w", id, err)
	}
	return key, nil
}

// KeyID makes the identifier of a key that a TLS exporter gave (TS-0003 clauses 10.3.4, 10.3.5): the hexadecimal digits are upper case,
// as in XML's canonical form.
func KeyID(relative []byte, fqdn string) string {
	return fmt.Sprintf("%X@%s", relative, strings.ToLower(fqdn))
}
