package tpm2

import (
	"errors"
	"io/fs"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// What is wrong with a TPM.
var (
	foreignBlob = health.Meaning{Name: "tpm-blob", What: "the key's file is not of this TPM, or the TPM was cleared since",
		Hint: "put back the file that belongs to this machine; a key of a TPM that was cleared is lost: `drawbridge keys new NAME` makes another"}
	ownerPassword = health.Meaning{Name: "tpm-owner-password", What: "the TPM's owner hierarchy has a password, and there is no storage key at {handle}",
		Hint: "make one: `tpm2_createprimary -C o -P PASSWORD -G ecc -c srk.ctx && tpm2_evictcontrol -C o -P PASSWORD -c srk.ctx 0x81000001`"}
	noDevice = health.Meaning{Name: "tpm-no-device", What: "there is no TPM at {device}",
		Hint: "turn it on in the firmware's settings; `ls -l /dev/tpm*` shows the devices, `dmesg | grep -i tpm` why there is none"}
	noLeave = health.Meaning{Name: "tpm-forbidden", What: "this user may not open the TPM at {device}",
		Hint: "add the user of the service to the group of the device, which is tss mostly: `usermod -aG tss drawbridge`"}
	authFail = health.Meaning{Name: "tpm-auth", What: "the TPM wants an authorization for this key that the gateway does not have",
		Hint: "keys of `drawbridge keys new` need none: name such a one in the `uri`"}
	noHandle = health.Meaning{Name: "tpm-handle", What: "the TPM has nothing at the handle of the URI",
		Hint: "`tpm2_getcap handles-persistent` lists those that it has; was it cleared?"}
	hierarchyOff = health.Meaning{Name: "tpm-hierarchy", What: "the TPM's owner hierarchy is turned off", Hint: "turn it on in the firmware's settings, or by a restart of the machine"}
	noRoom       = health.Meaning{Name: "tpm-full", What: "the TPM has no room left for it", Hint: "which program fills it: `tpm2_getcap handles-transient`, `tpm2_getcap handles-persistent`"}
)

// returned are what response codes mean that a person can do something about (TPM 2.0 part 2, clause 6.6).
var returned = []struct {
	code tpm2.TPMRC
	*health.Meaning
}{
	{tpm2.TPMRCAuthFail, &authFail}, {tpm2.TPMRCBadAuth, &authFail}, {tpm2.TPMRCAuthMissing, &authFail}, {tpm2.TPMRCHierarchy, &hierarchyOff},
	{tpm2.TPMRCHandle, &noHandle}, {tpm2.TPMRCReferenceH0, &noHandle}, {tpm2.TPMRCObjectMemory, &noRoom}, {tpm2.TPMRCNVSpace, &noRoom}, {tpm2.TPMRCSessionMemory, &noRoom},
}

// meant gives an error of the chip at device its meaning, where it has none yet.
func meant(err error, device string) error {
	absent := errors.Is(err, hwcrypto.ErrNoToken)
	switch _, meant := errors.AsType[health.Explainer](err); {
	case absent && errors.Is(err, fs.ErrPermission):
		return noLeave.Of(err, health.Values{"device": device})
	case absent && errors.Is(err, fs.ErrNotExist):
		return noDevice.Of(err, health.Values{"device": device})
	case meant:
		return err
	}
	for _, r := range returned {
		if errors.Is(err, r.code) {
			return r.Of(err, nil)
		}
	}
	return err
}
