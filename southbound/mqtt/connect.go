package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// connectLimit is how large a CONNECT may be: nothing larger is allocated before log-in. A token fits.
const connectLimit = 32 << 10

// open reads CONNECT, finds out who it is, and gives the connection that is ready to serve, with what has been read beyond
// CONNECT. The deadline of nc is already set.
func (l *listener) open(ctx context.Context, nc net.Conn, chain []*x509.Certificate) (*conn, []byte, error) {
	c := &conn{l: l, nc: nc, remote: nc.RemoteAddr().String(), stopped: make(chan struct{})}
	_, isWeb := nc.(*web)
	c.cools = !isWeb
	c.leftQoS0 = c.in.left
	c.in.room = make(chan struct{}, 1)
	c.out.init(nc, &l.chunks, c.drained)
	buf, body, err := l.first(nc)
	if err != nil {
		return nil, nil, err
	}
	var p packet.ConnectPacket
	if err := packet.DecodeConnect(body, &p); err != nil {
		if bad, ok := errors.AsType[*packet.Error](err); ok && (bad.Code == packet.UnsupportedVersion || p.Version == packet.V5) {
			c.version = p.Version
			l.turnAway(c, bad.Code)
		}
		return nil, nil, err
	}
	c.version = p.Version
	want, hello, code := l.admit(ctx, c, &p, chain)
	if code != packet.Success {
		l.turnAway(c, code)
		return nil, nil, &packet.Error{Code: code, Why: "CONNECT refused"}
	}
	if code := l.broker.attach(c, want, func(present bool) {
		c.out.append(func(b []byte) []byte { return packet.AppendConnack(b, c.version, present, packet.Success, hello) })
	}); code != packet.Success {
		l.turnAway(c, code)
		return nil, nil, &packet.Error{Code: code, Why: "no session for this client id"}
	}
	return c, buf, nil
}

// first reads until the first packet, which must be CONNECT, is there. It gives its body and what came after it.
func (l *listener) first(nc net.Conn) (rest, body []byte, err error) {
	buf := l.chunks.get()
	for {
		h, head, total, err := packet.Scan(buf, connectLimit)
		if err != nil {
			return nil, nil, err
		}
		if len(buf) > 0 && h.Type != packet.Connect {
			return nil, nil, &packet.Error{Code: packet.ProtocolError, Why: "first packet is not CONNECT"}
		}
		if total > 0 && len(buf) >= total {
			body = slices.Clone(buf[head:total])
			rest = slices.Clone(buf[total:])
			l.chunks.put(buf)
			return rest, body, nil
		}
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := nc.Read(buf[len(buf):cap(buf)])
		if n == 0 && err != nil {
			return nil, nil, err
		}
		buf = buf[:len(buf)+n]
	}
}

// turnAway answers a CONNECT with no and lets the client read that.
func (l *listener) turnAway(c *conn, code packet.Code) {
	var b []byte
	if c.version == packet.V5 || c.version > packet.V5 {
		b = packet.AppendConnack(nil, packet.V5, false, code, &packet.Properties{})
	} else {
		b = packet.AppendConnack(nil, packet.V311, false, connackOf311(code), nil)
	}
	c.out.finish(b)
	linger(c.nc)
}

// connackOf311 gives the return code of MQTT 3.1.1 table 3.1.
func connackOf311(code packet.Code) packet.Code {
	switch code {
	case packet.UnsupportedVersion:
		return 1
	case packet.ClientIDNotValid:
		return 2
	case packet.ServerUnavailable, packet.ServerBusy, packet.QuotaExceeded:
		return 3
	case packet.BadUserOrPassword:
		return 4
	}
	return 5
}

