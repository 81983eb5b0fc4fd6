package onem2m

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// notes is what a connector remembers over restarts: who it is at the CSE, and which commands are settled.
type notes struct {
	path string

	mu   sync.Mutex
	data noted // guarded by mu
}

// noted is the file's form.
type noted struct {
	IDs     map[string]string `json:"ids"`     // AE-ID by the AE's name
	Filters []string          `json:"filters"` // that have been waited for: what is made under them later is news
	Cursors map[string]cursor `json:"cursors"` // by the container's address
}

// cursor is how far a container's instances are settled.
type cursor struct {
	Created string   `json:"ct"`  // of the last one
	IDs     []string `json:"ris"` // of those that were created at that time and are settled
}

// isPast tells whether an instance is settled.
func (k cursor) isPast(c *cin) bool {
	return c.Created < k.Created || c.Created == k.Created && slices.Contains(k.IDs, c.ID)
}

// after gives the cursor that has c behind it too.
func (k cursor) after(c *cin) cursor {
	if c.Created > k.Created {
		return cursor{Created: c.Created, IDs: []string{c.ID}}
	}
	return cursor{Created: k.Created, IDs: append(slices.Clone(k.IDs), c.ID)}
}

func loadNotes(dir string) (*notes, error) {
	n := &notes{path: filepath.Join(dir, "onem2m.json"), data: noted{IDs: map[string]string{}, Cursors: map[string]cursor{}}}
	raw, err := os.ReadFile(n.path)
	if os.IsNotExist(err) {
		return n, nil
	}
	if err != nil {
		return nil, fmt.Errorf("notes: %w", err)
	}
	var d noted
	if json.Unmarshal(raw, &d) == nil && d.IDs != nil && d.Cursors != nil { // else they are written anew
		n.data = d
	}
	return n, nil
}

func (n *notes) id(ae string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.data.IDs[ae]
}

// names are the AEs that have been registered.
func (n *notes) names() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range n.data.IDs {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func (n *notes) cursor(address string) (cursor, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k, ok := n.data.Cursors[address]
	return k, ok
}

func (n *notes) known(filter string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.data.Filters, filter)
}

// change writes the notes where f says that it changed them. They are flushed: without them, commands that wait would be taken for old ones.
func (n *notes) change(f func(d *noted) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !f(&n.data) {
		return nil
	}
	raw, err := json.Marshal(n.data)
	if err != nil {
		return fmt.Errorf("notes: %w", err)
	}
	if err := hwcrypto.WriteFile(n.path, raw); err != nil {
		return fmt.Errorf("notes: %w", err)
	}
	return nil
}
