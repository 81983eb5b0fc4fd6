package onem2m

// What the vectors are held against.
var (
	ParsePrimitive     = parsePrimitive
	ParseNotifications = parseNotifications
	Instances          = instances
	Polled             = polled
	Matches            = matches
	Attributes         = attributes
)

// Primitive makes the request of a table as MQTT carries it.
type Primitive = request

// Conditions are filterCriteria.
type Conditions = filter

// Target gives the URL of a request.
var Target = target

// Path gives the Uri-Path of a request.
var Path = coapPath

// InTopic gives an id as a topic of MQTT has it at the CSE "/id-in".
func InTopic(id string) string { return (&Connector{csi: "/id-in"}).inTopic(id) }

// Meaning says in a word what a response status code asks of us.
func Meaning(rsc int) string {
	return map[meaning]string{done: "done", conflict: "conflict", lost: "lost", denied: "denied", later: "later", never: "never"}[meaningOf(number(rsc))]
}

// Instance makes a contentInstance.
var Instance = instance

// Publication makes what is delivered of a contentInstance.
func Publication(c cin, topic string) (id [16]byte, media string, payload []byte) {
	p := c.publication(topic)
	return p.ID, p.Type, p.Payload
}

// Kpsa derives a key from an enrolment key.
var Kpsa = kpsa

// ValidKeyID tells whether an identifier is that of a key.
var ValidKeyID = validKeyID

// ResultOf reads a <request> resource.
var ResultOf = resultOf

// ResultIn reads the result of a non-blocking request from a notification.
var ResultIn = resultIn

// CustomAttributes reads those of a flexContainer.
var CustomAttributes = customAttributes
