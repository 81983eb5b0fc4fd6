package aws_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/aws"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func TestFleetProvisioningCertifiesTheKey(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	ring := &northtest.Keys{}
	serial := map[string]string{}
	c := connector(t, a, ring, nil, func(c *aws.Config) { c.ClaimKey, c.Template, c.Parameters = "claim", "plant", serial })
	ring.Certificates["claim"] = a.CA.Certificate(t, broker.Subject{Name: "claim"})

	if _, err := c.(northbound.Enroller).Enroll(t.Context(), csr); !msg.IsPermanent(err) || !strings.Contains(err.Error(), `template plant: refused: AccessDenied: "serial is missing"`) {
		t.Fatal(err)
	}
	if _, err := c.(northbound.Enroller).Enroll(t.Context(), []byte("x")); !msg.IsPermanent(err) || !strings.Contains(err.Error(), "certificate: refused") {
		t.Fatal(err)
	}
	serial["serial"] = "77"
	e, err := c.(northbound.Enroller).Enroll(t.Context(), csr)
	if err != nil || e.Key != "identity" || e.Note != "thing plant7-77" {
		t.Fatalf("%+v, %v", e, err)
	}
	block, _ := pem.Decode(e.Certificate)
	ring.Certificates["identity"] = tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	northtest.Dial(t, c, &northtest.Downlink{})
}
