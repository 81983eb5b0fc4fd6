package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
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
			_, err = fmt.Fprintf(a.out, "%s: ok: %s, %s, %s, %s\n", a.config(), plural(len(cfg.Listeners), "listener"),
				plural(len(cfg.Uplinks)+len(cfg.Downlinks), "route"), plural(len(cfg.Connectors), "connector"), plural(len(cfg.Keys), "key"))
			return err
		},
	}
}

// load reads the file and compiles its routes; it tells the mistakes of both together.
func load(path string, k builtin) (*config.Config, *bridge.Table, error) {
	cfg, err := config.Load(path, k.config())
	if err != nil {
		if _, bad := errors.AsType[config.Errors](err); bad {
			return nil, nil, err
		}
		f := &failure{code: exitUsage, err: err}
		if errors.Is(err, fs.ErrNotExist) {
			f.hint = "name the file with --config, or try `drawbridge demo`, which needs none"
		}
		return nil, nil, f
	}
	table, err := bridge.Compile(cfg)
	if err != nil {
		return nil, nil, err
	}
	return cfg, table, nil
}
