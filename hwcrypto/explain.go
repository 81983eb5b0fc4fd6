package hwcrypto

import (
	"errors"

	"github.com/drawbridge/drawbridge/internal/health"
)

// What the errors that callers tell apart mean to a person. A chip's driver that knows more of one says it instead.
var (
	noKey = health.Meaning{Name: "chip-no-key", What: "the chip holds no such key",
		Hint: "compare the `uri` of the key with what `drawbridge keys list` shows; `drawbridge keys new NAME` makes one"}
	ambiguous = health.Meaning{Name: "chip-ambiguous", What: "more than one key or token fits the URI",
		Hint: "name the one that is meant: add `id=`, `type=private` or `type=secret-key`, or the token's `serial=` to the `uri` of the key"}
	noToken = health.Meaning{Name: "chip-absent", What: "the chip is not there",
		Hint: "is it plugged in, and does the `uri` of the key name it? `pkcs11-tool --list-token-slots` lists tokens, `ls -l /dev/tpm*` TPMs"}
	wrongPIN = health.Meaning{Name: "chip-pin", What: "the chip refuses the PIN",
		Hint: "write the right PIN into what `pin-source` of the `uri` names; the wrong one is not tried again, so that the chip does not lock"}
	locked = health.Meaning{Name: "chip-locked", What: "the chip is locked after too many wrong PINs or authorizations",
		Hint: "a token: its security officer sets the PIN anew, `pkcs11-tool --init-pin --login --login-type so`; a TPM: wait, or `tpm2_dictionarylockout --clear-lockout`"}
	unsupported = health.Meaning{Name: "chip-unsupported", What: "the chip cannot do that, or may not with this key",
		Hint: "`drawbridge keys list` shows the key's algorithm and attributes; another kind is made with `drawbridge keys new NAME --algorithm`"}
	timeout = health.Meaning{Name: "chip-timeout", What: "the chip did not answer in time",
		Hint: "does another program keep it busy? `drawbridge doctor` tries it; plug it in anew, or restart its daemon, such as pcscd"}
	busy = health.Meaning{Name: "chip-busy", What: "the chip has more to do than it can",
		Hint: "it passes when fewer devices connect at once; `drawbridge status` shows its queue"}
	notSealed = health.Meaning{Name: "chip-not-sealed", What: "the secret was not sealed by this key, or was changed since",
		Hint: "seal it anew with this gateway's chip: `drawbridge keys seal FILE`"}
	exposed = health.Meaning{Name: "file-exposed", What: "others may read a file that holds a secret", Hint: "chmod 600 {path}"}
)

// The errors that callers tell apart. All of them come wrapped, with the chip and the key named.
var (
	ErrNoKey       = noKey.Of(errors.New("no such key"), nil)
	ErrKeyExists   = errors.New("the key exists already")
	ErrAmbiguous   = ambiguous.Of(errors.New("more than one key matches"), nil)
	ErrNoToken     = noToken.Of(errors.New("the chip is not there"), nil)
	ErrPIN         = wrongPIN.Of(errors.New("wrong PIN"), nil)        // it is not tried a second time
	ErrLocked      = locked.Of(errors.New("the chip is locked"), nil) // after too many wrong PINs or authorizations
	ErrUnsupported = unsupported.Of(errors.New("the chip cannot do that"), nil)
	ErrTimeout     = timeout.Of(errors.New("the chip did not answer in time"), nil)
	ErrBusy        = busy.Of(errors.New("the chip's queue is full"), nil)
	ErrNotSealed   = notSealed.Of(errors.New("not sealed by this key, or changed since"), nil)
)

// WithHint adds to an error what to do about it. errors.As with interface{ Hint() string } finds it.
func WithHint(err error, hint string) error { return (&health.Meaning{Hint: hint}).Of(err, nil) }

// Exposed is the error of a file with a secret that others may read.
func Exposed(err error, path string) error { return exposed.Of(err, health.Values{"path": path}) }
