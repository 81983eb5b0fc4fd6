package northtest

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// AWS is an AWS IoT Core in this process: its ways of logging in, its limits, shadows, jobs, STS and the credentials provider.
type AWS struct {
	*Broker
	// What a log-in must show, by the way it is made.
	ALPN       string            // over MQTT: "x-amzn-mqtt-ca" or "mqtt"
	Token      string            // what authorizer and STS accept
	Good       func(string) bool // the same, for tokens that change; nil: Token alone
	SigningKey *rsa.PublicKey    // of the authorizer; nil: signing is off
	Region     string
	Lifetime   time.Duration    // of credentials
	Now        func() time.Time // the clock
	// Policy tells whom the policy of a certificate lets in; nil: whoever comes.
	Policy func(*broker.Login) bool

	asked    chan *http.Request // of STS; nil: nobody looks
	services chan broker.Message
	mu       sync.Mutex
	shadows  map[string]*shadow // guarded by mu; by prefix
	jobs     map[string][]*Job  // guarded by mu; by thing
	issued   int                // guarded by mu; credentials
}

type shadow struct {
	desired, reported map[string]any
	version           int
}

// Job is a job execution of a thing.
type Job struct {
	ID       string
	Document any
	Status   string // "QUEUED" at first
	History  []string
	Details  map[string]string
}

const roleSecret = "northtest role secret"

// NewAWS starts one. Its MQTT listener wants ALPN alpn and, for "x-amzn-mqtt-ca", a client certificate.
func NewAWS(t testing.TB, alpn string) *AWS {
	t.Helper()
	a := &AWS{
		ALPN: alpn, Token: "good token", Region: "eu-central-1", Lifetime: time.Hour, Now: time.Now,
		services: make(chan broker.Message, 10_000), shadows: map[string]*shadow{}, jobs: map[string][]*Job{},
	}
	a.Broker = NewBroker(t, broker.Options{Admit: a.admit, Published: a.judge, Web: a.web})
	config := a.CA.Server(t)
	config.NextProtos = []string{alpn}
	if alpn != "x-amzn-mqtt-ca" {
		config.ClientAuth = tls.NoClientCert
	}
	a.Listen(t, config)
	stop := a.Watch("$aws/#", func(m broker.Message) {
		if m.From != "" {
			a.services <- m
		}
	})
	var served sync.WaitGroup
	served.Go(func() {
		for m := range a.services {
			a.serve(m)
		}
	})
	t.Cleanup(func() {
		stop()
		close(a.services)
		served.Wait()
	})
	return a
}

// Web serves MQTT over WebSocket, for SigV4, from then on.
func (a *AWS) Web(t testing.TB) {
	t.Helper()
	config := a.CA.Server(t)
	config.ClientAuth = tls.NoClientCert
	a.ListenWeb(t, config)
}

func (a *AWS) admit(l *broker.Login) broker.Answer {
	limits := broker.Limits{ReceiveMaximum: 100, MaximumPacketSize: 149_504, MaximumQoS: new(byte), TopicAliasMaximum: 8}
	*limits.MaximumQoS = 1
	no := broker.Answer{Code: 0x87}
	switch {
	case len(l.ClientID) > 128 || l.ClientID == "":
		return broker.Answer{Code: 0x85}
	case l.Request != nil: // the signature has been looked at
	case l.TLS.ServerName == "" && l.TLS.NegotiatedProtocol != a.ALPN:
		return broker.Answer{Drop: true}
	case a.ALPN == "mqtt" && !a.authorized(l), a.Policy != nil && !a.Policy(l):
		return no
	}
	return broker.Answer{Limits: limits}
}

// authorized is the custom authorizer "plant".
func (a *AWS) authorized(l *broker.Login) bool {
	_, query, ok := strings.Cut(l.Username, "?")
	values, err := url.ParseQuery(query)
	if !ok || err != nil || values.Get("x-amz-customauthorizer-name") != "plant" {
		return false
	}
	if a.SigningKey == nil {
		return a.good(string(l.Password))
	}
	token := values.Get("bearer")
	signature, err := base64.StdEncoding.DecodeString(values.Get("x-amz-customauthorizer-signature"))
	sum := sha256.Sum256([]byte(token))
	return err == nil && a.good(token) && rsa.VerifyPKCS1v15(a.SigningKey, crypto.SHA256, sum[:], signature) == nil
}

