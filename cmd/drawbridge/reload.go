package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) reloadVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Check the configuration and take it over; print what restarted",
		Long: `Asks the running gateway to read its configuration again, all or nothing.
A file with a mistake changes nothing: every mistake is printed and the exit status is 2.`,
		RunE: func(c *cobra.Command, _ []string) error {
			// Here each mistake is told with its line; what only shows in earnest, the gateway says itself.
			if _, _, err := load(a.config(), kinds()); err != nil {
				return err
			}
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
