package pkcs11

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/drawbridge/drawbridge/internal/health"
)

// What is wrong with modules.
var (
	noModule = health.Meaning{Name: "pkcs11-no-module", What: "no PKCS#11 module is installed that p11-kit knows",
		Hint: "install that of the chip (softhsm2, opensc, ...), or name its file: `module = \"/usr/lib/softhsm/libsofthsm2.so\"` in [key.NAME]"}
	moduleMissing = health.Meaning{Name: "pkcs11-module-missing", What: "there is no PKCS#11 module {path}",
		Hint: "install the package of the chip's module, or correct `module` in [key.NAME]: `p11-kit list-modules`"}
	moduleElsewhere = health.Meaning{Name: "pkcs11-module-machine", What: "the PKCS#11 module {path} is made for {theirs}, and this program for {ours}",
		Hint: "install the module of this machine's architecture"}
	moduleUnloadable = health.Meaning{Name: "pkcs11-module-unloadable", What: "the PKCS#11 module {path} does not load",
		Hint: "`ldd {path}` shows a library that is missing; may this user read it?"}
)

// machines are ELF's names of the architectures for which this program is built with modules.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "riscv64": elf.EM_RISCV}

// unloadable says why a module does not load, of which the loader tells nothing.
func unloadable(path string) error {
	v := health.Values{"path": path}
	err := fmt.Errorf("PKCS#11 module %q: it does not load", path)
	if _, missing := os.Stat(path); errors.Is(missing, fs.ErrNotExist) {
		return moduleMissing.Of(err, v)
	}
	if f, wrong := elf.Open(path); wrong == nil {
		defer f.Close()
		if ours, ok := machines[runtime.GOARCH]; ok && f.Machine != ours {
			v["theirs"], v["ours"] = f.Machine.String(), ours.String()
			return moduleElsewhere.Of(err, v)
		}
	}
	return moduleUnloadable.Of(err, v)
}
