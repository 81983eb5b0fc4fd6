package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
)

// prepare makes what a real site would have: a CA, a cloud, devices with credentials, the gateway's file and its key.
func (d *demo) prepare(ctx context.Context) (*demoSite, error) {
	ca, err := newDemoCA()
	if err != nil {
		return nil, err
	}
	if err := d.write("ca.crt", ca.pem()); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)

	cloud, err := ca.issue("localhost")
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", freePort("tcp", "8884"), &tls.Config{
		Certificates: []tls.Certificate{cloud}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	d.ports = demoPorts{CoAP: freePort("udp", "5684"), MQTT: freePort("tcp", "8883"), Cloud: "localhost:" + port, Page: freePort("tcp", "8480")}

	site := &demoSite{cloud: l, person: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}}
	if err := d.credentials(ctx, ca, site, roots); err != nil {
		l.Close()
		return nil, err
	}
	return site, nil
}

func (d *demo) credentials(ctx context.Context, ca *demoCA, site *demoSite, roots *x509.CertPool) error {
	person, err := ca.issue("person")
	if err != nil {
		return err
	}
	site.person.Certificates = []tls.Certificate{person}
	key, err := x509.MarshalPKCS8PrivateKey(person.PrivateKey)
	if err != nil {
		return err
	}
	if err := d.write("person.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: person.Certificate[0]})); err != nil {
		return err
	}
	if err := d.write("person.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})); err != nil {
		return err
	}

	thermostats, presses := []string{"th-1", "th-2", "th-3"}, []string{"press-1", "press-2"}
	for i, name := range thermostats {
		psk := make([]byte, 16)
		rand.Read(psk)
		site.devices = append(site.devices, &thermostat{name: name, address: d.ports.CoAP, psk: psk, reading: reading{value: 19 + float64(i), set: 21}})
		if err := d.write(name+".psk", []byte("hex:"+hex.EncodeToString(psk)+"\n")); err != nil {
			return err
		}
	}
	for i, name := range presses {
		password := rand.Text()
		site.devices = append(site.devices, &press{name: name, address: d.ports.MQTT, password: password,
			tls: &tls.Config{RootCAs: roots, ServerName: "localhost"}, reading: reading{value: 5 + float64(i), set: 6}})
		if err := d.write(name+".password", []byte(password+"\n")); err != nil {
			return err
		}
	}
	if err := d.write("guest-coap.psk", []byte(guestPSK)); err != nil {
		return err
	}
	if err := d.write("guest-mqtt.password", []byte(guestPassword)); err != nil {
		return err
	}

	uri := d.chip
	if uri == "" {
		uri = "file:identity.key"
	}
	level := "warn"
	if d.verbose {
		level = "info"
	}
	var file strings.Builder
	err = demoConfig.Execute(&file, map[string]any{
		"CoAP": d.ports.CoAP, "MQTT": d.ports.MQTT, "Cloud": d.ports.Cloud, "Page": d.ports.Page, "Key": uri, "Level": level,
		"Thermostats": append(thermostats, "guest-coap"), "Presses": append(presses, "guest-mqtt"),
	})
	if err != nil {
		return err
	}
	if err := d.write("drawbridge.toml", []byte(file.String())); err != nil {
		return err
	}
	return d.makeKey(ctx, ca)
}

// makeKey has the gateway's key made and certified, as `drawbridge keys new` and `keys csr` do.
func (d *demo) makeKey(ctx context.Context, ca *demoCA) error {
	a := &app{streams: streams{strings.NewReader(""), io.Discard, io.Discard}, configPath: filepath.Join(d.dir, "drawbridge.toml")}
	return a.withKeys(ctx, "identity", func(ctx context.Context, ring *keyring.Ring) error {
		if _, _, err := ring.New(ctx, "identity", hwcrypto.ECDSAP256); err != nil {
			return err
		}
		request, err := ring.CSR(ctx, "identity", pkix.Name{CommonName: "demo"}, []string{"localhost", "127.0.0.1"})
		if err != nil {
			return err
		}
		block, _ := pem.Decode(request)
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return err
		}
		der, err := ca.sign(csr.Subject.CommonName, csr.DNSNames, csr.IPAddresses, csr.PublicKey)
		if err != nil {
			return err
		}
		return d.write("identity.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	})
}

func (d *demo) write(name string, data []byte) error {
	return os.WriteFile(filepath.Join(d.dir, name), data, 0o600)
}

// demoCA is a certificate authority that lives as long as the demo.
type demoCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newDemoCA() (*demoCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Drawbridge demo CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &demoCA{cert, key}, err
}

func (ca *demoCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

func (ca *demoCA) sign(name string, dns []string, ips []net.IP, public crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: dns, IPAddresses: ips,
		NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca.cert, public, ca.key)
}

// issue makes a key in memory and certifies it: for the cloud and the person, who are not the gateway.
func (ca *demoCA) issue(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := ca.sign(name, []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}, key.Public())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of %q: %w", name, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
