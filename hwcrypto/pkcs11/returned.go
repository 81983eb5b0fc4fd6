//go:build cgo

package pkcs11

import (
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/internal/health"
)

// What is wrong with PINs beside that they are wrong.
var (
	lastTry = health.Meaning{Name: "pkcs11-last-try", What: "the token locks with one wrong PIN more, so none is tried",
		Hint: "log in by hand with the right PIN, which sets the counter back: `pkcs11-tool --login --list-objects`"}
	noPIN = health.Meaning{Name: "pkcs11-no-pin", What: "the token wants a PIN, and the URI names none", Hint: "write `?pin-source=file:/path` at the end of the `uri` of the key"}
)

var (
	removed = health.Meaning{Name: "pkcs11-removed", What: "the chip was taken out, or its reader or daemon has stopped",
		Hint: "plug it in again: it is found by itself; `pkcs11-tool --list-token-slots` shows whether it is there"}
	faulty = health.Meaning{Name: "pkcs11-fault", What: "the chip or its driver has a fault of its own",
		Hint: "restart its daemon, or plug it in anew; may this user write where the module keeps its state? The module's own log may say more"}
	gone = health.Meaning{Name: "pkcs11-key-gone", What: "the key has gone from the chip while it was used",
		Hint: "has another program deleted it, or made the token anew? `drawbridge keys list`"}
	unusable = health.Meaning{Name: "pkcs11-key-use", What: "the chip does not let this key be used for that",
		Hint: "the key must have been made to sign (CKA_SIGN): have the chip make another with `drawbridge keys new NAME`"}
)

// returned are what return values of Cryptoki mean that a person can do something about (PKCS #11 v3.1 section 5.1).
var returned = map[uint]*health.Meaning{
	pkcs11.CKR_TOKEN_NOT_PRESENT: &removed, pkcs11.CKR_TOKEN_NOT_RECOGNIZED: &removed, pkcs11.CKR_DEVICE_REMOVED: &removed, pkcs11.CKR_SLOT_ID_INVALID: &removed,
	pkcs11.CKR_DEVICE_ERROR: &faulty, pkcs11.CKR_FUNCTION_FAILED: &faulty, pkcs11.CKR_GENERAL_ERROR: &faulty, pkcs11.CKR_HOST_MEMORY: &faulty,
	pkcs11.CKR_KEY_HANDLE_INVALID: &gone, pkcs11.CKR_OBJECT_HANDLE_INVALID: &gone,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: &unusable, pkcs11.CKR_KEY_TYPE_INCONSISTENT: &unusable,
	pkcs11.CKR_USER_NOT_LOGGED_IN: {Name: "pkcs11-no-login", What: "the chip wants a log-in before it uses this key",
		Hint: "does the `uri` of the key name a `pin-source`? Another program may have logged out: it is tried again"},
	pkcs11.CKR_PIN_EXPIRED: {Name: "pkcs11-pin-expired", What: "the PIN has expired", Hint: "set another, `pkcs11-tool --login --change-pin`, and write it to `pin-source`"},
	pkcs11.CKR_SESSION_COUNT: {Name: "pkcs11-sessions", What: "the chip has no session free",
		Hint: "other programs hold them: end those, or restart the chip's daemon; `drawbridge doctor` counts them"},
	pkcs11.CKR_DEVICE_MEMORY:         {Name: "pkcs11-full", What: "the chip has no room left", Hint: "delete what is not needed in it: `pkcs11-tool --list-objects --login`"},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED: {Name: "pkcs11-read-only", What: "the token is write-protected", Hint: "make the key by the chip's own tools, or take the protection away"},
}

// meant gives an error of the module its meaning.
func meant(err error) error {
	var rv pkcs11.Error
	if errors.As(err, &rv) {
		if m := returned[uint(rv)]; m != nil {
			return m.Of(err, nil)
		}
	}
	return err
}
