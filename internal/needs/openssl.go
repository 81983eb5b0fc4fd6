package needs

import (
	"bufio"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// OpenSSLServer runs `openssl s_server` with args in the directory dir as long as the test does, and gives its address on loopback.
func OpenSSLServer(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(Program(t, "openssl"), slices.Concat([]string{"s_server", "-accept", "127.0.0.1:0"}, args)...)
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe() // its end would end the server
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-read
		cmd.Wait()
		in.Close()
	})
	address := make(chan string, 1)
	go func() {
		defer close(read)
		defer close(address)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if a, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok && len(address) == 0 {
				address <- a
			}
		}
	}()
	a, ok := <-address
	if !ok {
		t.Fatalf("openssl s_server %s does not listen", args)
	}
	return a
}
