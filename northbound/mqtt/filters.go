package mqtt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// filtersFile is in the connector's state directory: the topic filters of the session that the broker keeps.
const filtersFile = "subscriptions.json"

// Forget ends the subscriptions that the broker's session has from an earlier configuration, and notes those of this one.
// Without it the commands of routes that are gone would keep coming.
func Forget(ctx context.Context, s *Session, dir string, filters []string) error {
	path := filepath.Join(dir, filtersFile)
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("subscriptions: %w", err)
	}
	var old []string
	if err == nil && json.Unmarshal(data, &old) != nil {
		old = nil // it will be written anew
	}
	if stale := slices.DeleteFunc(slices.Clone(old), func(f string) bool { return slices.Contains(filters, f) }); len(stale) > 0 && s.server.SessionPresent {
		if err := s.Unsubscribe(ctx, stale...); err != nil {
			return err
		}
	}
	if slices.Equal(old, filters) {
		return nil
	}
	if data, err = json.Marshal(filters); err != nil {
		return fmt.Errorf("subscriptions: %w", err)
	}
	if err := hwcrypto.WriteFile(path, data); err != nil {
		return fmt.Errorf("subscriptions: %w", err)
	}
	return nil
}
