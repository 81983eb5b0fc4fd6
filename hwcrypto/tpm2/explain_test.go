package tpm2

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// TestErrorsOfTPMsAreExplained has a TPM answer with the codes, and devices that are not as they should be.
func TestErrorsOfTPMsAreExplained(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	proxy := keytest.Behind(t, chip)
	key := made(t, provider(t, Options{Dir: chip.Dir}), "tpm:name=a;device="+proxy.Device(), hwcrypto.ECDSAP256)
	for code, c := range map[tpm2.TPMRC]struct{ what, hint string }{
		tpm2.TPMRCLockout:      {"the chip is locked after too many wrong PINs or authorizations", "tpm2_dictionarylockout"},
		tpm2.TPMRCAuthFail:     {"the TPM wants an authorization for this key that the gateway does not have", "`uri`"},
		tpm2.TPMRCBadAuth:      {"the TPM wants an authorization for this key that the gateway does not have", "`uri`"},
		tpm2.TPMRCHierarchy:    {"the TPM's owner hierarchy is turned off", "firmware"},
		tpm2.TPMRCObjectMemory: {"the TPM has no room left for it", "tpm2_getcap"},
		tpm2.TPMRCIntegrity:    {"the key's file is not of this TPM, or the TPM was cleared since", "put back"},
		tpm2.TPMRCScheme:       {"the chip cannot do that, or may not with this key", "--algorithm"},
	} {
		proxy.Answer(uint32(code))
		keytest.Means(t, sign(t.Context(), key), c.what, c.hint)
	}

	_, err := provider(t, Options{Dir: chip.Dir}).Open(t.Context(), parse(t, "tpm:handle=0x81010042;device="+chip.Device()))
	keytest.Means(t, err, "the chip holds no such key", "keys list")

	nowhere := filepath.Join(t.TempDir(), "tpmrm0")
	_, err = provider(t, Options{Dir: chip.Dir}).Open(t.Context(), parse(t, "tpm:handle=0x81010042;device="+nowhere))
	keytest.Means(t, err, "there is no TPM at "+nowhere, "firmware")

	forbidden := meant(fmt.Errorf("%w: %w", hwcrypto.ErrNoToken, &os.PathError{Op: "open", Path: "/dev/tpmrm0", Err: syscall.EACCES}), "/dev/tpmrm0") // root, as which tests may run, may open all
	if os.Geteuid() != 0 {
		if err := os.WriteFile(nowhere, nil, 0); err != nil {
			t.Fatal(err)
		}
		_, forbidden = provider(t, Options{Dir: chip.Dir}).Open(t.Context(), parse(t, "tpm:handle=0x81010042;device="+nowhere))
	}
	what, hint := "this user may not open the TPM at /dev/tpmrm0", "usermod -aG tss"
	if os.Geteuid() != 0 {
		what = "this user may not open the TPM at " + nowhere
	}
	keytest.Means(t, forbidden, what, hint)

	proxy.Silence(true)
	defer proxy.Silence(false)
	slow := provider(t, Options{Dir: chip.Dir, Timeout: 200 * time.Millisecond})
	_, err = slow.Open(t.Context(), parse(t, "tpm:name=a;device="+proxy.Device()))
	keytest.Means(t, err, "the chip did not answer in time", "drawbridge doctor")
}
