package coap

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// goCoAP is a device on go-coap's client, over pion's DTLS or over TLS.
type goCoAP struct {
	conn   mux.Conn
	router *mux.Router
}

func dialGoCoAP(ctx context.Context, _ *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
	return dialPSK(ctx, addr, device, secret, piondtls.WithConnectionIDGenerator(piondtls.OnlySendCIDGenerator()))
}

func dialWithoutCID(ctx context.Context, _ *southtest.Site, addr net.Addr, device string, secret []byte) (southtest.Device, error) {
	return dialPSK(ctx, addr, device, secret)
}

func dialPSK(ctx context.Context, addr net.Addr, device string, secret []byte, opts ...piondtls.ClientOption) (southtest.Device, error) {
	d := &goCoAP{router: mux.NewRouter()}
	return d, d.dial(ctx, addr, device, secret, opts...)
}

func (d *goCoAP) dial(ctx context.Context, addr net.Addr, device string, secret []byte, opts ...piondtls.ClientOption) error {
	udp, err := net.DialUDP("udp", nil, addr.(*net.UDPAddr))
	if err != nil {
		return err
	}
	opts = append([]piondtls.ClientOption{piondtls.WithPSK(func([]byte) ([]byte, error) { return secret, nil }), piondtls.WithPSKIdentityHint([]byte(device)),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_GCM_SHA256)}, opts...)
	conn, err := piondtls.ClientWithOptions(connected{udp}, addr, opts...)
	if err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		udp.Close()
		return err
	}
	d.conn = coapdtls.Client(conn, options.WithMux(d.router), options.WithCloseSocket())
	return nil
}

// connected makes a connected socket a packet connection.
type connected struct{ *net.UDPConn }

func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

func (d *goCoAP) Report(ctx context.Context, resource, mediaType string, payload []byte) (string, error) {
	req, err := d.conn.NewPostRequest(ctx, resource, message.TextPlain, bytes.NewReader(payload))
	if err != nil {
		return "", err
	}
	req.Remove(message.ContentFormat)
	if n, ok := contentFormat(mediaType); ok && mediaType != "" {
		req.SetContentFormat(message.MediaType(n))
	}
	resp, err := d.conn.Do(req)
	if err != nil {
		return "", err
	}
	return codeText(resp.Code()), nil
}

func (d *goCoAP) Expose(_ context.Context, resource string, answer func([]byte) []byte) error {
	return d.router.Handle(resource, answering(answer))
}

// answering answers commands.
func answering(answer func([]byte) []byte) mux.Handler {
	return mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		body, err := r.ReadBody()
		if err != nil {
			return
		}
		var reply io.ReadSeeker
		if b := answer(body); b != nil {
			reply = bytes.NewReader(b)
		}
		w.SetResponse(codes.Changed, message.TextPlain, reply)
	})
}

func (d *goCoAP) Close() error {
	err := d.conn.Close()
	select {
	case <-d.conn.Done():
	case <-time.After(5 * time.Second):
		return errors.New("client does not end")
	}
	return err
}

func driver() southtest.Driver {
	return southtest.Driver{
		Kind: Kind,
		Configure: func(s *southtest.Site, cfg any, listen string) {
			c := cfg.(*Config)
			c.Listen, c.Key, c.DeviceCA = listen, "identity", config.Path(s.CAFile)
		},
		Dial:   dialGoCoAP,
		Method: "POST",
		Codes: map[msg.Reason]string{
			0: "2.04", msg.Denied: "4.03", msg.NoRoute: "4.04", msg.Full: "5.03", msg.BadPayload: "4.00", msg.TooLarge: "4.13",
			msg.Unavailable: "5.03", msg.Unconfirmed: "5.04", msg.Unprocessable: "4.00",
		},
		Noise:           noise,
		NotReadyRefused: true,
	}
}

func noise(_ context.Context, t *testing.T, _ *southtest.Site, addr net.Addr) {
	c, err := net.DialUDP("udp", nil, addr.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 1000 {
		b := make([]byte, i%200)
		rand.Read(b)
		if i%2 == 0 && len(b) > 13 { // the header of a record
			copy(b, []byte{20 + b[0]%6, 0xfe, 0xfd, 0, b[4] & 1})
			b[11], b[12] = 0, byte(len(b)-13)
		}
		c.Write(b)
	}
}

func TestListenerKeepsTheContract(t *testing.T) { southtest.Run(t, driver()) }

func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := southtest.Start(t, driver())
	for listen, list := range map[string][]net.IP{
		":0":        {net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2), net.IPv4(127, 9, 9, 9), net.IPv6loopback},
		"0.0.0.0:0": {net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)},
	} {
		if err := b.Stop(); err != nil {
			t.Fatal(err)
		}
		b.Serve(t, listen)
		port := b.Addr.(*net.UDPAddr).Port
		for _, ip := range list {
			// The device's socket hears nobody but the address that it sends to.
			dev, err := dialGoCoAP(ctx, b.Site, &net.UDPAddr{IP: ip, Port: port}, "th-1", b.Secret("th-1"))
			if err != nil {
				t.Fatal(ip, err)
			}
			defer dev.Close()
			if code, err := dev.Report(ctx, "/a", "", nil); err != nil || code != "2.04" {
				t.Errorf("%v: %s, %v", ip, code, err)
			}
			if err := dev.Expose(ctx, "/c", func(b []byte) []byte { return b }); err != nil {
				t.Fatal(err)
			}
			r, err := b.Listener.Deliver(ctx, msg.Message{Device: "th-1", Method: "PUT", Resource: "/c", Payload: []byte("21")})
			if err != nil || string(r.Payload) != "21" {
				t.Errorf("%v: command: %+v, %v", ip, r, err)
			}
		}
	}
}

// observable is a resource of a device that the gateway observes.
type observable struct {
	d *goCoAP

	mu    sync.Mutex
	value string
	token message.Token // guarded by mu: of the observation
	seq   uint32
}

func (o *observable) ServeCOAP(w mux.ResponseWriter, r *mux.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n, err := r.Observe(); err == nil && n == 0 {
		o.token = r.Token()
	}
	o.seq++
	w.SetResponse(codes.Content, message.TextPlain, strings.NewReader(o.value), message.Option{ID: message.Observe, Value: []byte{byte(o.seq)}})
}

// set changes the value and notifies, once more for each second in which nobody has acknowledged it.
func (o *observable) set(ctx context.Context, value string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.value = value
	o.seq++
	m := o.d.conn.AcquireMessage(ctx)
	defer o.d.conn.ReleaseMessage(m)
	m.SetCode(codes.Content)
	m.SetType(message.Confirmable)
	m.SetToken(o.token)
	m.SetObserve(o.seq)
	m.SetContentFormat(message.TextPlain)
	m.SetBody(strings.NewReader(value))
	o.d.conn.WriteMessage(m)
}
