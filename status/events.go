package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net/http"
	"time"
)

// maxReaders is how many pages may be live at once; more of them still can be read, and loaded again.
const maxReaders = 32

// serveLive sends the parts of a page that have changed, about once a second, as server-sent events (HTML Living Standard section 9.2).
func (s *Server) serveLive(w http.ResponseWriter, r *http.Request, sh sheet) {
	if s.readers.Add(1) > maxReaders {
		s.readers.Add(-1)
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	defer s.readers.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Time{}) != nil {
		return
	}
	fmt.Fprint(w, "retry: 2000\n\n")
	seed := maphash.MakeSeed()
	sent := map[string]uint64{}
	var b bytes.Buffer
	for {
		_, changed := s.live.newest()
		v := s.view(r, sh)
		if sh.load != nil {
			if err := sh.load(s, v, r); err != nil {
				return
			}
		}
		quiet := true
		for _, part := range sh.parts {
			b.Reset()
			if err := templates.ExecuteTemplate(&b, part, v); err != nil {
				s.o.Log.Error("page", "part", part, "error", err)
				return
			}
			if sum := maphash.Bytes(seed, b.Bytes()); sent[part] != sum {
				sent[part] = sum
				data, err := json.Marshal(map[string]string{"id": part, "html": b.String()})
				if err != nil {
					return
				}
				fmt.Fprintf(w, "data: %s\n\n", data)
				quiet = false
			}
		}
		if quiet {
			fmt.Fprint(w, ":\n\n")
		}
		// A reader that has gone to sleep must not hold the connection, and with it the shutdown, for ever.
		if control.SetWriteDeadline(time.Now().Add(30*time.Second)) != nil || control.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		if gone := callerOf(r.Context()).gone; gone != nil && gone() {
			return
		}
	}
}
