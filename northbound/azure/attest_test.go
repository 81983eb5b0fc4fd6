package azure_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/northtest"
)

// attested is a gateway with a TPM that the provisioning service knows by its endorsement key.
func attested(t *testing.T) (*northtest.TPMService, keyring.View, func() northbound.Connector) {
	t.Helper()
	chip := keytest.SWTPM(t)
	ring, err := keyring.New(t.Context(), keyring.Options{
		Keys: map[string]*config.Key{"dps": {URI: "tpm:name=dps;device=" + chip.Device()}}, BaseDir: t.TempDir(), State: t.TempDir(), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ring.Close() })
	view := ring.For("connector cloud")
	h := northtest.NewHub(t, key)
	service := h.TPMService(t)
	env, _ := northtest.Env(t, view)
	c := azure.Kind().Config().(*azure.Config)
	c.CA, c.Auth, c.Key, c.IDScope, c.Provisioning = config.Path(h.CA.File(t)), "tpm", "dps", "0ne00000A0A", local(service.Addr)
	return service, view, func() northbound.Connector { return open(t, env, c) }
}

func TestTPMAttestation(t *testing.T) {
	t.Parallel()
	service, keys, fresh := attested(t)
	c := fresh()
	_, err := c.Dial(t.Context(), &northtest.Downlink{})
	hint, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	ek, _, wrong := keys.Endorsement(t.Context(), "dps")
	if wrong != nil {
		t.Fatal(wrong)
	}
	known := base64.StdEncoding.EncodeToString(ek)
	if !ok || !msg.IsPermanent(err) || !strings.Contains(err.Error(), `provisioning: the service sends no challenge: status 401: "Enrollment not found`) || !strings.HasSuffix(hint.Hint(), known) {
		t.Fatalf("%v, hint %v", err, hint)
	}
	if _, err := keys.MAC(t.Context(), "dps"); !errors.Is(err, hwcrypto.ErrNoKey) {
		t.Fatalf("a key before its time: %v", err)
	}

	service.Enrol(known)
	if err := northtest.Send(t, northtest.Dial(t, c, &northtest.Downlink{}), msg.Publication{Topic: "x"}); err != nil {
		t.Fatal(err)
	}
	// After a restart the key is in the TPM and the assignment on disk: nobody is asked.
	service.Enrol("")
	if err := northtest.Send(t, northtest.Dial(t, fresh(), &northtest.Downlink{}), msg.Publication{Topic: "x"}); err != nil {
		t.Fatal(err)
	}
	// Asked anew, the service says where the gateway belongs.
	service.Enrol(known)
	note, err := c.(northbound.Provisioner).Provision(t.Context())
	if err != nil || !strings.HasPrefix(note, "device gw1 of localhost:") {
		t.Fatalf("%s, %v", note, err)
	}
}
