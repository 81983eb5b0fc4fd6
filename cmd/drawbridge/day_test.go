package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
	"github.com/drawbridge/drawbridge/southbound"
)

// dayFile is the gateway of a simulated day: one cloud takes tokens again on a running connection, the other ends the connection with its token.
const dayFile = `
[gateway]
id = "gw1"
[key.client]
uri = "file:client.key"
[token.id]
token_url = "https://localhost:9443/token"
client_id = "gw1"
key       = "client"
[[allow]]
op        = "report"
resources = ["/{rest...}"]
[[uplink]]
name     = "all"
resource = "/{kind}"
to       = ["grid", "aws"]
topic    = "dt/{gateway}/{device}/{kind}"
[connector.grid]
type     = "azure"
service  = "eventgrid"
endpoint = "localhost:8883"
auth     = "oauth"
token    = "id"
ca       = "ca.pem"
[connector.aws]
type     = "aws"
endpoint = "localhost:8443"
auth     = "authorizer"
token    = "id"
authorizer = "plant"
ca       = "ca.pem"
`

// dayCloud is a broker that ends the connection of whoever's token has ended.
type dayCloud struct {
	*broker.Broker
	mu      sync.Mutex
	shown   string          // guarded by mu: the last good token
	logins  int             // guarded by mu
	refused int             // guarded by mu
	renewed int             // guarded by mu: on a running connection
	cut     int             // guarded by mu
	got     map[string]bool // guarded by mu
}

func newDayCloud(t *testing.T, n *northtest.Net, address string, ca northtest.CA, hooks broker.Options) *dayCloud {
	t.Helper()
	c := &dayCloud{got: map[string]bool{}}
	admit, again := hooks.Admit, hooks.Auth
	hooks.Admit = func(l *broker.Login) broker.Answer {
		a := admit(l)
		c.mu.Lock()
		defer c.mu.Unlock()
		if a.Code != 0 {
			c.refused++
			return a
		}
		c.logins++
		if c.shown = string(l.Data); len(l.Data) == 0 {
			c.shown = string(l.Password)
		}
		return a
	}
	if again != nil {
		hooks.Auth = func(client, method string, data []byte) (byte, []byte) {
			code, answer := again(client, method, data)
			if code == 0 {
				c.mu.Lock()
				c.shown = string(data)
				c.renewed++
				c.mu.Unlock()
			}
			return code, answer
		}
	}
	published := hooks.Published
	hooks.Published = func(client string, m broker.Message) broker.Verdict {
		if published != nil {
			if v := published(client, m); v != (broker.Verdict{}) {
				return v
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got[string(m.Payload)] = true
		return broker.Verdict{}
	}
	c.Broker = broker.New(hooks)
	server := ca.Server(t)
	server.ClientAuth = tls.NoClientCert
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var served sync.WaitGroup
	served.Go(func() { c.Serve(ctx, tls.NewListener(n.Listen(address), server)) })
	t.Cleanup(func() {
		cancel()
		served.Wait()
	})
	return c
}

// enforce drops whoever's token has ended.
func (c *dayCloud) enforce(good func(string) bool) {
	c.mu.Lock()
	shown := c.shown
	c.mu.Unlock()
	if shown != "" && !good(shown) {
		c.mu.Lock()
		c.cut += c.Drop("")
		c.shown = ""
		c.mu.Unlock()
	}
}

func (c *dayCloud) missing(n int) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		if payload := fmt.Sprint(i); !c.got[payload] {
			list = append(list, payload)
		}
	}
	return list
}

// TestProveDayOfShortTokens simulates a day with tokens of five minutes, from an issuer that is away one hour in four and whose clock drifts
// by ten minutes: nothing is lost, there are no more log-ins than there have to be, and the cloud that takes new tokens on a running
// connection sees no disconnect but those of the outages.
func TestProveDayOfShortTokens(t *testing.T) {
	hours := 8
	if os.Getenv("DRAWBRIDGE_PROVE") != "" {
		hours = 24
	}
	synctest.Test(t, func(t *testing.T) { simulateDay(t, hours) })
}

