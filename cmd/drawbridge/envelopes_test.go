package main

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// otherEnd opens and seals payloads with libraries that are not ours.
type otherEnd struct {
	t      *testing.T
	secret string // hexadecimal
	in     io.Writer
	out    *bufio.Reader
}

// sealedMessage is what the other end is asked, and what it answers.
type sealedMessage struct {
	Do      string         `json:"do,omitempty"`
	Secret  string         `json:"secret,omitempty"`
	PEM     string         `json:"pem,omitempty"`
	Message []byte         `json:"message,omitempty"`
	Payload string         `json:"payload,omitempty"`
	Claims  map[string]any `json:"claims,omitempty"`
}

func newOtherEnd(t *testing.T, secret string) *otherEnd {
	t.Helper()
	needs.Program(t, "node")
	dir, err := filepath.Abs("testdata/envelopes")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "jose", "package.json")); err != nil {
		npm := exec.Command(needs.Program(t, "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts")
		npm.Dir = dir
		if out, err := npm.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	node := exec.Command("node", "peer.mjs")
	node.Dir, node.Stderr = dir, os.Stderr
	in, err := node.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		node.Wait()
	})
	return &otherEnd{t, hex.EncodeToString([]byte(secret)), in, bufio.NewReader(out)}
}

func (o *otherEnd) ask(q sealedMessage) (a sealedMessage) {
	o.t.Helper()
	if err := json.NewEncoder(o.in).Encode(q); err != nil {
		o.t.Fatal(err)
	}
	line, err := o.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		o.t.Fatalf("%s: %v", q.Do, err)
	}
	return a
}

// Payloads that are sealed from end to end, with real programs at both ends that know nothing of each other's hops: mosquitto's clients as
// device and cloud, and jose and cose for JavaScript as those who open and seal.
func TestPayloadsAreSealedFromEndToEnd(t *testing.T) {
	t.Run("with keys in SoftHSM2", func(t *testing.T) {
		s := newSite(t)
		token := keytest.SoftHSM(t)
		s.write("pin", token.PIN)
		s.sealingSite(func(name string) string {
			return "uri = \"pkcs11:token=" + token.Label + ";object=" + name + "?pin-source=file:pin\"\nmodule = \"" + token.Module + "\""
		})
		s.sealedReportsAndCommands(t)
	})
	t.Run("with keys in a TPM", func(t *testing.T) {
		s := newSite(t)
		chip := keytest.SWTPM(t)
		s.sealingSite(func(name string) string { return "uri = \"" + chip.URI(name) + "\"" })
		s.sealedReportsAndCommands(t)
		s.sealingChipGone(t, chip)
	})
}

// sealingSecret is what the gateway and the other end share.
const sealingSecret = "what both ends know"

