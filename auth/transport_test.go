package auth_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
)

// outdo has the provider answer path by something else.
func (p *idp) outdo(path string, answer http.HandlerFunc) {
	usual := p.Config.Handler
	p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			answer(w, r)
			return
		}
		usual.ServeHTTP(w, r)
	})
}

// login shows a good token of the provider to a gateway that knows it.
func (p *idp) login() (auth.Identity, error) {
	b := newOutsideBench(p.t, "[issuer.plant]\nurl = \""+p.URL+"\"\naudience = \"a\"\nca = \"ca.pem\"\n", map[string]string{"ca.pem": string(p.ca())})
	token := p.token(map[string]any{"iss": p.URL, "aud": "a", "sub": "press-3", "exp": time.Now().Add(time.Hour).Unix()})
	return b.realm.Login(p.t.Context(), []string{"jwt"}, auth.Credentials{Password: []byte(token), Remote: from("10.0.0.1:1")})
}

// Keys that came without TLS are anybody's: who gave them could sign a token for every device.
func TestIssuersAreAskedOverTLSAlone(t *testing.T) {
	for name, outdo := range map[string]func(p *idp, plain string){
		"its keys lie elsewhere": func(p *idp, plain string) {
			p.outdo("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": plain + "/jwks"})
			})
		},
		"it sends elsewhere": func(p *idp, plain string) {
			p.outdo("/jwks", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain+"/jwks", http.StatusFound) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newIDP(t)
			if id, err := p.login(); err != nil || id.Device != "press-3" {
				t.Fatalf("as it should be: %+v, %v", id, err)
			}
			var asked atomic.Int32
			usual := p.Config.Handler
			plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				usual.ServeHTTP(w, r)
			}))
			t.Cleanup(plain.Close)
			outdo(p, plain.URL)
			if id, err := p.login(); err == nil {
				t.Errorf("it was let in: %+v", id)
			}
			if n := asked.Load(); n != 0 {
				t.Errorf("asked %d times without TLS", n)
			}
		})
	}
}

// endless sends more than anybody needs; it counts the octets that were taken.
func endless(taken *atomic.Int64) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for range 64 {
			n, err := w.Write(make([]byte, 1<<20))
			if taken.Add(int64(n)); err != nil {
				return
			}
		}
	}
}

func TestAnswersOfIssuersAreBounded(t *testing.T) {
	const most = 32 << 20 // what may be on its way is much
	for _, path := range []string{"/.well-known/openid-configuration", "/jwks"} {
		var taken atomic.Int64
		p := newIDP(t)
		p.outdo(path, endless(&taken))
		if id, err := p.login(); err == nil {
			t.Errorf("%s: it was let in: %+v", path, id)
		}
		p.Close() // the handler has ended
		if n := taken.Load(); n == 0 || n > most {
			t.Errorf("%s: %d octets were taken", path, n)
		}
	}
	var taken atomic.Int64
	e := newEndpoint(t, endless(&taken))
	e.chip.secrets["file:/s"] = "s"
	g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": {Issuer: e.URL, ClientID: "gw", ClientAuth: "client_secret_basic", ClientSecret: "file:/s"}})
	if token, err := g.get("cloud"); err == nil {
		t.Errorf("a token: %v", token)
	}
	e.Close()
	if n := taken.Load(); n == 0 || n > most {
		t.Errorf("of a token: %d octets were taken", n)
	}
}
