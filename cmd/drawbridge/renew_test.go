package main

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// A gateway renews its certificate by itself when two thirds of its time have passed, and gives up the old one only once its cloud has let
// the new one in.
func TestGatewayRenewsItsCertificate(t *testing.T) {
	s := newSite(t)
	s.keyURI = keytest.SWTPM(t).URI("identity")
	ca := keytest.NewEST(t, "gw", "once")
	s.write("est-ca.crt", string(ca.CA.PEM))
	s.write("both.crt", string(s.ca.pem())+string(ca.CA.PEM))
	s.write("otp", "once")
	s.configure()
	b, err := os.ReadFile(s.path("drawbridge.toml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("drawbridge.toml", strings.Replace(string(b), "cert = \"identity.crt\"",
		"cert = \"identity.crt\"\nest = \""+ca.URL+"\"\nest_ca = \"est-ca.crt\"\nest_user = \"gw\"\nest_password = \"file:otp\"", 1))
	enroll := func() string {
		t.Helper()
		out, err := s.drawbridge("enroll", "identity")
		if err != nil {
			t.Fatalf("enroll: %v\n%s", err, out)
		}
		return s.serial()
	}
	renewed := func() int { _, n := ca.Counts(); return n }

	ca.Aged(10 * time.Hour) // of thirteen
	ca.Valid(3 * time.Hour)
	first := enroll()
	if out, err := s.drawbridge("keys", "needs-renewal"); err != nil || out != "identity\n" {
		t.Errorf("needs-renewal: %v, %q", err, out)
	}
	ca.Aged(time.Minute)
	ca.Valid(10 * time.Hour)

	// The cloud is away: nothing proves the new certificate, so the old one stays, and the problem shows.
	s.startGateway()
	eventually(t, "the renewal to have failed", func() bool { return strings.Contains(s.statusJSON(), `"renewal-failed"`) })
	if now := s.serial(); now != first {
		t.Errorf("the old certificate is gone: %s, was %s", now, first)
	}
	if out := s.statusJSON(); renewed() != 1 || !strings.Contains(out, "is not accepted, so the old one stays: connector cloud") {
		t.Errorf("%d renewed:\n%s", renewed(), out)
	}
	s.gateway.stop()

	// It is back: renewed, proven at the cloud, taken over.
	s.startCloud()
	s.restartCloudTrusting("both.crt")
	s.startGateway()
	eventually(t, "the certificate to be renewed", func() bool { return s.serial() != first })
	eventually(t, "the cloud to tell that it was shown the new certificate", func() bool { return strings.Contains(s.broker.output(), "as gw-doctor") })
	eventually(t, "the problem to be gone", func() bool { return !strings.Contains(s.statusJSON(), `"renewal-failed"`) })
	second := s.serial()
	if out, err := s.drawbridge("keys", "needs-renewal", "identity"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("needs-renewal: %v, %q", err, out)
	}

	// By hand it is the same: refused by the cloud, it is not taken over.
	s.gateway.stop()
	s.restartCloudTrusting("ca.crt")
	out, err := s.drawbridge("enroll", "identity")
	if err == nil || !strings.Contains(out, "so the old one stays: connector cloud") || s.serial() != second {
		t.Errorf("enroll where the cloud refuses: %v\n%s", err, out)
	}
}

func (s *site) serial() string {
	s.t.Helper()
	b, err := os.ReadFile(s.path("identity.crt"))
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.SerialNumber.String()
}

func (s *site) statusJSON() string {
	resp, err := http.Get("http://" + s.page + "/status.json")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// restartCloudTrusting has the cloud take certificates of the authorities in the file.
func (s *site) restartCloudTrusting(file string) {
	s.t.Helper()
	s.broker.kill() // one that has just begun to listen may pass over SIGTERM
	conf, err := os.ReadFile(s.path("cloud.conf"))
	if err != nil {
		s.t.Fatal(err)
	}
	lines := strings.Split(string(conf), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "cafile ") {
			lines[i] = "cafile " + s.path(file)
		}
	}
	s.write("cloud.conf", strings.Join(lines, "\n"))
	s.broker = start(s.t, "mosquitto", "-c", s.path("cloud.conf"))
	s.listening(s.cloud)
}
