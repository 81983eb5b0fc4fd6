package mqtt_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func TestDialSaysInPlainWordsWhatIsWrong(t *testing.T) {
	other := northtest.NewCA(t)
	serve := func(c func(ca northtest.CA, c *tls.Config), admit func(*broker.Login) broker.Answer) func(t *testing.T) *northtest.Broker {
		return func(t *testing.T) *northtest.Broker {
			b := northtest.NewBroker(t, broker.Options{Admit: admit})
			if c != nil {
				config := b.CA.Server(t)
				c(b.CA, config)
				b.Listen(t, config)
			}
			return b
		}
	}
	say := func(code byte, why string) func(*broker.Login) broker.Answer {
		return func(*broker.Login) broker.Answer { return broker.Answer{Code: code, Why: why} }
	}
	tests := map[string]struct {
		broker    func(t *testing.T) *northtest.Broker
		change    func(t *testing.T, c *mqtt.Config)
		want      string
		permanent bool
	}{
		"a name that is not in the DNS": {
			change: func(_ *testing.T, c *mqtt.Config) { c.URL = "mqtts://broker.invalid" },
			want:   `there is no host "broker.invalid"`,
		},
		"a port where nobody listens": {
			change: func(t *testing.T, c *mqtt.Config) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				l.Close()
				c.URL = "mqtts://" + l.Addr().String()
			},
			want: "nothing listens at the peer's port (127.0.0.1:",
		},
		"a server certificate of an unknown authority": {
			change: func(t *testing.T, c *mqtt.Config) { c.CA = pathOf(other.File(t)) },
			want:   `the peer's certificate "CN=localhost" is signed by "CN=northtest CA", who is not trusted here`, permanent: true,
		},
		"a server certificate that has expired": {
			broker: serve(func(ca northtest.CA, c *tls.Config) {
				c.Certificates = []tls.Certificate{ca.Certificate(t, broker.Subject{
					Name: "localhost", Hosts: northtest.Loopback, From: time.Now().Add(-3 * time.Hour), Until: time.Now().Add(-time.Hour),
				})}
			}, nil),
			want: `the peer's certificate "CN=localhost" expired on `,
		},
		"a server certificate for another name": {
			broker: serve(func(ca northtest.CA, c *tls.Config) {
				c.Certificates = []tls.Certificate{ca.Certificate(t, broker.Subject{Name: "x", Hosts: []string{"broker.example"}})}
			}, nil),
			want: "the peer's certificate is for broker.example, not for 127.0.0.1", permanent: true,
		},
		"no client certificate where one is wanted": {
			change: func(_ *testing.T, c *mqtt.Config) { c.Key = "" },
			want:   "the peer wants a certificate of this gateway, and was shown none", permanent: true,
		},
		"a client certificate that the broker does not trust": {
			broker: serve(func(_ northtest.CA, c *tls.Config) { c.ClientCAs = other.Pool() }, nil),
			want:   "the peer does not trust the CA of this gateway's certificate", permanent: true,
		},
		"a port that does not speak TLS": {
			change: func(t *testing.T, c *mqtt.Config) { c.URL = "mqtts://" + plainServer(t) },
			want:   "the peer does not speak TLS on this port", permanent: true,
		},
		"a wrong password":          {broker: serve(nil, say(0x86, "")), want: "log-in refused: bad user name or password (0x86)", permanent: true},
		"a client without rights":   {broker: serve(nil, say(0x87, "not in plant 7")), want: `not authorized (0x87): "not in plant 7"`, permanent: true},
		"a busy broker":             {broker: serve(nil, say(0x89, "")), want: "log-in refused: server busy (0x89)"},
		"a wrong password, 3.1.1":   {broker: serve(nil, say(0x86, "")), change: v311, want: "log-in refused: bad user name or password (0x86)", permanent: true},
		"a busy broker, 3.1.1":      {broker: serve(nil, say(0x89, "")), change: v311, want: "log-in refused: server unavailable (0x88)"},
		"a broker that just closes": {broker: serve(nil, func(*broker.Login) broker.Answer { return broker.Answer{Drop: true} }), want: "the broker has closed the connection"},
		"a broker without QoS 1": {
			broker: serve(nil, func(*broker.Login) broker.Answer {
				return broker.Answer{Limits: broker.Limits{MaximumQoS: new(byte)}}
			}),
			want: "the broker offers QoS 0 only", permanent: true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.broker == nil {
				test.broker = serve(nil, nil)
			}
			b := test.broker(t)
			c := connector(t, b.CA, b.Addr, func(c *mqtt.Config) {
				if test.change != nil {
					test.change(t, c)
				}
			})
			s, err := c.Dial(t.Context(), &northtest.Downlink{})
			if err == nil {
				s.Close()
				t.Fatal("dialled")
			}
			text, hint := health.Words(err, time.Now())
			if !strings.Contains(text, test.want) || hint == "" && !strings.Contains(name, "without QoS") || msg.IsPermanent(err) != test.permanent {
				t.Fatalf("got (permanent %t) %q\nwant (permanent %t) %q", msg.IsPermanent(err), text, test.permanent, test.want)
			}
		})
	}
}

