package coap

import (
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// assemble gives the payload of a report. ok is false where it is not whole yet or cannot be, and has been answered.
func (t *turn) assemble(s *session, p *packet, path []byte) (payload []byte, echo message.Option, ok bool) {
	if int64(len(p.payload)) > int64(t.l.cfg.MaxPayload) {
		t.say(s, p, codes.RequestEntityTooLarge, nil, uintOption(message.Size1, uint32(t.l.cfg.MaxPayload)))
		return nil, echo, false
	}
	return p.payload, echo, true
}
