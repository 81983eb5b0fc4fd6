package auth_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// install gives the directory of the test issuer with its packages in place.
func install(t *testing.T) string {
	t.Helper()
	needs.Program(t, "node")
	needs.Program(t, "npm")
	dir, err := filepath.Abs("testdata/oidc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "oidc-provider", "package.json")); err == nil {
		return dir
	}
	cmd := exec.CommandContext(t.Context(), "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

// chip holds the keys of a test gateway, as the key ring does.
type chip struct {
	t       *testing.T
	mu      sync.Mutex
	keys    map[string]crypto.Signer
	certs   map[string]*tls.Certificate
	secrets map[string]string
	sealer  hwcrypto.Sealer // nil: itself
	fail    error           // of the sealer
}

func newChip(t *testing.T) *chip {
	return &chip{t: t, keys: map[string]crypto.Signer{}, certs: map[string]*tls.Certificate{}, secrets: map[string]string{}}
}

func (c *chip) Certificate(_ context.Context, name string) (*tls.Certificate, error) {
	if cert := c.certs[name]; cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("no certificate %q", name)
}

func (c *chip) Signer(_ context.Context, name string) (crypto.Signer, error) {
	if key := c.keys[name]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("no key %q", name)
}

func (c *chip) Secret(_ context.Context, ref string) ([]byte, error) {
	if s, ok := c.secrets[ref]; ok {
		return []byte(s), nil
	}
	return nil, fmt.Errorf("no secret %q", ref)
}

func (c *chip) Sealer(context.Context, string) (hwcrypto.Sealer, error) {
	if c.sealer != nil {
		return c.sealer, nil
	}
	return c, nil
}

func (c *chip) setFail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

// Seal is no encryption: it only shows who calls it with what.
func (c *chip) Seal(_ context.Context, plain, aad []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []byte(fmt.Sprintf("%x|%x", aad, plain)), c.fail
}

func (c *chip) Unseal(_ context.Context, sealed, aad []byte) (plain []byte, err error) {
	head, tail, _ := strings.Cut(string(sealed), "|")
	if head != fmt.Sprintf("%x", aad) {
		return nil, errors.New("it is bound to something else")
	}
	_, err = fmt.Sscanf(tail, "%x", &plain)
	return plain, err
}

// issuer is a running provider.
type issuer struct {
	t    *testing.T
	url  string
	dir  string
	http *http.Client
	chip *chip
}

// startIssuer runs the provider with one client for every way in which a client can show who it is. Keys that the chip lacks are made.
func startIssuer(t *testing.T, c *chip) *issuer {
	t.Helper()
	modules := install(t)
	i := &issuer{t: t, dir: t.TempDir(), chip: c}
	ca := newAuthority(t, time.Now())
	i.write("ca.crt", pemOf("CERTIFICATE", ca.cert.Raw))

	serverKey := newKey(t)
	server := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issuer"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, ca.cert, serverKey.Public(), ca.key)
	i.write("server.crt", pemOf("CERTIFICATE", server.Raw))
	der, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		t.Fatal(err)
	}
	i.write("server.key", pemOf("PRIVATE KEY", der))

	for _, name := range []string{"ec", "tls"} {
		if c.keys[name] == nil {
			c.keys[name] = newKey(t)
		}
	}
	if c.keys["rsa"] == nil {
		if c.keys["rsa"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatal(err)
		}
	}
	tlsKey := c.keys["tls"]
	client := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "gw1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.cert, tlsKey.Public(), ca.key)
	c.certs["tls"] = &tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: tlsKey, Leaf: client, SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	i.chip.secrets["file:/secret"] = "s3cr&t with %25 blanks"

	i.clients()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	listener.Close()
	i.url = "https://127.0.0.1:" + port

	cmd := exec.Command("node", filepath.Join(modules, "issuer.mjs"), i.dir, port)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the issuer says %q, %v", line, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	i.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return i
}

// clients registers them, with the public keys of the chip.
func (i *issuer) clients() {
	set := func(key string) jose.JSONWebKeySet {
		pub := i.chip.keys[key].Public()
		kid, err := auth.Thumbprint(pub)
		if err != nil {
			i.t.Fatal(err)
		}
		return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: pub, KeyID: kid, Use: "sig"}}}
	}
	const jwt, exchange, device = "urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:device_code"
	base := func(id, method string, grants ...string) map[string]any {
		return map[string]any{
			"client_id": id, "token_endpoint_auth_method": method, "grant_types": grants, "redirect_uris": []string{}, "response_types": []string{},
		}
	}
	with := func(c map[string]any, more map[string]any) map[string]any {
		for k, v := range more {
			c[k] = v
		}
		return c
	}
	secret := map[string]any{"client_secret": i.chip.secrets["file:/secret"]}
	list := []any{
		with(base("basic", "client_secret_basic", "client_credentials", exchange, device, "refresh_token"), secret),
		with(base("post", "client_secret_post", "client_credentials"), secret),
		with(base("pkjwt", "private_key_jwt", "client_credentials", jwt, device, "refresh_token"), map[string]any{"jwks": set("ec"), "token_endpoint_auth_signing_alg": "ES256"}),
		with(base("ps256", "private_key_jwt", "client_credentials"), map[string]any{"jwks": set("rsa"), "token_endpoint_auth_signing_alg": "PS256"}),
		with(base("tls", "tls_client_auth", "client_credentials"), map[string]any{"tls_client_auth_subject_dn": "CN=gw1", "tls_client_certificate_bound_access_tokens": true}),
		with(base("dpop", "private_key_jwt", "client_credentials"), map[string]any{"jwks": set("ec"), "dpop_bound_access_tokens": true}),
	}
	data, err := json.Marshal(list)
	if err != nil {
		i.t.Fatal(err)
	}
	i.write("clients.json", data)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (i *issuer) write(name string, data []byte) {
	i.t.Helper()
	if err := os.WriteFile(filepath.Join(i.dir, name), data, 0o600); err != nil {
		i.t.Fatal(err)
	}
}

// turn sets a knob, such as "down?on=1".
func (i *issuer) turn(knob string) {
	i.t.Helper()
	res, err := i.http.Post(i.url+"/test/"+knob, "", nil)
	if err != nil {
		i.t.Fatal(err)
	}
	res.Body.Close()
}
