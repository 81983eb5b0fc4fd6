package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// optionsBench is a listener with TLS where th-1 brings its secret as password or as token.
func optionsBench(t *testing.T, web bool) *southtest.Bench {
	t.Helper()
	d := driver5
	d.Configure = func(s *southtest.Site, cfg any, listen string) {
		configure(s, cfg, listen)
		cfg.(*Config).Auth = []string{"password", "jwt"}
		if web {
			cfg.(*Config).Transport = "websocket"
		}
	}
	b := southtest.Start(t, d)
	b.Allow(nothingForbidden)
	return b
}

// shell runs mosquitto's clients.
type shell struct {
	t     *testing.T
	b     *southtest.Bench
	login []string
}

func (s *shell) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	return exec.CommandContext(ctx, needs.Program(s.t, name), slices.Concat(s.login, args)...)
}

func (s *shell) run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.command(name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// subscriber starts mosquitto_sub and waits until filter is subscribed to. The function that it gives waits for its end and gives what it printed.
func (s *shell) subscriber(filter string, args ...string) func() string {
	s.t.Helper()
	had := s.hears(filter)
	cmd := s.command("mosquitto_sub", append(args, "-t", filter)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(patience); s.hears(filter) == had; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			s.t.Fatalf("mosquitto_sub %q does not subscribe\n%s", args, out.String())
		}
	}
	return func() string {
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("mosquitto_sub %q: %v", args, err)
		}
		return out.String()
	}
}

// hears tells how many connected sessions have the filter.
func (s *shell) hears(filter string) (n int) {
	for _, x := range s.b.Listener.(*listener).broker.all() {
		x.mu.Lock()
		if x.conn != nil && x.subs[filter] != nil {
			n++
		}
		x.mu.Unlock()
	}
	return n
}

// TestMosquittoOptions takes every option that mosquitto's clients can express to the listener.
func TestMosquittoOptions(t *testing.T) {
	b := optionsBench(t, false)
	s := &shell{t, b, mosquitto(t, b, "mqttv5", "password")}

	// Everything that a message can carry, with topic aliases on the way in (mosquitto's own clients take none), to a session with a small window.
	all := s.subscriber("o/#", "-i", "sub", "-c", "-x", "600", "-q", "2", "-C", "4",
		"-D", "connect", "receive-maximum", "1", "-D", "connect", "request-problem-information", "1",
		"-D", "connect", "user-property", "who", "sub", "-D", "subscribe", "subscription-identifier", "7", "-D", "subscribe", "user-property", "why", "test",
		"-F", "%t|%p|%q|%r|%C|%D|%F|%P|%R|%S")
	props := []string{
		"-D", "publish", "content-type", "text/plain", "-D", "publish", "correlation-data", "c1", "-D", "publish", "message-expiry-interval", "600",
		"-D", "publish", "payload-format-indicator", "1", "-D", "publish", "response-topic", "answers", "-D", "publish", "user-property", "a", "1",
	}
	s.run("mosquitto_pub", append(props, "-t", "o/all", "-m", "zero", "-q", "0")...)
	s.run("mosquitto_pub", append(props, "-t", "o/all", "-m", "many", "-q", "1", "--repeat", "2", "-D", "publish", "topic-alias", "3")...)
	s.run("mosquitto_pub", append(props, "-t", "o/all", "-m", "kept", "-q", "2", "-r")...)
	tail := "|text/plain|c1|1|a:1|answers|7\n"
	if got, want := all(), "o/all|zero|0|0"+tail+strings.Repeat("o/all|many|1|0"+tail, 2)+"o/all|kept|2|0"+tail; got != want {
		t.Errorf("heard\n%swant\n%s", got, want)
	}

	// The session has stayed.
	s.run("mosquitto_pub", "-t", "o/later", "-m", "later", "-q", "1")
	if got := s.run("mosquitto_sub", "-t", "o/#", "-i", "sub", "-c", "-x", "600", "-q", "2", "-C", "1", "-F", "%p"); got != "later\n" {
		t.Errorf("after coming back: %q", got)
	}
	if got := s.run("mosquitto_sub", "-t", "o/#", "-C", "1", "--retained-only", "-F", "%p %r"); got != "kept 1\n" {
		t.Errorf("retained: %q", got)
	}
	s.run("mosquitto_pub", "-t", "o/all", "-n", "-r", "-q", "1")

	// A shared subscription.
	one := s.subscriber("$share/g/shared/#", "-q", "1", "-C", "2", "-F", "%p")
	two := s.subscriber("$share/g/shared/#", "-q", "1", "-C", "2", "-F", "%p")
	for i := range 4 {
		s.run("mosquitto_pub", "-t", "shared/x", "-m", fmt.Sprint(i), "-q", "1")
	}
	if got := strings.Fields(one() + two()); len(slices.Compact(slices.Sorted(slices.Values(got)))) != 4 {
		t.Errorf("two members of a share heard %q", got)
	}

	// A will with a delay and properties, of a client that is killed.
	will := s.subscriber("wills/#", "-q", "1", "-C", "1", "-F", "%t %p %C")
	mortal := s.command("mosquitto_sub", "-t", "nothing", "-i", "mortal", "-c", "-x", "600", "--will-topic", "wills/mortal", "--will-payload", "gone", "--will-qos", "1",
		"--will-retain", "-D", "will", "will-delay-interval", "1", "-D", "will", "content-type", "text/plain")
	if err := mortal.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); s.hears("nothing") == 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	kill(mortal)
	if got := will(); got != "wills/mortal gone text/plain\n" {
		t.Errorf("the will: %q", got)
	}

	// What is refused has its code, and a token does for a password.
	if out := s.run("mosquitto_sub", "-t", "forbidden", "-C", "1", "-d"); !strings.Contains(out, "Subscribed (mid: 1): 135") {
		t.Errorf("a forbidden subscription:\n%s", out)
	}
	if out := s.run("mosquitto_pub", "-t", "forbidden", "-m", "x", "-q", "1", "-d"); !strings.Contains(out, "RC:135") {
		t.Errorf("a forbidden publish:\n%s", out)
	}
	s.run("mosquitto_pub", "-t", "o/token", "-m", "x", "-q", "1", "-i", "token", "-D", "connect", "authentication-method", "JWT",
		"-D", "connect", "authentication-data", string(b.Secret("th-1")))

	s.answeredRequest("mqttv5")
	s.answeredRequest("mqttv311")
}

