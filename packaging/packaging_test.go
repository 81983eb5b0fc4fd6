// Package packaging holds what a service needs around the program; there is no Go code in it but these tests.
package packaging

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
)

func run(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, arg...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

func TestTheUnitIsSandboxed(t *testing.T) {
	out := run(t, needs.Program(t, "systemd-analyze"), "security", "--offline=true", "--no-pager", "files/drawbridge.service")
	m := regexp.MustCompile(`Overall exposure level.*: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no level:\n%s", out)
	}
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > 1.5 {
		t.Errorf("exposure %s", m[1])
	}
}

func TestTheUnitsAreClean(t *testing.T) {
	analyze := needs.Program(t, "systemd-analyze")
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"drawbridge.service", "drawbridge-coap.socket", "drawbridge-mqtt.socket"} {
		unit, err := os.ReadFile("files/" + name)
		if err != nil {
			t.Fatal(err)
		}
		// The program need not be installed here.
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(unit), "/usr/bin/drawbridge", "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, path)
	}
	if out := run(t, analyze, append([]string{"verify", "--man=no"}, units...)...); strings.Contains(out, dir) || strings.Contains(out, "drawbridge") {
		t.Error(out)
	}
}

func TestTheShippedFileIsGood(t *testing.T) {
	out := run(t, "go", "run", "../cmd/drawbridge", "check", "files/drawbridge.toml")
	if !strings.Contains(out, "ok: it says nothing yet, so only this machine is served") {
		t.Error(out)
	}
}

func TestScriptsParse(t *testing.T) {
	scripts, err := filepath.Glob("scripts/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatal(err)
	}
	for _, s := range scripts {
		run(t, "sh", "-n", s)
	}
	for _, s := range []string{"build", "boot", "inspect", "emulate"} {
		run(t, "bash", "-n", s)
	}
}

func TestTheDashboardShowsMetricsThatThereAre(t *testing.T) {
	metrics, err := os.ReadFile("../status/testdata/unwell.prom")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	data, err := os.ReadFile("files/grafana.json")
	if err == nil {
		err = json.Unmarshal(data, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`drawbridge_\w+`)
	shown := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			for _, metric := range name.FindAllString(target.Expr, -1) {
				shown++
				if !strings.Contains(string(metrics), "\n# TYPE "+strings.TrimSuffix(metric, "_bucket")+" ") {
					t.Errorf("%s: there is no %s", p.Title, metric)
				}
			}
		}
	}
	if shown < 15 {
		t.Errorf("%d metrics", shown)
	}
}

// No engine builds the image here, so its definition is held to what the package and the unit say.
func TestTheContainerIsLikeThePackage(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	image, unit, list := read("Containerfile"), read("files/drawbridge.service"), read("nfpm.yaml")
	if !strings.Contains(image, "/etc/ssl/certs/ca-certificates.crt") {
		t.Error("it trusts no cloud")
	}
	image = image[strings.LastIndex(image, "\nFROM "):] // the stage that is shipped
	word := func(text, pattern string) string {
		m := regexp.MustCompile(`(?m)^` + pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("there is no line %q", pattern)
		}
		return m[1]
	}
	program := word(image, `ENTRYPOINT \["(.*)"\]$`)
	if run := word(image, `CMD \["(.*)"\]$`); program+" "+run != word(unit, `ExecStart=(.*)$`) {
		t.Errorf("it runs %s %s, the unit does not", program, run)
	}
	if !strings.Contains(list, "dst: "+program+",") || !strings.Contains(image, " /drawbridge "+program+"\n") {
		t.Errorf("%s is not where the package has it", program)
	}
	if user := word(image, `USER ([0-9]+):[0-9]+$`); user == "0" {
		t.Error("it runs as root")
	}
	for _, dir := range []string{"/var/lib/" + word(unit, `StateDirectory=(.*)$`), "/run/" + word(unit, `RuntimeDirectory=(.*)$`)} {
		if !strings.Contains(word(image, `VOLUME (.*)$`), `"`+dir+`"`) {
			t.Errorf("with a read-only root it cannot write to %s", dir)
		}
		if !regexp.MustCompile(`COPY --from=build --chown=65532:65532 /state ` + dir + `\n`).MatchString(image) {
			t.Errorf("%s is not its own", dir)
		}
	}
}
