package aws

import (
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest"
)

// The signature is that of botocore 1.43.11 for the same input.
func TestPresign(t *testing.T) {
	c := credentials{accessKey: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	const host = "a1b2c3d4e5f6g7-ats.iot.us-east-1.amazonaws.com"
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const want = "wss://" + host + "/mqtt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20260102%2Fus-east-1%2Fiotdevicegateway%2Faws4_request" +
		"&X-Amz-Date=20260102T030405Z&X-Amz-Expires=300&X-Amz-SignedHeaders=host&X-Amz-Signature=da1000af6aa6f11a84ce5ee7b99e5c1eda640e836aca57dc310931290778abeb"
	if got := presign(host, "us-east-1", c, now, 5*time.Minute).String(); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	c.session = "FwoGZXIvYXdzEXAMPLE//token+with/specials=="
	if got := presign(host, "us-east-1", c, now, 5*time.Minute).String(); got != want+"&X-Amz-Security-Token=FwoGZXIvYXdzEXAMPLE%2F%2Ftoken%2Bwith%2Fspecials%3D%3D" {
		t.Fatal(got)
	}
}

func TestRoleSessionName(t *testing.T) {
	if got := sessionName("plant 7/gw ü"); got != "drawbridge-plant-7-gw--" {
		t.Fatal(got)
	}
	if n := len(sessionName(strings.Repeat("x", 200))); n != 64 {
		t.Fatal(n)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`<ErrorResponse><Error><Code>ExpiredTokenException</Code></Error></ErrorResponse>`))
	f.Add([]byte(`{"credentials":{"accessKeyId":"A","secretAccessKey":"B","expiration":"2026-01-02T03:04:05Z"}}`))
	f.Add([]byte(`{"state":{"reported":{}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, status := range []int{200, 400} {
			if c, err := readSTS(status, body); err == nil && c.accessKey == "" {
				t.Fatal("no credentials and no error")
			}
			if c, err := readProvider(status, body); err == nil && c.accessKey == "" {
				t.Fatal("no credentials and no error")
			}
		}
		if out, err := wrap(body, "t"); err == nil && len(out) == 0 {
			t.Fatal("no request and no error")
		}
		parse(string(body))
	})
}

func TestPresignAgreesWithTheVendorsSDK(t *testing.T) {
	c := credentials{accessKey: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	now := time.Date(2026, 7, 8, 9, 10, 11, 0, time.UTC)
	sdk := northtest.NewSDK(t, "sigv4.mjs", "", "x-ats.iot.eu-west-1.amazonaws.com", "eu-west-1", c.accessKey, c.secret, now.Format(time.RFC3339), "60")
	theirs := sdk.Said(t, "X-Amz-Signature")
	if ours := presign("x-ats.iot.eu-west-1.amazonaws.com", "eu-west-1", c, now, time.Minute).Query().Get("X-Amz-Signature"); ours != theirs {
		t.Fatalf("ours %s, theirs %s", ours, theirs)
	}
}
