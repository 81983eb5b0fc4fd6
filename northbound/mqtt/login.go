package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Options says how to log in and what the session does.
type Options struct {
	Version       byte // V5 or V311
	ClientID      string
	Username      string
	Password      []byte        // nil: none
	KeepAlive     time.Duration // zero: a minute
	SessionExpiry time.Duration // how long the broker keeps the session while nobody is connected; zero: a clean start each time
	Window        int           // most publications in flight; zero: 4096. The broker's receive maximum lowers it.
	MaxPacket     int           // largest packet to take; zero: 4 MiB
	ReadBuffer    int           // octets; zero: 16 KiB
	AckTimeout    time.Duration // longest wait for a confirmation while any is due; zero: a minute

	// Method and Auth are the enhanced authentication of MQTT 5 section 4.12: Auth gives the authentication data,
	// first for CONNECT or a re-authentication (challenge is nil), then for each challenge.
	Method string
	Auth   func(ctx context.Context, challenge []byte) ([]byte, error)

	MaxQoS  byte // what is sent has at most that; zero: what the broker takes
	NoLocal bool // MQTT 5: what the session publishes does not come back to it

	// Receive takes what the broker sends and returns nil once it is settled. It is called on goroutines of the session,
	// for publications of one lane one after the other. Nil: everything is taken and forgotten.
	Receive func(ctx context.Context, p msg.Publication) error
	// Lane gives what keeps publications in order: those with the same are received one by one. Nil: the topic.
	Lane func(topic string) string

	Now func() time.Time // the trusted clock; never nil

	Sent, Read *atomic.Int64 // count octets of MQTT; may be nil
}

// Server is what the broker said of itself in CONNACK, or what the standard says where it said nothing.
type Server struct {
	ClientID       string // the one that is in use
	SessionPresent bool
	Window         int  // publications in flight: the smaller of the broker's receive maximum and ours
	MaxPacket      int  // octets
	MaxQoS         byte // 1 or 2
	Retain         bool
	Wildcards      bool // in subscriptions
	KeepAlive      time.Duration
	SessionExpiry  time.Duration
}

// Start logs in over conn, which it owns from then on. ctx bounds the log-in, not the session.
func Start(ctx context.Context, conn net.Conn, o Options) (*Session, error) {
	o = o.withDefaults()
	s := &Session{
		opts: o, conn: conn, r: bufio.NewReaderSize(conn, o.ReadBuffer), codec: codecOf(o.Version),
		gone: make(chan struct{}), kick: make(chan struct{}, 1), auths: make(chan *packets.Auth, 1),
	}
	s.room = sync.NewCond(&s.mu)
	base := context.WithoutCancel(ctx)
	s.ctx, s.cancel = context.WithCancelCause(base)
	s.work, s.stop = context.WithCancel(base)

	late := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := s.login(ctx)
	if !late() {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.stop()
		s.cancel(err)
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	s.slots = make([]slot, s.server.Window+1)
	for id := 1; id <= s.server.Window; id++ {
		s.free = append(s.free, uint16(id))
	}
	s.start()
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.KeepAlive == 0 {
		o.KeepAlive = time.Minute
	}
	if o.Window == 0 {
		o.Window = 4096
	}
	if o.MaxPacket == 0 {
		o.MaxPacket = 4 << 20
	}
	if o.ReadBuffer == 0 {
		o.ReadBuffer = 16 << 10
	}
	if o.AckTimeout == 0 {
		o.AckTimeout = ackTimeout
	}
	if o.Sent == nil {
		o.Sent = new(atomic.Int64)
	}
	if o.Read == nil {
		o.Read = new(atomic.Int64)
	}
	if o.Lane == nil {
		o.Lane = func(topic string) string { return topic }
	}
	if o.Receive == nil {
		o.Receive = func(context.Context, msg.Publication) error { return nil }
	}
	return o
}

// login says CONNECT and takes what follows up to CONNACK.
func (s *Session) login(ctx context.Context) error {
	o := s.opts
	c := &packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: o.Version, ClientID: o.ClientID,
		KeepAlive:    uint16(min(max(1, int64(o.KeepAlive/time.Second)), math.MaxUint16)),
		CleanStart:   o.SessionExpiry == 0,
		UsernameFlag: o.Username != "", Username: o.Username,
		PasswordFlag: o.Password != nil, Password: o.Password,
	}
	if o.Version == V5 {
		expiry := uint32(min(int64(o.SessionExpiry/time.Second), math.MaxUint32))
		window, largest := uint16(deliveries), uint32(o.MaxPacket)
		c.Properties = &packets.Properties{SessionExpiryInterval: &expiry, ReceiveMaximum: &window, MaximumPacketSize: &largest}
		if o.Method != "" {
			data, err := o.Auth(ctx, nil)
			if err != nil {
				return err
			}
			c.Properties.AuthMethod, c.Properties.AuthData = o.Method, data
		}
	}
	if err := s.writeNow(c); err != nil {
		return fmt.Errorf("log-in: %w", lost(err))
	}
	for {
		first, body, err := readFrame(s.r, o.MaxPacket, nil)
		if err != nil {
			return fmt.Errorf("log-in: %w", lost(err))
		}
		p, err := s.codec.decode(first, body)
		if err != nil {
			return fmt.Errorf("log-in: %w", err)
		}
		switch p := p.(type) {
		case *packets.Connack:
			if p.ReasonCode != 0 {
				return loginError(o.Version, p.ReasonCode, p.Properties)
			}
			return s.accept(p)
		case *packets.Auth:
			if o.Method == "" || p.ReasonCode != packets.AuthContinueAuthentication {
				return errors.New("log-in: protocol error: an AUTH that nobody asked for")
			}
			data, err := o.Auth(ctx, challengeOf(p))
			if err != nil {
				return err
			}
			if err := s.writeNow(s.authPacket(packets.AuthContinueAuthentication, data)); err != nil {
				return fmt.Errorf("log-in: %w", lost(err))
			}
		case *packets.Disconnect:
			return loginError(o.Version, p.ReasonCode, p.Properties)
		default:
			return fmt.Errorf("log-in: protocol error: the broker sent %T before CONNACK", p)
		}
	}
}

