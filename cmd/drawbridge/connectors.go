package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) connectorsVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "connectors [TYPE]",
		Short: "List the types of connector that are built in, or show an example of one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			built := kinds().connectors
			if len(args) == 1 {
				k, ok := built[args[0]]
				if !ok {
					return usage("connectors: there is no type %q; there are: %s", args[0], strings.Join(slices.Sorted(maps.Keys(built)), ", "))
				}
				if _, err := fmt.Fprintf(a.out, "# %s\n%s\n", k.About, strings.TrimSpace(k.Example)); err != nil || len(k.Hints) == 0 {
					return err
				}
				text := "\n# What its errors are known to mean\n"
				for _, h := range k.Hints {
					text += fmt.Sprintf("# %s: %s\n", h.Says, h.Means)
				}
				_, err := fmt.Fprint(a.out, text)
				return err
			}
			for _, t := range slices.Sorted(maps.Keys(built)) {
				if _, err := fmt.Fprintf(a.out, "%-10s %s\n", t, built[t].About); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
