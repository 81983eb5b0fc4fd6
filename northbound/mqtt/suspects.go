package mqtt

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Suspects finds the publication at which a platform breaks the connection each time instead of refusing it, as many do with
// what is too large or on a topic that they do not like. Without it such a publication would be sent again for ever.
//
// Sessions that the other side breaks early, with publications in flight and none confirmed, raise suspicion. After two, the
// next ones are careful: they send one publication at a time, and only once the broker has answered a ping. The one at which
// careful sessions break three times is refused as permanent from then on. A connector keeps one Suspects for all its sessions. The zero
// value is ready.
type Suspects struct {
	mu      sync.Mutex
	strikes int    // sessions in a row that confirmed nothing
	first   msg.ID // the oldest in flight at the last of them
	alone   int    // how often a careful one of them broke at first
	guilty  map[msg.ID]bool
}

const (
	suspicion  = 2                // sessions before publications are sent one at a time
	conviction = 3                // careful sessions that broke at the same one
	early      = 30 * time.Second // what lasts longer after the last confirmation was not broken by a publication
	guiltyMax  = 1000
)

// careful tells whether publications should be sent one at a time.
func (u *Suspects) careful() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.strikes >= suspicion
}

// convicted tells whether the publication has broken connections before.
func (u *Suspects) convicted(id msg.ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.guilty[id]
}

// cleared says that the session has confirmed something.
func (u *Suspects) cleared() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.strikes, u.alone = 0, 0
}

// broken says that the other side broke a session that had confirmed nothing; first is the oldest publication in flight.
func (u *Suspects) broken(first msg.ID, careful bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.first != first {
		u.first, u.strikes, u.alone = first, 0, 0
	}
	u.strikes++
	if careful {
		u.alone++
	}
	if u.alone >= conviction {
		if u.guilty == nil || len(u.guilty) >= guiltyMax {
			u.guilty = map[msg.ID]bool{}
		}
		u.guilty[first] = true
		u.strikes, u.alone = 0, 0
	}
}

// byPublication tells whether a session's end may be the platform's way of refusing a publication.
func byPublication(end error) bool {
	if e, ok := errors.AsType[*Ended](end); ok {
		switch e.Code {
		case 0x80, 0x81, 0x82, 0x83, 0x87, 0x90, 0x95, 0x99, 0x9A, 0x9B:
			return true
		}
		return false
	}
	return errors.Is(end, errHungUp) || errors.Is(end, syscall.ECONNRESET) || errors.Is(end, syscall.EPIPE)
}
