package mqtt

import "github.com/eclipse/paho.golang/packets"

const (
	mostAliases = 64 // that are used, however many the broker offers
	aliasRests  = 64 // publications without its topic after which an alias may change it
)

// aliases are numbers that stand for topics on one connection (MQTT 5 section 3.3.2.3.4), so that a topic goes over the wire once.
type aliases struct {
	most    int // that the broker takes
	turn    int // publications
	numbers map[string]int
	topics  []alias // by number - 1
}

type alias struct {
	topic string
	used  int // the turn of its last use
}

// shorten puts an alias in the place of p's topic, or beside it where it is new. It gives what is to be called once p is on its way: until then
// the broker knows nothing of a new alias.
func (a *aliases) shorten(p *packets.Publish) (sent func()) {
	if a.most == 0 || p.Properties == nil {
		return func() {}
	}
	a.turn++
	topic := p.Topic
	i, known := a.numbers[topic]
	if !known {
		if i = a.free(); i < 0 {
			return func() {}
		}
	}
	number := uint16(i + 1)
	p.Properties.TopicAlias = &number
	if known {
		p.Topic = ""
		a.topics[i].used = a.turn
		return func() {}
	}
	return func() {
		if a.numbers == nil {
			a.numbers = map[string]int{}
		}
		if i == len(a.topics) {
			a.topics = append(a.topics, alias{})
		}
		delete(a.numbers, a.topics[i].topic)
		a.topics[i], a.numbers[topic] = alias{topic, a.turn}, i
	}
}

// free gives an alias that stands for nothing, or the one that has rested longest; -1: all are in use.
func (a *aliases) free() int {
	if len(a.topics) < a.most {
		return len(a.topics)
	}
	oldest := 0
	for i := range a.topics {
		if a.topics[i].used < a.topics[oldest].used {
			oldest = i
		}
	}
	if a.turn-a.topics[oldest].used <= aliasRests {
		return -1
	}
	return oldest
}
