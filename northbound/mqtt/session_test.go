package mqtt_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// pipe logs in to a broker over a pipe, so that time can be fake.
func pipe(t *testing.T, b *broker.Broker, o mqtt.Options) *mqtt.Session {
	t.Helper()
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var served sync.WaitGroup
	served.Go(func() { b.ServeConn(ctx, far) })
	if o.Version == 0 {
		o.Version = mqtt.V5
	}
	if o.ClientID == "" {
		o.ClientID = "gw1"
	}
	o.Now = time.Now
	s, err := mqtt.Start(t.Context(), near, o)
	if err != nil {
		cancel()
		served.Wait()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		cancel()
		served.Wait()
	})
	return s
}

// announce makes a broker with limits that records what it takes.
func announce(l broker.Limits) (*broker.Broker, func() []broker.Message) {
	var mu sync.Mutex
	var got []broker.Message
	b := broker.New(broker.Options{
		Admit: func(*broker.Login) broker.Answer { return broker.Answer{Limits: l} },
		Published: func(_ string, m broker.Message) broker.Verdict {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, m)
			return broker.Verdict{Delay: 10 * time.Millisecond}
		},
	})
	return b, func() []broker.Message {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

func TestSessionHonoursWhatConnackSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := byte(1)
		// The broker enforces what it announces: it would end the session.
		b, got := announce(broker.Limits{ReceiveMaximum: 3, MaximumPacketSize: 200, MaximumQoS: &one, NoRetain: true, ServerKeepAlive: 7, AssignedClientID: "x"})
		s := pipe(t, b, mqtt.Options{})
		v := s.Server()
		if v.Window != 3 || v.MaxPacket != 200 || v.MaxQoS != 1 || v.Retain || v.KeepAlive != 7*time.Second || v.ClientID != "x" {
			t.Fatalf("server: %+v", v)
		}
		batch := make([]msg.Publication, 20)
		for i := range batch {
			batch[i] = msg.Publication{Topic: "a", QoS: 2, Retain: true, Payload: []byte{byte(i)}}
		}
		batch[7].Payload = make([]byte, 200)
		o := northtest.NewOutcome(len(batch))
		if err := s.Send(t.Context(), batch, o.Done); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for i := range batch {
			if n, err := o.Err(i); n != 1 || msg.IsPermanent(err) != (i == 7) || err != nil != (i == 7) {
				t.Fatalf("publication %d: done %d times, %v", i, n, err)
			}
		}
		for _, m := range got() {
			if m.QoS != 1 || m.Retain {
				t.Fatalf("sent with QoS %d, retain %t", m.QoS, m.Retain)
			}
		}
	})
}

func TestSessionCarriesWhatAPublicationHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, got := announce(broker.Limits{})
		received := make(chan msg.Publication, 1)
		s := pipe(t, b, mqtt.Options{Receive: func(_ context.Context, p msg.Publication) error { received <- p; return nil }})
		if err := s.Subscribe(t.Context(), "cmd/+"); err != nil {
			t.Fatal(err)
		}
		p := msg.Publication{
			Topic: "cmd/x", QoS: 1, Type: "application/json", Payload: []byte("{}"), Properties: map[string]string{"id": "7", "device": "th-17"},
			Expires: time.Now().Add(time.Minute), ResponseTopic: "reply/x", Correlation: []byte{1, 2},
		}
		if err := s.Publish(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		m, back := got()[0], <-received
		if m.Type != p.Type || m.Expiry != 60 || m.User["id"] != "7" || m.User["device"] != "th-17" || m.ResponseTopic != "reply/x" || !bytes.Equal(m.Correlation, p.Correlation) {
			t.Fatalf("arrived: %+v", m)
		}
		if back.Type != p.Type || back.Properties["id"] != "7" || back.ResponseTopic != "reply/x" || !bytes.Equal(back.Correlation, p.Correlation) ||
			!back.Expires.Equal(p.Expires) || back.QoS != 1 || !bytes.Equal(back.Payload, p.Payload) {
			t.Fatalf("came back: %+v", back)
		}
	})
}

