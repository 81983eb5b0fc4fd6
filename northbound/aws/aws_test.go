package aws_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/aws"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

type tokens string

func (t tokens) Token(context.Context, string) (string, time.Time, error) {
	if t == "" {
		return "", time.Time{}, errors.New("the issuer is down")
	}
	return string(t), time.Now().Add(time.Hour), nil
}

func (tokens) Reject(string, string) {}

func connector(t testing.TB, a *northtest.AWS, ring *northtest.Keys, token northbound.Tokens, change func(*aws.Config)) northbound.Connector {
	t.Helper()
	if ring == nil {
		ring = &northtest.Keys{}
	}
	if ring.Certificates == nil {
		ring.Certificates = map[string]tls.Certificate{"identity": a.CA.Certificate(t, broker.Subject{Name: "gw1"})}
	}
	env, _ := northtest.Env(t, ring)
	env.Tokens, env.Now = token, a.Now
	c := aws.Kind().Config().(*aws.Config)
	c.Endpoint, c.CA, c.Key, c.Rate = strings.Replace(a.Addr, "127.0.0.1", "localhost", 1), config.Path(a.CA.File(t)), "identity", 1e6
	if change != nil {
		change(c)
	}
	return open(t, env, c)
}

func open(t testing.TB, env northbound.Env, c *aws.Config) northbound.Connector {
	t.Helper()
	conn, err := aws.Kind().Open(env, c)
	if err != nil {
		t.Fatal(err)
	}
	aws.SetBetween(conn, 0)
	return conn
}

// send sends one publication and waits until it is done.
func send(t *testing.T, s northbound.Session, topic, payload string) error {
	t.Helper()
	return northtest.Send(t, s, msg.Publication{Topic: topic, Payload: []byte(payload)})
}

func TestWhatWouldCostTheConnectionIsNotSent(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	s := northtest.Dial(t, connector(t, a, nil, nil, nil), &northtest.Downlink{})
	for topic, ok := range map[string]bool{
		"1/2/3/4/5/6/7/8": true, "1/2/3/4/5/6/7/8/9": false, "$aws/rules/r/1/2/3/4/5/6/7/8": true, "$aws/rules/r/1/2/3/4/5/6/7/8/9": false,
		strings.Repeat("x", 256): true, strings.Repeat("x", 257): false,
	} {
		if err := send(t, s, topic, "{}"); ok && err != nil || !ok && !msg.IsPermanent(err) {
			t.Errorf("%s: %v", topic, err)
		}
	}
	if err := send(t, s, "dt/x", strings.Repeat("x", 128<<10)); err != nil {
		t.Error(err)
	}
	if s.Context().Err() != nil {
		t.Fatal(context.Cause(s.Context()))
	}
}

func TestBasicIngestPutsTheRuleInFront(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	s := northtest.Dial(t, connector(t, a, nil, nil, func(c *aws.Config) { c.BasicIngest = "plant" }), &northtest.Downlink{})
	if err := send(t, s, "1/2/3/4/5/6/7/8", "{}"); err != nil {
		t.Fatal(err)
	}
	if m := a.Messages(); m[0].Topic != "$aws/rules/plant/1/2/3/4/5/6/7/8" {
		t.Fatal(m[0].Topic)
	}
}

func TestShadowReportIsConfirmedByTheShadow(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	s := northtest.Dial(t, connector(t, a, nil, nil, nil), &northtest.Downlink{})
	for _, test := range []struct {
		prefix, payload, want string
		ok                    bool
	}{
		{"$aws/things/th-1/shadow", `{"temp":21}`, `{"temp":21}`, true},
		{"$aws/things/th-1/shadow/name/hvac", `{"state":{"reported":{"mode":"eco"}}}`, `{"mode":"eco"}`, true},
		{"$aws/things/th-1/shadow", `{"state":{"reported":{"temp":9}},"version":77}`, `{"temp":21}`, false}, // version conflict
		{"$aws/things/th-1/shadow", `[1]`, `{"temp":21}`, false},
		{"$aws/things/th-1/shadow", `{"big":"` + strings.Repeat("x", 8<<10) + `"}`, `{"temp":21}`, false},
	} {
		err := send(t, s, test.prefix+"/update", test.payload)
		if test.ok && err != nil || !test.ok && !msg.IsPermanent(err) {
			t.Errorf("%.60s: %v", test.payload, err)
		}
		if got, _ := json.Marshal(a.Reported(test.prefix)); string(got) != test.want {
			t.Errorf("%.60s: reported %s", test.payload, got)
		}
	}
}

