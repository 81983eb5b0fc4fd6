package status

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options say what a Server serves and where.
type Options struct {
	Source  Source
	Log     *slog.Logger
	Now     func() time.Time
	Listen  string              // address of the page; "" turns it off
	TLS     *tls.Config         // of the page's address, where that is no loopback one
	Login   *Login              // who may log in there
	Socket  string              // path of the local socket; "" turns it off
	State   string              // existing directory where the plots' past is kept; "" keeps it in memory
	Records *Recorder           // what the page shows of the log; nil: nothing
	Bound   func(page net.Addr) // called once the addresses are bound; may be nil
}

// Server serves the page's address and the local socket.
type Server struct {
	o       Options
	metrics http.Handler
	history *history
	live    *live
	door    *door        // nil where the page is served to this machine alone
	readers atomic.Int32 // pages with live values
}

// New makes a Server. It binds nothing.
func New(o Options) (*Server, error) {
	local := true
	if o.Listen != "" {
		host, _, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return nil, fmt.Errorf("status: listen %q: %w", o.Listen, err)
		}
		local = isLoopback(host)
	}
	if !local && (o.TLS == nil || o.Login == nil || o.Login.Password == nil && o.Login.Issuer == nil) {
		return nil, fmt.Errorf("status: listen %q: not a loopback address, and without a key and a log-in no other is served", o.Listen)
	}
	past, err := openHistory(o.State)
	if err != nil {
		o.Log.Warn("the plots start empty", "error", err)
	}
	s := &Server{o: o, history: past, live: newLive()}
	if !local {
		s.door = newDoor(s, *o.Login)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(collector{s.snapshot}); err != nil {
		return nil, fmt.Errorf("status: metrics: %w", err)
	}
	s.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn)})
	return s, nil
}

// isLoopback tells whether host names this machine itself.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// snapshot takes a complete snapshot.
func (s *Server) snapshot() Snapshot {
	snap := s.o.Source.Snapshot()
	snap.complete()
	return snap
}

// Serve binds the addresses and serves until ctx ends; then it lets go of them, waits for its goroutines and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	var page, socket net.Listener
	var err error
	if s.o.Listen != "" {
		if page, err = new(net.ListenConfig).Listen(ctx, "tcp", s.o.Listen); err != nil {
			return fmt.Errorf("status: %w", err)
		}
		defer page.Close()
		if s.door != nil {
			secured := s.o.TLS.Clone()
			secured.MinVersion = tls.VersionTLS12
			secured.NextProtos = []string{"h2", "http/1.1"}
			page = tls.NewListener(page, secured)
		}
	}
	if s.o.Socket != "" {
		if socket, err = listenSocket(ctx, s.o.Socket); err != nil {
			return err
		}
		defer socket.Close()
	}
	if s.o.Bound != nil {
		var a net.Addr
		if page != nil {
			a = page.Addr()
		}
		s.o.Bound(a)
	}
	var group sync.WaitGroup
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	serve := func(l net.Listener, srv *http.Server) {
		// Requests end with the server, so that an event stream does not hold up the shutdown.
		srv.BaseContext = func(net.Listener) context.Context { return running }
		srv.ErrorLog = slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug)
		srv.ReadHeaderTimeout = 10 * time.Second
		srv.ReadTimeout = 30 * time.Second
		srv.IdleTimeout = 2 * time.Minute
		srv.MaxHeaderBytes = 16 << 10
		group.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(fmt.Errorf("status: %w", err))
			}
		})
		group.Go(func() {
			<-running.Done()
			grace, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer done()
			if srv.Shutdown(grace) != nil {
				srv.Close()
			}
		})
	}
	group.Go(func() { s.watch(running) })
	if page != nil {
		serve(page, &http.Server{Handler: s.PageHandler()})
	}
	if socket != nil {
		serve(socket, &http.Server{Handler: s.SocketHandler(), ConnContext: withPeer})
	}
	<-running.Done()
	group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(running)
}

// listenSocket binds the local socket, also where a gateway that was killed has left it behind.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("status: socket: %w", err)
	}
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("status: socket %q: another gateway answers there", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		os.Remove(path)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("status: socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("status: socket: %w", err)
	}
	return l, nil
}

// routes adds what both the page's address and the socket serve.
func (s *Server) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /status.json", s.serveJSON)
	mux.Handle("GET /metrics", s.metrics)
	mux.HandleFunc("GET /healthz", s.serveHealth)
	mux.HandleFunc("GET /readyz", s.serveReady)
	s.actions(mux)
}

// PageHandler is what the page's address serves.
func (s *Server) PageHandler() http.Handler {
	mux := http.NewServeMux()
	s.routes(mux)
	s.pages(mux)
	foreign := http.NewCrossOriginProtection()
	if s.door != nil {
		return secure(onlyTLS(foreign.Handler(s.door.guard(mux))))
	}
	return secure(localHost(foreign.Handler(asLocal(mux))))
}

// SocketHandler is what the local socket serves.
func (s *Server) SocketHandler() http.Handler {
	mux := http.NewServeMux()
	s.routes(mux)
	return peersOnly(mux)
}

func (s *Server) serveJSON(w http.ResponseWriter, r *http.Request) { writeJSON(w, s.snapshot()) }

// serveHealth answers 200 while the gateway does its work, else 503 with what is wrong, one problem a line.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	snap := s.snapshot()
	plain(w)
	if !snap.Verdict.Well() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, snap.Verdict.State)
	for _, p := range snap.Problems {
		fmt.Fprintf(w, "%s %s %q: %s\n", p.Severity, p.Code, p.Subject, p.Title)
	}
}

// serveReady answers 200 when every listener is bound, else 503 with which are not.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	snap := s.snapshot()
	plain(w)
	if snap.Gateway.Ready {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, l := range snap.Listeners {
		if !l.Bound {
			fmt.Fprintf(w, "listener %s: not bound", l.Name)
			if l.Error != "" {
				fmt.Fprintf(w, ": %s", l.Error)
			}
			fmt.Fprintln(w)
		}
	}
}

func plain(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/plain; charset=utf-8") }

func writeJSON(w http.ResponseWriter, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b.Bytes())
}