func (a *AWS) good(token string) bool {
	if a.Good != nil {
		return a.Good(token)
	}
	return token == a.Token
}

// judge enforces what AWS enforces without saying so.
func (a *AWS) judge(_ string, m broker.Message) broker.Verdict {
	levels := m.Topic
	if rest, ok := strings.CutPrefix(m.Topic, "$aws/rules/"); ok {
		_, levels, _ = strings.Cut(rest, "/")
	}
	if len(m.Payload) > 128<<10 || len(m.Topic) > 256 || strings.Count(levels, "/") > 7 {
		return broker.Verdict{Drop: true}
	}
	return broker.Verdict{}
}

// web checks the signature of a WebSocket handshake. It is written from the algorithm, not from the connector.
func (a *AWS) web(r *http.Request) int {
	q := r.URL.Query()
	day, _, _ := strings.Cut(q.Get("X-Amz-Date"), "T")
	scope := fmt.Sprintf("%s/%s/iotdevicegateway/aws4_request", day, a.Region)
	id, ok := strings.CutSuffix(q.Get("X-Amz-Credential"), "/"+scope)
	signed, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	if r.URL.Path != "/mqtt" || !ok || err != nil || a.Now().Sub(signed).Abs() > 5*time.Minute || q.Get("X-Amz-Security-Token") != "session of "+id {
		return http.StatusForbidden
	}
	var names []string
	for name := range q {
		if name != "X-Amz-Signature" && name != "X-Amz-Security-Token" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = name + "=" + strings.ReplaceAll(url.QueryEscape(q.Get(name)), "+", "%20")
	}
	empty := sha256.Sum256(nil)
	canonical := sha256.Sum256([]byte(strings.Join([]string{"GET", "/mqtt", strings.Join(names, "&"), "host:" + r.Host, "", "host", hex.EncodeToString(empty[:])}, "\n")))
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", q.Get("X-Amz-Date"), scope, hex.EncodeToString(canonical[:])}, "\n")
	sum := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	key := sum(sum(sum(sum([]byte("AWS4"+roleSecret), day), a.Region), "iotdevicegateway"), "aws4_request")
	if !hmac.Equal([]byte(hex.EncodeToString(sum(key, toSign))), []byte(q.Get("X-Amz-Signature"))) {
		return http.StatusForbidden
	}
	return 0
}

// Asked gives the requests to STS from then on, up to ten. Call it before STS.
func (a *AWS) Asked() <-chan *http.Request {
	a.asked = make(chan *http.Request, 10)
	return a.asked
}

// STS serves AssumeRoleWithWebIdentity, and gives its URL.
func (a *AWS) STS(t testing.TB) string {
	t.Helper()
	return a.https(t, tls.NoClientCert, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm() // what cannot be parsed is not there
		if a.asked != nil {
			a.asked <- r
		}
		if r.FormValue("Action") != "AssumeRoleWithWebIdentity" || r.FormValue("Version") != "2011-06-15" || r.FormValue("RoleArn") == "" || r.FormValue("RoleSessionName") == "" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>ValidationError</Code><Message>bad</Message></Error></ErrorResponse>`)
			return
		}
		if !a.good(r.FormValue("WebIdentityToken")) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>ExpiredTokenException</Code><Message>Token expired</Message></Error><RequestId>x</RequestId></ErrorResponse>`)
			return
		}
		id, until := a.issue()
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Audience>x</Audience><Credentials><SessionToken>session of %s</SessionToken><SecretAccessKey>%s</SecretAccessKey><Expiration>%s</Expiration><AccessKeyId>%s</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>x</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>`,
			id, roleSecret, until.UTC().Format("2006-01-02T15:04:05.000Z"), id)
	})
}

// Provider serves the IoT credentials provider for role alias "gateway" and thing "gw1", and gives its host:port.
func (a *AWS) Provider(t testing.TB) string {
	t.Helper()
	u := a.https(t, tls.RequireAndVerifyClientCert, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/role-aliases/gateway/credentials" || r.Header.Get("x-amzn-iot-thingname") != "gw1" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"message":"Access Denied"}`)
			return
		}
		id, until := a.issue()
		json.NewEncoder(w).Encode(map[string]any{"credentials": map[string]string{
			"accessKeyId": id, "secretAccessKey": roleSecret, "sessionToken": "session of " + id, "expiration": until.UTC().Format(time.RFC3339),
		}})
	})
	return strings.TrimPrefix(u, "https://")
}