func (s *Session) writeNow(p packets.Packet) error {
	var b bytes.Buffer
	if err := s.codec.encode(&b, p); err != nil {
		return err
	}
	_, err := s.conn.Write(b.Bytes())
	return err
}

// accept takes over what CONNACK says.
func (s *Session) accept(c *packets.Connack) error {
	o := s.opts
	s.server = Server{
		ClientID: o.ClientID, SessionPresent: c.SessionPresent, Window: min(o.Window, math.MaxUint16),
		MaxPacket: 5 + 1<<28 - 1, MaxQoS: 2, Retain: true, Wildcards: true, KeepAlive: o.KeepAlive, SessionExpiry: o.SessionExpiry,
	}
	p, v := c.Properties, &s.server
	if c.SessionPresent && o.SessionExpiry == 0 {
		return errors.New("log-in: protocol error: a session is present after a clean start")
	}
	if p.AssignedClientID != "" {
		v.ClientID = p.AssignedClientID
	}
	if p.ReceiveMaximum != nil {
		if *p.ReceiveMaximum == 0 {
			return errors.New("log-in: protocol error: receive maximum 0")
		}
		v.Window = min(v.Window, int(*p.ReceiveMaximum))
	}
	if p.MaximumPacketSize != nil {
		if *p.MaximumPacketSize == 0 {
			return errors.New("log-in: protocol error: maximum packet size 0")
		}
		v.MaxPacket = int(min(int64(*p.MaximumPacketSize), int64(v.MaxPacket)))
	}
	if p.MaximumQOS != nil {
		v.MaxQoS = *p.MaximumQOS
	}
	if p.RetainAvailable != nil {
		v.Retain = *p.RetainAvailable != 0
	}
	if p.TopicAliasMaximum != nil {
		s.aliases.most = min(int(*p.TopicAliasMaximum), mostAliases)
	}
	if p.WildcardSubAvailable != nil {
		v.Wildcards = *p.WildcardSubAvailable != 0
	}
	if p.ServerKeepAlive != nil && *p.ServerKeepAlive > 0 {
		v.KeepAlive = time.Duration(*p.ServerKeepAlive) * time.Second
	}
	if p.SessionExpiryInterval != nil {
		v.SessionExpiry = time.Duration(*p.SessionExpiryInterval) * time.Second
	}
	if o.MaxQoS > 0 {
		v.MaxQoS = min(v.MaxQoS, o.MaxQoS)
	}
	if v.MaxQoS == 0 {
		return msg.Permanent(errors.New("log-in: the broker offers QoS 0 only: it would confirm nothing that it is sent"))
	}
	return nil
}

