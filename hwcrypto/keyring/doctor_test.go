package keyring

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

func (s *site) examined(t *testing.T, name string) string {
	t.Helper()
	var out []string
	s.Examine(t.Context(), name, func(st Step) {
		mark := "✓"
		if st.Err != nil {
			mark = "✗"
		}
		out = append(out, st.Name+mark)
	})
	return strings.Join(out, " ")
}

func TestExamine(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	s := newSite(t, map[string]*config.Key{"id": {URI: token.URI("id"), Cert: "id.crt"}, "sas": {URI: token.URI("sas")}, "tpm": {URI: keytest.SWTPM(t).URI("tpm")}, "dev": {URI: "file:dev.key", Cert: "dev.crt"}, "bare": {URI: "file:bare.key"}, "away": {URI: "tpm:name=x;device=unix:/nowhere"}})
	s.make(t, "id", hwcrypto.ECDSAP384)
	s.make(t, "sas", hwcrypto.HMACSHA256)
	s.make(t, "dev", hwcrypto.RSA2048)
	s.make(t, "tpm", hwcrypto.HMACSHA256)
	s.make(t, "bare", hwcrypto.ECDSAP256)
	b, err := s.SelfSigned(t.Context(), "id", pkix.Name{CommonName: "id"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "id.crt", b)
	for name, want := range map[string]string{
		"id":   "chip✓ attributes✓ room✓ signature✓ seal✓ certificate✓ validity✓",
		"sas":  "chip✓ attributes✓ room✓ hmac✓ seal✓",
		"tpm":  "chip✓ attributes✓ room✓ hmac✓ seal✓",
		"dev":  "chip✓ attributes✗ signature✓ seal✓ certificate✗",
		"bare": "chip✓ attributes✗ signature✓ seal✓",
		"away": "chip✗",
	} {
		if got := s.examined(t, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	s.now = s.now.Add(2 * time.Hour)
	if got := s.examined(t, "id"); !strings.HasSuffix(got, "validity✗") {
		t.Errorf("after its end: %s", got)
	}
}

// TestOpenSSL holds mutual TLS with openssl at the other end, both ways, by keys in each kind of chip.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := needs.Program(t, "openssl")
	token, chip := keytest.SoftHSM(t), keytest.SWTPM(t)
	keys := map[string]*config.Key{}
	for _, alg := range []hwcrypto.Algorithm{hwcrypto.ECDSAP256, hwcrypto.RSA2048} {
		keys["p11-"+string(alg)] = &config.Key{URI: token.URI(string(alg)), Cert: config.Path("p11-" + string(alg) + ".crt")}
		keys["tpm-"+string(alg)] = &config.Key{URI: chip.URI(string(alg)), Cert: config.Path("tpm-" + string(alg) + ".crt")}
	}
	s := newSite(t, keys)
	ca := keytest.NewCA(t)
	s.write(t, "ca.pem", ca.PEM)
	peer := func(name string) (string, string) {
		crt, key := keytest.NewSoftwareFiles(t, ca, name, s.dir)
		return crt, key
	}
	crt, key := peer("localhost")
	for name := range keys {
		alg := hwcrypto.Algorithm(name[4:])
		s.make(t, name, alg)
		signer, err := s.Signer(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, name+".crt", ca.Issue(t, signer.Public(), name, time.Hour))
		c, err := s.Certificate(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(fmt.Sprintf("%s, %s, openssl s_server", name, tls.VersionName(v)), func(t *testing.T) {
				addr := freeAddress(t)
				cmd := exec.CommandContext(t.Context(), openssl, "s_server", "-accept", addr, "-cert", crt, "-key", key, "-CAfile", filepath.Join(s.dir, "ca.pem"),
					"-Verify", "2", "-verify_return_error", "-quiet", "-naccept", "1", "-rev")
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				conf := &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", Certificates: []tls.Certificate{*c}, MinVersion: v, MaxVersion: v}
				var conn *tls.Conn
				var err error
				for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					conn, err = tls.Dial("tcp", addr, conf)
					if err == nil || !strings.Contains(err.Error(), "refused") || time.Now().After(end) {
						break
					}
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, out.String())
				}
				defer conn.Close()
				fmt.Fprintln(conn, "abc")
				line, err := bufio.NewReader(conn).ReadString('\n')
				if err != nil || line != "cba\n" {
					t.Fatalf("%q, %v", line, err)
				}
				conn.Close()
				_ = cmd.Wait()
			})
			t.Run(fmt.Sprintf("%s, %s, openssl s_client", name, tls.VersionName(v)), func(t *testing.T) {
				l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*c}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: v, MaxVersion: v})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				done := make(chan error, 1)
				go func() {
					conn, err := l.Accept()
					if err == nil {
						_, err = io.WriteString(conn, "hello from the chip\n")
						conn.Close()
					}
					done <- err
				}()
				cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", l.Addr().String(), "-cert", crt, "-key", key,
					"-CAfile", filepath.Join(s.dir, "ca.pem"), "-verify_return_error", "-verify_hostname", "localhost", "-quiet")
				out, err := cmd.CombinedOutput()
				if !bytes.Contains(out, []byte("hello from the chip")) {
					t.Errorf("%v\n%s", err, out)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
