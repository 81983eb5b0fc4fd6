package aws_test

import (
	"net"
	"testing"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// The peer that the connector is tested against is AWS IoT to Amazon's own SDK too.
func TestPeerOfTheTestsIsAWSToTheVendorsSDK(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	_, port, err := net.SplitHostPort(a.Addr)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := northtest.Files(t, a.CA.Certificate(t, broker.Subject{Name: "sdk"}))
	ca := a.CA.File(t)
	sdk := northtest.NewSDK(t, "shadow.mjs", ca, "localhost", port, cert, key, ca)
	sdk.Said(t, "sent")
	if got := sdk.Said(t, "status"); got != "accepted" {
		t.Fatalf("update: %v", got)
	}
	if got := a.Reported("$aws/things/th-1/shadow")["temp"]; got != 21.0 {
		t.Fatalf("reported %v", got)
	}
	a.Desire("$aws/things/th-1/shadow", map[string]any{"setpoint": 20})
	if got, ok := sdk.Said(t, "delta").(map[string]any); !ok || got["setpoint"] != 20.0 {
		t.Fatalf("delta %v", got)
	}
}
