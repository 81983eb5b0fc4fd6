package northtest

import (
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// MQTT makes a Faulty cloud of a Broker: commands go to topic, and the gateway's client id is client.
func MQTT(b *Broker, topic, client string) Faulty {
	return &faultyMQTT{Broker: b, topic: topic, client: client}
}

type faultyMQTT struct {
	*Broker
	topic, client string
}

func (f *faultyMQTT) Received() (list []string) {
	for _, m := range f.Messages() {
		list = append(list, string(m.Payload))
	}
	return list
}

func (f *faultyMQTT) Command(payload string) {
	f.Publish(broker.Message{Topic: f.topic, Payload: []byte(payload), QoS: 1})
}

func (f *faultyMQTT) Drop() { f.Broker.Drop("") }

func (f *faultyMQTT) Refuse(payload string) { f.Fate(payload, broker.Verdict{Code: 0x87}) }

func (f *faultyMQTT) Busy(payload string) {
	f.FateOnce(payload, broker.Verdict{Code: 0x97})
}

func (f *faultyMQTT) Unconfirmed() int { return f.Broker.Unconfirmed(f.client) }
