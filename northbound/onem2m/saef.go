package onem2m

import (
	"context"
	"fmt"
	"regexp"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// keyIDForm is that of a KpsaID, KmID or KpmID: NAME@FQDN (TS-0003 clauses 10.5, 10.6).
var keyIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func validKeyID(id string) bool { return len(id) <= 128 && keyIDForm.MatchString(id) }

// kpsa derives the provisioned secure connection key for a CSE-ID or AE-ID from an enrolment key, which stays where it is.
func kpsa(ctx context.Context, ke hwcrypto.MACer, enrolee string) ([]byte, error) {
	key, err := ke.MAC(ctx, []byte("oneM2M Enrolment Key to Provisioned Secure Connection Key derivation"+enrolee))
	if err != nil {
		return nil, fmt.Errorf("derivation for %q: %w", enrolee, err)
	}
	return key, nil
}
