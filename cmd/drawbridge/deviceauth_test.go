package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/auth"
)

// outside is who the gateway asks about devices over HTTPS: an authenticator, with a knob per fault, and an issuer of tokens.
type outside struct {
	*httptest.Server
	t      *testing.T
	url    string
	key    *ecdsa.PrivateKey
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request, *auth.Question)]
	asked  atomic.Int64
	last   atomic.Pointer[auth.Question]
}

func (s *site) startOutside(t *testing.T) *outside {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &outside{t: t, key: key}
	o.Server = httptest.NewUnstartedServer(o)
	o.TLS = &tls.Config{Certificates: []tls.Certificate{s.issue("localhost")}}
	o.StartTLS()
	t.Cleanup(o.Close)
	o.url = strings.Replace(o.URL, "127.0.0.1", "localhost", 1)
	return o
}

func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/device":
		var q auth.Question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			o.t.Errorf("the authenticator was asked: %v", err)
		}
		o.asked.Add(1)
		o.last.Store(&q)
		(*o.answer.Load())(w, r, &q)
	case "/.well-known/openid-configuration":
		json.NewEncoder(w).Encode(map[string]any{"issuer": o.url, "jwks_uri": o.url + "/jwks", "id_token_signing_alg_values_supported": []string{"ES256"}})
	case "/jwks":
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: o.key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	default:
		http.NotFound(w, r)
	}
}

func (o *outside) answers(f func(http.ResponseWriter, *http.Request, *auth.Question)) {
	o.answer.Store(&f)
}

// says answers with yes.
func (o *outside) says(a auth.Answer) {
	o.answers(func(w http.ResponseWriter, _ *http.Request, _ *auth.Question) { json.NewEncoder(w).Encode(a) })
}

// token is one for device that is good for so long.
func (o *outside) token(device string, good time.Duration, key *ecdsa.PrivateKey) []byte {
	o.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": o.url, "aud": "drawbridge", "sub": device, "groups": []string{"press"}, "iat": now.Unix(), "exp": now.Add(good).Unix(),
	})
	if err != nil {
		o.t.Fatal(err)
	}
	jws, err := signer.Sign(claims)
	if err != nil {
		o.t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		o.t.Fatal(err)
	}
	return []byte(text)
}

// device5 is an MQTT 5 device whose packets the test sees one by one.
type device5 struct {
	t  *testing.T
	nc *tls.Conn
}

// device5 connects and gives the code of CONNACK. A certificate that TLS refuses gives 0xff.
func (s *site) device5(t *testing.T, addr string, change func(*packets5.Connect), certs ...tls.Certificate) (*device5, byte) {
	t.Helper()
	nc, err := tls.Dial("tcp", addr, s.clientTLS(certs...))
	if err != nil {
		return nil, 0xff
	}
	t.Cleanup(func() { nc.Close() })
	c := &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "the-client", CleanStart: true, KeepAlive: 60, Properties: &packets5.Properties{}}
	change(c)
	d := &device5{t, nc}
	if _, err := c.WriteTo(nc); err != nil {
		return nil, 0xff
	}
	nc.SetReadDeadline(time.Now().Add(time.Minute))
	p, err := packets5.ReadPacket(nc)
	if err != nil {
		return nil, 0xff
	}
	return d, p.Content.(*packets5.Connack).ReasonCode
}

func (d *device5) next() packets5.Packet {
	d.t.Helper()
	d.nc.SetReadDeadline(time.Now().Add(time.Minute))
	p, err := packets5.ReadPacket(d.nc)
	if err != nil {
		d.t.Fatalf("the device heard: %v", err)
	}
	return p.Content
}

// report publishes with QoS 1 and gives the code of PUBACK.
func (d *device5) report(payload string) byte {
	d.t.Helper()
	m := &packets5.Publish{Topic: "sensors/temp", Payload: []byte(payload), QoS: 1, PacketID: 1, Properties: &packets5.Properties{}}
	if _, err := m.WriteTo(d.nc); err != nil {
		d.t.Fatal(err)
	}
	switch p := d.next().(type) {
	case *packets5.Puback:
		return p.ReasonCode
	case *packets5.Disconnect:
		return p.ReasonCode
	default:
		d.t.Fatalf("the device heard %T, want PUBACK", p)
		return 0
	}
}

// dismissed waits for the DISCONNECT and gives its code.
func (d *device5) dismissed() byte {
	d.t.Helper()
	p, ok := d.next().(*packets5.Disconnect)
	if !ok {
		d.t.Fatal("the device heard something other than DISCONNECT")
	}
	return p.ReasonCode
}

func asUser(user, password string) func(*packets5.Connect) {
	return func(c *packets5.Connect) {
		c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = true, user, true, []byte(password)
	}
}

func withToken(token []byte) func(*packets5.Connect) {
	return func(c *packets5.Connect) { c.Properties.AuthMethod, c.Properties.AuthData = "JWT", token }
}

