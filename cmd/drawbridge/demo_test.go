package main

import (
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// The demo does the main job and leaves nothing behind.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	p := &process{Cmd: exec.Command(needs.Program(t, "drawbridge"), "demo"), t: t, ended: make(chan struct{})}
	p.Env = append(os.Environ(), "TMPDIR="+dir)
	p.Stdout, p.Stderr = p, p
	p.launch()
	for _, line := range []string{
		`th-1 +CoAP/DTLS PSK +reports /sensors/temp`,
		`press-1 +MQTT 5/TLS +reports /sensors/pressure`,
		`cloud +MQTT 5/TLS +receives dt/demo/th-1/temp`,
		`cloud +MQTT 5/TLS +receives dt/demo/press-2/pressure`,
		`th-1 +CoAP/DTLS PSK +obeys: set point 23`,
		`hears the reply of th-1: set to 23.0`,
	} {
		seen := regexp.MustCompile(line)
		eventually(t, line, func() bool { return seen.MatchString(p.output()) })
	}
	p.stop()
	if !p.ProcessState.Success() {
		t.Errorf("the demo ended: %v", p.ProcessState)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it has left %v behind (%v)", left, err)
	}
}
