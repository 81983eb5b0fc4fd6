package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
)

// answers are what init asks.
type answers struct{ ID, Key, Reach, Device, Cloud, CA string }

// question is one of init's; its flag answers it beforehand.
type question struct {
	flag, text, usage string
	answer            *string
	needless          func() bool              // nil: it is always asked
	check             func(string) error       // nil: anything goes
	otherwise         func() (standing string) // the answer of who just presses return
}

func (a *app) initVerb() *cobra.Command {
	var (
		got  answers
		ask  bool
		none = func() string { return "" }
	)
	questions := []question{
		{flag: "id", text: "Name of this gateway", usage: "the gateway's `name`, {gateway} in topics (default: the host's)", answer: &got.ID, otherwise: hostname},
		{flag: "key", text: "Where its private key lives: tpm, file, or a URI such as pkcs11:token=gw;object=identity?pin-source=file:/etc/drawbridge/pin",
			usage: "where the private key lives: tpm, file, or a `URI` (default: tpm where there is one)", answer: &got.Key, check: checkKeyPlace, otherwise: keyPlace},
		{flag: "reach", text: "Who can reach it, by CoAP over DTLS on 5684 and MQTT over TLS on 8883: network, local",
			usage: "who can reach the listeners: `network`, or local for this machine alone (default network)", answer: &got.Reach, check: checkReach, otherwise: func() string { return "network" }},
		{flag: "device", text: "Name of a first device; nothing for none", usage: "the `name` of a first device; its secrets are made (default: none)", answer: &got.Device, check: checkDevice, otherwise: none},
		{flag: "cloud", text: "Address of the cloud's MQTT broker, such as mqtts://broker.example:8883; nothing for none",
			usage: "the `URL` of an MQTT broker to forward to (default: none)", answer: &got.Cloud, check: checkCloud, otherwise: none},
		{flag: "ca", text: "File with the certificate of the broker's CA; nothing for those that the system trusts",
			usage: "the `file` with the certificate of the broker's CA (default: the system's)", answer: &got.CA, otherwise: none,
			needless: func() bool { return !strings.HasPrefix(got.Cloud, "mqtts:") && !strings.HasPrefix(got.Cloud, "wss:") }},
	}
	c := &cobra.Command{
		Use:   "init",
		Short: "Ask a few questions and write a first configuration",
		Long: `Writes the configuration, after a few questions where somebody types at it; each flag answers one beforehand. Without a terminal nothing is asked,
and what no flag says is as its default. A configuration that says anything already is left as it is.
The identity of the first start is taken over; where there is none, a key is made, and a certificate that it signs itself.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if !isFirst(a.config()) {
				if _, err := os.Stat(a.config()); !errors.Is(err, fs.ErrNotExist) {
					return hinted(fmt.Errorf("init: %s exists already and was left as it is", a.config()), "change it with an editor, or name another with --config")
				}
			}
			in := bufio.NewReader(a.in)
			for _, q := range questions {
				asked := (ask || terminal(a.in)) && !c.Flags().Changed(q.flag) && (q.needless == nil || !q.needless())
				if err := a.answer(in, q, asked); err != nil {
					return err
				}
			}
			return a.initialize(c.Context(), got)
		},
	}
	for _, q := range questions {
		c.Flags().StringVar(q.answer, q.flag, "", q.usage)
	}
	c.Flags().BoolVar(&ask, "ask", false, "ask although standard input is no terminal")
	return c
}

// answer settles one question: by its flag, by asking, or by what stands.
func (a *app) answer(in *bufio.Reader, q question, asked bool) error {
	for asked {
		fmt.Fprintf(a.out, "%s [%s]: ", q.text, q.otherwise())
		line, err := in.ReadString('\n')
		if err != nil && line == "" {
			if errors.Is(err, io.EOF) {
				err = errors.New("the answers ended before the questions; nothing was written")
			}
			return fmt.Errorf("init: %w", err)
		}
		*q.answer = strings.TrimSpace(line)
		if *q.answer == "" || q.check == nil {
			break
		}
		if err = q.check(*q.answer); err == nil {
			break
		}
		fmt.Fprintf(a.out, "  %v\n", err)
	}
	if *q.answer == "" {
		*q.answer = q.otherwise()
	}
	if q.check != nil && *q.answer != "" {
		if err := q.check(*q.answer); err != nil {
			return usage("init: --%s: %w", q.flag, err)
		}
	}
	return nil
}

func keyPlace() string {
	if firstIdentity(os.Getenv).inTPM {
		return "tpm"
	}
	return "file"
}

func checkKeyPlace(s string) error {
	if s == "tpm" || s == "file" || strings.HasPrefix(s, "pkcs11:") || strings.HasPrefix(s, "tpm:") || strings.HasPrefix(s, "file:") {
		return nil
	}
	return fmt.Errorf("%q: want tpm, file, or a URI of the scheme pkcs11, tpm or file", s)
}

func checkReach(s string) error {
	if s == "network" || s == "local" {
		return nil
	}
	return fmt.Errorf("%q: want network or local", s)
}

func checkDevice(s string) error {
	if regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`).MatchString(s) {
		return nil
	}
	return fmt.Errorf("%q: want nothing but letters, digits, - and _ in it", s)
}