func TestEveryQoSIsConfirmed(t *testing.T) {
	for _, version := range []byte{mqtt.V5, mqtt.V311} {
		for qos := range byte(3) {
			synctest.Test(t, func(t *testing.T) {
				b, got := announce(broker.Limits{})
				s := pipe(t, b, mqtt.Options{Version: version})
				for range 3 {
					if err := s.Publish(t.Context(), msg.Publication{Topic: "a", QoS: qos}); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if list := got(); len(list) != 3 || list[0].QoS != qos {
					t.Fatalf("version %d QoS %d: arrived %v", version, qos, list)
				}
			})
		}
	}
}

func TestIdleSessionPingsAndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := announce(broker.Limits{}) // closes after 1.5 times the keep alive
		s := pipe(t, b, mqtt.Options{KeepAlive: 30 * time.Second})
		time.Sleep(24 * time.Hour)
		if err := context.Cause(s.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// mute answers CONNECT and then nothing more.
func mute(t *testing.T, o mqtt.Options) *mqtt.Session {
	t.Helper()
	near, far := net.Pipe()
	var peer sync.WaitGroup
	peer.Go(func() {
		packets.ReadPacket(far)
		(&packets.Connack{Properties: &packets.Properties{}}).WriteTo(far)
		for {
			if _, err := packets.ReadPacket(far); err != nil {
				return
			}
		}
	})
	o.Version, o.ClientID, o.Now = mqtt.V5, "gw1", time.Now
	s, err := mqtt.Start(t.Context(), near, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		far.Close()
		peer.Wait()
	})
	return s
}

func TestSessionOfABrokerThatFallsSilentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mute(t, mqtt.Options{KeepAlive: time.Minute})
		began := time.Now()
		<-s.Context().Done()
		if err := context.Cause(s.Context()); !strings.Contains(err.Error(), "not answered a ping") || time.Since(began) > 90*time.Second {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestSessionOfABrokerThatConfirmsNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.Options{Published: func(string, broker.Message) broker.Verdict { return broker.Verdict{Mute: true} }})
		s := pipe(t, b, mqtt.Options{KeepAlive: time.Minute, AckTimeout: 45 * time.Second})
		err := s.Publish(t.Context(), msg.Publication{Topic: "a", QoS: 1})
		if err == nil || !strings.Contains(err.Error(), "confirmed nothing for 45s") {
			t.Fatal(err)
		}
	})
}

// Where one confirmation never comes and all others do, the publication would wait for ever, and the queue behind it with it.
func TestSessionOfABrokerThatLosesOneConfirmationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.Options{Published: func(_ string, m broker.Message) broker.Verdict { return broker.Verdict{Lose: m.Topic == "lost"} }})
		s := pipe(t, b, mqtt.Options{KeepAlive: time.Minute, AckTimeout: 45 * time.Second})
		began := time.Now()
		o := northtest.NewOutcome(1)
		if err := s.Send(t.Context(), []msg.Publication{{Topic: "lost", QoS: 1}}, o.Done); err != nil {
			t.Fatal(err)
		}
		for time.Since(began) < time.Hour && s.Publish(t.Context(), msg.Publication{Topic: "a", QoS: 1}) == nil {
			time.Sleep(time.Second)
		}
		if err := context.Cause(s.Context()); err == nil || !strings.Contains(err.Error(), "but not what was sent") || time.Since(began) > 2*time.Minute {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		if n, _ := o.Err(0); n != 0 {
			t.Fatalf("it was settled %d times", n)
		}
	})
}

