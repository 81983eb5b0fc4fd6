package bridge

import (
	"fmt"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Forget gives up what waits for a connector that the setup has no more: its queue counts as expired, its dead letters are deleted.
// It tells how many messages and letters that were. What waits for a connector that is there is left alone.
func (b *Bridge) Forget(connector string) (n int, err error) {
	if b.state.Load().s.Connectors[connector] != nil {
		return 0, msg.Refuse(msg.Unprocessable, "connector %q is configured: its messages are not given up", connector)
	}
	for _, t := range b.queue.Ledger() {
		if t.Connector == connector {
			n += int(t.Pending)
		}
	}
	b.queue.Forget(connector)
	letters, err := b.Drop(connector)
	if err != nil {
		return n, fmt.Errorf("dead letters: %w", err)
	}
	return n + letters, nil
}
