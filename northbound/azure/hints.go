package azure

import "github.com/drawbridge/drawbridge/northbound"

// hubHints are the errors for which IoT Hub and its provisioning service are known.
func hubHints() []northbound.Hint {
	return []northbound.Hint{
		{Says: "error 401002", Means: "the enrolment does not let this registration in: another key, another certificate, or it is disabled"},
		{Says: "error 404204", Means: "the provisioning service has no enrolment for this registration id: they are lower case there"},
		{Says: "error 429001", Means: "the provisioning service is throttled: too many devices register at once"},
		{Says: "not authorized", Means: "is the device enabled, is key its symmetric key or its certificate's thumbprint or CA registered, with the device's id as common name, and is the clock right?"},
		{Says: "closed the connection", Means: "the hub closes without a word where the device is unknown, a quota is used up, or another connection has its id"},
		{Says: "broken the connection", Means: "the hub breaks connections where a quota is used up, or another connection has its id"},
		{Says: "IoT Hub: status 429", Means: "the hub's tier takes fewer twin updates than this"},
	}
}

// gridHints are the errors for which Event Grid namespaces are known.
func gridHints() []northbound.Hint {
	return []northbound.Hint{
		{Says: "bad authentication method", Means: "custom JWT or Entra authentication is not turned on in the namespace"},
		{Says: "not authorized", Means: "is the client registered under that authentication name, or does the token have the role EventGrid TopicSpaces Publisher or Subscriber?"},
		{Says: "topic name invalid", Means: "no topic space that the client's group may publish to has the topic"},
		{Says: "quota exceeded", Means: "the namespace's throughput units are used up, or the session's queue is"},
		{Says: "session taken over", Means: "two gateways have one device_id, which is the session's name"},
	}
}

// hints are those of the service that the connector reaches.
func (c *Connector) hints() []northbound.Hint {
	if c.cfg.Service == "eventgrid" {
		return gridHints()
	}
	return hubHints()
}
