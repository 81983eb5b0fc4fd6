//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Rename gives a key and its public half another label. The sealing companion keeps the old one: it is the label's, not the key's.
func (p *Provider) Rename(ctx context.Context, from, to hwcrypto.URI) error {
	if from.Object == "" || to.Object == "" || len(from.ID) > 0 || len(to.ID) > 0 {
		return fmt.Errorf("PKCS#11: %w: to be renamed, a key is named by object= alone", hwcrypto.ErrUnsupported)
	}
	t, err := p.token(ctx, from)
	if err != nil {
		return err
	}
	_, err = change(ctx, t, func(s session) (struct{}, error) {
		none := struct{}{}
		if _, err := findOne(s, template(pkcs11.CKO_PRIVATE_KEY, to.Object, nil)); !errors.Is(err, hwcrypto.ErrNoKey) {
			if err == nil || errors.Is(err, hwcrypto.ErrAmbiguous) {
				err = hwcrypto.ErrKeyExists
			}
			return none, err
		}
		h, err := findOne(s, template(pkcs11.CKO_PRIVATE_KEY, from.Object, nil))
		if err != nil {
			return none, err
		}
		public, err := find(s, template(pkcs11.CKO_PUBLIC_KEY, from.Object, (attributes{s, h}).get(pkcs11.CKA_ID)), 2)
		if err != nil {
			return none, err
		}
		for _, o := range append(public, h) { // the private key last: while it has its old name, all can be done again
			if err := s.SetAttributeValue(s.h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, to.Object)}); err != nil {
				return none, fmt.Errorf("rename %q to %q: %w", from.Object, to.Object, err)
			}
		}
		return none, nil
	})
	return err
}