// admit decides on a CONNECT: what the client gets (or the code of a refusal), and what CONNACK tells it.
func (l *listener) admit(ctx context.Context, c *conn, p *packet.ConnectPacket, chain []*x509.Certificate) (*claim, *packet.Properties, packet.Code) {
	hello := &packet.Properties{}
	clientID := string(p.ClientID)
	switch {
	case len(clientID) > 1024:
		return nil, nil, packet.ClientIDNotValid
	case clientID == "" && p.Version != packet.V5 && !p.Clean:
		return nil, nil, packet.ClientIDNotValid
	case clientID == "":
		id := msg.NewID(l.env.Now())
		clientID = "auto-" + id.String()
		hello.AssignedClientID = []byte(clientID)
		hello.Has.Add(packet.AssignedClientID)
	}
	id, code := l.logIn(ctx, c, p, clientID, chain, hello)
	if code != packet.Success {
		return nil, nil, code
	}
	c.ident.Store(&id)
	want := &claim{key: id.Device + "\x00" + clientID, clientID: clientID, device: id.Device, clean: p.Clean}
	if l.cfg.ClientID == "free" {
		want.key = clientID
	}
	if p.Will != nil {
		topic := string(p.Will.Topic)
		want.will = &will{
			message: newMessage(topic, p.Will.Payload, p.Will.QoS, p.Will.Retain, &p.Will.Props, l.now()),
			delay:   p.Will.Props.WillDelay, groups: id.Groups,
			publish: topic[0] != '$' && l.env.Policy.Allowed(&id, auth.Publish, topic),
			report:  l.env.Policy.Allowed(&id, auth.Report, "/"+topic),
		}
		if !want.will.publish && !want.will.report {
			return nil, nil, packet.NotAuthorized
		}
	}
	l.terms(c, p, want, hello)
	return want, hello, packet.Success
}

// terms settles the limits of both sides.
func (l *listener) terms(c *conn, p *packet.ConnectPacket, want *claim, hello *packet.Properties) {
	c.keepAlive = time.Duration(p.KeepAlive) * time.Second
	c.peerReceive, c.peerPacket = l.cfg.ReceiveMaximum, 1<<28
	c.lastSeen.Store(time.Now().Unix())
	if p.Version != packet.V5 {
		if !p.Clean {
			want.expiry = l.expiry(neverExpires)
		}
		return
	}
	in := &p.Props
	want.expiry = l.expiry(in.SessionExpiry)
	if want.expiry != in.SessionExpiry {
		hello.SessionExpiry = want.expiry
		hello.Has.Add(packet.SessionExpiry)
	}
	if longest := time.Duration(l.cfg.MaxKeepAlive); c.keepAlive == 0 || c.keepAlive > longest {
		c.keepAlive = min(longest, 65535*time.Second)
		hello.ServerKeepAlive = uint16(c.keepAlive / time.Second)
		hello.Has.Add(packet.ServerKeepAlive)
	}
	if in.Has.Is(packet.ReceiveMaximum) {
		c.peerReceive = min(c.peerReceive, int(in.ReceiveMaximum))
	}
	if in.Has.Is(packet.MaximumPacketSize) {
		c.peerPacket = int(min(in.MaximumPacketSize, 1<<28)) // an int may have 32 bits
	}
	c.peerAliases = int(in.TopicAliasMaximum)
	c.problemInfo = !in.Has.Is(packet.RequestProblemInfo) || in.RequestProblemInfo == 1
	hello.ReceiveMaximum = uint16(l.cfg.ReceiveMaximum)
	hello.MaximumPacketSize = uint32(l.cfg.MaxPacket)
	hello.TopicAliasMaximum = aliasMaximum
	hello.Has.Add(packet.ReceiveMaximum)
	hello.Has.Add(packet.MaximumPacketSize)
	hello.Has.Add(packet.TopicAliasMaximum)
}

// expiry cuts a session expiry to what the listener allows.
func (l *listener) expiry(asked uint32) uint32 {
	return uint32(min(int64(asked), int64(time.Duration(l.cfg.MaxSessionExpiry)/time.Second)))
}

