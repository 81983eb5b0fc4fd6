package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// A first start without configuration makes an identity, serves its own machine, and says in three lines what to do next; init and a reload go
// on with the same identity. The default ports are real, so it runs in a network of its own.
func TestFirstStart(t *testing.T) {
	if out, err := run(t, "unshare", "--net", "true"); err != nil {
		needs.Missing(t, "the right to make a network namespace is missing:", strings.TrimSpace(out))
	}
	for _, place := range []struct {
		name string
		tpm  func(*testing.T) string
		key  *regexp.Regexp // its line in keys list
		file string         // what holds it, or the blob that only the TPM can open
	}{
		{"without a TPM", func(t *testing.T) string { return t.TempDir() + "/none" }, regexp.MustCompile(`identity +file /.* +ecdsa-p256 +yes +CN=`), "identity.key"},
		{"with a TPM", func(t *testing.T) string { return keytest.SWTPM(t).Device() }, regexp.MustCompile(`identity +TPM.* +ecdsa-p256 +no +CN=`), "keys/identity.tpm"},
	} {
		t.Run(place.name, func(t *testing.T) {
			s := newSite(t)
			s.env = []string{"STATE_DIRECTORY=" + s.path("state"), "RUNTIME_DIRECTORY=" + s.dir, "DRAWBRIDGE_TPM=" + place.tpm(t)}
			s.write("drawbridge.toml", "# Nothing is said yet.\n")
			lines := s.firstStart()
			want := []string{
				"drawbridge: there is no configuration yet: only this machine is served (CoAP on 127.0.0.1:5683, MQTT on 127.0.0.1:11883), and nothing is forwarded",
				"drawbridge: next: drawbridge init asks a few questions and writes " + s.path("drawbridge.toml") + "; then systemctl reload drawbridge",
				"drawbridge: see http://127.0.0.1:8480, or drawbridge status, for how it is; drawbridge demo for what it can do",
			}
			if strings.Join(lines, "\n") != strings.Join(want, "\n") {
				t.Errorf("it says:\n%s", strings.Join(lines, "\n"))
			}
			problem := health.Problem{Code: unconfigured.Name, Title: unconfigured.Title, Severity: unconfigured.Severity}
			for _, place := range tellers {
				eventually(t, "it to be told that nothing is configured: "+place.name, func() bool { return place.told(apart{s}, problem) })
			}
			out, err := s.drawbridge("status")
			if err != nil || !strings.Contains(out, "127.0.0.1:5683") || !strings.Contains(out, "127.0.0.1:11883") || !strings.Contains(out, "there is no configuration yet") ||
				strings.Contains(out, "a key lives in a file") != (place.file == "identity.key") {
				t.Errorf("status: %v\n%s", err, out)
			}
			if _, err := os.Stat(filepath.Join(s.path("state"), place.file)); err != nil {
				t.Error(err)
			}
			key := s.keyList()
			if !place.key.MatchString(key) {
				t.Errorf("keys list:\n%s", key)
			}

			// Another start changes nothing, and init goes on with what is there.
			s.gateway.stop()
			s.firstStart()
			if again := s.keyList(); again != key {
				t.Errorf("after another start, keys list:\n%s", again)
			}
			eventually(t, "init to get hold of the TPM", func() bool {
				out, err = s.drawbridge("init", "--device", "th-17", "--reach", "local")
				return err == nil
			})
			if again := s.keyList(); !strings.HasPrefix(again, key) { // a line on the device's pre-shared key follows
				t.Errorf("after init, keys list:\n%s", again)
			}
			out, err = s.drawbridge("reload")
			if err != nil || !strings.Contains(out, "started: listener field, listener shop\n") || !strings.Contains(out, "stopped: listener local-coap, listener local-mqtt\n") {
				t.Errorf("reload: %v\n%s", err, out)
			}
			eventually(t, "both listeners to be bound", func() bool {
				out, err = s.drawbridge("status")
				return err == nil && strings.Count(out, " bound ") == 2
			})
			for _, place := range tellers {
				eventually(t, "it not to be told any more that nothing is configured: "+place.name, func() bool { return !place.told(apart{s}, problem) })
			}
			s.gateway.stop()
		})
	}
}

// apart is a gateway in a network of its own, as one asks it there.
type apart struct{ *site }

func (f apart) get(path string) string {
	return mustRun(f.t, "nsenter", "-n", "-t", strconv.Itoa(f.gateway.Process.Pid), "curl", "-sS", "http://127.0.0.1:8480"+path)
}

func (f apart) verb(args ...string) (string, int) {
	c := f.command(args...)
	out, _ := c.CombinedOutput()
	return string(out), c.ProcessState.ExitCode()
}

func (f apart) logged() string { return f.gateway.output() }

// keyList gives the list of keys once the TPM, which serves one program at a time here, has been let go of.
func (s *site) keyList() (list string) {
	s.t.Helper()
	eventually(s.t, "the keys to be listed", func() (ok bool) {
		var err error
		list, err = s.drawbridge("keys", "list")
		return err == nil
	})
	return list
}

// firstStart starts the gateway in a network of its own and gives the lines, not of the log, that it ends its start with.
func (s *site) firstStart() (lines []string) {
	s.t.Helper()
	run := s.command("run")
	p := &process{t: s.t, ended: make(chan struct{}), Cmd: exec.Command(needs.Program(s.t, "unshare"), append([]string{"--net", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}, run.Args...)...)}
	p.Env, p.Stdout, p.Stderr = run.Env, p, p
	p.launch()
	s.gateway = p
	eventually(s.t, "the first start to end with three lines", func() bool {
		select {
		case <-p.ended:
			s.t.Fatalf("the gateway ended:\n%s", p.output())
		default:
		}
		lines = nil
		for line := range strings.Lines(p.output()) {
			if strings.HasPrefix(line, "drawbridge: ") && strings.HasSuffix(line, "\n") {
				lines = append(lines, strings.TrimSuffix(line, "\n"))
			}
		}
		return len(lines) >= 3
	})
	return lines
}
