package spool

import "encoding/binary"

// checkpoint is the state of one class as its log keeps it: what each connector has settled, and the ledger.
//
// On disk it is a row of uvarints and names (each after its length):
//
//	lost, dropped
//	number of holes; each: first above the last of the one before, length - 1
//	number of rows that were released before their turn; each likewise
//	number of names; the names, to which the rest refers by index
//	number of lines; each: route, connector, accepted, delivered, expired, dead
//	number of cursors; each: connector, floor, moved, octets pending, time of the oldest pending record in ms,
//	number of spans; each: first above the last of the one before (for the first: above the floor), length - 1
type checkpoint struct {
	lost, dropped uint64
	holes         []span
	gone          []span
	lines         []lineState
	cursors       []cursorState
}

// span is a row of sequences, both ends in it.
type span struct{ first, last uint64 }

type lineState struct {
	route, connector                   string
	accepted, delivered, expired, dead uint64
}

type cursorState struct {
	connector    string
	floor, moved uint64
	bytes        int64
	oldest       int64
	spans        []span // settled, above the floor
}

func appendSpans(b []byte, base uint64, spans []span) []byte {
	b = binary.AppendUvarint(b, uint64(len(spans)))
	for _, s := range spans {
		b = binary.AppendUvarint(b, s.first-base)
		b = binary.AppendUvarint(b, s.last-s.first)
		base = s.last
	}
	return b
}

func (d *decoder) spans(base uint64) []span {
	var spans []span
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		gap, more := d.uvarint(), d.uvarint()
		s := span{first: base + gap, last: base + gap + more}
		if s.first < base || s.last < s.first || gap == 0 {
			d.bad = true
			return nil
		}
		spans = append(spans, s)
		base = s.last
	}
	return spans
}

func (c *checkpoint) append(b []byte) []byte {
	b = binary.AppendUvarint(b, c.lost)
	b = binary.AppendUvarint(b, c.dropped)
	b = appendSpans(b, 0, c.holes)
	b = appendSpans(b, 0, c.gone)
	index := map[string]uint64{}
	var names []string
	name := func(s string) uint64 {
		i, ok := index[s]
		if !ok {
			i = uint64(len(names))
			index[s] = i
			names = append(names, s)
		}
		return i
	}
	for i := range c.lines {
		name(c.lines[i].route)
		name(c.lines[i].connector)
	}
	for i := range c.cursors {
		name(c.cursors[i].connector)
	}
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, n := range names {
		b = appendName(b, n)
	}
	b = binary.AppendUvarint(b, uint64(len(c.lines)))
	for i := range c.lines {
		l := &c.lines[i]
		for _, v := range [...]uint64{name(l.route), name(l.connector), l.accepted, l.delivered, l.expired, l.dead} {
			b = binary.AppendUvarint(b, v)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(c.cursors)))
	for i := range c.cursors {
		k := &c.cursors[i]
		for _, v := range [...]uint64{name(k.connector), k.floor, k.moved, uint64(k.bytes), uint64(k.oldest)} {
			b = binary.AppendUvarint(b, v)
		}
		b = appendSpans(b, k.floor, k.spans)
	}
	return b
}

// parseCheckpoint reads what append wrote.
func parseCheckpoint(b []byte) (c checkpoint, ok bool) {
	d := decoder{b: b}
	c.lost, c.dropped = d.uvarint(), d.uvarint()
	c.holes = d.spans(0)
	c.gone = d.spans(0)
	var names []string
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		names = append(names, string(d.name()))
	}
	name := func() string {
		i := d.uvarint()
		if i >= uint64(len(names)) {
			d.bad = true
			return ""
		}
		return names[i]
	}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		l := lineState{route: name(), connector: name()}
		l.accepted, l.delivered, l.expired, l.dead = d.uvarint(), d.uvarint(), d.uvarint(), d.uvarint()
		c.lines = append(c.lines, l)
	}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		k := cursorState{connector: name(), floor: d.uvarint(), moved: d.uvarint()}
		k.bytes, k.oldest = int64(d.uvarint()), int64(d.uvarint())
		k.spans = d.spans(k.floor)
		d.bad = d.bad || k.bytes < 0 || k.oldest < 0
		c.cursors = append(c.cursors, k)
	}
	return c, !d.bad && len(d.b) == 0
}
