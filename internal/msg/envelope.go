package msg

import "time"

// Envelope is a payload with what is said of it under the same signature or encryption, so that nobody between the two ends can
// take it for another. What is empty or zero is not said.
type Envelope struct {
	ID       string    // names it among all of its issuer's: jti, cti
	Issuer   string    // who has made it
	Subject  string    // what it is about: see SubjectOf
	Audience string    // for whom it is
	Time     time.Time // when it was made, in whole seconds
	Expires  time.Time
	Type     string // media type of Payload
	Payload  []byte
}

// SubjectOf is the subject of a report of a device on a resource ("/sensors/temp"), of a command for it, and of the reply:
// "th-17/sensors/temp". A device's name has no slash in it.
func SubjectOf(device, resource string) string { return device + resource }
