package mqtt

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/needs"
	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// The checks here look at what the interoperability suites of Eclipse Paho look at (client_test and client_test5), with
// their topics and payloads. They run against the gateway and, to show that they ask for nothing odd, against mosquitto. Where the suites
// wait for seconds, these wait for an acknowledgement that can only come afterwards.

// interop is one broker under check, and the part of its topic space that a check has for itself.
type interop struct {
	addr    string
	version packet.Version
	prefix  string
	b       *southtest.Bench // nil: mosquitto
}

// The topics and filters of the suites.
func (x *interop) topic(i int) string {
	return x.prefix + []string{"TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA"}[i]
}

func (x *interop) filter(f string) string { return x.prefix + f }

const noSubscribe = "test/nosubscribe"

// dial connects with a client id of the check.
func (x *interop) dial(t *testing.T, id string, change ...func(*packets5.Connect)) (*peer, *packets5.Connack) {
	t.Helper()
	c := &packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: byte(x.version), ClientID: strings.ReplaceAll(x.prefix, "/", "-") + id, CleanStart: true, KeepAlive: 60, Properties: &packets5.Properties{}}
	for _, f := range change {
		f(c)
	}
	p, ack := call(t, x.addr, x.version, c)
	p.b = x.b
	return p, ack
}

// connect is dial for where the broker must say yes.
func (x *interop) connect(t *testing.T, id string, change ...func(*packets5.Connect)) *peer {
	t.Helper()
	p, ack := x.dial(t, id, change...)
	if ack == nil || ack.ReasonCode != 0 {
		t.Fatalf("CONNACK %+v", ack)
	}
	return p
}

// stays makes a session that outlives its connection, in either version.
func stays(c *packets5.Connect) {
	c.CleanStart = false
	c.Properties.SessionExpiryInterval = ptr(uint32(99999))
}

func withWill(topic, payload string, props *packets5.Properties) func(*packets5.Connect) {
	return func(c *packets5.Connect) {
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillProperties = true, topic, []byte(payload), orNone(props)
	}
}

func filterOf(name string, qos byte) packets5.SubOptions {
	return packets5.SubOptions{Topic: name, QoS: qos}
}

// inEveryQoS publishes once with each.
func inEveryQoS(p *peer, retain bool, props func() *packets5.Properties, payload func(qos byte) string, topics ...string) {
	p.t.Helper()
	for qos := range byte(3) {
		var pp *packets5.Properties
		if props != nil {
			pp = props()
		}
		p.publish(packets5.Publish{Topic: topics[int(qos)%len(topics)], Payload: []byte(payload(qos)), QoS: qos, Retain: retain, Properties: pp})
	}
}

func qosText(qos byte) string { return fmt.Sprintf("qos %d", qos) }
func nothing(byte) string     { return "" }

// eachQoS asserts that the messages have QoS 0, 1 and 2.
func eachQoS(t *testing.T, list []*packets5.Publish) {
	t.Helper()
	var all []byte
	for _, m := range list {
		all = append(all, m.QoS)
	}
	if slices.Sort(all); !slices.Equal(all, []byte{0, 1, 2}) {
		t.Errorf("heard with QoS %v, want 0, 1 and 2", all)
	}
}

// someUser are the user properties of the suites.
func someUser() *packets5.Properties {
	return &packets5.Properties{User: []packets5.User{{Key: "a", Value: "2"}, {Key: "c", Value: "3"}}}
}

func hasUser(t *testing.T, x *interop, m *packets5.Publish) {
	t.Helper()
	if x.version == packet.V5 && !slices.Equal(m.Properties.User, someUser().User) {
		t.Errorf("user properties %v", m.Properties.User)
	}
}

func TestInterop(t *testing.T) {
	var both sync.WaitGroup // as they mostly wait for time to pass, they all run at once, however few processors there are
	both.Go(func() { t.Run("gateway", interopGateway) })
	both.Go(func() { t.Run("mosquitto", interopMosquitto) })
	both.Wait()
}

func interopGateway(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) {
		c.MaxKeepAlive, c.MaxPacket, c.ReceiveMaximum = config.Duration(time.Minute), 4096, 20
	}))
	b.Allow(func(_ *auth.Identity, op auth.Op, s string) bool {
		return strings.TrimPrefix(s, "/") != noSubscribe || op != auth.Subscribe && op != auth.Command
	})
	checkInterop(t, b.Addr.String(), b, nil)
}

