package onem2m

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

// overMQTT is the MQTT binding (TS-0010): MQTT 3.1.1, QoS 1, a session that the broker keeps.
type overMQTT struct {
	c       *Connector
	session *mqtt.Session
	notify  func(*request)

	mu      sync.Mutex
	pending map[string]chan *response // guarded by mu: requests without a response, by their id
	joined  map[string]bool           // guarded by mu: originators
}

// unsendable is the error of a request that the wire cannot carry: of that request alone.
type unsendable struct{ error }

func (s *session) dialMQTT(ctx context.Context, b badge) (wire, error) {
	c := s.c
	a := mqtt.Address{URL: c.url, Net: c.env.Dial}
	if c.url.Scheme == "mqtts" {
		var err error
		if a.TLS, err = c.tls(ctx, b); err != nil {
			return nil, err
		}
	}
	conn, err := a.Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	w := &overMQTT{c: c, pending: map[string]chan *response{}, joined: map[string]bool{}}
	room := make(chan struct{}, atOnce)
	w.notify = func(q *request) {
		select {
		case room <- struct{}{}:
		default:
			return // the container keeps what it tells of, and the CSE may ask again
		}
		s.tasks.Go(func() {
			defer func() { <-room }()
			w.respond(s.ctx, q, s.notified(s.ctx, q))
		})
	}
	o := mqtt.Options{
		Version: mqtt.V311, ClientID: "A::" + c.id(b.ae), SessionExpiry: 24 * time.Hour, Window: 2 * c.cfg.Parallel, Now: c.env.Now, Receive: w.receive,
	}
	if s.down == nil { // doctor: a gateway that runs keeps its session, and its notifications
		o.ClientID, o.SessionExpiry = o.ClientID+"-doctor", 0
		w.notify = func(*request) {}
	}
	w.session, err = mqtt.Start(ctx, conn, o)
	if err != nil {
		return nil, a.Explain(err)
	}
	s.tasks.Go(func() {
		select {
		case <-w.session.Context().Done():
			s.fail(a.Explain(context.Cause(w.session.Context())))
		case <-s.ctx.Done():
		}
	})
	return w, nil
}

func (w *overMQTT) close() { w.session.Close() }

// inTopic writes an id as a topic has it (TS-0010 clause 6.4): SP-relative, without the first slash, the others as colons.
func (c *Connector) inTopic(id string) string {
	if strings.HasPrefix(id, "C") {
		id = c.csi + "/" + id
	}
	return strings.ReplaceAll(strings.TrimPrefix(id, "/"), "/", ":")
}

// join subscribes to what concerns an originator.
func (w *overMQTT) join(ctx context.Context, originator string) error {
	w.mu.Lock()
	known := w.joined[originator]
	w.joined[originator] = true
	w.mu.Unlock()
	if known {
		return nil
	}
	me, cse := w.c.inTopic(originator), w.c.inTopic(w.c.csi)
	if err := w.session.Subscribe(ctx, "/oneM2M/reg_resp/"+originator+"/"+cse+"/#", "/oneM2M/resp/"+me+"/"+cse+"/#", "/oneM2M/req/"+cse+"/"+me+"/#"); err != nil {
		return fmt.Errorf("subscription of the binding: %w", err)
	}
	return nil
}

func (w *overMQTT) ask(ctx context.Context, q *request) (*response, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return nil, unsendable{fmt.Errorf("%s: %w", q.To, err)}
	}
	topic := "/oneM2M/req/" + w.c.inTopic(q.From)
	if q.Op == opCreate && q.Type == tyAE {
		topic = "/oneM2M/reg_req/" + q.From
	}
	answer := make(chan *response, 1)
	w.mu.Lock()
	w.pending[q.ID] = answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.pending, q.ID)
		w.mu.Unlock()
	}()
	refused := make(chan error, 1)
	p := msg.Publication{Topic: topic + "/" + w.c.inTopic(w.c.csi) + "/json", QoS: 1, Payload: data}
	if err := w.session.Send(ctx, []msg.Publication{p}, func(_ int, err error) {
		if err != nil {
			refused <- err
		}
	}); err != nil {
		return nil, err
	}
	select {
	case r := <-answer:
		return r, nil
	case err := <-refused:
		if msg.IsPermanent(err) {
			err = unsendable{err}
		}
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-w.session.Context().Done():
		return nil, context.Cause(w.session.Context())
	}
}

// receive takes what the CSE sends. What cannot be read is dropped: nobody could be answered.
func (w *overMQTT) receive(_ context.Context, p msg.Publication) error {
	q, r, err := parsePrimitive(p.Payload)
	switch {
	case err != nil:
	case r != nil:
		w.mu.Lock()
		answer := w.pending[r.ID]
		delete(w.pending, r.ID)
		w.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	case q.ID != "" && strings.HasPrefix(p.Topic, "/oneM2M/req/"):
		q.To = receiverOf(p.Topic)
		w.notify(q)
	}
	return nil
}

// receiverOf gives the receiver as the topic of a request has it.
func receiverOf(topic string) string {
	levels := strings.Split(topic, "/")
	if len(levels) < 5 {
		return ""
	}
	return levels[4]
}

// respond publishes the response to what the CSE has asked of us.
func (w *overMQTT) respond(ctx context.Context, q *request, r *response) {
	topic := "/oneM2M/resp/" + w.c.inTopic(w.c.csi) + "/" + q.To + "/json"
	r.To, r.From = "", ""
	data, err := json.Marshal(r)
	if err == nil {
		err = w.session.Publish(ctx, msg.Publication{Topic: topic, QoS: 1, Payload: data})
	}
	if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		w.c.env.Log.Warn("a notification has no answer", "error", err)
	}
}
