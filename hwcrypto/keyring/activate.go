package keyring

import (
	"context"
	"fmt"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Endorsement gives the public endorsement and storage keys of the chip in which [key.NAME] lies or will lie; see hwcrypto.Activator.
func (v View) Endorsement(ctx context.Context, name string) (ek, srk []byte, err error) {
	e, a, err := v.r.activator(name)
	if err != nil {
		return nil, nil, err
	}
	if ek, srk, err = a.Endorsement(hwcrypto.WithUser(ctx, v.user), e.uri); err != nil {
		return nil, nil, fmt.Errorf("key %q: %w", name, err)
	}
	return ek, srk, nil
}

// Activate takes a key that a service has made for the chip as [key.NAME], in place of one that it had before.
func (v View) Activate(ctx context.Context, name string, credential []byte) error {
	e, a, err := v.r.activator(name)
	if err != nil {
		return err
	}
	k, err := a.Activate(hwcrypto.WithUser(ctx, v.user), e.uri, credential)
	if err != nil {
		return fmt.Errorf("key %q: %w", name, err)
	}
	e.put(k)
	return nil
}

func (r *Ring) activator(name string) (*entry, hwcrypto.Activator, error) {
	e, err := r.entry(name)
	if err != nil {
		return nil, nil, err
	}
	a, ok := r.providers[e.uri.Scheme].(hwcrypto.Activator)
	if !ok {
		return nil, nil, hwcrypto.WithHint(fmt.Errorf("key %q: %w: %s activates no keys", name, hwcrypto.ErrUnsupported, e.uri.Scheme), `a TPM does: uri = "tpm:name=`+name+`"`)
	}
	return e, a, nil
}