// answeredRequest has mosquitto_rr ask and a device answer.
func (s *shell) answeredRequest(version string) {
	s.t.Helper()
	d := driver5
	dev, err := d.Dial(s.t.Context(), s.b.Site, s.b.Addr, "th-2", s.b.Secret("th-2"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer dev.Close()
	responder := dev.(*device5)
	responder.c.AddOnPublishReceived(func(r paho5.PublishReceived) (bool, error) {
		p := &paho5.Publish{Topic: "answers/" + version, QoS: 1, Payload: append([]byte("answer to "), r.Packet.Payload...), Properties: &paho5.PublishProperties{}}
		if version == "mqttv5" {
			p.Topic, p.Properties.CorrelationData = r.Packet.Properties.ResponseTopic, r.Packet.Properties.CorrelationData
		}
		_, err := responder.c.Publish(s.t.Context(), p)
		return true, err
	})
	if _, err := responder.c.Subscribe(s.t.Context(), &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: "ask/" + version, QoS: 1}}}); err != nil {
		s.t.Fatal(err)
	}
	login := slices.Clone(s.login)
	login[slices.Index(login, "-V")+1] = version
	x := &shell{s.t, s.b, login}
	args := []string{"-t", "ask/" + version, "-e", "answers/" + version, "-m", "time?", "-q", "1", "-W", "30"}
	if version == "mqttv5" {
		args = append(args, "-D", "publish", "correlation-data", "c9")
	}
	if got := x.run("mosquitto_rr", args...); got != "answer to time?\n" {
		s.t.Errorf("%s: mosquitto_rr printed %q", version, got)
	}
}

