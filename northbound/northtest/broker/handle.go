package broker

import (
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// codes3 are the return codes of MQTT 3.1.1 for the reason codes of MQTT 5.
var codes3 = map[byte]byte{0x84: 1, 0x85: 2, 0x88: 3, 0x89: 3, 0x86: 4, 0x87: 5}

// connect answers CONNECT.
func (c *client) connect(pk *packets.Packet) error {
	p := pk.Connect
	c.login.Version = pk.ProtocolVersion
	if pk.ProtocolVersion != 4 && pk.ProtocolVersion != 5 {
		c.login.Version = 4
		return c.deny(0x84, "only MQTT 3.1.1 and 5")
	}
	if code := pk.ConnectValidate(); code.Code >= 0x80 && !(p.PasswordFlag && len(p.Password) == 0) && !(p.WillFlag && len(p.WillPayload) == 0) {
		return c.deny(code.Code, code.Reason)
	}
	c.login.ClientID, c.login.Username, c.login.Password = p.ClientIdentifier, string(p.Username), p.Password
	c.login.Clean, c.login.KeepAlive = p.Clean, p.Keepalive
	c.login.Method, c.login.Data = pk.Properties.AuthenticationMethod, pk.Properties.AuthenticationData
	var answer Answer
	if c.b.opts.Admit != nil {
		answer = c.b.opts.Admit(&c.login)
	}
	if answer.Drop {
		return fmt.Errorf("log-in of %q dropped", c.login.ClientID)
	}
	if answer.Challenge != nil {
		if err := c.challenge(answer.Challenge); err != nil {
			return err
		}
	}
	if answer.Code >= 0x80 {
		return c.deny(answer.Code, answer.Why)
	}
	c.limits = answer.Limits
	if c.login.ClientID == "" {
		if c.login.Version == 4 && !c.login.Clean {
			return c.deny(0x85, "a persistent session needs a client id")
		}
		if c.limits.AssignedClientID == "" {
			c.limits.AssignedClientID = fmt.Sprintf("assigned-%s", strings.ReplaceAll(c.conn.RemoteAddr().String(), ":", "-"))
		}
		c.login.ClientID = c.limits.AssignedClientID
	}
	if p.WillFlag {
		c.will = &Message{
			Topic: p.WillTopic, Payload: p.WillPayload, QoS: p.WillQos, Retain: p.WillRetain, From: c.login.ClientID,
			Type: p.WillProperties.ContentType,
		}
	}
	c.window, c.largest = 65535, int(pk.Properties.MaximumPacketSize)
	if n := pk.Properties.ReceiveMaximum; n > 0 {
		c.window = int(n)
	}
	expiry := time.Duration(pk.Properties.SessionExpiryInterval) * time.Second
	if c.login.Version == 4 && !c.login.Clean {
		expiry = 24 * time.Hour
	}
	c.b.enter(c, expiry)
	return nil
}

// enter joins the client with its session, and tells it.
func (b *Broker) enter(c *client, expiry time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.sessions[c.login.ClientID]
	if old != nil && old.client != nil { // MQTT 5 section 3.1.4: the new one wins
		if old.client.login.Version == 5 {
			bye := old.client.packet(packets.Disconnect)
			bye.ReasonCode = 0x8E
			old.client.send(bye)
		}
		old.client.end()
		old.client = nil
		old.until = time.Now().Add(old.expiry)
		if old.expiry == 0 {
			old = nil
		}
	}
	present := old != nil && !c.login.Clean && !old.over(time.Now())
	if !present {
		old = &session{id: c.login.ClientID, filters: map[string]subscription{}, received: map[uint16]bool{}}
	}
	s := old
	s.client, s.expiry = c, expiry
	b.sessions[s.id] = s
	c.session = s
	ack := c.packet(packets.Connack)
	ack.SessionPresent = present
	l, props := c.limits, &ack.Properties
	props.ReceiveMaximum, props.MaximumPacketSize = l.ReceiveMaximum, l.MaximumPacketSize
	props.AssignedClientID, props.TopicAliasMaximum = l.AssignedClientID, l.TopicAliasMaximum
	props.ServerKeepAlive, props.ServerKeepAliveFlag = l.ServerKeepAlive, l.ServerKeepAlive > 0
	props.RetainAvailableFlag, props.WildcardSubAvailableFlag = l.NoRetain, l.NoWildcards
	props.SharedSubAvailableFlag, props.SubIDAvailableFlag = true, true // neither is available
	props.AuthenticationMethod = c.login.Method
	if l.MaximumQoS != nil {
		props.MaximumQosFlag, props.MaximumQos = true, *l.MaximumQoS
	}
	c.send(ack)
	s.resume()
	b.opts.Log.Debug("client connected", "client", s.id, "remote", c.conn.RemoteAddr().String(), "version", c.login.Version)
}

// deny answers CONNECT with no.
func (c *client) deny(code byte, why string) error {
	p := c.packet(packets.Connack)
	p.ReasonCode, p.Properties.ReasonString = code, why
	if c.login.Version == 4 {
		p.ReasonCode = 5
		if n, ok := codes3[code]; ok {
			p.ReasonCode = n
		}
	}
	c.send(p)
	return fmt.Errorf("log-in of %q denied with 0x%02X %s", c.login.ClientID, code, why)
}

// challenge asks for more authentication data until Options.Auth is satisfied.
func (c *client) challenge(data []byte) error {
	for {
		p := c.packet(packets.Auth)
		p.ReasonCode, p.Properties.AuthenticationMethod, p.Properties.AuthenticationData = 0x18, c.login.Method, data
		c.send(p)
		pk, err := c.read(loginPacket)
		if err != nil {
			return err
		}
		if pk.FixedHeader.Type != packets.Auth {
			return &refuse{0x82, "expected AUTH"}
		}
		code, next := c.b.opts.Auth(c.login.ClientID, pk.Properties.AuthenticationMethod, pk.Properties.AuthenticationData)
		switch {
		case code >= 0x80:
			return c.deny(code, "")
		case code == 0:
			return nil
		}
		data = next
	}
}

// handle acts on one packet of a client that has logged in.
func (c *client) handle(pk *packets.Packet) error {
	s, b := c.session, c.b
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return c.published(pk)
	case packets.Pubrel:
		b.mu.Lock()
		known := s.received[pk.PacketID]
		delete(s.received, pk.PacketID)
		b.mu.Unlock()
		p := c.packet(packets.Pubcomp)
		p.PacketID = pk.PacketID
		if !known {
			p.ReasonCode = 0x92
		}
		c.send(p)
	case packets.Puback, packets.Pubcomp:
		b.mu.Lock()
		defer b.mu.Unlock()
		s.settle(pk.PacketID)
	case packets.Pubrec:
		b.mu.Lock()
		defer b.mu.Unlock()
		i := s.find(pk.PacketID)
		if pk.ReasonCode >= 0x80 {
			s.settle(pk.PacketID)
			break
		}
		if i >= 0 {
			s.inflight[i].released = true
		}
		c.send(c.pubrel(pk.PacketID))
	case packets.Subscribe:
		return c.subscribe(pk)
	case packets.Unsubscribe:
		p := c.packet(packets.Unsuback)
		p.PacketID = pk.PacketID
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, f := range pk.Filters {
			code := byte(0x11)
			if _, ok := s.filters[f.Filter]; ok {
				delete(s.filters, f.Filter)
				code = 0
			}
			p.ReasonCodes = append(p.ReasonCodes, code)
		}
		c.send(p)
	case packets.Pingreq:
		c.send(c.packet(packets.Pingresp))
	case packets.Auth:
		return c.reauthenticate(pk)
	case packets.Disconnect:
		b.mu.Lock()
		defer b.mu.Unlock()
		if pk.Properties.SessionExpiryIntervalFlag {
			s.expiry = time.Duration(pk.Properties.SessionExpiryInterval) * time.Second
		}
		if pk.ReasonCode != 0x04 { // disconnect with will message
			c.will = nil
		}
		return errGoodbye
	default:
		return &refuse{0x82, "a second CONNECT"}
	}
	return nil
}

