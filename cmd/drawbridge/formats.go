package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// stateFormat is the version of what lies in the state directory. It goes up when a release writes something there that the one before would
// misread, and the release that raises it reads every earlier version. Version 1 is
//
//	spool/                       layout 1 of package bridge/spool, which is written into each segment
//	bridge/bridge.db             bbolt: mailboxes and dead letters
//	listeners/*/associations     layout 2 of package southbound/coap/slots: sealed records
//	listeners/*/sessions.db      bbolt: MQTT sessions, what waits for them, retained messages
//	status/history               plots of the last day; one that cannot be read is begun anew
//	keys/, tokens/, connectors/  blobs of the chip, tokens, what connectors keep
//	clock                        a time that is known to have passed, RFC 3339
//
// A field that is added to a record is no new version: who does not know it passes over it.
const stateFormat = 1

// claimState makes sure that this program may write to the state directory: an older program would garble what a newer one has left there.
func claimState(dir string) error {
	path := filepath.Join(dir, "format")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	found, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err == nil && found > stateFormat:
		return hinted(fmt.Errorf("state directory %q: format %d was written by a newer drawbridge; this one, %s, knows up to %d", dir, found, version, stateFormat),
			"nothing was changed; install the newer version again, or name another directory as gateway.state")
	case err == nil && found == stateFormat:
		return nil
	}
	// There is none yet, or a power cut has torn it, which only the first start can suffer.
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", stateFormat), 0o600); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}