// deviceCA is a CA that can revoke.
type deviceCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newDeviceCA(t *testing.T) *deviceCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &deviceCA{cert, key}
}

func (ca *deviceCA) issue(t *testing.T, name string, serial int64) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *deviceCA) revoke(t *testing.T, number int64, serials ...int64) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// TestDeviceAuthentication takes every way in which an MQTT device can prove itself to somebody outside, through the whole gateway.
func TestDeviceAuthentication(t *testing.T) {
	s := newSite(t)
	o := s.startOutside(t)
	ca := newDeviceCA(t)
	s.write("devices.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	s.write("devices.crl", ca.revoke(t, 1, 99))
	ask, tokens, certs := vacant(t), vacant(t), vacant(t)
	listener := func(name, addr, more string) string {
		return fmt.Sprintf("[listener.%s]\ntype = \"mqtt\"\nlisten = %q\nkey = \"identity\"\n%s\n", name, addr, more)
	}
	s.extra = listener("ask", ask, `device_ca = "devices.crt"`+"\n"+`auth = ["http"]`) +
		listener("tokens", tokens, `auth = ["jwt"]`) +
		listener("certs", certs, `device_ca = "devices.crt"`+"\n"+`device_crl = "devices.crl"`+"\n"+`auth = ["x509"]`) +
		fmt.Sprintf("[authenticator]\nurl = \"%s/device\"\nca = \"ca.crt\"\ntimeout = \"5s\"\ncache = \"1h\"\n", o.url) +
		fmt.Sprintf("[issuer.plant]\nurl = %q\naudience = \"drawbridge\"\nca = \"ca.crt\"\n", o.url)
	s.configure()
	s.certify()
	s.startCloud()
	s.startGateway()
	pump, robot := s.watch("dt/gw/pump-1/#"), s.watch("dt/gw/robot-2/#")
	var both sync.WaitGroup // each waits for something to expire
	both.Go(func() { t.Run("http", func(t *testing.T) { s.askOutside(t, o, ask, ca, pump) }) })
	both.Go(func() { t.Run("jwt", func(t *testing.T) { s.bringTokens(t, o, tokens, robot) }) })
	both.Wait()
	t.Run("revocation", func(t *testing.T) { s.revokeWhileConnected(t, certs, ca) })
	t.Run("reload", func(t *testing.T) { s.changeRules(t, o, ask) })
	s.gateway.stop()
}

func (s *site) askOutside(t *testing.T, o *outside, addr string, ca *deviceCA, cloud *lines) {
	o.says(auth.Answer{Device: "pump-1", Groups: []string{"press"}})
	pump, code := s.device5(t, addr, asUser("somebody", "pw"))
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	if code := pump.report("1"); code != 0 {
		t.Errorf("PUBACK 0x%02x", code)
	}
	cloud.expect("dt/gw/pump-1/temp 1")
	if q := o.last.Load(); q.Listener != "ask" || q.User != "somebody" || q.Password != "pw" || q.ClientID != "the-client" ||
		!strings.HasPrefix(q.Remote, "127.0.0.1:") || q.Certificate != "" {
		t.Errorf("asked %+v", q)
	}
	// The yes is remembered, whatever has become of the authenticator.
	n := o.asked.Load()
	refuse := func(status int) {
		o.answers(func(w http.ResponseWriter, _ *http.Request, _ *auth.Question) { w.WriteHeader(status) })
	}
	refuse(http.StatusForbidden)
	if _, code := s.device5(t, addr, asUser("somebody", "pw")); code != 0 || o.asked.Load() != n {
		t.Errorf("again: CONNACK 0x%02x, asked %d times more", code, o.asked.Load()-n)
	}
	if _, code := s.device5(t, addr, asUser("somebody", "another pw")); code != 0x86 {
		t.Errorf("refused: CONNACK 0x%02x, want 0x86", code)
	}
	refuse(http.StatusInternalServerError)
	if _, code := s.device5(t, addr, asUser("broken", "pw")); code != 0x88 {
		t.Errorf("an authenticator that fails: CONNACK 0x%02x, want 0x88", code)
	}
	o.answers(func(_ http.ResponseWriter, r *http.Request, _ *auth.Question) { <-r.Context().Done() })
	if _, code := s.device5(t, addr, asUser("slow", "pw")); code != 0x88 {
		t.Errorf("an authenticator that does not answer: CONNACK 0x%02x, want 0x88", code)
	}
	// The certificate that a device shows is part of the question; what the answer says ends, ends.
	o.says(auth.Answer{Device: "pump-2", Groups: []string{"press"}, Expires: time.Now().Add(10 * time.Second)})
	pump2, code := s.device5(t, addr, func(*packets5.Connect) {}, ca.issue(t, "pump-2", 7))
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	if q := o.last.Load(); !strings.HasPrefix(q.Certificate, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("asked %+v", q)
	}
	if code := pump2.dismissed(); code != 0xa0 {
		t.Errorf("DISCONNECT 0x%02x, want 0xa0", code)
	}
}

func (s *site) bringTokens(t *testing.T, o *outside, addr string, cloud *lines) {
	forged, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, code := s.device5(t, addr, withToken(o.token("robot-1", time.Hour, forged))); code != 0x86 {
		t.Errorf("a token of another key: CONNACK 0x%02x, want 0x86", code)
	}
	if _, code := s.device5(t, addr, func(c *packets5.Connect) { c.Properties.AuthMethod = "SCRAM-SHA-256" }); code != 0x8c {
		t.Errorf("another method: CONNACK 0x%02x, want 0x8c", code)
	}
	stale, code := s.device5(t, addr, asUser("", string(o.token("robot-1", 15*time.Second, o.key)))) // as the password
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	fresh, code := s.device5(t, addr, withToken(o.token("robot-2", 15*time.Second, o.key)))
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	renew := func(token []byte) packets5.Packet {
		a := &packets5.Auth{ReasonCode: 0x19, Properties: &packets5.Properties{AuthMethod: "JWT", AuthData: token}}
		if _, err := a.WriteTo(fresh.nc); err != nil {
			t.Fatal(err)
		}
		return fresh.next()
	}
	if a, ok := renew(o.token("robot-2", time.Hour, o.key)).(*packets5.Auth); !ok || a.ReasonCode != 0 {
		t.Fatalf("the renewal was answered with %+v", a)
	}
	if code := stale.dismissed(); code != 0xa0 {
		t.Errorf("DISCONNECT 0x%02x, want 0xa0", code)
	}
	if code := fresh.report("after"); code != 0 {
		t.Errorf("PUBACK 0x%02x", code)
	}
	cloud.expect("dt/gw/robot-2/temp after")
	if d, ok := renew(o.token("robot-3", time.Hour, o.key)).(*packets5.Disconnect); !ok || d.ReasonCode != 0x87 {
		t.Errorf("a token of another device was answered with %+v", d)
	}
}

func (s *site) revokeWhileConnected(t *testing.T, addr string, ca *deviceCA) {
	none := func(*packets5.Connect) {}
	good, bad, gone := ca.issue(t, "meter-7", 7), ca.issue(t, "meter-8", 8), ca.issue(t, "meter-99", 99)
	if _, code := s.device5(t, addr, none, gone); code == 0 {
		t.Error("a revoked certificate was let in")
	}
	_, code := s.device5(t, addr, none, good)
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	goes, code := s.device5(t, addr, none, bad)
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	s.write("devices.crl", ca.revoke(t, 2, 99, 8))
	if out, err := s.drawbridge("reload"); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	goes.nc.SetReadDeadline(time.Now().Add(time.Minute))
	if p, err := packets5.ReadPacket(goes.nc); err == nil {
		if d, ok := p.Content.(*packets5.Disconnect); !ok || d.ReasonCode < 0x80 {
			t.Errorf("the revoked device heard %+v", p.Content)
		}
	}
	if _, code := s.device5(t, addr, none, bad); code == 0 {
		t.Error("a certificate that has been revoked meanwhile was let in")
	}
	again, code := s.device5(t, addr, none, good)
	if code != 0 {
		t.Fatalf("the good certificate: CONNACK 0x%02x", code)
	}
	if code := again.report("1"); code != 0 {
		t.Errorf("PUBACK 0x%02x", code)
	}
}

// changeRules reloads with a device's right taken away, and then with the device itself taken away, while it is connected.
func (s *site) changeRules(t *testing.T, o *outside, ask string) {
	o.says(auth.Answer{Device: "pump-3", Groups: []string{"press"}})
	pump, code := s.device5(t, ask, asUser("three", "pw"))
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	press, code := s.device5(t, s.mqtt, asUser("press-1", "correct horse"))
	if code != 0 {
		t.Fatalf("CONNACK 0x%02x", code)
	}
	reload := func(from, to string) {
		t.Helper()
		text, err := os.ReadFile(s.path("drawbridge.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), from) {
			t.Fatalf("the file has no %q", from)
		}
		s.write("drawbridge.toml", strings.Replace(string(text), from, to, 1))
		if out, err := s.drawbridge("reload"); err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
	}
	reload(`groups = ["thermostat", "press", "meter"]`+"\n"+`op = "report"`, `groups = ["thermostat", "meter"]`+"\n"+`op = "report"`)
	for name, d := range map[string]*device5{"pump-3": pump, "press-1": press} {
		if code := d.report("2"); code != 0x87 {
			t.Errorf("%s after its rule was taken away: 0x%02x, want 0x87", name, code)
		}
	}
	reload("[device.press-1]\ngroups = [\"press\"]\npassword = \"file:press-1.password\"\n", "")
	if code := press.dismissed(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x, want 0x87", code)
	}
	if _, code := s.device5(t, s.mqtt, asUser("press-1", "correct horse")); code != 0x86 {
		t.Errorf("a device that is no more: CONNACK 0x%02x, want 0x86", code)
	}
}
