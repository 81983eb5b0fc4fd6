package broker

import (
	"net"
	"net/http"

	"github.com/coder/websocket"
)

// ServeHTTP serves a client over WebSocket (MQTT 5 section 6). Options.Web may refuse it first.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.opts.Web != nil {
		if status := b.opts.Web(r); status != 0 {
			http.Error(w, http.StatusText(status), status)
			return
		}
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		b.opts.Log.Debug("websocket", "error", err)
		return
	}
	b.serveConn(r.Context(), webConn{websocket.NetConn(r.Context(), ws, websocket.MessageBinary), ws}, r)
}

// webConn closes without waiting for the peer.
type webConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c webConn) Close() error { return c.ws.CloseNow() }
