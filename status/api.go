package status

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/southbound"
)

// Refused is the gateway's answer no: to a reload of a bad file, to an action that it does not know.
type Refused struct {
	Code    int      `json:"-"`                 // HTTP status
	Message string   `json:"error"`             // what is wrong
	Details []string `json:"details,omitempty"` // all that is wrong with a file, one a line
	Advice  string   `json:"hint,omitempty"`    // what to do
}

func (r *Refused) Error() string { return r.Message }

// Hint says what to do; empty where nothing is known.
func (r *Refused) Hint() string { return r.Advice }

// actions adds what can be asked and done. What the source is not able to do is not there.
func (s *Server) actions(mux *http.ServeMux) {
	if a, ok := s.o.Source.(DeviceLister); ok {
		mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			writeJSON(w, listDevices(a, q.Get("search"), atoi(q.Get("offset")), atoi(q.Get("limit"))))
		})
	}
	if a, ok := s.o.Source.(Reloader); ok {
		mux.Handle("POST /v1/reload", action(s, "reload", func(r *http.Request, _ struct{}) (any, string, error) {
			done, err := a.Reload(r.Context())
			return done, "", err
		}))
	}
	if a, ok := s.o.Source.(RouteTester); ok {
		mux.Handle("POST /v1/routes/test", ask(func(r *http.Request, t RouteTest) (any, error) {
			return a.TestRoute(r.Context(), t)
		}))
	}
	if a, ok := s.o.Source.(DeadLetters); ok {
		mux.HandleFunc("GET /v1/dead", func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			letters, err := a.DeadLetters(r.Context(), q.Get("connector"), min(cmp.Or(atoi(q.Get("limit")), 100), 1000))
			if err != nil {
				refuse(w, err)
				return
			}
			writeJSON(w, letters)
		})
		mux.Handle("POST /v1/dead/replay", action(s, "replay dead letters", func(r *http.Request, c chosen) (any, string, error) {
			n, err := a.Replay(r.Context(), c.Connector, c.IDs)
			return affected{n}, c.Connector, err
		}))
		mux.Handle("POST /v1/dead/drop", action(s, "drop dead letters", func(r *http.Request, c chosen) (any, string, error) {
			n, err := a.Drop(r.Context(), c.Connector, c.IDs)
			return affected{n}, c.Connector, err
		}))
	}
	if a, ok := s.o.Source.(Disconnecter); ok {
		mux.Handle("POST /v1/devices/disconnect", action(s, "disconnect device", func(_ *http.Request, n named) (any, string, error) {
			return affected{a.Disconnect(n.Name)}, n.Name, nil
		}))
	}
	if a, ok := s.o.Source.(Pauser); ok {
		mux.Handle("POST /v1/connectors/pause", action(s, "pause connector", func(_ *http.Request, n named) (any, string, error) {
			return affected{1}, n.Name, a.Pause(n.Name)
		}))
		mux.Handle("POST /v1/connectors/resume", action(s, "resume connector", func(_ *http.Request, n named) (any, string, error) {
			return affected{1}, n.Name, a.Resume(n.Name)
		}))
	}
	if a, ok := s.o.Source.(Forgetter); ok {
		mux.Handle("POST /v1/connectors/forget", action(s, "forget connector", func(_ *http.Request, n named) (any, string, error) {
			count, err := a.Forget(n.Name)
			return affected{count}, n.Name, err
		}))
	}
	if a, ok := s.o.Source.(Acknowledger); ok {
		mux.Handle("POST /v1/spool/acknowledge", action(s, "acknowledge damage", func(*http.Request, struct{}) (any, string, error) {
			count, err := a.Acknowledge()
			return affected{count}, "", err
		}))
	}
	if a, ok := s.o.Source.(Prober); ok {
		mux.Handle("POST /v1/connectors/probe", action(s, "probe connector", func(r *http.Request, n named) (any, string, error) {
			return affected{1}, n.Name, a.Probe(r.Context(), n.Name)
		}))
	}
}

