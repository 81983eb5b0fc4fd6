package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// SharedAccessSignature makes the token with which Azure IoT Hub and its Device Provisioning Service are logged in to. The key stays in the
// chip. resource is such as "myhub.azure-devices.net/devices/dev-1", or "SCOPE/registrations/ID"; policy is the name of the key's policy:
// empty for a device's own key, "registration" for the Device Provisioning Service.
func SharedAccessSignature(ctx context.Context, key hwcrypto.MACer, resource, policy string, expires time.Time) (string, error) {
	sr, se := escapeComponent(resource), strconv.FormatInt(expires.Unix(), 10)
	sum, err := key.MAC(ctx, []byte(sr+"\n"+se))
	if err != nil {
		return "", err
	}
	token := "SharedAccessSignature sr=" + sr + "&sig=" + escapeComponent(base64.StdEncoding.EncodeToString(sum)) + "&se=" + se
	if policy != "" {
		token += "&skn=" + escapeComponent(policy)
	}
	return token, nil
}

// DeviceKey derives the key of one registration from that of its enrolment group, which stays in the chip. What is derived is as
// secret as any key: it is a MACer of its own, not to be written anywhere.
func DeviceKey(ctx context.Context, group hwcrypto.MACer, registration string) (hwcrypto.MACer, error) {
	sum, err := group.MAC(ctx, []byte(registration))
	return derived(sum), err
}

// derived is a key that was computed from one in the chip.
type derived []byte

// MAC is HMAC-SHA-256.
func (d derived) MAC(_ context.Context, data []byte) ([]byte, error) {
	m := hmac.New(sha256.New, d)
	m.Write(data)
	return m.Sum(nil), nil
}

// String shows nothing of the key.
func (d derived) String() string { return "derived key" }

// GoString is String.
func (d derived) GoString() string { return d.String() }

// escapeComponent is encodeURIComponent of ECMAScript, as Azure's SDKs use it.
func escapeComponent(s string) string {
	s = url.QueryEscape(s)
	return strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(s)
}
