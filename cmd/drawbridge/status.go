package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/status"
)

// client reaches the running gateway that the configuration names.
func (a *app) client() (*status.Client, error) {
	if a.configPath == "" {
		if _, err := os.Stat(defaultConfig); errors.Is(err, fs.ErrNotExist) {
			return status.NewClient("/run/drawbridge/drawbridge.sock"), nil
		}
	}
	cfg, _, err := load(a.config(), kinds())
	if err != nil {
		return nil, err
	}
	return status.NewClient(string(cfg.Status.Socket)), nil
}

func (a *app) statusVerb() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Tell how the running gateway is: verdict, problems with hints, listeners, connectors, queues, keys",
		Long: `Asks the running gateway over its local socket.
Exit status 0: it does its work; 3: it does not; 1: no gateway answers.`,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			s, err := client.Snapshot(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(a.out)
				e.SetIndent("", "  ")
				err = e.Encode(s)
			} else {
				err = s.WriteText(a.out)
			}
			if err == nil && !s.Verdict.Well() {
				err = no()
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the whole snapshot as JSON")
	return c
}

func (a *app) reloadVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Check the configuration and take it over; print what restarted",
		Long: `Asks the running gateway to read its configuration again, all or nothing.
A file with a mistake changes nothing: every mistake is printed and the exit status is 2.`,
		RunE: func(c *cobra.Command, _ []string) error {
			// The socket is that of the file in force; where the new file is bad, the gateway says so itself.
			client, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.Reload(c.Context())
			if err != nil {
				return err
			}
			for _, line := range []struct {
				what  string
				names []string
			}{{"started", r.Started}, {"restarted", r.Restarted}, {"stopped", r.Stopped}, {"changed", r.Changed}} {
				if len(line.names) > 0 {
					fmt.Fprintf(a.out, "%s: %s\n", line.what, strings.Join(line.names, ", "))
				}
			}
			_, err = fmt.Fprintln(a.out, "reloaded")
			return err
		},
	}
}