func challengeOf(p *packets.Auth) []byte {
	if p.Properties == nil || p.Properties.AuthData == nil {
		return []byte{}
	}
	return p.Properties.AuthData
}

func (s *Session) authPacket(code byte, data []byte) *packets.Auth {
	return &packets.Auth{ReasonCode: code, Properties: &packets.Properties{AuthMethod: s.opts.Method, AuthData: data}}
}

// Reauthenticate proves the identity again without a new session (MQTT 5 section 4.12.1). One call at a time.
func (s *Session) Reauthenticate(ctx context.Context) error {
	if s.opts.Method == "" {
		return errors.New("re-authentication: the session has no authentication method")
	}
	code, challenge := byte(packets.AuthReauthenticate), []byte(nil)
	for {
		data, err := s.opts.Auth(ctx, challenge)
		if err != nil {
			return fmt.Errorf("re-authentication: %w", err)
		}
		s.write(s.authPacket(code, data))
		select {
		case p := <-s.auths:
			if p.ReasonCode == packets.AuthSuccess {
				return nil
			}
			code, challenge = packets.AuthContinueAuthentication, challengeOf(p)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
			return fmt.Errorf("re-authentication: %w", context.Cause(s.ctx))
		}
	}
}

// RefusedFilter is the error of a topic filter to which the broker does not let us subscribe.
type RefusedFilter struct {
	Filter string
	Err    error
}

func (r *RefusedFilter) Error() string { return fmt.Sprintf("subscribe to %q: %v", r.Filter, r.Err) }
func (r *RefusedFilter) Unwrap() error { return r.Err }

// filtersAtOnce is how many topic filters one SUBSCRIBE carries: what the strictest platform known takes.
const filtersAtOnce = 8

// Subscribe asks for publications on the topic filters, QoS 1. Where some are refused, the others hold, and the error joins a RefusedFilter for
// each that does not. Any other error says that the session or ctx has ended.
func (s *Session) Subscribe(ctx context.Context, filters ...string) error {
	var refused []error
	refuse := func(filter string, err error) { refused = append(refused, &RefusedFilter{filter, msg.Permanent(err)}) }
	var options []packets.SubOptions
	for _, f := range filters {
		if err := CheckFilter(f); err != nil {
			refuse(f, err)
		} else if !s.server.Wildcards && strings.ContainsAny(f, "+#") {
			refuse(f, errors.New("the broker offers no wildcard subscriptions"))
		} else {
			options = append(options, packets.SubOptions{
				Topic: f, QoS: 1, NoLocal: s.opts.NoLocal, RetainHandling: packets.RetainSendOnSubscribeIfNew,
			})
		}
	}
	for len(options) > 0 {
		part := options[:min(filtersAtOnce, len(options))]
		options = options[len(part):]
		p, err := s.ask(ctx, func(id uint16) packets.Packet {
			return &packets.Subscribe{PacketID: id, Subscriptions: part}
		})
		if err != nil {
			return fmt.Errorf("subscribe to %q: %w", part[0].Topic, err)
		}
		ack, ok := p.(*packets.Suback)
		if !ok || len(ack.Reasons) != len(part) {
			return fmt.Errorf("subscribe to %q: protocol error: the answer does not fit", part[0].Topic)
		}
		for i, code := range ack.Reasons {
			if code >= 0x80 {
				refuse(part[i].Topic, &Reason{code, whyOf(ack.Properties)})
			}
		}
	}
	return errors.Join(refused...)
}

// Unsubscribe ends subscriptions. What the broker answers for each does not matter: it has none of them any more.
func (s *Session) Unsubscribe(ctx context.Context, filters ...string) error {
	for len(filters) > 0 {
		part := filters[:min(filtersAtOnce, len(filters))]
		filters = filters[len(part):]
		_, err := s.ask(ctx, func(id uint16) packets.Packet { return &packets.Unsubscribe{PacketID: id, Topics: part} })
		if err != nil {
			return fmt.Errorf("unsubscribe from %q: %w", part[0], err)
		}
	}
	return nil
}