// logIn asks who the client is.
func (l *listener) logIn(ctx context.Context, c *conn, p *packet.ConnectPacket, clientID string, chain []*x509.Certificate, hello *packet.Properties) (auth.Identity, packet.Code) {
	cred := auth.Credentials{
		Listener: l.env.Name, User: string(p.User), Password: p.Password, ClientID: clientID, Remote: remote(c.nc), Chain: chain,
	}
	methods := l.cfg.Auth
	if p.Props.Has.Is(packet.AuthMethod) {
		c.authMethod = string(p.Props.AuthMethod)
		token, ok := bearer(c.authMethod, p.Props.AuthData)
		if !ok || !slices.Contains(methods, "jwt") {
			return auth.Identity{}, packet.BadAuthMethod
		}
		cred.Password, methods = token, []string{"jwt"}
		hello.AuthMethod = p.Props.AuthMethod
		hello.Has.Add(packet.AuthMethod)
	}
	id, err := l.env.Auth.Login(ctx, methods, cred)
	switch {
	case err == nil && (id.Expires.IsZero() || l.env.Now().Before(id.Expires)):
		return id, packet.Success
	case err == nil, errors.Is(err, auth.ErrUnknown):
		l.count.loginsRefused.Add(1)
		if p.HasUser || p.HasPassword || c.authMethod != "" {
			return id, packet.BadUserOrPassword
		}
		return id, packet.NotAuthorized
	}
	l.count.loginsFailed.Add(1)
	l.trouble.note("log-in", err)
	return id, packet.ServerUnavailable
}

func remote(nc net.Conn) netip.AddrPort {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	a, _ := netip.ParseAddrPort(nc.RemoteAddr().String())
	return a
}

// bearer takes the token out of the authentication data of a method of enhanced authentication: "JWT", the token as it is, or
// "OAUTHBEARER" (RFC 7628 section 3.1).
func bearer(method string, data []byte) (token []byte, ok bool) {
	switch method {
	case "JWT":
		return data, len(data) > 0
	case "OAUTHBEARER":
		for field := range strings.SplitSeq(string(data), "\x01") {
			if t, found := strings.CutPrefix(field, "auth=Bearer "); found {
				return []byte(t), t != ""
			}
		}
	}
	return nil, false
}

// reauthenticate takes an AUTH: the client brings a new token before the old one expires (MQTT 5 section 4.12.1).
func (c *conn) reauthenticate(body []byte) error {
	if c.version != packet.V5 {
		return &packet.Error{Code: packet.ProtocolError, Why: "AUTH in MQTT 3.1.1"}
	}
	p, err := packet.DecodeAuth(body)
	if err != nil {
		return err
	}
	if c.authMethod == "" || p.Code != packet.ReAuthenticate || string(p.Props.AuthMethod) != c.authMethod {
		return &packet.Error{Code: packet.ProtocolError, Why: "AUTH that was not agreed on at CONNECT"}
	}
	token, ok := bearer(c.authMethod, p.Props.AuthData)
	if !ok {
		return &packet.Error{Code: packet.NotAuthorized, Why: "AUTH without a token"}
	}
	ctx, cancel := context.WithTimeout(c.l.ctx, time.Duration(c.l.cfg.ConnectTimeout))
	defer cancel()
	old := c.ident.Load()
	id, err := c.l.env.Auth.Login(ctx, []string{"jwt"}, auth.Credentials{
		Listener: c.l.env.Name, User: old.Device, Password: token, ClientID: c.session.clientID, Remote: remote(c.nc),
	})
	if err != nil || id.Device != old.Device {
		c.l.count.loginsRefused.Add(1)
		return &packet.Error{Code: packet.NotAuthorized, Why: "the new token does not prove the same device"}
	}
	c.ident.Store(&id)
	c.topic = known{topic: c.topic.topic, resource: c.topic.resource}
	c.deadlineSet = time.Time{}
	hello := &packet.Properties{AuthMethod: []byte(c.authMethod)}
	hello.Has.Add(packet.AuthMethod)
	c.out.append(func(b []byte) []byte { return packet.AppendAuth(b, packet.Success, hello) })
	return nil
}

// drained is called when a write has made room.
func (c *conn) drained() {
	s := c.session
	if s == nil {
		return
	}
	s.mu.Lock()
	if s.conn == c {
		s.pump()
	}
	s.mu.Unlock()
}

// handshake runs TLS and gives the client's verified chain, nil where it showed none.
func handshake(ctx context.Context, nc *tls.Conn) ([]*x509.Certificate, error) {
	if err := hwcrypto.Patiently(ctx, nc.HandshakeContext); err != nil {
		return nil, err
	}
	if chains := nc.ConnectionState().VerifiedChains; len(chains) > 0 {
		return chains[0], nil
	}
	return nil, nil
}