func (a *AWS) https(t testing.TB, auth tls.ClientAuthType, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(f)
	s.TLS = a.CA.Server(t)
	s.TLS.ClientAuth = auth
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func (a *AWS) issue() (id string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issued++
	return fmt.Sprintf("ASIA%d", a.issued), a.Now().Add(a.Lifetime)
}

// Issued counts the credentials that were given out.
func (a *AWS) Issued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issued
}

// serve is shadows and jobs.
func (a *AWS) serve(m broker.Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.Topic == "$aws/certificates/create-from-csr/json" {
		a.certify(m)
	} else if m.Topic == "$aws/provisioning-templates/plant/provision/json" {
		a.register(m)
	} else if prefix, op, ok := strings.Cut(m.Topic, "/update"); ok && op == "" && strings.Contains(prefix, "/shadow") {
		a.update(prefix, m.Payload)
	} else if prefix, ok := strings.CutSuffix(m.Topic, "/get"); ok && strings.Contains(prefix, "/shadow") {
		a.get(prefix)
	} else if thing, op, ok := strings.Cut(strings.TrimPrefix(m.Topic, "$aws/things/"), "/jobs/"); ok {
		a.job(thing, op, m)
	}
}

func (a *AWS) reply(topic string, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	a.Publish(broker.Message{Topic: topic, Payload: data, QoS: 1})
}

// update is guarded by mu.
func (a *AWS) update(prefix string, payload []byte) {
	var r struct {
		State   struct{ Desired, Reported map[string]any }
		Version int
		Token   string `json:"clientToken"`
	}
	if err := json.Unmarshal(payload, &r); err != nil {
		a.reply(prefix+"/update/rejected", map[string]any{"code": 400, "message": err.Error(), "clientToken": r.Token})
		return
	}
	s := a.shadows[prefix]
	if s == nil {
		s = &shadow{desired: map[string]any{}, reported: map[string]any{}}
		a.shadows[prefix] = s
	}
	if r.Version != 0 && r.Version != s.version {
		a.reply(prefix+"/update/rejected", map[string]any{"code": 409, "message": "Version conflict", "clientToken": r.Token})
		return
	}
	maps.Copy(s.desired, r.State.Desired)
	maps.Copy(s.reported, r.State.Reported)
	s.version++
	a.reply(prefix+"/update/accepted", map[string]any{"state": r.State, "version": s.version, "clientToken": r.Token})
	if d := s.delta(); len(d) > 0 {
		a.reply(prefix+"/update/delta", map[string]any{"state": d, "version": s.version})
	}
}

func (s *shadow) delta() map[string]any {
	d := map[string]any{}
	for k, v := range s.desired {
		if !reflect.DeepEqual(s.reported[k], v) {
			d[k] = v
		}
	}
	return d
}

// get is guarded by mu.
func (a *AWS) get(prefix string) {
	s := a.shadows[prefix]
	if s == nil {
		a.reply(prefix+"/get/rejected", map[string]any{"code": 404, "message": "No shadow exists"})
		return
	}
	state := map[string]any{"desired": s.desired, "reported": s.reported}
	if d := s.delta(); len(d) > 0 {
		state["delta"] = d
	}
	a.reply(prefix+"/get/accepted", map[string]any{"state": state, "version": s.version})
}

// Desire sets desired state of a shadow, as an application does.
func (a *AWS) Desire(prefix string, state map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, err := json.Marshal(map[string]any{"state": map[string]any{"desired": state}})
	if err != nil {
		panic(err)
	}
	a.update(prefix, body)
}