func checkCloud(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || !slices.Contains([]string{"mqtts", "mqtt", "wss", "ws"}, u.Scheme) {
		return fmt.Errorf("%q: want an address like mqtts://broker.example:8883; `drawbridge connectors` lists other kinds of cloud", s)
	}
	return nil
}

var initConfig = template.Must(template.New("init").Parse(`# Every setting with its default: /usr/share/doc/drawbridge/example.toml
# After a change:  drawbridge check  and  systemctl reload drawbridge

[gateway]
id = {{printf "%q" .ID}}
{{- if .State}}
state = {{printf "%q" .State}}
{{- end}}
{{if .Socket}}
[status]
socket = {{printf "%q" .Socket}}
{{end}}
[key.identity]
uri  = {{printf "%q" .Key}}
cert = {{printf "%q" .Cert}} # signed by the key itself, until a CA signs what drawbridge keys csr prints

[listener.field]
type     = "coap"
listen   = "{{.Host}}:5684"
security = ["psk"]
key      = "identity"

[listener.shop]
type     = "mqtt"
listen   = "{{.Host}}:8883"
security = ["tls"]
key      = "identity"
auth     = ["password"]
{{if .Device}}
[device.{{.Device}}]
psk      = "file:{{.Device}}.psk"
password = "file:{{.Device}}.password"
{{end}}
[[allow]] # deny by default; this is for every device that is let in
op        = "report"
resources = ["/sensors/{rest...}"]
{{if .Cloud}}
[[uplink]]
name     = "sensors"
resource = "/sensors/{kind}"
to       = ["cloud"]
topic    = "dt/{gateway}/{device}/{kind}"

[connector.cloud]
type = "mqtt"
url  = {{printf "%q" .Cloud}}
{{- if .Secure}}
key  = "identity"
{{- end}}
{{- if .CA}}
ca   = {{printf "%q" .CA}}
{{- end}}
{{end}}`))

// initialize writes the file that the answers ask for, the first device's secrets, and the identity where there is none.
// The file comes last and whole, so that a gateway never reads half of it.
func (a *app) initialize(ctx context.Context, got answers) error {
	i := firstIdentity(os.Getenv)
	path, err := filepath.Abs(a.config())
	if err != nil {
		return err
	}
	file, err := got.file(i)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := errors.Join(os.MkdirAll(dir, 0o750), os.MkdirAll(i.state, 0o700)); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	owner, err := ownerOf(i.state)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	var made []string
	if got.Device != "" {
		for _, secret := range []string{".psk", ".password"} {
			name := filepath.Join(dir, got.Device+secret)
			err := writeNew(name, []byte(rand.Text()+"\n"), 0o600, owner)
			if errors.Is(err, fs.ErrExist) {
				continue // the device may have it already
			}
			if err != nil {
				return fmt.Errorf("init: %w", err)
			}
			made = append(made, name)
		}
	}
	cfg, err := checked(path, file)
	if err == nil {
		err = keepIdentity(ctx, cfg, owner)
	}
	if err == nil {
		err = replaceConfig(path, file)
	}
	if err != nil {
		for _, name := range made {
			err = errors.Join(err, os.Remove(name))
		}
		return err
	}
	fmt.Fprintf(a.out, "wrote %s\n", path)
	if got.Device != "" {
		fmt.Fprintf(a.out, "device %s: its PSK is in %s, its password in %s\n", got.Device, filepath.Join(dir, got.Device+".psk"), filepath.Join(dir, got.Device+".password"))
	}
	fmt.Fprintln(a.out, "next: drawbridge check && systemctl reload drawbridge")
	return nil
}

