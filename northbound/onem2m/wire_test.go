package onem2m_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/northbound/northtest"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
)

// What leaves by HTTP, as octets: the forms of TS-0009 clause 6, held against a server that knows nothing of oneM2M.
func TestRequestsOnTheWireOfHTTP(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	ids := regexp.MustCompile(`m-[0-9a-f-]{36}|"et":"\d{8}T\d{6}"`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := w.Header()
		h.Set("X-M2M-RI", r.Header.Get("X-M2M-RI"))
		var shown []string
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			if strings.HasPrefix(name, "X-M2m-") && name != "X-M2m-Ri" || name == "Content-Type" || name == "Authorization" {
				shown = append(shown, name+": "+r.Header.Get(name))
			}
		}
		mu.Lock()
		seen = append(seen, fmt.Sprintf("%s %s\n%s\n%s", r.Method, r.URL, strings.Join(shown, "\n"), ids.ReplaceAllString(string(body), "…")))
		mu.Unlock()
		switch {
		case strings.Contains(r.URL.RawQuery, "rt=1"):
			h.Set("X-M2M-RSC", "1001")
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, `{"m2m:uri":"/id-in/req1"}`)
		case r.Method == http.MethodGet:
			h.Set("X-M2M-RSC", "2000")
			io.WriteString(w, `{"m2m:req":{"rs":1,"ors":{"rsc":2001,"rqi":"1"}}}`)
		default:
			h.Set("X-M2M-RSC", "2001")
			w.WriteHeader(http.StatusCreated)
		}
	}))
	defer server.Close()
	env, _ := northtest.Env(t, &northtest.Keys{})
	env.Tokens = &issuer{}
	cfg := onem2m.Kind().Config().(*onem2m.Config)
	cfg.URL, cfg.CSE, cfg.Token, cfg.TokenAs, cfg.Response = server.URL, "/id-in/cse-in", "plant", "tkns", "synch"
	conn, err := onem2m.Kind().Open(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := northtest.Dial(t, conn, &northtest.Downlink{})
	batch := publications("a", 1)
	batch[0].Topic = "dt"
	errs, ended := outcome(t, s, batch)
	clean(t, errs, ended)
	want := []string{
		"POST /~/id-in/cse-in\nAuthorization: token0\nContent-Type: application/json;ty=2\nX-M2m-Origin: Cgw1\nX-M2m-Rvi: 3\n" +
			`{"m2m:ae":{"api":"Ndrawbridge",…,"rn":"gw1","rr":false,"srv":["3"]}}`,
		"POST /~/id-in/cse-in/gw1\nAuthorization: token0\nContent-Type: application/json;ty=3\nX-M2m-Origin: Cgw1\nX-M2m-Rvi: 3\n" +
			`{"m2m:cnt":{…,"rn":"dt"}}`,
		"POST /~/id-in/cse-in/gw1/dt?rcn=0&rt=1\nAuthorization: token0\nContent-Type: application/json;ty=4\nX-M2m-Origin: Cgw1\nX-M2m-Rvi: 3\n" +
			`{"m2m:cin":{"cnf":"text/plain:0","con":"a-0","rn":"…"}}`,
		"GET /~/id-in/req1\nAuthorization: token0\nX-M2m-Origin: Cgw1\nX-M2m-Rvi: 3\n",
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(seen, want) {
		t.Errorf("on the wire:\n%s", strings.Join(seen, "\n--\n"))
	}
}