func simulateDay(t *testing.T, hours int) {
	dir := t.TempDir()
	ca := northtest.NewCA(t)
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var wires northtest.Net
	issuer := northtest.NewIssuer(t, ca, client.Public())
	issuer.ListenOn(t, wires.Listen("localhost:9443"), "localhost:9443")
	grid := newDayCloud(t, &wires, "localhost:8883", ca, northtest.GridOptions("OAUTH2-JWT", issuer.Good))
	aws := newDayCloud(t, &wires, "localhost:8443", ca, broker.Options{Admit: func(l *broker.Login) broker.Answer {
		if l.Username != "?x-amz-customauthorizer-name=plant" || !issuer.Good(string(l.Password)) {
			return broker.Answer{Code: 0x87}
		}
		return broker.Answer{Limits: broker.Limits{ReceiveMaximum: 100}}
	}})

	built := kinds()
	cfg, err := config.Parse(filepath.Join(dir, "drawbridge.toml"), []byte(dayFile), built.config())
	if err != nil {
		t.Fatal(err)
	}
	table, err := bridge.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	tracker := health.New(log, time.Now)
	ring := &northtest.Keys{Signers: map[string]crypto.Signer{"client": client}}
	tokens := issuer.Tokens(t, ring, wires.Dial)
	realm, err := auth.NewRealm(t.Context(), cfg, auth.Options{Log: log, Health: tracker, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer realm.Close()
	queue, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bridge.Open(bridge.Options{Spool: queue, Dir: dir, Log: log, Health: tracker, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	clouds := map[string]northbound.Connector{}
	for name, c := range cfg.Connectors {
		state := t.TempDir()
		clouds[name], err = built.connectors[c.Type].Open(northbound.Env{
			Name: name, Gateway: "gw1", Log: log, Health: tracker.For("connector " + name), Keys: ring, Tokens: tokens, State: state,
			Now: time.Now, Dial: wires.Dial,
		}, c.Own)
		if err != nil {
			t.Fatal(err)
		}
	}
	b.Swap(bridge.Setup{Table: table, Policy: realm, Connectors: clouds})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var tasks sync.WaitGroup
	for name := range clouds {
		tasks.Go(func() { b.RunConnector(ctx, name, stillTask{}) })
	}

	const every = time.Minute
	reports := 0
	for began := time.Now(); time.Since(began) < time.Duration(hours)*time.Hour; time.Sleep(every) {
		gone := time.Since(began)
		issuer.Down(int(gone/time.Hour)%4 == 3)
		issuer.Drift(gone * 10 / time.Duration(60*hours)) // ten minutes in the end
		grid.enforce(issuer.Good)
		aws.enforce(issuer.Good)
		m := &msg.Message{ID: msg.NewID(time.Now()), Time: time.Now(), Device: "th-1", Method: "POST", Resource: "/temp", Payload: fmt.Append(nil, reports)}
		if err := southbound.Accept(ctx, b, m); err != nil {
			t.Fatal(err)
		}
		reports++
	}
	issuer.Down(false)
	time.Sleep(10 * time.Minute) // longer than any pause

	cancel()
	tasks.Wait()
	for _, line := range b.Snapshot().Ledger {
		if line.Accepted != uint64(reports) || line.Delivered != line.Accepted {
			t.Errorf("%+v", line)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := queue.Close(); err != nil {
		t.Error(err)
	}
	outages := hours / 4
	asked, issued := issuer.Counts()
	for name, c := range map[string]*dayCloud{"grid": grid, "aws": aws} {
		lost := c.missing(reports)
		if len(lost) > 0 {
			t.Errorf("%s: %.200v did not arrive", name, lost)
		}
		t.Logf("prove: %s: %d reports in %d simulated hours, %d lost; %d log-ins, %d refused, %d renewals on a running connection, %d connections ended by the cloud",
			name, reports, hours, len(lost), c.logins, c.refused, c.renewed, c.cut)
	}
	t.Logf("prove: the issuer was asked %d times and gave %d tokens, over %d outages of an hour", asked, issued, outages)
	up := hours - outages
	if grid.cut > outages+1 || grid.logins > 2*outages+1 || grid.refused > 0 {
		t.Errorf("grid: %d log-ins, %d refused, %d connections ended", grid.logins, grid.refused, grid.cut)
	}
	if grid.renewed < up*3600/300 || grid.renewed > issued {
		t.Errorf("grid: %d renewals with %d tokens", grid.renewed, issued)
	}
	if most := up*3600/200 + 2*outages; aws.logins > most || aws.refused > outages {
		t.Errorf("aws: %d log-ins, %d refused; %d are enough", aws.logins, aws.refused, most)
	}
	if most := up*3600/200 + outages*45; asked > most {
		t.Errorf("the issuer was asked %d times; %d are enough", asked, most)
	}
}

// stillTask is a task that nobody watches.
type stillTask struct{}

func (stillTask) Progress(time.Duration) {}
func (stillTask) Waiting()               {}
