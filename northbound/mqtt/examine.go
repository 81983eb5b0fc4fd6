package mqtt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// echoWait is how long doctor waits for its own publication.
const echoWait = 5 * time.Second

// Examine is northbound.Examined's. It logs in under a client id of its own, so that a gateway that runs keeps its session,
// and publishes a random number to drawbridge/GATEWAY/doctor.
func (c *Connector) Examine(ctx context.Context, step func(northbound.Step)) {
	timed := stopwatch(step)
	address, err := c.address(ctx)
	if err != nil {
		timed("tls", "", err)
		return
	}
	o, _, err := c.options(ctx)
	if err != nil {
		timed("log-in", "", err)
		return
	}
	conn, err := address.Dial(ctx, step)
	if err != nil {
		return // the step that failed has been told
	}
	Examine(ctx, conn, o, address, "drawbridge/"+c.env.Gateway+"/doctor", step)
}

// Examine takes the steps from log-in to echo over conn. The client id gets the suffix "-doctor", and the session ends with the connection.
// Where no such client is let in, only the log-in is tried, as the gateway itself.
func Examine(ctx context.Context, conn net.Conn, o Options, address Address, topic string, step func(northbound.Step)) {
	timed := stopwatch(step)
	nonce := []byte(rand.Text())
	echo := make(chan struct{}, 1)
	own := o
	o.ClientID, o.SessionExpiry, o.NoLocal = o.ClientID+"-doctor", 0, false
	o.Receive = func(_ context.Context, p msg.Publication) error {
		if bytes.Equal(p.Payload, nonce) {
			select {
			case echo <- struct{}{}:
			default:
			}
		}
		return nil
	}
	s, err := Start(ctx, conn, o)
	if err != nil && examineAs(ctx, own, address, timed) {
		return
	}
	if err != nil {
		timed("log-in", "client id "+o.ClientID, explain(err, address.HostPort()))
		return
	}
	defer s.Close()
	v := s.Server()
	timed("log-in", fmt.Sprintf("client id %s; the broker takes %d publications at once, packets of %d octets, QoS up to %d",
		v.ClientID, v.Window, v.MaxPacket, v.MaxQoS), nil)

	subscribed := s.Subscribe(ctx, topic)
	timed("publish", topic, s.Publish(ctx, msg.Publication{Topic: topic, QoS: 1, Payload: nonce, Expires: o.Now().Add(time.Minute)}))
	if subscribed != nil {
		timed("echo", "", subscribed)
		return
	}
	late := time.NewTimer(echoWait)
	defer late.Stop()
	select {
	case <-echo:
		timed("echo", "", nil)
	case <-late.C:
		timed("echo", "", errors.New("it did not come back: may the gateway subscribe to "+topic+"?"))
	case <-s.Context().Done():
		timed("echo", "", context.Cause(s.Context()))
	case <-ctx.Done():
		timed("echo", "", context.Cause(ctx))
	}
}

// examineAs tries whether the broker lets in the client id of the gateway alone, as the policies of some platforms have it. What the broker
// keeps for the gateway stays with the broker: nothing of it is acknowledged.
func examineAs(ctx context.Context, o Options, address Address, timed func(name, note string, err error)) bool {
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return false
	}
	o.Receive = func(context.Context, msg.Publication) error { return errors.New("this is for the gateway") }
	s, err := Start(ctx, conn, o)
	if err != nil {
		return false
	}
	s.Close()
	timed("log-in", "client id "+o.ClientID+"; the broker takes no other, so nothing was published, and a gateway that runs has had to log in again", nil)
	return true
}