// Reported gives the reported state of a shadow.
func (a *AWS) Reported(prefix string) map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.shadows[prefix]; s != nil {
		return maps.Clone(s.reported)
	}
	return nil
}

// AddJob queues a job for a thing.
func (a *AWS) AddJob(thing, id string, document any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.jobs[thing] = append(a.jobs[thing], &Job{ID: id, Document: document, Status: "QUEUED"})
	a.notify(thing)
}

// Job gives a copy of a job.
func (a *AWS) Job(thing, id string) Job {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, j := range a.jobs[thing] {
		if j.ID == id {
			return *j
		}
	}
	return Job{}
}

func (a *AWS) nextJob(thing string) map[string]any {
	for _, j := range a.jobs[thing] {
		if j.Status == "QUEUED" || j.Status == "IN_PROGRESS" {
			return map[string]any{"execution": map[string]any{
				"jobId": j.ID, "thingName": thing, "status": j.Status, "jobDocument": j.Document, "versionNumber": len(j.History) + 1, "executionNumber": 1,
			}}
		}
	}
	return map[string]any{}
}

func (a *AWS) notify(thing string) {
	a.reply("$aws/things/"+thing+"/jobs/notify-next", a.nextJob(thing))
}

// job is guarded by mu.
func (a *AWS) job(thing, op string, m broker.Message) {
	if op == "$next/get" {
		a.reply(m.Topic+"/accepted", a.nextJob(thing))
		return
	}
	id, ok := strings.CutSuffix(op, "/update")
	if !ok {
		return
	}
	var r struct {
		Status        string
		StatusDetails map[string]string
		Token         string `json:"clientToken"`
	}
	err := json.Unmarshal(m.Payload, &r)
	for _, j := range a.jobs[thing] {
		if j.ID != id || err != nil {
			continue
		}
		if j.Status != "QUEUED" && j.Status != "IN_PROGRESS" {
			break
		}
		j.Status, j.Details = r.Status, r.StatusDetails
		j.History = append(j.History, r.Status)
		a.reply(m.Topic+"/accepted", map[string]any{"clientToken": r.Token})
		if r.Status != "IN_PROGRESS" {
			a.notify(thing)
		}
		return
	}
	a.reply(m.Topic+"/rejected", map[string]any{"code": "InvalidStateTransition", "message": "no", "clientToken": r.Token})
}

const ownership = "northtest ownership token"

// certify is CreateCertificateFromCsr.
func (a *AWS) certify(m broker.Message) {
	var r struct{ CertificateSigningRequest string }
	json.Unmarshal(m.Payload, &r)
	block, _ := pem.Decode([]byte(r.CertificateSigningRequest))
	if block == nil {
		a.reply(m.Topic+"/rejected", map[string]any{"statusCode": 400, "errorCode": "InvalidCertificateSigningRequest", "errorMessage": "no PEM"})
		return
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = request.CheckSignature()
	}
	var der []byte
	if err == nil {
		der, err = a.CA.Sign(request.PublicKey, broker.Subject{Name: "AWS IoT Certificate"})
	}
	if err != nil {
		a.reply(m.Topic+"/rejected", map[string]any{"statusCode": 400, "errorCode": "InvalidCertificateSigningRequest", "errorMessage": err.Error()})
		return
	}
	a.reply(m.Topic+"/accepted", map[string]any{
		"certificateOwnershipToken": ownership, "certificateId": "1",
		"certificatePem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	})
}

// register is RegisterThing.
func (a *AWS) register(m broker.Message) {
	var r struct {
		Token      string `json:"certificateOwnershipToken"`
		Parameters map[string]string
	}
	if json.Unmarshal(m.Payload, &r) != nil || r.Token != ownership || r.Parameters["serial"] == "" {
		a.reply(m.Topic+"/rejected", map[string]any{"statusCode": 403, "errorCode": "AccessDenied", "errorMessage": "serial is missing"})
		return
	}
	a.reply(m.Topic+"/accepted", map[string]any{"thingName": "plant7-" + r.Parameters["serial"]})
}