func (s *site) sealingSite(key func(name string) string) {
	s.t.Helper()
	s.extra = "\n[key.payload]\n" + key("payload") + "\n[key.signer]\n" + key("signer") + `

[[allow]]
groups = ["press"]
op = "report"
resources = ["/sealed/{form}"]

[[allow]]
connectors = ["cloud"]
groups = ["press"]
op = "command"
resources = ["/valves/{form}"]

[[downlink]]
name = "encrypted"
from = "cloud"
topic = "enc/{gateway}/{device}/{form}"
resource = "/valves/{form}"
reply = "done/{gateway}/{device}/{form}"
unseal = "payload"
seal = "payload"

[[downlink]]
name = "signed"
from = "cloud"
topic = "sig/{gateway}/{device}/{form}"
resource = "/valves/{form}"
reply = "done/{gateway}/{device}/{form}"
signed_by = "person.crt"
`
	for form, by := range map[string]string{"jwe": "payload", "cose-encrypt0": "payload", "jws": "signer", "cose-sign1": "signer"} {
		s.extra += "\n[[uplink]]\nname = \"" + form + "\"\nresource = \"/sealed/" + form + "\"\nto = [\"cloud\"]\ntopic = \"sealed/{gateway}/{device}/" + form +
			"\"\nseal = \"" + by + "\"\nseal_as = \"" + form + "\"\n"
	}
	s.configure()
	s.certify()
	s.write("secret", sealingSecret)
	for _, args := range [][]string{{"keys", "import", "payload", s.path("secret")}, {"keys", "new", "signer"}} {
		if out, err := s.drawbridge(args...); err != nil {
			s.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if err := os.Remove(s.path("secret")); err != nil {
		s.t.Fatal(err)
	}
	s.startCloud()
	s.startGateway()
}

// signerKey is the public key of [key.signer] as PEM, by way of its certificate request.
func (s *site) signerKey() string {
	s.t.Helper()
	out, err := s.drawbridge("keys", "csr", "signer")
	block, _ := pem.Decode([]byte(out))
	if err != nil || block == nil {
		s.t.Fatalf("keys csr: %v\n%s", err, out)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// sealedAt gives the payload and properties of the next publication on the topic.
func (l *lines) sealedAt(topic string) (payload []byte, properties string) {
	l.t.Helper()
	l.await(topic+"|...", func(line string) bool {
		parts := strings.SplitN(line, "|", 3)
		if len(parts) != 3 || parts[0] != topic {
			return false
		}
		var err error
		if payload, err = hex.DecodeString(parts[1]); err != nil {
			l.t.Fatal(err)
		}
		properties = parts[2]
		return true
	})
	return payload, properties
}

// collect gives what stands behind the form in n lines that begin with the prefix and a form, by the form.
func (l *lines) collect(prefix string, n int) map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for len(all) < n {
		l.await(prefix+"...", func(line string) bool {
			rest, ok := strings.CutPrefix(line, prefix)
			if i := strings.IndexAny(rest, " |"); ok && i > 0 {
				all[rest[:i]] = rest[i:]
			}
			return ok
		})
	}
	return all
}

func (s *site) sealedReportsAndCommands(t *testing.T) {
	other := newOtherEnd(t, sealingSecret)
	cloud := s.follow("mosquitto_sub", s.atCloud("-V", "mqttv5", "-q", "1", "-F", "%t|%x|%P", "-t", "sealed/#", "-t", "done/#", "-t", "watching")...)
	mustRun(t, "mosquitto_pub", s.atCloud("-q", "1", "-r", "-t", "watching", "-m", "yes")...)
	cloud.expectContaining("watching|")
	press := []string{"-i", "press-1", "-u", "press-1", "-P", "correct horse", "-q", "1"}
	public := s.signerKey()
	for _, form := range []string{"jwe", "jws", "cose-encrypt0", "cose-sign1"} {
		mustRun(t, "mosquitto_pub", s.atGateway(append(press, "-t", "sealed/"+form, "-m", `{"pressure":"`+form+`"}`)...)...)
		sealed, _ := cloud.sealedAt("sealed/gw/press-1/" + form)
		if form != "cose-sign1" && bytes.Contains(sealed, []byte("pressure")) {
			t.Errorf("%s: it went in the clear: %q", form, sealed)
		}
		got := other.ask(sealedMessage{Do: "open " + form, Secret: other.secret, PEM: public, Message: sealed})
		if got.Payload != `{"pressure":"`+form+`"}` || got.Claims["sub"] != "press-1/sealed/"+form || got.Claims["iss"] != "gw" || got.Claims["jti"] == nil || got.Claims["iat"] == nil {
			t.Errorf("%s opens as %+v", form, got)
		}
	}

	device := s.follow("stdbuf", append([]string{"-oL", "mosquitto_sub"}, s.atGateway(append(press, "-d", "-v", "-t", "valves/#")...)...)...)
	device.expectContaining("Subscribed")
	command := func(topic string, b []byte) {
		t.Helper()
		s.write("command", string(b))
		mustRun(t, "mosquitto_pub", s.atCloud("-q", "1", "-t", topic, "-f", s.path("command"))...)
	}
	person, err := os.ReadFile(s.path("person.key"))
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{"jwe": "enc", "cose-encrypt0": "enc", "jws": "sig", "cose-sign1": "sig"}
	commands := map[string][]byte{}
	for form, by := range forms {
		claims := map[string]any{"iat": time.Now().Unix(), "jti": form, "aud": "gw", "sub": "press-1/valves/" + form}
		commands[form] = other.ask(sealedMessage{Do: "seal " + form, Secret: other.secret, PEM: string(person), Payload: "open-" + form, Claims: claims}).Message
		command(by+"/gw/press-1/"+form, commands[form])
	}
	told := device.collect("valves/", len(forms))
	done := cloud.collect("done/gw/press-1/", len(forms)) // all at once: a device that does not answer is waited for
	for form, by := range forms {
		if told[form] != " open-"+form {
			t.Errorf("%s: the device was told %q", form, told[form])
		}
		parts := strings.Split(done[form], "|")
		answer, err := hex.DecodeString(parts[1])
		if err != nil || !strings.Contains(parts[2], "status:done") {
			t.Errorf("%s: the reply is %q (%v)", form, done[form], err)
		}
		if by == "enc" {
			if got := other.ask(sealedMessage{Do: "open jwe", Secret: other.secret, Message: answer}); got.Claims["sub"] != "press-1/valves/"+form {
				t.Errorf("%s: the reply opens as %+v", form, got)
			}
		}
		for code, b := range map[string][]byte{"replayed": commands[form], "bad-seal": tampered(commands[form])} {
			command(by+"/gw/press-1/"+form, b)
			if _, properties := cloud.sealedAt("done/gw/press-1/" + form); !strings.Contains(properties, "status:refused") || !strings.Contains(properties, "code:"+code) {
				t.Errorf("%s, to be refused as %s: the reply says %q", form, code, properties)
			}
		}
	}
	device.kill()
	for len(device.ch) > 0 {
		if line := <-device.ch; strings.HasPrefix(line, "valves/") {
			t.Errorf("the device got %q once more", line)
		}
	}
}

// tampered is the message with an octet changed near its end, where the signature or the tag is.
func tampered(b []byte) []byte {
	b = bytes.Clone(b)
	if b[len(b)-8] ^= 1; b[len(b)-8] == '.' {
		b[len(b)-8]++
	}
	return b
}

// sealingChipGone has the chip go and come back while devices report.
func (s *site) sealingChipGone(t *testing.T, chip *keytest.TPM) {
	report := func() string {
		out, _ := run(t, "mosquitto_pub", s.atGateway("-V", "mqttv5", "-d", "-i", "press-1", "-u", "press-1", "-P", "correct horse", "-q", "1", "-t", "sealed/jwe", "-m", "x")...)
		return out
	}
	chip.Kill()
	if out := report(); !strings.Contains(out, "RC:151") {
		t.Errorf("without the chip a report was answered\n%s\nnot quota exceeded (151)", out)
	}
	eventually(t, "the problem to show", func() bool { return strings.Contains(s.statusJSON(), "payload-key-failing") })
	chip.Start()
	eventually(t, "reports to be taken again", func() bool { return strings.Contains(report(), "RC:0") })
	eventually(t, "the problem to be gone", func() bool { return !strings.Contains(s.statusJSON(), "payload-key-failing") })
}