func v311(_ *testing.T, c *mqtt.Config) { c.Version = 4 }

// plainServer says something that is not TLS to everybody.
func plainServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 mail.example ESMTP\r\n"))
			defer conn.Close()
		}
	}()
	return l.Addr().String()
}

func TestRefusedFilterIsAProblemThatNamesItAndReportsGoOn(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{Subscribed: func(_, filter string, qos byte) byte {
		if strings.HasPrefix(filter, "secret/") {
			return 0x87
		}
		return qos
	}})
	keys := &northtest.Keys{Certificates: map[string]tls.Certificate{"identity": b.CA.Certificate(t, broker.Subject{Name: "gw1"})}}
	env, tracker := northtest.Env(t, keys)
	cfg := mqtt.Kind().Config().(*mqtt.Config)
	cfg.URL, cfg.Key, cfg.CA = "mqtts://"+b.Addr, "identity", pathOf(b.CA.File(t))
	c, err := mqtt.Kind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	down := &northtest.Downlink{Filters: []string{"cmd/gw1/#", "secret/#", "a/#/b"}}
	s, err := c.Dial(t.Context(), down)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var found health.Problem
	for _, p := range tracker.Problems() {
		if p.Code == mqtt.SubscriptionRefused.Name {
			found = p
		}
	}
	if !strings.Contains(found.Detail, `subscribe to "secret/#": not authorized (0x87)`) || !strings.Contains(found.Detail, `"a/#/b"`) {
		t.Fatalf("problem: %+v", found)
	}
	if err := s.(*mqtt.Session).Publish(t.Context(), msg.Publication{Topic: "dt/x", QoS: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestExamineTakesEveryStep(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{})
	c := connector(t, b.CA, strings.Replace(b.Addr, "127.0.0.1", "localhost", 1), nil)
	running, err := c.Dial(t.Context(), &northtest.Downlink{})
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	var names []string
	c.(northbound.Examined).Examine(t.Context(), func(s northbound.Step) {
		names = append(names, s.Name)
		t.Logf("%-8s %s %s", s.Name, s.Took, s.Note)
		if s.Err != nil {
			t.Errorf("%s: %v", s.Name, s.Err)
		}
	})
	if got := strings.Join(names, " "); got != "name tcp tls log-in publish echo" {
		t.Fatalf("steps: %s", got)
	}
	if running.Context().Err() != nil {
		t.Fatalf("the running session was ended: %v", context.Cause(running.Context()))
	}
}

func TestExamineStopsAtTheStepThatFails(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{Admit: func(*broker.Login) broker.Answer { return broker.Answer{Code: 0x87} }})
	c := connector(t, b.CA, b.Addr, nil)
	var last northbound.Step
	c.(northbound.Examined).Examine(t.Context(), func(s northbound.Step) { last = s })
	if last.Name != "log-in" || last.Err == nil || !strings.Contains(last.Err.Error(), "not authorized") {
		t.Fatalf("last step: %+v", last)
	}
}

// A policy may name the one client id that a certificate is for. What waits for the gateway must not be lost to who only looks.
func TestExamineWhereOnlyTheGatewaysOwnClientIDIsLetIn(t *testing.T) {
	b := northtest.NewBroker(t, broker.Options{Admit: func(l *broker.Login) broker.Answer {
		if l.ClientID != "gw1" {
			return broker.Answer{Code: 0x87}
		}
		return broker.Answer{}
	}})
	c := connector(t, b.CA, b.Addr, nil)
	arrived := make(chan struct{}, 1)
	down := &northtest.Downlink{Filters: []string{"cmd/#"}, Before: func(context.Context, msg.Publication) error { arrived <- struct{}{}; return nil }}
	s, err := c.Dial(t.Context(), down)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	b.Publish(broker.Message{Topic: "cmd/x", QoS: 1, Payload: []byte("on")})
	var steps []northbound.Step
	c.(northbound.Examined).Examine(t.Context(), func(s northbound.Step) { steps = append(steps, s) })
	if last := steps[len(steps)-1]; last.Name != "log-in" || last.Err != nil || !strings.Contains(last.Note, "takes no other") {
		t.Fatalf("last step: %+v", last)
	}
	if s, err = c.Dial(t.Context(), down); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	select {
	case <-arrived:
	case <-time.After(30 * time.Second):
		t.Fatal("the command is lost")
	}
}
