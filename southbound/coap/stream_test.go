package coap

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/tcp"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// tlsDriver drives a listener over TLS. A device's secret is its certificate, so a wrong one is one of another CA.
func tlsDriver(t *testing.T) southtest.Driver {
	d := driver()
	udp := d.Configure
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		udp(s, cfg, listen)
		cfg.(*Config).Transport, cfg.(*Config).Security = "tcp", []string{"x509"}
	}
	d.Dial = func(ctx context.Context, s *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
		ca := s
		if string(secret) != string(s.Secret(device)) {
			ca = southtest.NewSite(t)
		}
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: s.Roots, ServerName: "gateway", NextProtos: []string{"coap"}, Certificates: []tls.Certificate{ca.Issue(t, device)}}}
		c, err := dialer.DialContext(ctx, "tcp", addr.String())
		if err != nil {
			return nil, err
		}
		dev := &goCoAP{router: mux.NewRouter()}
		if dev.conn, err = tcp.Client(c, options.WithMux(dev.router), options.WithCloseSocket()); err != nil {
			return nil, err
		}
		return dev, dev.conn.Ping(ctx)
	}
	d.Noise = func(_ context.Context, t *testing.T, _ *southtest.Site, addr net.Addr) {
		for i := range 20 {
			c, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100*i)
			rand.Read(b)
			c.Write(b)
			c.Close()
		}
	}
	return d
}

func TestListenerOverTLSKeepsTheContract(t *testing.T) { southtest.Run(t, tlsDriver(t)) }

func TestLibcoapClientsOverTLS(t *testing.T) {
	// libcoap with GnuTLS does not go on after the first 16 KiB of a message; it is given blocks.
	for client, how := range map[string][]string{"coap-client-openssl": nil, "coap-client-gnutls": {"-b", "1024"}} {
		t.Run(client, func(t *testing.T) {
			needs.Program(t, client)
			b := southtest.Start(t, tlsDriver(t))
			cred := credentials(t, b, "x509", "th-1")
			uri := fmt.Sprintf("coaps+tcp://%s", b.Addr)
			content := strings.Repeat("0123456789abcdef", 4000)
			big := filepath.Join(b.Dir, "big")
			if err := os.WriteFile(big, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			said := run(t, client, append(append(cred, how...), "-B", "10", "-m", "put", "-f", big, uri+"/big")...)
			got := b.Up.Messages()
			if len(got) != 1 || string(got[0].Payload) != content || got[0].Device != "th-1" {
				t.Fatalf("%d messages; %s", len(got), said)
			}
			out := filepath.Join(b.Dir, "out")
			run(t, client, append(append(cred, how...), "-B", "10", "-m", "get", "-o", out, uri+"/big")...)
			if back, err := os.ReadFile(out); err != nil || string(back) != content {
				t.Errorf("read back %d octets, %v", len(back), err)
			}
			for method, want := range map[string]string{"post": "2.04", "delete": "2.02"} {
				if said := run(t, client, append(cred, "-v", "6", "-B", "10", "-m", method, "-e", "21", uri+"/small")...); !strings.Contains(said, want) {
					t.Errorf("%s: %s", method, said)
				}
			}
		})
	}
}

// rawStream connects to a listener without TLS.
func rawStream(t *testing.T) (*southtest.Bench, net.Conn) {
	t.Helper()
	b := southtest.Start(t, inTheClear(tlsDriver(t)))
	c, err := net.Dial("tcp", b.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return b, c
}

func TestSignalingMessages(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want []byte // code and what follows of the last message before the end; nil: only the end
	}{
		"ping is answered by pong":              {[]byte{0x00, 0xe1, 0x01, 0xe2, 0x77, 0x00, 0xe4}, []byte{0x01, 0xe3, 0x77}},
		"ping with Custody, too":                {[]byte{0x00, 0xe1, 0x11, 0xe2, 0x77, 0x20, 0x00, 0xe4}, []byte{0x11, 0xe3, 0x77, 0x20}},
		"release ends it":                       {[]byte{0x00, 0xe1, 0x00, 0xe4}, nil},
		"abort ends it":                         {[]byte{0x00, 0xe1, 0x00, 0xe5}, nil},
		"no CSM is aborted":                     {[]byte{0x00, 0xe2}, append([]byte{0xe5, 0xff}, "no CSM"...)},
		"a critical option of a CSM is aborted": {[]byte{0x10, 0xe1, 0x10}, append([]byte{0xe5, 0x21, 1, 0xff}, "option 1"...)},
		"a token of 9 is aborted":               {[]byte{0x09, 0xe1}, append([]byte{0xe5, 0xff}, "token length"...)},
		"a message too large is aborted":        {[]byte{0x00, 0xe1, 0xf0, 0xff, 0xff, 0xff, 0xff, 0x02}, append([]byte{0xe5, 0xff}, "message too large"...)},
		"a malformed message is aborted":        {[]byte{0x00, 0xe1, 0x10, 0x02, 0xff}, append([]byte{0xe5, 0xff}, "message format"...)},
	} {
		t.Run(name, func(t *testing.T) {
			_, conn := rawStream(t)
			conn.Write(c.in)
			got, err := io.ReadAll(conn)
			if err != nil && len(got) == 0 {
				t.Fatal(err)
			}
			n := 2 + int(got[0]>>4)
			if n < 2 || len(got) < n || got[1] != byte(codes.CSM) {
				t.Fatalf("got %x, want a CSM first", got)
			}
			if rest := got[n:]; c.want == nil && len(rest) > 0 || c.want != nil && !bytes.HasSuffix(rest, c.want) {
				t.Errorf("then %x, want %x", rest, c.want)
			}
		})
	}
}
