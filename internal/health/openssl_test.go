package health

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// serveOpenSSL runs `openssl s_server` with the broker's certificate and gives its address.
func serveOpenSSL(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return needs.OpenSSLServer(t, dir, slices.Concat([]string{"-cert", "broker.crt", "-key", "broker.key"}, args)...)
}

// TestAlertsOfOpenSSL has the alerts of most brokers' library: what the texts say must fit them, too.
func TestAlertsOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now, year := time.Now(), 365*24*time.Hour
	ca := certify(t, "Plant 7 CA", now.Add(-year), now.Add(year), nil, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign })
	other := certify(t, "Other CA", now.Add(-year), now.Add(year), nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	write("ca.crt", "CERTIFICATE", ca.Certificate[0])
	broker := certify(t, "broker", now.Add(-year), now.Add(year), &ca)
	write("broker.crt", "CERTIFICATE", broker.Certificate[0])
	key, err := x509.MarshalPKCS8PrivateKey(broker.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("broker.key", "PRIVATE KEY", key)
	revoked := certify(t, "gw", now.Add(-year), now.Add(year), &ca, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(77) })
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(year),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: now.Add(-time.Hour)}}}, ca.Leaf, ca.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	write("crl.pem", "X509 CRL", crl)
	as := func(c tls.Certificate) func(*tls.Config) {
		return func(t *tls.Config) {
			t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		}
	}
	verify := []string{"-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt"}
	for name, c := range map[string]struct {
		server     []string
		client     func(*tls.Config)
		what, hint string
	}{
		"no certificate":              {verify, nil, "the peer wants a certificate of this gateway, and was shown none", `key = "NAME"`},
		"no certificate, TLS 1.2":     {append(slices.Clone(verify), "-tls1_2"), nil, "the peer finds no cipher suite or certificate in common", `key = "NAME"`},
		"a certificate of another CA": {verify, as(certify(t, "gw", now.Add(-year), now.Add(year), &other)), "the peer does not trust the CA of this gateway's certificate", "register"},
		"a certificate that ended":    {verify, as(certify(t, "gw", now.Add(-year), now.Add(-time.Hour), &ca)), "the peer says that this gateway's certificate has expired", "enroll"},
		"a certificate that is not yet": {verify, as(certify(t, "gw", now.Add(time.Hour), now.Add(year), &ca)),
			"the peer refuses this gateway's certificate", "registered"},
		"a certificate that is revoked": {append(slices.Clone(verify), "-crl_check", "-CRL", "crl.pem"), as(revoked), "the peer says that this gateway's certificate is revoked", "keys new"},
		"a certificate for servers": {verify, as(certify(t, "gw", now.Add(-year), now.Add(year), &ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
			"the peer does not take certificates of this kind", "clientAuth"},
		"no version in common": {[]string{"-tls1_3"}, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "the peer speaks no version of TLS that is safe", "TLS 1.2"},
		"no suite in common": {[]string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
		}, "the peer finds no cipher suite or certificate in common", "ECDSA or RSA"},
		"another host name": {[]string{"-servername", "cloud", "-servername_fatal", "-cert2", "broker.crt", "-key2", "broker.key"}, nil, "the peer serves no such host name", "host name"},
		"another protocol":  {[]string{"-alpn", "h2"}, func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }, "the peer speaks another protocol on this port", "8883"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := &tls.Config{ServerName: "broker", RootCAs: roots}
			if c.client != nil {
				c.client(config)
			}
			means(t, dial(t, serveOpenSSL(t, dir, c.server...), config), c.what, c.hint)
		})
	}
}

// TestClientsOfOpenSSL has what devices do at a listener.
func TestClientsOfOpenSSL(t *testing.T) {
	year := 365 * 24 * time.Hour
	ca := certify(t, "Plant 7 CA", today.Add(-year), today.Add(year), nil)
	listener := certify(t, "gateway", time.Now().Add(-year), time.Now().Add(year), &ca)
	for name, c := range map[string]struct {
		args       []string
		change     func(*tls.Config)
		what, hint string
	}{
		"one that does not trust the gateway": {[]string{"-verify_return_error", "-tls1_2"}, nil, "the peer does not trust the CA of this gateway's certificate", "register"},
		"one that does not, by TLS 1.3":       {[]string{"-verify_return_error", "-tls1_3"}, nil, "what the peer sent cannot be decrypted", "trust"},
		"one without a certificate":           {nil, func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, "the peer showed no certificate, and must", "device_ca"},
		"one of an old version":               {[]string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, nil, "the peer speaks only old versions of TLS, which are not safe", "TLS 1.2"},
		"one with other suites":               {[]string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"}, nil, "this end and the peer have no cipher suite in common", "AES-GCM"},
		"one of another protocol": {[]string{"-alpn", "h2"}, func(c *tls.Config) { c.NextProtos = []string{"mqtt"} },
			"the peer wants another protocol of this port (ALPN)", "port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := &tls.Config{Certificates: []tls.Certificate{listener}}
			if c.change != nil {
				c.change(config)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			cmd := exec.CommandContext(t.Context(), needs.Program(t, "openssl"), slices.Concat([]string{"s_client", "-connect", l.Addr().String(), "-servername", "gateway", "-verify", "2"}, c.args)...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Kill(); cmd.Wait(); in.Close() }()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			s := tls.Server(conn, config)
			err = s.Handshake()
			if err == nil {
				_, err = s.Read(make([]byte, 1))
			}
			means(t, err, c.what, c.hint)
		})
	}
}
