//go:build cgo

package pkcs11

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/health"
)

// TestErrorsOfTokensAreExplained has SoftHSM refuse, and answer with the return values that other chips give.
func TestErrorsOfTokensAreExplained(t *testing.T) {
	t.Parallel()
	token := keytest.Faulty(t)
	k := made(t, provider(t, Options{}), token.URI("a"))
	for rv, c := range map[string]struct{ what, hint string }{
		"5":  {"the chip or its driver has a fault of its own", "daemon"},
		"6":  {"the chip or its driver has a fault of its own", "log"},
		"31": {"the chip has no room left", "list-objects"},
		"68": {"the chip does not let this key be used for that", "CKA_SIGN"},
		"70": {"the chip cannot do that, or may not with this key", "--algorithm"},
		"a3": {"the PIN has expired", "change-pin"},
	} {
		token.Set("rv", rv)
		keytest.Means(t, sign(t.Context(), k), c.what, c.hint)
		token.Set("rv", "")
	}
	keytest.Means(t, k.t.explain(pkcs11.Error(0x32)), "the chip was taken out, or its reader or daemon has stopped", "plug it in")
	keytest.Means(t, k.t.explain(pkcs11.Error(0xe0)), "the chip was taken out, or its reader or daemon has stopped", "plug it in")
	keytest.Means(t, k.t.explain(pkcs11.Error(0x60)), "the key has gone from the chip while it was used", "keys list")
	keytest.Means(t, k.t.explain(pkcs11.Error(0x101)), "the chip wants a log-in before it uses this key", "pin-source")
	keytest.Means(t, k.t.explain(pkcs11.Error(0xb1)), "the chip has no session free", "drawbridge doctor")

	soft := keytest.SoftHSM(t)
	p := provider(t, Options{})
	_, err := p.Open(t.Context(), parse(t, soft.URI("nothing")))
	keytest.Means(t, err, "the chip holds no such key", "keys new")
	_, err = p.Open(t.Context(), parse(t, "pkcs11:token=nowhere;object=a?module-path="+token.Module))
	keytest.Means(t, err, "the chip is not there", "list-token-slots")
	soft = keytest.SoftHSM(t) // in which nobody has logged in
	if err := os.WriteFile(soft.PINFile, []byte("0000"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = provider(t, Options{}).Open(t.Context(), parse(t, soft.URI("nothing")))
	keytest.Means(t, err, "the chip refuses the PIN", "pin-source")
	soft = keytest.SoftHSM(t)
	if err := os.Chmod(soft.PINFile, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = provider(t, Options{}).Open(t.Context(), parse(t, soft.URI("nothing")))
	keytest.Means(t, err, "others may read a file that holds a secret", "chmod 600 "+soft.PINFile)
}

// TestModulesThatDoNotLoadAreExplained has each reason why one does not.
func TestModulesThatDoNotLoadAreExplained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(path string) error {
		_, err := provider(t, Options{}).Open(t.Context(), parse(t, "pkcs11:token=x;object=a?module-path="+path))
		return err
	}
	none := filepath.Join(dir, "none.so")
	keytest.Means(t, open(none), "there is no PKCS#11 module "+none, "p11-kit list-modules")

	text := filepath.Join(dir, "text.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o700); err != nil {
		t.Fatal(err)
	}
	keytest.Means(t, open(text), "the PKCS#11 module "+text+" does not load", "ldd "+text)

	other := filepath.Join(dir, "s390.so") // a shared object for a machine for which this program is not built
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x02\x01")
	binary.BigEndian.PutUint16(header[16:], 3)  // ET_DYN
	binary.BigEndian.PutUint16(header[18:], 22) // EM_S390
	binary.BigEndian.PutUint32(header[20:], 1)
	binary.BigEndian.PutUint16(header[52:], 64)
	if err := os.WriteFile(other, header, 0o700); err != nil {
		t.Fatal(err)
	}
	err := open(other)
	if text, hint := health.Words(err, time.Now()); !strings.HasPrefix(text, "the PKCS#11 module "+other+" is made for EM_S390, and this program for EM_") || !strings.Contains(hint, "architecture") {
		t.Errorf("%s; %s", text, hint)
	}
}
