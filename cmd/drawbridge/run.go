package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/sdnotify"
	"github.com/drawbridge/drawbridge/status"
)

func (a *app) runVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the gateway",
		Long: `Runs the gateway until SIGTERM or SIGINT, and logs to standard error.
SIGHUP reads the configuration again, as drawbridge reload does.
Under systemd it says when it is ready, feeds the watchdog while every part makes progress, and takes over sockets.
Without a configuration it makes itself an identity key in the TPM, if there is one, and serves this machine alone; drawbridge init writes
the file that goes on from there. DRAWBRIDGE_TPM names another TPM for that than /dev/tpmrm0, such as unix:/path.`,
		RunE: func(c *cobra.Command, _ []string) error {
			// From the first moment on: either signal would end the process.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			signal.Ignore(syscall.SIGPIPE) // nobody reads the log any more
			// The log's own settings are in the file, so what is wrong with the file is told before there is a log.
			cfg, _, err := load(a.config(), kinds())
			if err != nil {
				return err
			}
			weight := make([]byte, ballast)
			defer runtime.KeepAlive(weight)
			p := parts{records: status.NewRecorder(recordLines), notify: sdnotify.New(os.Getenv), hangup: hangup, sockets: sdnotify.Files(os.Getenv)}
			p.log = slog.New(p.records.Handler(newLog(a.err, cfg.Log)))
			noCore(p.log)
			return serve(c.Context(), a.config(), p, func() {
				if isFirst(a.config()) {
					sayNext(a.err, a.config())
				}
			})
		},
	}
}

// recordLines is how many lines of the log the status page shows.
const recordLines = 500

// ballast is memory that is never touched, so it takes no room, but that the collector counts: a gateway's heap is small, and would
// otherwise be collected many times a second under load. With a large heap it makes no difference.
const ballast = 24 << 20

// parts are what a gateway is given by who runs it.
type parts struct {
	log     *slog.Logger
	records *status.Recorder      // nil: the page shows no log
	notify  *sdnotify.Notifier    // nil: nobody is told
	hangup  <-chan os.Signal      // asks for a reload; nil: nobody does
	sockets map[string][]*os.File // handed over by systemd, by name
	kinds   builtin               // what it is built of; zero: kinds()
	system  func() time.Time      // the system's clock; nil: time.Now
	page    func(net.Addr)        // told where the status page is served; nil: nobody is
}

// serve runs one gateway until ctx ends. ready, where not nil, is called once every listener is bound.
func serve(ctx context.Context, path string, p parts, ready func()) error {
	g, err := openGateway(ctx, path, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-g.ready:
			if ready != nil {
				ready()
			}
			g.tell(ctx, p.notify)
		case <-ctx.Done():
		}
	}()
	err = g.run(ctx)
	cancel()
	<-told
	return err
}

// tell keeps systemd informed until ctx ends: that the gateway is ready, that it makes progress, that it reloads when asked to by a signal, that it stops.
func (g *gateway) tell(ctx context.Context, n *sdnotify.Notifier) {
	if n == nil {
		n = sdnotify.New(func(string) string { return "" })
	}
	g.note(n.Ready("serving"))
	interval := n.Interval()
	if interval == 0 {
		interval = 30 * time.Second
	}
	beat := time.NewTicker(interval)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			g.note(n.Stopping())
			return
		case <-g.hangup:
			g.note(n.Reloading())
			if _, err := g.reload(g.tasks); err != nil {
				g.log.Error("reload", "error", err)
			}
			g.note(n.Ready("serving"))
		case <-beat.C:
			if stuck := g.sup.Stuck(); len(stuck) > 0 {
				g.log.Error("the watchdog is not fed: no progress", "tasks", strings.Join(stuck, ", "))
				g.note(n.Status("no progress: " + strings.Join(stuck, ", ")))
				continue
			}
			g.note(n.Alive())
		}
	}
}

// note logs that systemd could not be told; the gateway goes on.
func (g *gateway) note(err error) {
	if err != nil {
		g.log.Warn("systemd", "error", err)
	}
}

func newLog(w io.Writer, c config.Log) slog.Handler {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // config has checked the word
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.NewJSONHandler(w, o)
	}
	return slog.NewTextHandler(w, o)
}