func TestDesiredStateArrivesLiveAndAfterAnAbsence(t *testing.T) {
	for _, filter := range []string{"$aws/things/th-1/shadow/update/delta", "$aws/things/+/shadow/update/delta"} {
		t.Run(filter, func(t *testing.T) {
			a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
			c := connector(t, a, nil, nil, func(c *aws.Config) { c.SessionExpiry = 0 }) // nothing is kept but the shadow
			d := &northtest.Downlink{Filters: []string{filter}}
			s := northtest.Dial(t, c, d)
			a.Desire("$aws/things/th-1/shadow", map[string]any{"setpoint": 20})
			want := func(payload string) {
				t.Helper()
				northtest.Await(t, payload, func() bool {
					got := d.Got()
					return len(got) > 0 && got[len(got)-1].Topic == "$aws/things/th-1/shadow/update/delta" &&
						strings.Contains(string(got[len(got)-1].Payload), payload)
				})
			}
			want(`"setpoint":20`)
			s.Close()
			a.Desire("$aws/things/th-1/shadow", map[string]any{"setpoint": 22})
			s = northtest.Dial(t, c, d)
			if strings.Contains(filter, "+") { // things are known by their reports
				if err := send(t, s, "$aws/things/th-1/shadow/update", `{"temp":19}`); err != nil {
					t.Fatal(err)
				}
			}
			want(`"setpoint":22`)
			s.Close()
			before := len(d.Got())
			northtest.Dial(t, c, d)
			// A delta that is older than what was delivered does not undo it; nor is what was delivered delivered again.
			a.Publish(broker.Message{Topic: "$aws/things/th-1/shadow/update/delta", Payload: []byte(`{"version":1,"state":{"setpoint":1}}`), QoS: 1})
			a.Desire("$aws/things/th-1/shadow", map[string]any{"setpoint": 23})
			want(`"setpoint":23`)
			if n := len(d.Got()); n != before+1 {
				t.Fatalf("%d deliveries after the last connect: %s", n-before, d.Got()[before].Payload)
			}
		})
	}
}

func TestJobsAreCarriedOutAndTold(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	c := connector(t, a, nil, nil, nil)
	a.AddJob("th-1", "before", map[string]any{"op": "reboot"})
	down := &jobs{}
	s, err := c.Dial(t.Context(), down)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	is := func(id, status, history string) {
		t.Helper()
		northtest.Await(t, id, func() bool { return a.Job("th-1", id).Status == status })
		if got := strings.Join(a.Job("th-1", id).History, " "); got != history {
			t.Fatalf("%s: %s", id, got)
		}
	}
	is("before", "SUCCEEDED", "IN_PROGRESS SUCCEEDED")
	a.AddJob("th-1", "fails", nil)
	is("fails", "FAILED", "IN_PROGRESS FAILED")
	if d := a.Job("th-1", "fails").Details; d["code"] != "5.00" || d["answer"] != "no hands" {
		t.Fatalf("details: %v", d)
	}
	a.AddJob("th-1", "denied", nil)
	is("denied", "REJECTED", "IN_PROGRESS REJECTED")
	if got := strings.Join(down.got, " "); got != "before fails denied" {
		t.Fatalf("carried out: %s", got)
	}
}

type jobs struct{ got []string }

func (*jobs) Topics() []string { return []string{"$aws/things/th-1/jobs/notify-next"} }

func (j *jobs) Deliver(_ context.Context, p msg.Publication) (msg.Reply, error) {
	var doc struct{ Execution struct{ JobID string } }
	if err := json.Unmarshal(p.Payload, &doc); err != nil {
		return msg.Reply{}, err
	}
	j.got = append(j.got, doc.Execution.JobID)
	switch doc.Execution.JobID {
	case "fails":
		return msg.Reply{Status: msg.Refused, Code: "5.00", Payload: []byte("no hands")}, nil
	case "denied":
		return msg.Reply{Status: msg.Refused, Code: "denied"}, nil
	}
	return msg.Reply{Status: msg.Done, Code: "2.04"}, nil
}

