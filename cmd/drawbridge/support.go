package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) supportVerb() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "support",
		Short: "Write a bundle for those who help: configuration, status, doctor's findings, versions; secrets are taken out",
		Long: `Gathers what is needed to understand a gateway into one .tar.gz. It reads no secret file; URLs lose their credentials, and whatever in
the configuration looks like a secret is blanked. Look into it before you send it.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if output == "" {
				output = "drawbridge-support-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			if err := errors.Join(a.bundle(c.Context(), f), f.Close()); err != nil {
				return errors.Join(err, os.Remove(output))
			}
			_, err = fmt.Fprintln(a.out, output)
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "the `file` to write; it must not exist")
	return c
}

// bundle writes what can be had; what cannot says why in its place.
func (a *app) bundle(ctx context.Context, w io.Writer) error {
	zipped := gzip.NewWriter(w)
	archive := tar.NewWriter(zipped)
	now := time.Now()
	add := func(name string, b []byte, err error) error {
		if err != nil {
			name, b = name+".error", []byte(err.Error()+"\n")
		}
		h := &tar.Header{Name: "drawbridge-support/" + name, Mode: 0o600, Size: int64(len(b)), ModTime: now}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		_, err = archive.Write(b)
		return err
	}
	raw, err := os.ReadFile(a.config())
	errs := []error{add("drawbridge.toml", redact(raw), err), add("version.txt", versions(), nil)}

	client, err := a.client()
	if err == nil {
		s, asked := client.Snapshot(ctx)
		b, coded := json.MarshalIndent(s, "", "  ")
		errs = append(errs, add("status.json", b, errors.Join(asked, coded)))
	} else {
		errs = append(errs, add("status.json", nil, err))
	}
	if cfg, _, bad := load(a.config(), kinds()); bad == nil {
		found, err := examine(ctx, cfg, "", nil)
		b, coded := json.MarshalIndent(found, "", "  ")
		errs = append(errs, add("doctor.json", b, errors.Join(err, coded)))
	} else {
		errs = append(errs, add("doctor.json", nil, bad))
	}
	return errors.Join(append(errs, archive.Close(), zipped.Close())...)
}

// What looks like a secret, with what stays of it in the first group.
var (
	// credentialInURL is what stands between // and @.
	credentialInURL = regexp.MustCompile(`(//)[^/@\s"']+@`)
	// inQuery is a secret in a URI or a connection string.
	inQuery    = regexp.MustCompile(`(?i)((?:pin-value|sharedaccesskey|access_token|api[-_]?key|sig|signature|password|secret)=)[^;?&"'\s]+`)
	privateKey = regexp.MustCompile(`(?s)(-----BEGIN [A-Z0-9 ]*(?:PRIVATE|SECRET) KEY-----).*?(?:-----END [A-Z0-9 ]*-----|\z)`)
	// secretValue is the value of a key that names something secret, also in an inline table: in quotes of any kind, a list, or bare.
	secretValue = regexp.MustCompile(`(?is)([\w.-]*(?:psk|password|secret|pin|token|private|credential|api[-_]?key|authorization)[\w.-]*["']?[ \t]*=[ \t]*)` +
		`("""(?:.*?"""|.*\z)|'''(?:.*?'''|.*\z)|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|\[[^\]]*\]?|[^\s,}#"'\[]+)`)
)

// redact blanks what looks like a secret. A valid configuration holds none, but this one may not be valid. References to secrets are
// not secret.
func redact(b []byte) []byte {
	text := string(b)
	for _, secret := range []*regexp.Regexp{privateKey, credentialInURL, inQuery} {
		text = secret.ReplaceAllString(text, "${1}***")
	}
	text = secretValue.ReplaceAllStringFunc(text, func(found string) string {
		m := secretValue.FindStringSubmatch(found)
		value := strings.Trim(m[2], `"'`)
		if strings.HasPrefix(value, "file:") || strings.HasPrefix(value, "credential:") || strings.HasPrefix(value, "sealed:") {
			return found
		}
		return m[1] + `"***"`
	})
	return []byte(text)
}

func versions() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "drawbridge %s\n%s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			fmt.Fprintf(&b, "%s %s\n", m.Path, m.Version)
		}
	}
	if kernel, err := os.ReadFile("/proc/version"); err == nil {
		b.Write(kernel)
	}
	return []byte(b.String())
}
