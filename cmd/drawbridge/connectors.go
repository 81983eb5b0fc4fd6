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
		Short: "List the types of connector that are built in, with the least that each needs, or show all of one",
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
					text += fmt.Sprintf("# %s: %s\n", h.Says, h.Meaning.What+"; "+h.Meaning.Hint)
				}
				_, err := fmt.Fprint(a.out, text)
				return err
			}
			for i, t := range slices.Sorted(maps.Keys(built)) {
				text := fmt.Sprintf("%-10s %s\n", t, built[t].About)
				if i > 0 {
					text = "\n" + text
				}
				for line := range strings.Lines(built[t].Example) {
					if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
						text += "    " + line + "\n"
					}
				}
				if _, err := fmt.Fprint(a.out, text); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
