// Command manual writes the man page of a drawbridge binary from what its verbs say of themselves with -h.
//
//	manual BINARY VERSION DATE > drawbridge.1
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: manual BINARY VERSION DATE")
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	err := write(context.Background(), out, os.Args[1], os.Args[2], os.Args[3])
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

const about = `Devices come in over CoAP/DTLS and MQTT/TLS; clouds are reached over MQTT/TLS, HTTPS and oneM2M. What a device reports is on disk before it is told yes.
Private keys live in a PKCS#11 token or a TPM 2.0. One file, /etc/drawbridge/drawbridge.toml, says all; every setting with its default stands in
/usr/share/doc/drawbridge/example.toml.`

const after = `.SH FILES
.TP
.I /etc/drawbridge/drawbridge.toml
the configuration
.TP
.I /var/lib/drawbridge
messages that wait, certificates, sessions, mailboxes
.TP
.I /run/drawbridge/drawbridge.sock
the local socket, for root and the group drawbridge
.SH EXIT STATUS
0 yes; 1 it failed; 2 asked wrongly, a bad file too; 3 the answer is no: no route, denied, unwell.
.SH SEE ALSO
.BR systemctl (1),
.BR systemd-creds (1),
.BR p11-kit (8)
`

func write(ctx context.Context, w io.Writer, binary, version, date string) error {
	help, err := ask(ctx, binary)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, ".TH DRAWBRIDGE 1 %q %q\n.SH NAME\ndrawbridge \\- IoT edge gateway: devices to clouds, stored before yes, keys in a chip\n", date, "drawbridge "+version)
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B drawbridge\n.I VERB\n[options]\n.SH DESCRIPTION\n%s\n.SH VERBS\n", roff(about))
	for _, verb := range verbs(help) {
		text, err := ask(ctx, binary, strings.Fields(verb)...)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, ".SS drawbridge %s\n.nf\n%s\n.fi\n", roff(verb), roff(text))
		for _, sub := range verbs(text) {
			text, err := ask(ctx, binary, verb, sub)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, ".SS drawbridge %s %s\n.nf\n%s\n.fi\n", roff(verb), roff(sub), roff(text))
		}
	}
	_, err = io.WriteString(w, after)
	return err
}

func ask(ctx context.Context, binary string, verb ...string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, append(verb, "-h")...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s -h: %w", binary, strings.Join(verb, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// verbs reads the names below "Available Commands:".
func verbs(help string) (names []string) {
	listed := false
	for line := range strings.Lines(help) {
		if !strings.HasPrefix(line, " ") {
			listed = strings.HasPrefix(line, "Available Commands:")
			continue
		}
		if f := strings.Fields(line); listed && len(f) > 0 && f[0] != "help" && f[0] != "completion" {
			names = append(names, f[0])
		}
	}
	return names
}

// roff escapes what roff would read as a request or an escape.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
