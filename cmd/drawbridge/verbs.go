package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// verbs are the commands of the contract, in the order in which help lists them.
func (a *app) verbs() []*cobra.Command {
	return []*cobra.Command{
		a.initVerb(),
		a.runVerb(),
		a.checkVerb(),
		a.statusVerb(),
		a.reloadVerb(),
		a.routesVerb(),
		a.keysVerb(),
		a.enrollVerb(),
		a.doctorVerb(),
		a.supportVerb(),
		a.spoolVerb(),
		a.deviceVerb(),
		a.connectorsVerb(),
		a.demoVerb(),
		a.versionVerb(),
	}
}

func (a *app) versionVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, "drawbridge", version)
			return err
		},
	}
}

// builtAt gives a moment that is known to have passed.
func builtAt() time.Time {
	t, err := time.Parse(time.RFC3339, built)
	if err != nil {
		panic("main.built: " + err.Error()) // the linker was given something else than a time
	}
	return t
}
