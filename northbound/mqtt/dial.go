package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
)

// Address is where a broker is reached. Its scheme is "mqtts" or "wss"; "mqtt" and "ws" are only dialled where they lead to this machine.
type Address struct {
	URL    *url.URL
	TLS    *tls.Config // ServerName is set where it is empty; nil for "mqtt" and "ws"
	Header http.Header // of the WebSocket handshake

	// Net reaches the machine, as northbound.Env's Dial; nil: the net package's own.
	Net func(ctx context.Context, network, address string) (net.Conn, error)
}

var ports = map[string]string{"mqtts": "8883", "mqtt": "1883", "wss": "443", "ws": "80"}

// HostPort gives the address with the scheme's own port where the URL has none.
func (a Address) HostPort() string {
	port := a.URL.Port()
	if port == "" {
		port = ports[a.URL.Scheme]
	}
	return net.JoinHostPort(a.URL.Hostname(), port)
}

func (a Address) secure() bool { return a.URL.Scheme == "mqtts" || a.URL.Scheme == "wss" }

// Dial reaches the broker up to where MQTT begins. Each step is told to step, which may be nil.
func (a Address) Dial(ctx context.Context, step func(northbound.Step)) (net.Conn, error) {
	conn, err := a.dialTCP(ctx, step)
	if err != nil {
		return nil, err
	}
	if a.secure() {
		if conn, err = a.handshake(ctx, conn, step); err != nil {
			return nil, err
		}
	} else if !loopback(conn.RemoteAddr()) {
		conn.Close()
		return nil, fmt.Errorf("%s: %s:// is only for this machine itself, and %s is another", a.HostPort(), a.URL.Scheme, conn.RemoteAddr())
	}
	if strings.HasPrefix(a.URL.Scheme, "ws") {
		return a.upgrade(ctx, conn)
	}
	return conn, nil
}

func (a Address) dialTCP(ctx context.Context, step func(northbound.Step)) (net.Conn, error) {
	timed := stopwatch(step)
	if step != nil {
		found, err := net.DefaultResolver.LookupHost(ctx, a.URL.Hostname())
		err = explain(err, a.HostPort())
		timed("name", strings.Join(found, ", "), err)
		if err != nil {
			return nil, err
		}
	}
	reach := a.Net
	if reach == nil {
		reach = (&net.Dialer{}).DialContext
	}
	conn, err := reach(ctx, "tcp", a.HostPort())
	if err = explain(err, a.HostPort()); err != nil {
		timed("tcp", "", err)
		return nil, err
	}
	timed("tcp", conn.RemoteAddr().String(), nil)
	return conn, nil
}

func (a Address) handshake(ctx context.Context, raw net.Conn, step func(northbound.Step)) (net.Conn, error) {
	timed := stopwatch(step)
	c := a.TLS.Clone()
	if c.ServerName == "" {
		c.ServerName = a.URL.Hostname()
	}
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		err = explain(err, a.HostPort())
		timed("tls", "", err)
		return nil, err
	}
	state := conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	timed("tls", fmt.Sprintf("%s, %s, certificate of %q until %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite),
		leaf.Subject, leaf.NotAfter.UTC().Format(time.DateOnly)), nil)
	return conn, nil
}

// upgrade speaks the WebSocket handshake over conn (MQTT 5 section 6).
func (a Address) upgrade(ctx context.Context, conn net.Conn) (net.Conn, error) {
	given := false
	dial := func(context.Context, string, string) (net.Conn, error) {
		if given {
			return nil, errors.New("redirected")
		}
		given = true
		return conn, nil
	}
	transport := &http.Transport{DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true}
	ws, answer, err := websocket.Dial(ctx, a.URL.String(), &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		HTTPHeader:   a.Header,
		Subprotocols: []string{"mqtt"},
	})
	if err != nil {
		conn.Close()
		if answer != nil && answer.StatusCode != http.StatusSwitchingProtocols {
			return nil, fmt.Errorf("%s: WebSocket refused: %w", a.HostPort(), &health.Answer{Status: answer.StatusCode})
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL may carry a signature
		}
		return nil, explain(err, a.HostPort())
	}
	if ws.Subprotocol() != "mqtt" {
		ws.CloseNow()
		return nil, fmt.Errorf("%s: the server speaks WebSocket, but not MQTT over it", a.HostPort())
	}
	return webConn{websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary), ws}, nil
}

// webConn closes without the closing handshake, for which the library would wait: MQTT's DISCONNECT has said it already.
type webConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c webConn) Close() error { return c.ws.CloseNow() }

func loopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// stopwatch tells each step with the time since the one before.
func stopwatch(step func(northbound.Step)) func(name, note string, err error) {
	began := time.Now()
	return func(name, note string, err error) {
		if step == nil {
			return
		}
		now := time.Now()
		step(northbound.Step{Name: name, Took: now.Sub(began), Note: note, Err: err})
		began = now
	}
}
