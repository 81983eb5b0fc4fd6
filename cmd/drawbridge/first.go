package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
	"github.com/drawbridge/drawbridge/internal/health"
)

// A gateway starts without configuration: where there is no file at the place where it is looked for by default, or where the file holds
// comments alone, as the package brings it. Then it makes itself an identity, serves its own machine and no other, and says what to do next.
// `drawbridge init` writes a file that goes on with the same identity.

// unconfigured is the problem of a gateway that nobody has told anything yet.
var unconfigured = health.Code{
	Name:     "unconfigured",
	Title:    "there is no configuration yet: only this machine is served, and nothing is forwarded",
	Severity: health.Notice,
	Hint:     "`drawbridge init` asks a few questions and writes the file; then `systemctl reload drawbridge`",
}

// nextSteps are the three lines that a first start ends with.
const nextSteps = `drawbridge: there is no configuration yet: only this machine is served (CoAP on 127.0.0.1:5683, MQTT on 127.0.0.1:11883), and nothing is forwarded
drawbridge: next: drawbridge init asks a few questions and writes %s; then systemctl reload drawbridge
drawbridge: see http://127.0.0.1:8480, or drawbridge status, for how it is; drawbridge demo for what it can do
`

// isFirst tells whether the file at path, or its absence, leaves everything to the first start.
func isFirst(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return path == defaultConfig && errors.Is(err, fs.ErrNotExist)
	}
	for line := range bytes.Lines(data) {
		if text := bytes.TrimSpace(line); len(text) > 0 && text[0] != '#' {
			return false
		}
	}
	return true
}

var firstConfig = template.Must(template.New("first").Parse(`[gateway]
id    = {{printf "%q" .ID}}
state = {{printf "%q" .State}}

[status]
socket = {{printf "%q" .Socket}}

[key.identity]
uri  = {{printf "%q" .Key}}
cert = {{printf "%q" .Cert}}

[listener.local-coap]
type     = "coap"
listen   = "127.0.0.1:5683"
security = ["none"]

[listener.local-mqtt]
type     = "mqtt"
listen   = "127.0.0.1:11883"
security = ["none"]
auth     = ["anonymous"]
`))

// firstFile gives what a gateway without configuration goes by.
func firstFile(getenv func(string) string) []byte {
	i := firstIdentity(getenv)
	var file bytes.Buffer
	err := firstConfig.Execute(&file, map[string]string{
		"ID": hostname(), "State": i.state, "Key": i.uri(), "Cert": i.cert(),
		"Socket": filepath.Join(systemdDir(getenv, "RUNTIME_DIRECTORY", "/run/drawbridge"), "drawbridge.sock"),
	})
	if err != nil {
		panic(err) // the template is wrong
	}
	return file.Bytes()
}

// identity is where a gateway keeps the key that it makes itself.
type identity struct {
	state     string
	tpm, file string // the URIs that the key may have
	inTPM     bool   // which of them it has
}

func (i identity) uri() string {
	if i.inTPM {
		return i.tpm
	}
	return i.file
}

func (i identity) cert() string { return filepath.Join(i.state, "identity.crt") }

// firstIdentity finds the key of an earlier start; where there is none, the key is to live in the TPM, if there is one.
func firstIdentity(getenv func(string) string) identity {
	state := systemdDir(getenv, "STATE_DIRECTORY", "/var/lib/drawbridge")
	device := cmp.Or(getenv("DRAWBRIDGE_TPM"), tpm2.DefaultDevice)
	file := filepath.Join(state, "identity.key")
	i := identity{state: state, tpm: "tpm:name=identity", file: "file:" + file}
	if device != tpm2.DefaultDevice {
		i.tpm += ";device=" + device
	}
	_, err := os.Stat(file)
	i.inTPM = err != nil && hasTPM(device)
	return i
}

func hasTPM(device string) bool {
	path, isSocket := strings.CutPrefix(device, "unix:")
	kind := os.ModeCharDevice
	if isSocket {
		kind = os.ModeSocket
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&kind != 0
}

// systemdDir gives the directory that systemd has made for the service.
func systemdDir(getenv func(string) string, name, otherwise string) string {
	first, _, _ := strings.Cut(getenv(name), ":")
	return cmp.Or(first, otherwise)
}

func hostname() string {
	name, err := os.Hostname()
	name, _, _ = strings.Cut(name, ".")
	if err != nil || name == "" {
		return "drawbridge"
	}
	return name
}

// certifiedFor is how long the certificate that a gateway signs itself is good: until a CA signs a better one.
const certifiedFor = 10 * 365 * 24 * time.Hour

// makeIdentity makes the key called identity, and a certificate that it signs itself, where they are not there yet.
func makeIdentity(ctx context.Context, ring *keyring.Ring, id, cert string) error {
	if _, _, err := ring.New(ctx, "identity", hwcrypto.ECDSAP256); err != nil {
		return err
	}
	if _, err := os.Stat(cert); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host := hostname(); host != "localhost" {
		names = append(names, host)
	}
	pem, err := ring.SelfSigned(ctx, "identity", pkix.Name{CommonName: id}, names, certifiedFor)
	if err != nil {
		return err
	}
	return hwcrypto.WriteFile(cert, pem)
}

// firstStart makes the identity of a gateway without configuration. Where its chip does not let it, the gateway starts all the same:
// the list of problems shows the key.
func (g *gateway) firstStart(ctx context.Context, id, cert string) {
	if err := makeIdentity(ctx, g.keys, id, cert); err != nil {
		g.log.Warn("no identity could be made", "error", err)
	}
	g.tracker.For("").Set(&unconfigured, "")
}

// sayNext prints what to do after a first start.
func sayNext(w io.Writer, path string) { fmt.Fprintf(w, nextSteps, path) }