// TestPahoOptions takes what the Go client for MQTT 5 can express, renewal of a token included.
func TestPahoOptions(t *testing.T) {
	b := optionsBench(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type message struct {
		*paho5.Publish
		by string
	}
	heard := make(chan message, 100)
	next := func() message {
		t.Helper()
		select {
		case m := <-heard:
			return m
		case <-ctx.Done():
			t.Fatal("waited in vain for a message")
			return message{}
		}
	}
	open := func(id string, change func(*paho5.Connect), handler paho5.Auther) (*paho5.Client, *paho5.Connack, net.Conn) {
		t.Helper()
		nc, err := dialTLS(ctx, b.Site, b.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		c := paho5.NewClient(paho5.ClientConfig{Conn: packets5.NewThreadSafeConn(nc), AuthHandler: handler})
		c.AddOnPublishReceived(func(r paho5.PublishReceived) (bool, error) {
			heard <- message{r.Packet, id}
			return true, nil
		})
		cp := &paho5.Connect{
			ClientID: id, CleanStart: true, KeepAlive: 30, Username: "th-1", UsernameFlag: true, Password: b.Secret("th-1"), PasswordFlag: true,
			Properties: &paho5.ConnectProperties{RequestProblemInfo: true},
		}
		if change != nil {
			change(cp)
		}
		ack, err := c.Connect(ctx, cp)
		if err != nil || ack.ReasonCode != 0 {
			t.Fatalf("%s: CONNACK %+v, %v", id, ack, err)
		}
		t.Cleanup(func() { nc.Close() })
		return c, ack, nc
	}
	stay := func(c *paho5.Connect) {
		c.CleanStart = false
		c.Properties.SessionExpiryInterval, c.Properties.ReceiveMaximum = ptr(uint32(600)), ptr(uint16(3))
		c.Properties.MaximumPacketSize, c.Properties.User = ptr(uint32(1000)), paho5.UserProperties{{Key: "who", Value: "sub"}}
	}
	sub, ack, _ := open("sub", stay, nil)
	if ack.SessionPresent || ack.Properties.ReceiveMaximum == nil || ack.Properties.TopicAliasMaximum == nil || ack.Properties.MaximumPacketSize == nil {
		t.Errorf("CONNACK %+v", ack.Properties)
	}
	subscribe := func(c *paho5.Client, o paho5.SubscribeOptions, id int) {
		t.Helper()
		s := &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{o}, Properties: &paho5.SubscribeProperties{User: paho5.UserProperties{{Key: "why", Value: "test"}}}}
		if id > 0 {
			s.Properties.SubscriptionIdentifier = &id
		}
		if ack, err := c.Subscribe(ctx, s); err != nil || ack.Reasons[0] > 2 {
			t.Fatalf("SUBACK %+v, %v", ack, err)
		}
	}
	subscribe(sub, paho5.SubscribeOptions{Topic: "o/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 1}, 7)
	pub, _, _ := open("pub", nil, nil)
	publish := func(c *paho5.Client, p *paho5.Publish) {
		t.Helper()
		if r, err := c.Publish(ctx, p); err != nil || r != nil && r.ReasonCode >= 0x80 {
			t.Fatalf("publish: %+v, %v", r, err)
		}
	}
	publish(sub, &paho5.Publish{Topic: "o/own", QoS: 1})
	for qos := range byte(3) {
		p := &paho5.Publish{Topic: "o/all", QoS: qos, Retain: true, Payload: []byte(qosText(qos)), Properties: &paho5.PublishProperties{
			ContentType: "text/plain", ResponseTopic: "answers", CorrelationData: []byte("c1"), PayloadFormat: ptr(byte(1)), MessageExpiry: ptr(uint32(600)),
			TopicAlias: ptr(uint16(4)), User: paho5.UserProperties{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}},
		}}
		if qos > 0 {
			p.Topic = ""
		}
		publish(pub, p)
	}
	for qos := range byte(3) {
		m := next()
		if p := m.Properties; m.Topic != "o/all" || m.QoS != qos || !m.Retain || p.ContentType != "text/plain" || p.ResponseTopic != "answers" ||
			string(p.CorrelationData) != "c1" || len(p.User) != 2 || *p.SubscriptionIdentifier != 7 || *p.MessageExpiry > 600 || *p.PayloadFormat != 1 {
			t.Errorf("heard %+v with %+v", m, p)
		}
	}
	publish(pub, &paho5.Publish{Topic: "o/large", QoS: 1, Payload: make([]byte, 2000)}) // more than sub takes
	if err := sub.Disconnect(&paho5.Disconnect{Properties: &paho5.DisconnectProperties{SessionExpiryInterval: ptr(uint32(1200))}}); err != nil {
		t.Error(err)
	}
	publish(pub, &paho5.Publish{Topic: "o/later", QoS: 2, Payload: []byte("later")})
	if _, ack, _ = open("sub", stay, nil); !ack.SessionPresent {
		t.Error("the session is gone")
	}
	if m := next(); string(m.Payload) != "later" {
		t.Errorf("heard %+v", m)
	}

	one, _, _ := open("one", nil, nil)
	two, _, _ := open("two", nil, nil)
	for _, c := range []*paho5.Client{one, two} {
		subscribe(c, paho5.SubscribeOptions{Topic: "$share/g/shared/#", QoS: 1}, 0)
	}
	by := map[string]int{}
	for range 4 {
		publish(pub, &paho5.Publish{Topic: "shared/x", QoS: 1})
		by[next().by]++
	}
	if by["one"] != 2 || by["two"] != 2 {
		t.Errorf("heard by %v", by)
	}

	subscribe(one, paho5.SubscribeOptions{Topic: "wills/#", QoS: 1}, 0)
	_, _, nc := open("mortal", func(c *paho5.Connect) {
		stay(c)
		c.WillMessage = &paho5.WillMessage{Topic: "wills/mortal", Payload: []byte("gone"), QoS: 1, Retain: true}
		c.WillProperties = &paho5.WillProperties{WillDelayInterval: ptr(uint32(1)), User: paho5.UserProperties{{Key: "w", Value: "1"}}}
	}, nil)
	nc.Close()
	if m := next(); string(m.Payload) != "gone" || len(m.Properties.User) != 1 || m.by != "one" {
		t.Errorf("heard %+v with %+v by %s", m, m.Properties, m.by)
	}

	// A token in CONNECT, and another one later by AUTH.
	token, _, _ := open("token", func(c *paho5.Connect) {
		c.PasswordFlag, c.Password = false, nil
		c.Properties.AuthMethod, c.Properties.AuthData = "JWT", b.Secret("th-1")
	}, &bearerOf{})
	if r, err := token.Authenticate(ctx, &paho5.Auth{ReasonCode: 0x19, Properties: &paho5.AuthProperties{AuthMethod: "JWT", AuthData: b.Secret("th-1")}}); err != nil || !r.Success {
		t.Errorf("renewal: %+v, %v", r, err)
	}
	publish(token, &paho5.Publish{Topic: "o/token", QoS: 1})
}

// bearerOf is a paho5.Auther with nothing to add.
type bearerOf struct{}

func (*bearerOf) Authenticate(*paho5.Auth) *paho5.Auth { return nil }
func (*bearerOf) Authenticated()                       {}

// TestPaho3Options takes what the Go client for 3.1.1 can express, over TLS and over WebSocket.
func TestPaho3Options(t *testing.T) {
	for _, web := range []bool{false, true} {
		b := optionsBench(t, web)
		address := "tls://" + b.Addr.String()
		if web {
			address = "wss://" + b.Addr.String() + webPath
		}
		var mu sync.Mutex
		var heard []string
		arrived := make(chan struct{}, 100)
		open := func(id string, change func(*paho3.ClientOptions)) paho3.Client {
			t.Helper()
			o := paho3.NewClientOptions().AddBroker(address).SetClientID(id).SetUsername("th-1").SetPassword(string(b.Secret("th-1"))).SetTLSConfig(clientTLS(b.Site)).
				SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience).SetKeepAlive(30 * time.Second).
				SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) {
					mu.Lock()
					heard = append(heard, fmt.Sprintf("%s %s %d %v", m.Topic(), m.Payload(), m.Qos(), m.Retained()))
					mu.Unlock()
					arrived <- struct{}{}
				})
			if change != nil {
				change(o)
			}
			c := paho3.NewClient(o)
			done(t, c.Connect())
			t.Cleanup(func() { c.Disconnect(0) })
			return c
		}
		expectAll := func(want ...string) {
			t.Helper()
			for range want {
				select {
				case <-arrived:
				case <-time.After(patience):
					t.Fatalf("heard %q, want %q", heard, want)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(heard, want) {
				t.Errorf("heard %q, want %q", heard, want)
			}
			heard = nil
		}
		stay := func(o *paho3.ClientOptions) { o.SetCleanSession(false) }
		sub, pub := open("sub", stay), open("pub", nil)
		done(t, sub.SubscribeMultiple(map[string]byte{"o/#": 2, "wills/#": 1}, nil))
		for qos := range byte(3) {
			done(t, pub.Publish("o/x", qos, qos == 2, qosText(qos)))
		}
		expectAll("o/x qos 0 0 false", "o/x qos 1 1 false", "o/x qos 2 2 false")
		sub.Disconnect(100)
		done(t, pub.Publish("o/later", 1, false, "later"))
		sub = open("sub", stay)
		expectAll("o/later later 1 false")
		done(t, sub.Unsubscribe("o/#"))
		done(t, sub.Subscribe("o/x", 1, nil))
		expectAll("o/x qos 2 1 true")
		// A will goes out when the client breaks off.
		nc := make(chan net.Conn, 1)
		open("mortal", func(o *paho3.ClientOptions) {
			o.SetWill("wills/mortal", "gone", 1, true)
			if !web {
				o.SetCustomOpenConnectionFn(func(_ *url.URL, _ paho3.ClientOptions) (net.Conn, error) {
					c, err := dialTLS(t.Context(), b.Site, b.Addr.String())
					nc <- c
					return c, err
				})
			}
		})
		if !web {
			(<-nc).Close()
			expectAll("wills/mortal gone 1 false")
		}
		if token := sub.Subscribe("forbidden/#", 1, nil).(*paho3.SubscribeToken); !token.WaitTimeout(patience) || token.Result()["forbidden/#"] != 0x80 {
			t.Errorf("a forbidden subscription: %v", token.Result())
		}
	}
}

func dialTLS(ctx context.Context, s *southtest.Site, addr string) (net.Conn, error) {
	return (&tls.Dialer{Config: clientTLS(s)}).DialContext(ctx, "tcp", addr)
}

func done(t *testing.T, token paho3.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("the client: %v", token.Error())
	}
}
