package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/status"
)

// client reaches the running gateway that the configuration names. Mistakes of the file are no hindrance: it may be one of them, such
// as a file that has become unreadable, that somebody wants to see.
func (a *app) client() (*status.Client, error) {
	cfg, err := read(a.config(), kinds())
	if cfg == nil {
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