func (c *client) reauthenticate(pk *packets.Packet) error {
	if c.login.Method == "" || pk.Properties.AuthenticationMethod != c.login.Method || c.b.opts.Auth == nil {
		return &refuse{0x82, "another authentication method"}
	}
	code, data := c.b.opts.Auth(c.login.ClientID, c.login.Method, pk.Properties.AuthenticationData)
	if code >= 0x80 {
		return &refuse{code, "re-authentication failed"}
	}
	p := c.packet(packets.Auth)
	p.ReasonCode, p.Properties.AuthenticationMethod, p.Properties.AuthenticationData = code, c.login.Method, data
	c.send(p)
	return nil
}

func (c *client) subscribe(pk *packets.Packet) error {
	if len(pk.Filters) == 0 {
		return &refuse{0x82, "SUBSCRIBE without filter"}
	}
	p := c.packet(packets.Suback)
	p.PacketID = pk.PacketID
	for _, f := range pk.Filters {
		code := f.Qos
		switch {
		case f.Filter == "" || strings.HasPrefix(f.Filter, "$share/"):
			code = 0x8F
		case c.limits.NoWildcards && strings.ContainsAny(f.Filter, "+#"):
			code = 0xA2
		case c.b.opts.Subscribed != nil:
			code = c.b.opts.Subscribed(c.login.ClientID, f.Filter, f.Qos)
		}
		if c.login.Version == 4 && code >= 0x80 {
			code = 0x80
		}
		p.ReasonCodes = append(p.ReasonCodes, code)
	}
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	c.send(p)
	for i, f := range pk.Filters {
		if p.ReasonCodes[i] >= 0x80 {
			continue
		}
		_, known := c.session.filters[f.Filter]
		c.session.filters[f.Filter] = subscription{p.ReasonCodes[i], f.NoLocal}
		if f.RetainHandling == 2 || f.RetainHandling == 1 && known {
			continue
		}
		for _, m := range b.retained {
			if Match(f.Filter, m.Topic) {
				m.QoS = min(m.QoS, p.ReasonCodes[i])
				c.session.enqueue(m)
			}
		}
	}
	return nil
}

