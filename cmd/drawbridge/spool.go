package main

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/status"
)

func (a *app) spoolVerb() *cobra.Command {
	ask := func(f func(context.Context, *status.Client, string, []string) error) func(*cobra.Command, []string) error {
		return func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			connector, ids := "", []string(nil)
			if len(args) > 0 {
				connector, ids = args[0], args[1:]
			}
			return f(c.Context(), client, connector, ids)
		}
	}
	c := &cobra.Command{
		Use:   "spool [CONNECTOR]",
		Short: "Show what waits for the clouds; list, replay or drop dead letters",
		Args:  cobra.MaximumNArgs(1),
		RunE:  ask(a.spoolShow),
	}
	c.AddCommand(&cobra.Command{
		Use:   "list [CONNECTOR]",
		Short: "List the dead letters: what a cloud refused for good, and why",
		Args:  cobra.MaximumNArgs(1),
		RunE:  ask(a.spoolList),
	}, &cobra.Command{
		Use:   "replay CONNECTOR [ID...]",
		Short: "Queue dead letters again: those named, or all of the connector",
		Args:  cobra.MinimumNArgs(1),
		RunE: ask(func(ctx context.Context, client *status.Client, connector string, ids []string) error {
			n, err := client.Replay(ctx, connector, ids)
			return a.done(err, "%s queued again\n", plural(n, "dead letter"))
		}),
	}, &cobra.Command{
		Use:   "drop CONNECTOR ID...",
		Short: "Delete dead letters for ever: those named, or \"all\"",
		Args:  cobra.MinimumNArgs(2),
		RunE: ask(func(ctx context.Context, client *status.Client, connector string, ids []string) error {
			if len(ids) == 1 && ids[0] == "all" {
				ids = nil
			}
			n, err := client.Drop(ctx, connector, ids)
			return a.done(err, "%s dropped\n", plural(n, "dead letter"))
		}),
	}, &cobra.Command{
		Use:   "acknowledge",
		Short: "Take note of what damage to the disk has taken: its problem goes until more is lost",
		Args:  cobra.NoArgs,
		RunE: ask(func(ctx context.Context, client *status.Client, _ string, _ []string) error {
			n, err := client.Acknowledge(ctx)
			return a.done(err, "%s lost, which somebody knows of now\n", plural(n, "message"))
		}),
	}, a.spoolForgetVerb())
	return c
}

func (a *app) spoolForgetVerb() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "forget CONNECTOR",
		Short: "Give up for good what waits for a connector that is not in the configuration any more",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if !yes {
				fmt.Fprintf(a.err, "drawbridge: all messages and dead letters of %q are given up for good. Type its name to go on: ", args[0])
				line, _ := bufio.NewReader(a.in).ReadString('\n') // no answer is no
				if strings.TrimSpace(line) != args[0] {
					return usage("spool forget: nothing was changed")
				}
			}
			n, err := client.Forget(c.Context(), args[0])
			return a.done(err, "%s given up\n", plural(n, "message"))
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) done(err error, format string, args ...any) error {
	if err == nil {
		_, err = fmt.Fprintf(a.out, format, args...)
	}
	return err
}

func (a *app) spoolShow(ctx context.Context, client *status.Client, connector string, _ []string) error {
	s, err := client.Snapshot(ctx)
	if err != nil {
		return err
	}
	if connector != "" && !slices.ContainsFunc(s.Ledger, func(t spool.Tally) bool { return t.Connector == connector }) &&
		!slices.ContainsFunc(s.Connectors, func(c status.Connector) bool { return c.Name == connector }) {
		return usage("spool: there is no connector %q", connector)
	}
	full := ""
	if s.Spool.Full {
		full = ", full"
	}
	fmt.Fprintf(a.out, "%s of %s on disk%s; %s", status.Size(s.Spool.Bytes), status.Size(s.Spool.MaxBytes), full, plural(int(s.Spool.Records), "message"))
	if !s.Spool.Oldest.IsZero() {
		fmt.Fprintf(a.out, ", the oldest %s old", s.Time.Sub(s.Spool.Oldest).Round(time.Second))
	}
	fmt.Fprintln(a.out)
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "connector\troute\taccepted\tdelivered\tpending\texpired\tdead\t")
	for _, t := range s.Ledger {
		if connector != "" && t.Connector != connector {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t\n", t.Connector, t.Route, t.Accepted, t.Delivered, t.Pending, t.Expired, t.Dead)
	}
	return w.Flush()
}

func (a *app) spoolList(ctx context.Context, client *status.Client, connector string, _ []string) error {
	letters, err := client.DeadLetters(ctx, connector, 1000)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tCONNECTOR\tDEVICE\tTOPIC\tACCEPTED\tREASON")
	for _, l := range letters {
		fmt.Fprintln(w, strings.Join([]string{l.ID, l.Connector, l.Device, l.Topic, l.Accepted.Format(time.DateTime), l.Reason}, "\t"))
	}
	return w.Flush()
}
