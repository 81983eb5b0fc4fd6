package coap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// lossy relays between one client and the server, and loses one datagram in eight on either way.
func lossy(t *testing.T, server net.Addr, seed uint64) (addr string) {
	t.Helper()
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	front, back := listen(), listen()
	client := make(chan net.Addr, 1)
	var wg sync.WaitGroup
	relay := func(from *net.UDPConn, seed uint64, forward func(b []byte, from net.Addr)) {
		r := rand.New(rand.NewPCG(seed, 0))
		buf := make([]byte, 4096)
		for {
			n, a, err := from.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && r.IntN(8) > 0 {
				forward(buf[:n], a)
			}
		}
	}
	wg.Go(func() {
		relay(front, 2*seed, func(b []byte, a net.Addr) {
			select {
			case client <- a:
			default:
			}
			back.WriteTo(b, server)
		})
	})
	wg.Go(func() {
		var to net.Addr
		relay(back, 2*seed+1, func(b []byte, _ net.Addr) {
			if to == nil {
				to = <-client
			}
			front.WriteTo(b, to)
		})
	})
	t.Cleanup(func() { front.Close(); back.Close(); wg.Wait() })
	return front.LocalAddr().String()
}

func TestDevicesGetThroughLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for retransmissions")
	}
	b := southtest.Start(t, driver())
	for seed, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		for i, security := range []string{"psk", "x509"} {
			needs.Program(t, client)
			cred := credentials(t, b, security, "th-1")
			addr := lossy(t, b.Addr, uint64(10*seed+i))
			t.Run(client+" with "+security, func(t *testing.T) {
				t.Parallel()
				args := append(cred, "-v", "6", "-B", "50", "-m", "post", "-e", "1", fmt.Sprintf("coaps://%s/lossy/%d/%s", addr, seed, security))
				var out []byte
				for range 6 { // a client that loses its patience, after 5 s with GnuTLS, comes again as a device would
					out, _ = exec.CommandContext(t.Context(), needs.Program(t, client), args...).CombinedOutput() // it says how it went
					if bytes.Contains(out, []byte("2.04")) {
						return
					}
				}
				t.Errorf("%s; %v", out, figures(b))
			})
		}
	}
}