// The bodies of requests and answers.
type (
	named struct {
		Name string `json:"name"`
	}
	chosen struct {
		Connector string   `json:"connector"`
		IDs       []string `json:"ids"`
	}
	affected struct {
		Count int `json:"count"`
	}
)

// DeviceList is a page of the devices, by name.
type DeviceList struct {
	Total   int                     `json:"total"` // that the search finds
	Devices []southbound.DeviceInfo `json:"devices"`
}

// listDevices finds devices whose name, group, listener, address or protocol holds the search's text.
func listDevices(from DeviceLister, search string, offset, limit int) DeviceList {
	search = strings.ToLower(search)
	holds := func(s string) bool { return strings.Contains(strings.ToLower(s), search) }
	start := min(max(0, offset), math.MaxInt/2) // beyond that there are none
	end := start + min(cmp.Or(max(0, limit), 100), 1000)
	var list DeviceList
	order := func(a, b southbound.DeviceInfo) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Listener, b.Listener), cmp.Compare(a.Address, b.Address))
	}
	// Of ten thousand devices only as many are kept as may be on the page: once there are enough, none that comes after the last of them.
	kept := false
	keep := func() {
		slices.SortFunc(list.Devices, order)
		list.Devices = list.Devices[:min(end, len(list.Devices))]
		kept = true
	}
	for d := range from.Devices {
		if search != "" && !holds(d.Device) && !holds(d.Listener) && !holds(d.Address) && !holds(d.Protocol) && !slices.ContainsFunc(d.Groups, holds) {
			continue
		}
		list.Total++
		if kept && order(d, list.Devices[end-1]) > 0 {
			continue
		}
		if list.Devices = append(list.Devices, d); len(list.Devices)/2 > end {
			keep()
		}
	}
	keep()
	list.Devices = append([]southbound.DeviceInfo{}, list.Devices[min(start, len(list.Devices)):]...)
	return list
}

// atoi reads a number of a query; 0 where there is none.
func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

const maxBody = 1 << 20

// ask handles a question: a JSON body in, a JSON body out.
func ask[T any](answer func(r *http.Request, in T) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
			refuse(w, &Refused{Code: http.StatusBadRequest, Message: fmt.Sprintf("request: %v", err)})
			return
		}
		out, err := answer(r, in)
		if err != nil {
			refuse(w, err)
			return
		}
		writeJSON(w, out)
	})
}

// action handles a question that changes something: operators only, and into the log with who did it.
func action[T any](s *Server, what string, do func(r *http.Request, in T) (any, string, error)) http.Handler {
	return ask(func(r *http.Request, in T) (any, error) {
		who := callerOf(r.Context())
		if !who.operator {
			return nil, &Refused{Code: http.StatusForbidden, Message: "denied: only an operator may " + what}
		}
		out, subject, err := do(r, in)
		result := "done"
		if err != nil {
			result = "refused"
		}
		s.o.Log.Info("action: "+what, "audit", true, "who", who.name, "subject", subject, "result", result)
		return out, err
	})
}

// refuse answers with an error. One that is made of several is answered with all of them.
func refuse(w http.ResponseWriter, err error) {
	r, ok := errors.AsType[*Refused](err)
	if !ok {
		r = &Refused{}
		r.Message, r.Advice = health.Words(err, time.Now())
		if mistakes, ok := errors.AsType[config.Errors](err); ok {
			r.Message = fmt.Sprintf("%s: nothing was changed", english.count("mistakes", len(mistakes)))
			for _, m := range mistakes {
				r.Details = append(r.Details, m.Error())
			}
		}
	}
	writeError(w, cmp.Or(r.Code, http.StatusUnprocessableEntity), r)
}

func writeError(w http.ResponseWriter, code int, r *Refused) {
	body, err := json.Marshal(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}
