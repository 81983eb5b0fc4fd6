// Package pagetest gives tests of the page a real browser, and what others have made for browsers: an OpenID provider at which people log in, and
// a checker of accessibility. The last two are npm packages of exact versions. Where there are none, a test is skipped, except in CI, where it fails.
package pagetest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/drawbridge/drawbridge/internal/needs"
)

//go:embed npm/package.json npm/package-lock.json npm/issuer.mjs
var files embed.FS

// Tools are the installed packages.
type Tools struct {
	dir string
	axe string // the checker, which is a script
}

// Install installs the packages for one test.
func Install(t *testing.T) *Tools {
	t.Helper()
	dir := t.TempDir()
	npm, err := fs.Sub(files, "npm")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, npm); err != nil {
		t.Fatal(err)
	}
	ci := exec.CommandContext(t.Context(), "npm", "ci", "--silent", "--no-fund", "--no-audit", "--ignore-scripts")
	ci.Dir = dir
	if out, err := ci.CombinedOutput(); err != nil {
		needs.Missing(t, fmt.Sprintf("npm ci: %v\n%s", err, out))
	}
	axe, err := os.ReadFile(filepath.Join(dir, "node_modules/axe-core/axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	return &Tools{dir, string(axe)}
}

// Browser starts a browser. It takes clicks and keys while it has yet to draw a page, which on a busy machine may be long after the page is there,
// and its files in place of shared memory, of which containers have little.
func Browser(t *testing.T, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	more = append(more, chromedp.NoSandbox, chromedp.Flag("allow-pre-commit-input", true), chromedp.WSURLReadTimeout(time.Minute),
		chromedp.ExecPath(needs.Program(t, "chromium")))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:], more...)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Faults gives what keeps somebody from using the page that the browser shows: what axe-core calls serious or critical.
func (tools *Tools) Faults(browser context.Context) ([]string, error) {
	if _, err := chromedp.Run(browser, chromedp.Evaluate[bool](tools.axe+"; true")); err != nil {
		return nil, err
	}
	return chromedp.Run(browser, chromedp.Evaluate[[]string](`axe.run().then(r => r.violations
		.filter(v => v.impact === "serious" || v.impact === "critical")
		.map(v => v.id + ": " + v.nodes.map(n => n.html.slice(0, 120) + " " + n.failureSummary).join(" | ")))`, chromedp.EvalAwaitPromise))
}

// Issuer is an OpenID provider where anybody can log in, with any password. A person's claim realm.roles holds the person's name.
type Issuer struct {
	URL string

	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// Issuer starts one with a certificate for 127.0.0.1; it answers from Serve on.
func (tools *Tools) Issuer(t *testing.T, cert tls.Certificate) *Issuer {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(tools.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "node", "issuer.mjs", "server.crt", "server.key")
	cmd.Dir = tools.dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	i := &Issuer{t: t, in: in, out: bufio.NewReader(out)}
	i.URL = "https://127.0.0.1:" + i.line()
	return i
}

// Serve has the issuer know one client, called gateway, to which it sends people back by the redirect URL.
func (i *Issuer) Serve(redirect string) {
	i.t.Helper()
	if _, err := io.WriteString(i.in, redirect+"\n"); err != nil {
		i.t.Fatal(err)
	}
	if said := i.line(); said != "ready" {
		i.t.Fatalf("the issuer says %q", said)
	}
}

func (i *Issuer) line() string {
	i.t.Helper()
	line, err := i.out.ReadString('\n')
	if err != nil {
		i.t.Fatalf("the issuer: %q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// Trusting has a browser take these certificates, in DER, whoever has signed them.
func Trusting(t *testing.T, certs ...[]byte) chromedp.ExecAllocatorOption {
	t.Helper()
	var pins []string
	for _, der := range certs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		pins = append(pins, base64.StdEncoding.EncodeToString(sum[:]))
	}
	return chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(pins, ","))
}
