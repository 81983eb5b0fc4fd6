package mqtt

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
)

const (
	deliveries = 64   // publications that are delivered at once; what CONNECT announces as receive maximum
	inboxMax   = 4096 // publications that a broker which knows no receive maximum may leave with us; deliveries of the largest packet in octets
	again      = 5 * time.Second
)

// errFlooded ends a session whose broker sends more than can be held. The broker keeps what was not acknowledged.
var errFlooded = errors.New("the broker has sent more publications than can be delivered")

// inbox delivers what the broker sends: publications of one lane (see Options) one after the other, those of different lanes at once, and
// acknowledges them in the order in which they came (MQTT 5 section 4.6). The worker goroutines exist only while there is work.
type inbox struct {
	wg sync.WaitGroup

	mu      sync.Mutex
	lanes   map[string][]*inbound // a lane is present while a worker has it or it is in ready
	ready   []string              // lanes whose first publication may be delivered
	workers int
	unacked []*inbound // in order of arrival
	waiting int        // publications in lanes
	octets  int        // of their payloads
}

type inbound struct {
	p       msg.Publication
	id      uint16
	settled bool
}

// put takes a publication from the reader. It never waits.
func (in *inbox) put(s *Session, p *packets.Publish) error {
	if p.Topic == "" {
		return errors.New("protocol error: the broker sent a PUBLISH without topic")
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if max(in.waiting, len(in.unacked)) >= inboxMax || in.octets/deliveries > s.opts.MaxPacket {
		if p.QoS == 0 {
			return nil // nobody was promised anything
		}
		return errFlooded
	}
	q := &inbound{p: s.incoming(p), id: p.PacketID}
	if p.QoS > 0 {
		in.unacked = append(in.unacked, q)
	}
	if in.lanes == nil {
		in.lanes = map[string][]*inbound{}
	}
	lane := s.opts.Lane(p.Topic)
	queue, known := in.lanes[lane]
	in.lanes[lane] = append(queue, q)
	in.waiting++
	in.octets += len(p.Payload)
	if known {
		return nil
	}
	in.ready = append(in.ready, lane)
	if in.workers < deliveries {
		in.workers++
		in.wg.Go(func() { in.work(s) })
	}
	return nil
}

// work delivers until there is nothing to deliver.
func (in *inbox) work(s *Session) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.ready) > 0 && s.work.Err() == nil {
		lane := in.ready[0]
		in.ready = in.ready[1:]
		q := in.lanes[lane][0]
		in.mu.Unlock()
		settled := deliver(s.work, s.opts.Receive, q.p)
		in.mu.Lock()
		in.waiting--
		in.octets -= len(q.p.Payload)
		if rest := in.lanes[lane][1:]; len(rest) > 0 {
			in.lanes[lane] = rest
			in.ready = append(in.ready, lane)
		} else {
			delete(in.lanes, lane)
		}
		if q.settled = settled; settled {
			q.p = msg.Publication{QoS: q.p.QoS} // while it waits for its turn to be acknowledged, no more is needed
			in.acknowledge(s)
		}
	}
	in.workers--
}

// deliver hands p over until it is settled. It returns false when the session ends before: the broker then sends it again.
// There is no other way to be given it again, for MQTT repeats nothing within a session.
func deliver(ctx context.Context, receive func(context.Context, msg.Publication) error, p msg.Publication) bool {
	for {
		if receive(ctx, p) == nil {
			return true
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return false
		}
	}
}

// acknowledge tells the broker of every publication that is settled and before which none is unsettled; in.mu is held.
func (in *inbox) acknowledge(s *Session) {
	for len(in.unacked) > 0 && in.unacked[0].settled {
		q := in.unacked[0]
		in.unacked = in.unacked[1:]
		if q.p.QoS == 2 {
			s.write(&packets.Pubrec{PacketID: q.id})
		} else {
			s.write(&packets.Puback{PacketID: q.id})
		}
	}
}

// wait waits until no delivery is under way.
func (in *inbox) wait() { in.wg.Wait() }

// incoming turns a packet into a publication.
func (s *Session) incoming(p *packets.Publish) msg.Publication {
	now := s.opts.Now()
	q := msg.Publication{
		ID: msg.NewID(now), Time: now, Topic: p.Topic, QoS: p.QoS, Retain: p.Retain, Payload: p.Payload,
		Type: p.Properties.ContentType, ResponseTopic: p.Properties.ResponseTopic, Correlation: p.Properties.CorrelationData,
	}
	if p.Properties.MessageExpiry != nil {
		q.Expires = now.Add(time.Duration(*p.Properties.MessageExpiry) * time.Second)
	}
	if len(p.Properties.User) > 0 {
		q.Properties = make(map[string]string, len(p.Properties.User))
		for _, u := range p.Properties.User {
			q.Properties[u.Key] = u.Value
		}
	}
	return q
}
