package bridge

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// A publication on disk: a version, flags, the strings with their lengths as varints, the payload.
const (
	recordVersion = 1

	flagRetain   = 1 << 2 // the low two bits are the QoS
	flagEnvelope = 1 << 3 // id, time and device are to be added as properties
	flagExtra    = 1 << 4 // properties, response topic and correlation data follow
)

// The names of the user properties that a route with properties = true adds, and those of replies.
const (
	propertyID     = "id"
	propertyTime   = "time" // RFC 3339, UTC, milliseconds
	propertyDevice = "device"
	propertyStatus = "status" // "done", "refused"
	propertyCode   = "code"   // Reply.Code
)

// appendRecord encodes what Record's own fields do not hold: all but ID, Time, Expires and Route.
func appendRecord(b []byte, p *msg.Publication, envelope bool) []byte {
	flags := p.QoS & 3
	if p.Retain {
		flags |= flagRetain
	}
	if envelope {
		flags |= flagEnvelope
	}
	extra := len(p.Properties) > 0 || p.ResponseTopic != "" || len(p.Correlation) > 0
	if extra {
		flags |= flagExtra
	}
	b = append(b, recordVersion, flags)
	b = appendText(b, p.Device)
	b = appendText(b, p.Topic)
	b = appendText(b, p.Type)
	if extra {
		b = binary.AppendUvarint(b, uint64(len(p.Properties)))
		for _, k := range slices.Sorted(maps.Keys(p.Properties)) {
			b = appendText(appendText(b, k), p.Properties[k])
		}
		b = appendText(b, p.ResponseTopic)
		b = appendText(b, string(p.Correlation))
	}
	return append(b, p.Payload...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errRecord = errors.New("the stored message cannot be read")

// decoder reads records of one connector. It keeps strings that come again and again, so that reading costs no allocation
// per message.
type decoder struct {
	known   map[string]string
	correct func(time.Time) time.Time // see Options.Correct; nil: the times as they stand
}

const maxKnown = 8192

func (d *decoder) text(b []byte) string {
	if s, ok := d.known[string(b)]; ok {
		return s
	}
	if d.known == nil || len(d.known) >= maxKnown {
		d.known = map[string]string{}
	}
	s := string(b)
	d.known[s] = s
	return s
}

// publication gives what the entry holds. The payload is that of e.Data, not a copy.
func (d *decoder) publication(e *spool.Entry) (p msg.Publication, err error) {
	b := e.Data
	if len(b) < 2 || b[0] != recordVersion {
		return p, errRecord
	}
	flags := b[1]
	b = b[2:]
	next := func() []byte {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			err, b = errRecord, nil
			return nil
		}
		field := b[size : size+int(n)]
		b = b[size+int(n):]
		return field
	}
	taken, expires := e.Time, e.Expires
	if d.correct != nil {
		taken, expires = d.correct(taken), corrected(d.correct, taken, expires)
	}
	p = msg.Publication{ID: e.ID, Time: taken, Expires: expires, Route: e.Route, QoS: flags & 3, Retain: flags&flagRetain != 0}
	p.Device, p.Topic, p.Type = d.text(next()), d.text(next()), d.text(next())
	if flags&flagExtra != 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)) {
			return p, errRecord
		}
		b = b[size:]
		p.Properties = map[string]string{}
		for range n {
			k := string(next())
			p.Properties[k] = string(next())
		}
		p.ResponseTopic = string(next())
		if c := next(); len(c) > 0 {
			p.Correlation = slices.Clone(c)
		}
	}
	if err != nil {
		return p, err
	}
	if flags&flagEnvelope != 0 {
		if p.Properties == nil {
			p.Properties = map[string]string{}
		}
		p.Properties[propertyID] = e.ID.String()
		p.Properties[propertyTime] = p.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00")
		p.Properties[propertyDevice] = p.Device
	}
	p.Payload = b
	return p, nil
}

// expired tells whether the time has come; the zero time never does.
func expired(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// corrected gives the end of what was taken at a time, which moves with it.
func corrected(correct func(time.Time) time.Time, taken, end time.Time) time.Time {
	if end.IsZero() {
		return end
	}
	return end.Add(correct(taken).Sub(taken))
}

// ended tells whether what was taken at a time has come to its end, also by a clock that was set since.
func (b *Bridge) ended(taken, end, now time.Time) bool {
	return expired(end, now) && expired(corrected(b.o.Correct, taken, end), now)
}