// published acts on PUBLISH.
func (c *client) published(pk *packets.Packet) error {
	if a := pk.Properties.TopicAlias; a > 0 {
		if a > c.limits.TopicAliasMaximum {
			return &refuse{0x94, ""}
		}
		if pk.TopicName == "" {
			pk.TopicName = c.aliases[a]
		} else {
			c.aliases[a] = pk.TopicName
		}
	}
	h := pk.FixedHeader
	switch {
	case pk.TopicName == "":
		return &refuse{0x82, "PUBLISH without topic"}
	case strings.ContainsAny(pk.TopicName, "+#"):
		return &refuse{0x90, ""}
	case c.limits.MaximumQoS != nil && h.Qos > *c.limits.MaximumQoS:
		return &refuse{0x9B, ""}
	case c.limits.NoRetain && h.Retain:
		return &refuse{0x9A, ""}
	case h.Qos > 0 && c.limits.ReceiveMaximum > 0 && c.pending() >= int(c.limits.ReceiveMaximum):
		return &refuse{0x93, ""}
	}
	m := Message{
		Topic: pk.TopicName, Payload: pk.Payload, QoS: h.Qos, Retain: h.Retain, Dup: h.Dup, From: c.login.ClientID,
		Type: pk.Properties.ContentType, Expiry: pk.Properties.MessageExpiryInterval,
		ResponseTopic: pk.Properties.ResponseTopic, Correlation: pk.Properties.CorrelationData,
	}
	for _, u := range pk.Properties.User {
		if m.User == nil {
			m.User = map[string]string{}
		}
		m.User[u.Key] = u.Val
	}
	var v Verdict
	if c.b.opts.Published != nil {
		v = c.b.opts.Published(c.login.ClientID, m)
	}
	switch {
	case v.Drop:
		return fmt.Errorf("dropped at a publication on %q", m.Topic)
	case v.Kick != 0:
		return &refuse{v.Kick, v.Why}
	case v.Code >= 0x80 && c.login.Version == 4:
		return fmt.Errorf("refused a publication on %q with 0x%02X", m.Topic, v.Code)
	}
	b := c.b
	b.mu.Lock()
	again := h.Qos == 2 && c.session.received[pk.PacketID]
	if h.Qos == 2 && v.Code < 0x80 {
		c.session.received[pk.PacketID] = true
	}
	if !again && v.Code < 0x80 {
		b.pass(m)
	}
	b.mu.Unlock()
	if h.Qos > 0 && !v.Lose {
		c.confirm(pk.PacketID, h.Qos, v)
	}
	return nil
}

// pending counts publications of the client that are not confirmed.
func (c *client) pending() int {
	c.b.mu.Lock()
	n := len(c.session.received)
	c.b.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.unacked {
		if a.packet.FixedHeader.Type == packets.Puback {
			n++
		}
	}
	return n
}

// confirm acknowledges a publication when its time has come and those before it have been acknowledged.
func (c *client) confirm(id uint16, qos byte, v Verdict) {
	kind := byte(packets.Puback)
	if qos == 2 {
		kind = packets.Pubrec
	}
	p := c.packet(kind)
	p.PacketID, p.ReasonCode, p.Properties.ReasonString = id, v.Code, v.Why
	if v.Delay == 0 && !v.Mute {
		c.mu.Lock()
		first := len(c.unacked) == 0
		if !first {
			c.unacked = append(c.unacked, &ack{*p, true})
		}
		c.mu.Unlock()
		if first {
			c.send(p)
		}
		return
	}
	a := &ack{packet: *p}
	c.mu.Lock()
	c.unacked = append(c.unacked, a)
	c.mu.Unlock()
	if v.Mute {
		return
	}
	time.AfterFunc(v.Delay, func() {
		c.mu.Lock()
		a.ready = true
		var due []*ack
		for len(c.unacked) > 0 && c.unacked[0].ready {
			due = append(due, c.unacked[0])
			c.unacked = c.unacked[1:]
		}
		c.mu.Unlock()
		for _, a := range due {
			c.send(&a.packet)
		}
	})
}
