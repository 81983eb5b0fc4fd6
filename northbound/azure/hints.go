package azure

import (
	"errors"
	"fmt"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

var tpmUnknown = health.Meaning{Name: "azure-tpm-unknown", What: "the provisioning service does not know this gateway's TPM",
	Hint: "enrol registration {registration} in the service with TPM attestation and this endorsement key: {key}"}

// refusal is the provisioning service's: a status and a number of its own.
type refusal struct {
	status string
	code   int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s, error %d: %q", r.status, r.code, r.text) }

// gave gives the test for refusals by their number.
func gave(code int) func(error) bool {
	return func(err error) bool {
		r, ok := errors.AsType[*refusal](err)
		return ok && r.code == code
	}
}

// busy is the hub's answer to a request that it may take later.
type busy string

func (b busy) Error() string { return "IoT Hub: status " + string(b) }

// hubHints are the errors for which IoT Hub and its provisioning service are known.
func hubHints() []northbound.Hint {
	return []northbound.Hint{
		{Says: "error 401002", Fits: gave(401002), Meaning: health.Meaning{Name: "azure-enrolment-refuses",
			What: "the enrolment does not let this registration in", Hint: "is it enabled, and are its key or the CA of its certificate those of `key`?"}},
		{Says: "error 404204", Fits: gave(404204), Meaning: health.Meaning{Name: "azure-no-enrolment",
			What: "the provisioning service has no enrolment for this registration id", Hint: "make one, or look at `device_id` and `id_scope`: registration ids are lower case there"}},
		{Says: "error 429001", Fits: gave(429001), Meaning: health.Meaning{Name: "azure-provisioning-busy",
			What: "the provisioning service is throttled: too many devices register at once", Hint: "it is asked again later"}},
		{Says: "not authorized", Fits: mqtt.Said(0x87), Meaning: health.Meaning{Name: "azure-hub-refuses",
			What: "IoT Hub does not take this device's credential",
			Hint: "is the device enabled, is `key` its symmetric key, or the thumbprint or CA of its certificate registered, with the device's id as common name, and is the clock right?"}},
		{Says: "closed the connection", Fits: mqtt.HungUp, Meaning: health.Meaning{Name: "azure-hung-up",
			What: "IoT Hub closed the connection without a word: the device is unknown, a quota is used up, or another connection has its id",
			Hint: "look at `device_id` and the device in the hub, at the hub's quota of the day, and for a second gateway with this id"}},
		{Says: "IoT Hub: status 429", Fits: func(err error) bool {
			b, ok := errors.AsType[busy](err)
			return ok && b == "429"
		}, Meaning: health.Meaning{Name: "azure-twin-rate", What: "the hub's tier takes fewer twin updates than this", Hint: "report less often, or add units to the hub"}},
	}
}

// gridHints are the errors for which Event Grid namespaces are known.
func gridHints() []northbound.Hint {
	return []northbound.Hint{
		{Says: "bad authentication method", Fits: mqtt.Said(0x8C), Meaning: health.Meaning{Name: "eventgrid-method",
			What: "custom JWT or Entra authentication is not turned on in the namespace", Hint: "turn it on there, or look at `auth`"}},
		{Says: "not authorized", Fits: mqtt.Said(0x87), Meaning: health.Meaning{Name: "eventgrid-refuses",
			What: "Event Grid does not take this client's credential",
			Hint: "register the client under its authentication name, or give the token the role EventGrid TopicSpaces Publisher or Subscriber"}},
		{Says: "topic name invalid", Fits: mqtt.Said(0x90), Meaning: health.Meaning{Name: "eventgrid-topic",
			What: "no topic space that the client's group may publish to has the topic", Hint: "add the topic to a topic space, and bind the group to it as a publisher"}},
		{Says: "quota exceeded", Fits: mqtt.Said(0x97), Meaning: health.Meaning{Name: "eventgrid-quota",
			What: "the namespace's throughput units are used up, or the session's queue is", Hint: "add throughput units, or send less"}},
		{Says: "session taken over", Fits: mqtt.Said(0x8E), Meaning: health.Meaning{Name: "eventgrid-taken-over",
			What: "two gateways have one device id, which is the session's name", Hint: "give each gateway a `device_id` of its own"}},
	}
}

// hints are those of the service that the connector reaches.
func (c *Connector) hints() []northbound.Hint {
	if c.cfg.Service == "eventgrid" {
		return gridHints()
	}
	return hubHints()
}