// file gives the configuration that the answers ask for.
func (got answers) file(i identity) ([]byte, error) {
	data := map[string]any{"ID": got.ID, "Device": got.Device, "Cloud": got.Cloud, "Host": "", "State": "", "Socket": "", "CA": got.CA,
		"Secure": strings.HasPrefix(got.Cloud, "mqtts:") || strings.HasPrefix(got.Cloud, "wss:")}
	if got.Reach == "local" {
		data["Host"] = "127.0.0.1"
	}
	// Where systemd says nothing else, the defaults hold and need not be written.
	if i.state != "/var/lib/drawbridge" {
		data["State"] = i.state
	}
	if run := systemdDir(os.Getenv, "RUNTIME_DIRECTORY", "/run/drawbridge"); run != "/run/drawbridge" {
		data["Socket"] = filepath.Join(run, "drawbridge.sock")
	}
	if got.CA != "" {
		ca, err := filepath.Abs(got.CA)
		if err != nil {
			return nil, err
		}
		data["CA"] = ca
	}
	key, cert := got.Key, i.cert()
	switch key {
	case "tpm":
		key = i.tpm
	case "file":
		key = i.file
	}
	if key != i.uri() { // the certificate of the first start is for another key
		scheme, _, _ := strings.Cut(key, ":")
		cert = filepath.Join(i.state, "identity-"+scheme+".crt")
	}
	data["Key"], data["Cert"] = key, cert
	var file bytes.Buffer
	if err := initConfig.Execute(&file, data); err != nil {
		return nil, err
	}
	return file.Bytes(), nil
}

// checked reads a file that is still to be written.
func checked(path string, data []byte) (*config.Config, error) {
	cfg, err := config.Parse(path, data, kinds().config())
	if cfg == nil {
		return nil, err
	}
	_, wrong := bridge.Compile(cfg)
	return cfg, config.Join(err, wrong, checkURIs(cfg))
}

// keepIdentity makes the key and its certificate where a first start has not, and gives them to owner.
func keepIdentity(ctx context.Context, cfg *config.Config, owner *unix.Stat_t) error {
	ring, err := openKeys(ctx, cfg, slog.New(slog.DiscardHandler), nil, time.Now)
	if err != nil {
		return err
	}
	defer ring.Close()
	if err := makeIdentity(ctx, ring, cfg.Gateway.ID, string(cfg.Keys["identity"].Cert)); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	for _, pattern := range []string{"identity*", "keys", "keys/identity.*"} {
		names, err := filepath.Glob(filepath.Join(string(cfg.Gateway.State), pattern))
		for _, name := range names {
			err = errors.Join(err, give(name, owner))
		}
		if err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	return nil
}

// replaceConfig puts the file where none is that says anything. The group of its directory, the gateway's, may read it.
func replaceConfig(path string, data []byte) error {
	dir, err := ownerOf(filepath.Dir(path))
	if err == nil {
		err = writeNew(path+".new", data, 0o640, dir)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
}

func writeNew(name string, data []byte, mode os.FileMode, owner *unix.Stat_t) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close(), give(name, owner))
}

func ownerOf(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return &st, nil
}

// give hands a file to whom a directory belongs. Only root can, and only root needs to.
func give(name string, owner *unix.Stat_t) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(name, int(owner.Uid), int(owner.Gid))
}
