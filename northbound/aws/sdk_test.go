package aws_test

import (
	"net"
	"testing"

	"github.com/drawbridge/drawbridge/northbound/aws"
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

// STS is asked as Amazon's SDK asks it, and the peer of the tests answers both.
func TestSTSIsAskedAsTheVendorsSDKDoes(t *testing.T) {
	a := northtest.NewAWS(t, "mqtt")
	a.Web(t)
	asked := a.Asked()
	sts := a.STS(t)
	const role = "arn:aws:iam::1:role/gw"
	northtest.Dial(t, connector(t, a, nil, tokens("good token"), func(c *aws.Config) {
		c.Auth, c.Key, c.Token, c.Region, c.RoleARN, c.STS = "sigv4", "", "id", "eu-central-1", role, sts
	}), &northtest.Downlink{})
	ours := <-asked
	sdk := northtest.NewSDK(t, "sts.mjs", a.CA.File(t), sts, role, "drawbridge-gw1", "good token")
	if got := sdk.Said(t, "session"); got != "session of ASIA2" {
		t.Fatalf("session %v", got)
	}
	theirs := <-asked
	if ours.Method != theirs.Method || ours.URL.Path != theirs.URL.Path || ours.PostForm.Encode() != theirs.PostForm.Encode() ||
		ours.Header.Get("Content-Type") != theirs.Header.Get("Content-Type") || ours.Header.Get("Authorization") != theirs.Header.Get("Authorization") {
		t.Fatalf("ours   %s %s %v %v\ntheirs %s %s %v %v", ours.Method, ours.URL, ours.PostForm, ours.Header, theirs.Method, theirs.URL, theirs.PostForm, theirs.Header)
	}
	if got := northtest.NewSDK(t, "sts.mjs", a.CA.File(t), sts, role, "drawbridge-gw1", "old token").Said(t, "refused"); got != "ExpiredTokenException" {
		t.Fatalf("refused: %v", got)
	}
}
