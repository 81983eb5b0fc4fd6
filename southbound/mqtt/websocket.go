package mqtt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/coder/websocket"
)

// webPath is where a listener with transport = "websocket" is found.
const webPath = "/mqtt"

// requestLimit is how large the request of a WebSocket handshake may be.
const requestLimit = 16 << 10

// web is a connection whose MQTT packets travel in binary WebSocket messages (MQTT 5 section 6).
type web struct {
	net.Conn
	ws *websocket.Conn
}

// Close does without the closing handshake of WebSocket, which would wait for the peer: MQTT has said all there is to say.
func (w *web) Close() error { return w.ws.CloseNow() }

// upgrade turns a connection into a WebSocket. The deadline of nc bounds the handshake.
func upgrade(ctx context.Context, nc net.Conn) (*web, error) {
	r, err := http.ReadRequest(bufio.NewReaderSize(io.LimitReader(nc, requestLimit), 1024))
	if err != nil {
		return nil, fmt.Errorf("WebSocket: %w", err)
	}
	a := &answer{nc: nc, header: http.Header{}}
	if r.URL.Path != webPath {
		http.NotFound(a, r)
		return nil, errors.New("WebSocket: there is nothing at the path that was asked for")
	}
	ws, err := websocket.Accept(a, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, fmt.Errorf("WebSocket: %w", err)
	}
	if ws.Subprotocol() != "mqtt" {
		return nil, errors.Join(errors.New("WebSocket: the client does not ask for the subprotocol mqtt"), ws.Close(websocket.StatusPolicyViolation, "subprotocol mqtt"))
	}
	return &web{websocket.NetConn(ctx, ws, websocket.MessageBinary), ws}, nil
}

// answer is the http.ResponseWriter of one handshake.
type answer struct {
	nc      net.Conn
	header  http.Header
	written bool
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.written {
		return
	}
	a.written = true
	if status != http.StatusSwitchingProtocols {
		a.header.Set("Connection", "close")
	}
	fmt.Fprintf(a.nc, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	_ = a.header.Write(a.nc)
	_, _ = io.WriteString(a.nc, "\r\n")
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.nc.Write(b)
}

// Hijack implements http.Hijacker. A client does not speak before the handshake is answered, so nothing has been read ahead.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return a.nc, bufio.NewReadWriter(bufio.NewReaderSize(a.nc, 512), bufio.NewWriterSize(a.nc, 512)), nil
}
