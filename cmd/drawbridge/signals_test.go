package main

import (
	"bufio"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A gateway that is told to reload while it starts still starts, and one whose log nobody reads any more goes on, and stops in order.
func TestSignalsThatDoNotEndTheGateway(t *testing.T) {
	s := newSite(t)
	s.configure()
	s.certify()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.gateway = &process{Cmd: s.command("run"), t: t, ended: make(chan struct{})}
	s.gateway.Stdout, s.gateway.Stderr = w, w
	s.gateway.launch()
	w.Close()
	eventually(t, "the gateway to begin", func() bool {
		_, err := os.Stat(s.path("state/lock"))
		return err == nil
	})
	if err := s.gateway.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(r); lines.Scan() && !strings.Contains(lines.Text(), "msg=ready"); {
	}
	r.Close()
	s.waitReady()

	s.write("drawbridge.toml", "[gateway")
	for range 3 { // each is told in the log
		if err := s.gateway.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get("http://" + s.page + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	s.gateway.stop()
	if code := s.gateway.ProcessState.ExitCode(); code != exitYes {
		t.Errorf("it ended with %v", s.gateway.ProcessState)
	}
}
