package mqtt

import (
	"sync"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// TestTheLastWordIsTheOneOnDisk: of two that are retained at the same moment memory and disk keep the same.
func TestTheLastWordIsTheOneOnDisk(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	_, _ = connect5(t, b, "w", nil)
	l := b.Listener.(*listener)
	var s *session
	l.each(func(c *conn) { s = c.session })
	for range 2000 {
		var wg sync.WaitGroup
		for _, payload := range []string{"a", "b", ""} {
			m := newMessage("t", []byte(payload), 1, true, &packet.Properties{}, l.now())
			wg.Go(func() { l.broker.retain(m, s) })
		}
		wg.Wait()
		var kept string
		l.broker.topics.kept("t", func(m *message) { kept = string(m.payload) })
		l.store.mu.Lock()
		record, put := l.store.changes[retainedKey("t")]
		l.store.mu.Unlock()
		if !put {
			continue // it has gone to disk already
		}
		var r messageRecord
		if record != nil {
			if err := cbor.Unmarshal(record, &r); err != nil {
				t.Fatal(err)
			}
		}
		if string(r.Payload) != kept {
			t.Fatalf("%q is retained, and %q goes to disk", kept, r.Payload)
		}
	}
}
