package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/config"
)

func (a *app) runVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the gateway",
		Long: `Runs the gateway until SIGTERM or SIGINT, and logs to standard error.
SIGHUP reads the configuration again, as drawbridge reload does.`,
		RunE: func(c *cobra.Command, _ []string) error {
			// The log's own settings are in the file, so what is wrong with the file is told before there is a log.
			cfg, _, err := load(a.config(), kinds())
			if err != nil {
				return err
			}
			return serve(c.Context(), a.config(), newLog(a.err, cfg.Log), nil)
		},
	}
}

// serve runs one gateway until ctx ends. ready, where not nil, is called once every listener is bound.
func serve(ctx context.Context, path string, log *slog.Logger, ready func(*gateway)) error {
	g, err := openGateway(ctx, path, log, time.Now)
	if err != nil {
		return err
	}
	if ready != nil {
		go func() {
			select {
			case <-g.ready:
				ready(g)
			case <-ctx.Done():
			}
		}()
	}
	return g.run(ctx)
}

func newLog(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // config has checked the word
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