func interopMosquitto(t *testing.T) {
	checkInterop(t, mosquittoBroker(t), nil, map[string]string{
		"overlapping subscriptions":           "mosquitto takes the QoS of whichever subscription it comes upon first",
		"subscription identifiers":            "mosquitto sends a message to overlapping subscriptions twice",
		"the server sends with topic aliases": "mosquitto uses no aliases of its own",
		"more publishes than the maximum":     "mosquitto does not count",
		"a will goes with its session":        "mosquitto waits for the whole delay",
	})
}

// checkInterop runs all checks. apart says which are not for this broker, and why.
func checkInterop(t *testing.T, addr string, b *southtest.Bench, apart map[string]string) {
	var all sync.WaitGroup
	defer all.Wait()
	run := func(version packet.Version, name string, check func(*testing.T, *interop), n int) {
		all.Go(func() {
			t.Run(fmt.Sprintf("%s in %d", name, version), func(t *testing.T) {
				if why := apart[name]; why != "" {
					t.Skip(why)
				}
				check(t, &interop{addr, version, fmt.Sprintf("i%d-%d/", version, n), b})
			})
		})
	}
	n := 0
	for name, check := range interopBoth {
		n++
		run(packet.V311, name, check, n)
		run(packet.V5, name, check, n)
	}
	for name, check := range interopV5 {
		n++
		run(packet.V5, name, check, n)
	}
}

// mosquittoBroker starts mosquitto with the limits that the gateway has here, and gives its address.
func mosquittoBroker(t *testing.T) string {
	t.Helper()
	broker := needs.Program(t, "mosquitto")
	dir := t.TempDir()
	rules, conf := filepath.Join(dir, "rules.json"), filepath.Join(dir, "mosquitto.conf")
	text := "allow_anonymous true\nmax_keepalive 60\nmax_packet_size 4096\npersistence false\nlog_type none\nuser root\n"
	// Its files of rules know nothing of subscriptions; its plugin does.
	plugins, err := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	if err != nil {
		t.Fatal(err)
	}
	if len(plugins) == 0 {
		needs.Missing(t, "mosquitto has no plugin for rules")
	}
	text += fmt.Sprintf("plugin %s\nplugin_opt_config_file %s\n", plugins[0], rules)
	if err := os.WriteFile(rules, []byte(`{
		"defaultACLAccess": {"publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true},
		"anonymousGroup": "all", "clients": [], "groups": [{"groupname": "all", "roles": [{"rolename": "all"}]}],
		"roles": [{"rolename": "all", "acls": [{"acltype": "subscribeLiteral", "topic": "`+noSubscribe+`", "priority": 1, "allow": false}]}]
	}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().(*net.TCPAddr)
		ln.Close()
		if err := os.WriteFile(conf, fmt.Appendf(nil, "listener %d 127.0.0.1\n%s", addr.Port, text), 0o600); err != nil {
			t.Fatal(err)
		}
		if serves(t, exec.Command(broker, "-c", conf), addr.String()) {
			return addr.String()
		} // another has taken the port meanwhile
	}
	t.Fatal("mosquitto does not serve")
	return ""
}

// TestSubscribeBeforePublish: a SUBSCRIBE that was sent before another client's PUBLISH takes effect before it. No broker can promise that
// (see the package's doc), so a few may go wrong here.
func TestSubscribeBeforePublish(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	const rounds = 40
	missed := 0
	for i := range rounds {
		sub, _ := connect5(t, b, "sub", nil)
		pub, _ := connect5(t, b, "pub", nil)
		time.Sleep(2 * silence) // as somebody publishes who has not published for a while
		topic := "race/" + numbered(i)
		sub.send(&packets5.Subscribe{PacketID: 1, Properties: &packets5.Properties{}, Subscriptions: []packets5.SubOptions{{Topic: topic}}})
		pub.send(&packets5.Publish{Topic: topic, Properties: &packets5.Properties{}})
		pub.send(&packets5.Pingreq{})
		expect[*packets5.Pingresp](pub)
		sub.send(&packets5.Pingreq{})
		heard := false
		for {
			p, err := sub.read(patience)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := p.(*packets5.Publish); ok {
				heard = true
			}
			if _, ok := p.(*packets5.Pingresp); ok {
				break
			}
		}
		if !heard {
			missed++
		}
	}
	if missed > rounds/4 {
		t.Errorf("%d of %d subscriptions came too late", missed, rounds)
	}
}
