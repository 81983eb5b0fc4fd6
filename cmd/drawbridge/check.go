package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/northbound"
)

func (a *app) checkVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Tell everything that is wrong with the configuration, with line and column",
		Long: `Reads the configuration as run would and prints every mistake as file:line:col: message.
Exit status 0: run and reload would take it; 2: they would not.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.configPath = args[0]
			}
			cfg, _, err := load(a.config(), kinds())
			if err != nil {
				return err
			}
			if isFirst(a.config()) {
				return a.done(nil, "%s: ok: it says nothing yet, so only this machine is served; `drawbridge init` writes what goes on from there\n", a.config())
			}
			_, err = fmt.Fprintf(a.out, "%s: ok: %s, %s, %s, %s\n", a.config(), plural(len(cfg.Listeners), "listener"),
				plural(len(cfg.Uplinks)+len(cfg.Downlinks), "route"), plural(len(cfg.Connectors), "connector"), plural(len(cfg.Keys), "key"))
			return err
		},
	}
}

// load reads the file, or what stands for it at a first start, and compiles its routes; it tells the mistakes of both together.
func load(path string, k builtin) (*config.Config, *bridge.Table, error) {
	cfg, err := read(path, k)
	return compile(cfg, err, k)
}

// outline is load for verbs that make files which the configuration names, or need none of them: it minds none that is not there.
func outline(path string, k builtin) (*config.Config, *bridge.Table, error) {
	cfg, err := read(path, k)
	return compile(cfg, config.Present(err), k)
}

func compile(cfg *config.Config, err error, k builtin) (*config.Config, *bridge.Table, error) {
	if cfg == nil {
		return nil, nil, err
	}
	table, wrong := bridge.Compile(cfg)
	if err := config.Join(err, wrong, checkURIs(cfg)); err != nil {
		return nil, nil, err
	}
	if err := table.CheckLimits(cfg, limits(cfg, k)); err != nil {
		return nil, nil, err
	}
	return cfg, table, nil
}

// read reads the file, or what stands for it at a first start. A file with mistakes comes with them; nil where it cannot be read at all.
func read(path string, k builtin) (cfg *config.Config, err error) {
	if isFirst(path) {
		cfg, err = config.Parse(path, firstFile(os.Getenv), k.config())
	} else {
		cfg, err = config.Load(path, k.config())
	}
	if cfg != nil {
		return cfg, err
	}
	if _, bad := errors.AsType[config.Errors](err); bad {
		return nil, err
	}
	f := &failure{code: exitUsage, err: err}
	if errors.Is(err, fs.ErrNotExist) {
		f.hint = "`drawbridge init` writes one; or try `drawbridge demo`, which needs none"
	}
	return nil, f
}

// checkURIs parses the URIs of keys, which the package config does not understand.
func checkURIs(cfg *config.Config) error {
	var errs []error
	for _, k := range cfg.Keys {
		if k.URI == "" {
			continue // said already
		}
		if _, err := hwcrypto.ParseURI(k.URI, filepath.Dir(cfg.Path)); err != nil {
			errs = append(errs, cfg.Errorf(cfg.At(k, "uri"), "%v", err))
		}
	}
	return config.Join(errs...)
}

// limits asks the types of the connectors what their platforms bear, without reaching them or any key.
func limits(cfg *config.Config, k builtin) map[string]northbound.Limits {
	all := map[string]northbound.Limits{}
	for name, c := range cfg.Connectors {
		built, err := k.connectors[c.Type].Open(northbound.Env{
			Name: name, Gateway: cfg.Gateway.ID, Log: slog.New(slog.DiscardHandler), Keys: noKeys{}, Now: time.Now,
		}, c.Own)
		if err != nil {
			continue // what stands in its way is told when it is opened in earnest
		}
		if l, ok := built.(northbound.Limited); ok {
			all[name] = l.Limits()
		}
	}
	return all
}

// noKeys is a key ring for connectors that will not be dialled.
type noKeys struct{}

var errNoKeys = errors.New("keys are not opened for a check")

func (noKeys) Certificate(context.Context, string) (*tls.Certificate, error) { return nil, errNoKeys }
func (noKeys) MAC(context.Context, string) (hwcrypto.MACer, error)           { return nil, errNoKeys }
func (noKeys) Secret(context.Context, string) ([]byte, error)                { return nil, errNoKeys }
