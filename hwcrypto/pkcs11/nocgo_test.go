//go:build !cgo

package pkcs11

import (
	"errors"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

func TestWithoutCgoItSaysWhatToDo(t *testing.T) {
	p := New(t.Context(), Options{})
	defer p.Close()
	_, open := p.Open(t.Context(), hwcrypto.URI{})
	_, generate := p.Generate(t.Context(), hwcrypto.URI{}, hwcrypto.ECDSAP256)
	_, take := p.Import(t.Context(), hwcrypto.URI{}, nil)
	for _, err := range []error{open, generate, take} {
		var h interface{ Hint() string }
		if !errors.Is(err, hwcrypto.ErrUnsupported) || !strings.Contains(err.Error(), "without cgo") || !errors.As(err, &h) || !strings.Contains(h.Hint(), "CGO_ENABLED=1") {
			t.Errorf("%v", err)
		}
	}
}