// A slow line is no fault: what is still on its way has not been overtaken.
func TestSessionOnASlowLineStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.Options{Published: func(string, broker.Message) broker.Verdict { time.Sleep(20 * time.Second); return broker.Verdict{} }})
		s := pipe(t, b, mqtt.Options{KeepAlive: time.Hour, AckTimeout: 45 * time.Second})
		batch := make([]msg.Publication, 20)
		for i := range batch {
			batch[i] = msg.Publication{Topic: "a", QoS: 1}
		}
		o := northtest.NewOutcome(len(batch))
		if err := s.Send(t.Context(), batch, o.Done); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		for i := range batch {
			if n, err := o.Err(i); n != 1 || err != nil {
				t.Fatalf("publication %d: done %d times, %v (%v)", i, n, err, context.Cause(s.Context()))
			}
		}
	})
}

// flood answers CONNECT and sends n publications of a size, the first of which stays with the session for ever. It gives the cause of the session's end.
func flood(t *testing.T, n, size int) error {
	t.Helper()
	near, far := net.Pipe()
	var peer sync.WaitGroup
	peer.Go(func() {
		packets.ReadPacket(far)
		(&packets.Connack{Properties: &packets.Properties{}}).WriteTo(far)
		peer.Go(func() {
			for {
				if _, err := packets.ReadPacket(far); err != nil {
					return
				}
			}
		})
		for i := range n {
			p := packets.Publish{Topic: "other", QoS: 1, PacketID: uint16(i + 1), Payload: make([]byte, size), Properties: &packets.Properties{}}
			if i == 0 {
				p.Topic = "first"
			}
			if _, err := p.WriteTo(far); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // so that it is delivered before the next comes
		}
	})
	s, err := mqtt.Start(t.Context(), near, mqtt.Options{Version: mqtt.V5, ClientID: "gw1", KeepAlive: 10 * time.Hour, Now: time.Now, Receive: func(ctx context.Context, p msg.Publication) error {
		if p.Topic == "first" || size > 1<<10 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		s.Close()
		far.Close()
		peer.Wait()
	}()
	select {
	case <-s.Context().Done():
		return context.Cause(s.Context())
	case <-time.After(time.Hour):
		return nil
	}
}

// A broker that does not care for the receive maximum must not take all the memory there is.
func TestABrokerThatSendsMoreThanCanBeHeldIsLeft(t *testing.T) {
	for what, f := range map[string]struct{ n, size int }{"in number": {20_000, 10}, "in octets": {500, 1 << 20}} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := flood(t, f.n, f.size); err == nil || !strings.Contains(err.Error(), "more publications than can be") {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestCauseOfAnEndedSessionIsWhatTheBrokerSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.Options{Published: func(string, broker.Message) broker.Verdict { return broker.Verdict{Kick: 0x98, Why: "spring cleaning"} }})
		s := pipe(t, b, mqtt.Options{})
		s.Publish(t.Context(), msg.Publication{Topic: "a", QoS: 1})
		cause := context.Cause(s.Context())
		if _, ok := errors.AsType[*mqtt.Ended](cause); !ok || !strings.Contains(cause.Error(), `administrative action (0x98): "spring cleaning"`) {
			t.Fatal(cause)
		}
	})
}

func TestEnhancedAuthenticationAndAgainWithoutDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var shown []string
		b := broker.New(broker.Options{
			Admit: func(l *broker.Login) broker.Answer {
				if l.Method != "OAUTH2-JWT" {
					return broker.Answer{Code: 0x8C}
				}
				mu.Lock()
				defer mu.Unlock()
				shown = append(shown, string(l.Data))
				return broker.Answer{Challenge: []byte("prove it")}
			},
			Auth: func(_, _ string, data []byte) (byte, []byte) {
				mu.Lock()
				defer mu.Unlock()
				shown = append(shown, string(data))
				if string(data) == "bad" {
					return 0x87, nil
				}
				return 0, nil
			},
		})
		next := []string{"token-1", "answer", "token-2", "bad"}
		s := pipe(t, b, mqtt.Options{Method: "OAUTH2-JWT", Auth: func(_ context.Context, challenge []byte) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			if challenge != nil && string(challenge) != "prove it" {
				t.Errorf("challenge %q", challenge)
			}
			token := next[0]
			next = next[1:]
			return []byte(token), nil
		}})
		if err := s.Reauthenticate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Publish(t.Context(), msg.Publication{Topic: "a", QoS: 1}); err != nil {
			t.Fatal(err)
		}
		if err := s.Reauthenticate(t.Context()); err == nil || !strings.Contains(err.Error(), "not authorized") {
			t.Fatal(err)
		}
		if got := strings.Join(shown, " "); got != "token-1 answer token-2 bad" {
			t.Fatal(got)
		}
	})
}

