package dtls_test

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/coap/dtls"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
)

// TestEverySuite has the tests' own client speak every suite that it knows, with a connection id and without.
func TestEverySuite(t *testing.T) {
	p := dtls.NewPKI(t)
	for _, s := range dtls.Suites() {
		if s.UsesRSA() {
			continue
		}
		for _, cid := range []bool{true, false} {
			t.Run(s.Name+map[bool]string{true: " with connection id"}[cid], func(t *testing.T) {
				addr := dtls.Echo(t, p)
				c, err := net.Dial("udp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				conn, err := dtlstest.Handshake(ctx, c, dtlstest.Options{
					Suite: s.Name, Identity: "dev1", PSK: []byte("an octet string"), Certificate: p.Client(), Roots: p.Roots(), CID: cid,
				})
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					b, err := conn.Seal(nil, dtls.TypeApplication, []byte("hello"))
					if err != nil {
						t.Fatal(err)
					}
					if b[0] == 25 != cid {
						t.Errorf("record of type %d", b[0])
					}
					c.Write(b)
					buf := make([]byte, 200)
					c.SetReadDeadline(time.Now().Add(30 * time.Second))
					n, err := c.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					r, _, _ := dtls.NextRecord(buf[:n])
					if _, got, _, err := conn.Open(r); err != nil || !bytes.Equal(got, []byte("HELLO")) {
						t.Fatalf("%q, %v", got, err)
					}
				}
			})
		}
	}
}
