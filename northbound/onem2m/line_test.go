package onem2m_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// metered counts the octets of a connection.
type metered struct {
	net.Conn
	octets *atomic.Int64
}

func (m metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.octets.Add(int64(n))
	return n, err
}

func (m metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.octets.Add(int64(n))
	return n, err
}

// What a metered line costs is counted where connections are made, so none may be made elsewhere.
func TestEveryBindingGoesThroughTheGatewaysDialler(t *testing.T) {
	for name, b := range bindings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := northtest.NewCSE(t)
			var octets atomic.Int64
			conn, _ := connector(t, c, b.serve(c), func(env *northbound.Env, cfg *onem2m.Config) {
				env.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := new(net.Dialer).DialContext(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return metered{c, &octets}, nil
				}
				if b.change != nil {
					b.change(t, cfg)
				}
			})
			s, err := conn.Dial(t.Context(), &northtest.Downlink{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			before := octets.Load()
			now := time.Now()
			o := northtest.NewOutcome(1)
			if err := s.Send(t.Context(), []msg.Publication{{ID: msg.NewID(now), Time: now, Topic: "dt/x", Payload: make([]byte, 500)}}, o.Done); err != nil {
				t.Fatal(err)
			}
			o.Await(t)
			if n := octets.Load() - before; before < 500 || n < 500 {
				t.Errorf("%d octets were counted, then %d for a message of 500", before, n)
			}
		})
	}
}
