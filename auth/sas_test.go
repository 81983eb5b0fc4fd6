package auth_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
)

// macKey is a key as a chip holds it.
type macKey []byte

func (k macKey) MAC(_ context.Context, data []byte) ([]byte, error) {
	if len(k) == 0 {
		return nil, errors.New("the chip is away")
	}
	m := hmac.New(sha256.New, k)
	m.Write(data)
	return m.Sum(nil), nil
}

// The signatures and the derived key are those of npm azure-iot-common.
func TestSharedAccessSignature(t *testing.T) {
	key := make(macKey, 32)
	for i := range key {
		key[i] = byte(i)
	}
	end := time.Unix(1800000000, 0)
	for _, c := range []struct{ resource, policy, want string }{
		{"myhub.azure-devices.net/devices/dev-1", "", "SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fdev-1&sig=b058%2FXGXxi4hrEfm%2Bb5DqUkgPukjRukSlaCitPP%2F1OI%3D&se=1800000000"},
		{"0ne00000A0A/registrations/sensor-7", "registration", "SharedAccessSignature sr=0ne00000A0A%2Fregistrations%2Fsensor-7&sig=RkFfCkq8P5%2F7MYn1KWXfp%2BhwQcgcrKCcP1%2BMEr7shyc%3D&se=1800000000&skn=registration"},
	} {
		got, err := auth.SharedAccessSignature(t.Context(), key, c.resource, c.policy, end)
		if err != nil || got != c.want {
			t.Errorf("%s\ngot  %s, %v\nwant %s", c.resource, got, err, c.want)
		}
	}
	if got, err := auth.SharedAccessSignature(t.Context(), key, "h/devices/a!'()* b", "", end); err != nil || !strings.HasPrefix(got, "SharedAccessSignature sr=h%2Fdevices%2Fa!'()*%20b&") {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := auth.SharedAccessSignature(t.Context(), macKey{}, "r", "", end); err == nil {
		t.Error("a chip that is away gives a signature")
	}

	// A derived key shows itself by what it computes alone: HMAC(derived, "") is compared with that of the value in Microsoft's form.
	want, err := base64.StdEncoding.DecodeString("+PTg/BaHXzdfBqWlc2bkr90qnh2eUufqXbIpf+CDRt8=")
	if err != nil {
		t.Fatal(err)
	}
	d, err := auth.DeviceKey(t.Context(), key, "sensor-7")
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := d.MAC(t.Context(), nil)
	if expected, _ := macKey(want).MAC(t.Context(), nil); !hmac.Equal(sum, expected) {
		t.Error("another key is derived")
	}
	if s := fmt.Sprintf("%v %+v %#v %s", d, d, d, d); s != "derived key derived key derived key derived key" {
		t.Errorf("it is printed: %s", s)
	}
}
