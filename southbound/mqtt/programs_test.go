package mqtt

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// serves starts a server and waits until it takes connections at addr. false: it has ended instead. It is killed when the test ends.
func serves(t testing.TB, cmd *exec.Cmd, addr string) bool {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for {
		if nc, err := net.Dial("tcp", addr); err == nil {
			nc.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mosquitto gives the arguments with which a mosquitto client of device th-1 logs in.
func mosquitto(t *testing.T, b *southtest.Bench, version, how string) []string {
	t.Helper()
	_, port, _ := strings.Cut(b.Addr.String(), ":")
	args := []string{"-h", "localhost", "-p", port, "-V", version, "--cafile", b.CAFile}
	if how == "password" {
		return append(args, "-u", "th-1", "-P", string(b.Secret("th-1")))
	}
	crt, key := b.IssueFiles(t, "th-1")
	return append(args, "--cert", crt, "--key", key)
}

// TestMosquittoClients reports and takes commands with mosquitto's clients; TestMosquittoOptions goes through the rest.
func TestMosquittoClients(t *testing.T) {
	pub, sub := needs.Program(t, "mosquitto_pub"), needs.Program(t, "mosquitto_sub")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		for _, how := range []string{"password", "certificate"} {
			t.Run(version+" "+how, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				b := southtest.Start(t, driver5)
				login := mosquitto(t, b, version, how)
				run := func(program string, args ...string) string {
					t.Helper()
					out, err := exec.CommandContext(ctx, program, append(login[:len(login):len(login)], args...)...).CombinedOutput()
					if err != nil {
						t.Fatalf("%s %q: %v\n%s", program, args, err, out)
					}
					return string(out)
				}
				for i, qos := range []string{"0", "1", "2"} {
					run(pub, "-t", "sensors/temp", "-m", qos, "-q", qos)
					if m := b.Up.Await(ctx, t, i+1)[i]; string(m.Payload) != qos || m.Device != "th-1" || m.Resource != "/sensors/temp" {
						t.Errorf("QoS %s: submitted %+v", qos, m)
					}
				}
				run(pub, "-t", "shelf/a", "-m", "kept", "-q", "1", "-r")
				if out := run(sub, "-t", "shelf/#", "-q", "2", "-C", "1", "-v"); out != "shelf/a kept\n" {
					t.Errorf("retained: %q", out)
				}
				// A command, and a device that answers it.
				var told bytes.Buffer
				listen := exec.CommandContext(ctx, sub, append(login, "-t", "actuators/setpoint", "-q", "1", "-C", "1")...)
				listen.Stdout = &told
				if err := listen.Start(); err != nil {
					t.Fatal(err)
				}
				if r := deliverWhenReady(ctx, t, b, setpoint("th-1", "21", false)); r.Status != msg.Done {
					t.Errorf("reply %+v", r)
				}
				if err := listen.Wait(); err != nil || told.String() != "21\n" {
					t.Errorf("the device was told %q (%v)", told.String(), err)
				}
			})
		}
	}
}

// onlyReports lets everything go to the uplink and nothing to other devices.
func onlyReports(_ *auth.Identity, op auth.Op, _ string) bool { return op == auth.Report }

func setpoint(device, payload string, wantReply bool) msg.Message {
	now := time.Now()
	return msg.Message{ID: msg.NewID(now), Time: now, Device: device, Method: "PUT", Resource: "/actuators/setpoint",
		Type: "text/plain", Payload: []byte(payload), WantReply: wantReply}
}

// deliverWhenReady repeats a command until the device is connected and subscribed.
func deliverWhenReady(ctx context.Context, t *testing.T, b *southtest.Bench, m msg.Message) msg.Reply {
	t.Helper()
	for {
		r, err := b.Listener.Deliver(ctx, m)
		if err == nil && r.Code != "not-subscribed" {
			return r
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the device did not become ready: %+v, %v", r, err)
		}
	}
}