func TestCommandsOfOneTopicKeepOrderAndOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := announce(broker.Limits{})
		var mu sync.Mutex
		var order []string
		release := make(chan struct{})
		s := pipe(t, b, mqtt.Options{Receive: func(_ context.Context, p msg.Publication) error {
			if string(p.Payload) == "a1" {
				<-release
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, string(p.Payload))
			return nil
		}})
		if err := s.Subscribe(t.Context(), "#"); err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{"a1", "b1", "a2", "b2"} {
			b.Publish(broker.Message{Topic: m[:1], Payload: []byte(m), QoS: 1})
		}
		synctest.Wait()
		// The acknowledgement of b1 waits for that of a1, as section 4.6 wants.
		if n := b.Unconfirmed("gw1"); n != 4 {
			t.Fatalf("%d unconfirmed", n)
		}
		close(release)
		synctest.Wait()
		if got := strings.Join(order, " "); got != "b1 b2 a1 a2" || b.Unconfirmed("gw1") != 0 {
			t.Fatalf("order %s, %d unconfirmed", got, b.Unconfirmed("gw1"))
		}
	})
}

func TestCommandThatIsNotSettledIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := announce(broker.Limits{})
		tries := 0
		s := pipe(t, b, mqtt.Options{Receive: func(context.Context, msg.Publication) error {
			if tries++; tries < 3 {
				return errors.New("no room")
			}
			return nil
		}})
		if err := s.Subscribe(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		b.Publish(broker.Message{Topic: "a", QoS: 1})
		time.Sleep(time.Minute)
		synctest.Wait()
		if tries != 3 || b.Unconfirmed("gw1") != 0 {
			t.Fatalf("%d tries, %d unconfirmed", tries, b.Unconfirmed("gw1"))
		}
	})
}

func TestEmptyPayloadArrives(t *testing.T) {
	for _, version := range []byte{mqtt.V5, mqtt.V311} {
		synctest.Test(t, func(t *testing.T) {
			b, _ := announce(broker.Limits{})
			got := make(chan msg.Publication, 1)
			s := pipe(t, b, mqtt.Options{Version: version, Receive: func(_ context.Context, p msg.Publication) error { got <- p; return nil }})
			if err := s.Subscribe(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			for _, qos := range []byte{0, 1} {
				b.Publish(broker.Message{Topic: "a", QoS: qos})
				synctest.Wait()
				if s.Context().Err() != nil || len(got) != 1 {
					t.Fatalf("version %d: %v", version, context.Cause(s.Context()))
				}
				<-got
			}
		})
	}
}

func TestWhatEndsTheCallerIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := broker.New(broker.Options{Published: func(string, broker.Message) broker.Verdict { return broker.Verdict{Mute: true} }})
		s := pipe(t, b, mqtt.Options{Window: 1})
		ctx, cancel := context.WithCancelCause(t.Context())
		o := northtest.NewOutcome(3)
		time.AfterFunc(time.Second, func() { cancel(msg.Permanent(errors.New("every message is refused"))) })
		batch := []msg.Publication{{Topic: "a", QoS: 1}, {Topic: "a", QoS: 1}, {Topic: "a", QoS: 1}}
		if err := s.Send(ctx, batch, o.Done); err == nil {
			t.Fatal("no error")
		}
		for i := range batch {
			if n, err := o.Err(i); n != 0 {
				t.Fatalf("publication %d was done: %v", i, err)
			}
		}
	})
}