func TestCredentialsAreKeptAndRenewed(t *testing.T) {
	for lifetime, issued := range map[time.Duration]int{time.Hour: 1, 4 * time.Minute: 2} {
		a := northtest.NewAWS(t, "mqtt")
		a.Web(t)
		a.Lifetime = lifetime
		c := connector(t, a, nil, tokens("good token"), func(c *aws.Config) {
			c.Auth, c.Key, c.Token, c.Region, c.RoleARN, c.STS = "sigv4", "", "id", "eu-central-1", "arn:aws:iam::1:role/gw", a.STS(t)
		})
		for range 2 {
			northtest.Dial(t, c, &northtest.Downlink{}).Close()
		}
		if n := a.Issued(); n != issued {
			t.Errorf("credentials of %s were issued %d times", lifetime, n)
		}
	}
}

func TestLoginSaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		token     tokens
		change    func(t *testing.T, a *northtest.AWS, c *aws.Config)
		want      string
		permanent bool
	}{
		"an authorizer that says no": {"bad token", func(_ *testing.T, _ *northtest.AWS, c *aws.Config) {
			c.Auth, c.Token, c.Authorizer = "authorizer", "id", "plant"
		}, "AWS IoT does not let this client id in: the policy does not allow iot:Connect, or the authorizer said no (", true},
		"an issuer that is down": {"", func(_ *testing.T, _ *northtest.AWS, c *aws.Config) {
			c.Auth, c.Token, c.Authorizer = "authorizer", "id", "plant"
		}, "token id: the issuer is down", false},
		"an expired token at STS": {"old token", func(t *testing.T, a *northtest.AWS, c *aws.Config) {
			c.Auth, c.Token, c.Region, c.RoleARN, c.STS = "sigv4", "id", "eu-central-1", "arn:aws:iam::1:role/gw", a.STS(t)
		}, "the token had ended before it was exchanged for credentials (", true},
		"a thing that is not attached": {"", func(t *testing.T, a *northtest.AWS, c *aws.Config) {
			c.Auth, c.Region, c.RoleAlias, c.Credentials, c.Thing = "sigv4", "eu-central-1", "gateway", a.Provider(t), "gw2"
		}, "the credentials provider gives this certificate no credentials (", true},
		"a wrong region": {"good token", func(t *testing.T, a *northtest.AWS, c *aws.Config) {
			c.Auth, c.Token, c.Region, c.RoleARN, c.STS = "sigv4", "id", "us-east-1", "arn:aws:iam::1:role/gw", a.STS(t)
			a.Web(t)
			c.Endpoint = a.Addr
		}, "AWS does not take the signature of the request (", false},
	} {
		t.Run(name, func(t *testing.T) {
			a := northtest.NewAWS(t, "mqtt")
			c := connector(t, a, nil, test.token, func(c *aws.Config) { test.change(t, a, c) })
			var err error
			for range 2 { // a token that is refused gets a second chance
				var s northbound.Session
				if s, err = c.Dial(t.Context(), &northtest.Downlink{}); err == nil {
					s.Close()
					t.Fatal("dialled")
				}
			}
			text, _ := health.Words(err, time.Now())
			if !strings.HasPrefix(text, test.want) || msg.IsPermanent(err) != test.permanent {
				t.Fatalf("permanent %t: %v", msg.IsPermanent(err), text)
			}
			for _, secret := range []string{"X-Amz", "good token", "bad token", "old token", "session of"} {
				if strings.Contains(err.Error(), secret) {
					t.Fatalf("a secret is in %q", err)
				}
			}
		})
	}
}

func TestLoginsKeepTheirDistance(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	c := connector(t, a, nil, nil, nil)
	aws.SetBetween(c, 100*time.Millisecond)
	began := time.Now()
	for range 3 {
		northtest.Dial(t, c, &northtest.Downlink{}).Close()
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Fatalf("three log-ins in %s", took)
	}
}

func TestExamineTakesEveryStep(t *testing.T) {
	a := northtest.NewAWS(t, "x-amzn-mqtt-ca")
	var names []string
	connector(t, a, nil, nil, nil).(northbound.Examined).Examine(t.Context(), func(s northbound.Step) {
		names = append(names, s.Name)
		if s.Err != nil {
			t.Errorf("%s: %v", s.Name, s.Err)
		}
	})
	if got := strings.Join(names, " "); got != "name tcp tls log-in publish echo" {
		t.Fatal(got)
	}
}

func TestExampleIsRight(t *testing.T) {
	kinds := config.Kinds{Connectors: map[string]func() any{"aws": aws.Kind().Config}}
	text := "[gateway]\nid = \"gw1\"\n[key.identity]\nuri = \"file:identity.key\"\n" + aws.Kind().Example
	if _, err := config.Parse(filepath.Join(t.TempDir(), "drawbridge.toml"), []byte(text), kinds); err != nil {
		t.Fatal(err)
	}
}
