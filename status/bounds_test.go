package status

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Two tokens may have one label, and what a chip says of itself need not be text.
func TestMetricsOfChipsThatHaveOneName(t *testing.T) {
	g := well()
	g.change(func(s *Snapshot) {
		c := s.Chips[0]
		c.Chip = "token \"gw\" (\xff)"
		s.Chips = []hwcrypto.QueueStats{c, c, c}
	})
	page, _ := start(t, g)
	code, body := get(t, page+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	for _, name := range []string{`token \"gw\" (?)`, `token \"gw\" (?) 2`, `token \"gw\" (?) 3`} {
		if want := `drawbridge_chip_queue_depth{chip="` + name + `"} 0`; !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestPagesThatAreNotThereAreEmpty(t *testing.T) {
	page, _ := start(t, well())
	for _, path := range []string{"/v1/devices?offset=9223372036854775807", "/v1/devices?offset=2147483647&limit=1000", "/v1/devices?offset=-1&limit=-1", "/v1/dead?limit=-1",
		"/devices?page=9223372036854775807", "/devices?page=184467440737095517", "/devices?page=42949673", "/devices?page=2147483647", "/devices?page=-1"} {
		resp, err := http.Get(page + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

// issuer answers discovery where it is there, and counts the questions.
func issuer(t *testing.T, s *site, there bool) (*Issuer, *atomic.Int32) {
	t.Helper()
	asked := new(atomic.Int32)
	var srv *httptest.Server
	srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !there {
			http.Error(w, "", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":"%[1]s/auth","token_endpoint":"%[1]s/token","jwks_uri":"%[1]s/jwks"}`, srv.URL)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{s.cert}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return &Issuer{Name: "plant", URL: srv.URL, ClientID: "gw", Client: s.client()}, asked
}

// from is a visitor with another address of this machine.
func (s *site) from(t *testing.T, ip string) *http.Client {
	c := s.visitor(t)
	c.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext
	return c
}

func TestWhoBeginsManyLogInsKeepsNobodyElseOut(t *testing.T) {
	s := newSite(t)
	i, _ := issuer(t, s, true)
	page, _ := startOpen(t, s, Login{Issuer: i})
	crowd := s.from(t, "127.0.0.2")
	for range 2 * loginsEach {
		if resp, _ := request(t, crowd, "GET", page+"/login/issuer", ""); resp.StatusCode != http.StatusSeeOther {
			t.Fatalf("one of many: %d", resp.StatusCode)
		}
	}
	if resp, _ := request(t, s.from(t, "127.0.0.3"), "GET", page+"/login/issuer", ""); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("somebody else: %d", resp.StatusCode)
	}
}

func TestAnIssuerThatIsAwayIsNotFlooded(t *testing.T) {
	s := newSite(t)
	i, asked := issuer(t, s, false)
	page, _ := startOpen(t, s, Login{Issuer: i})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			resp, err := s.client().Get(page + "/login/issuer")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadGateway {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
