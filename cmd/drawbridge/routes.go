package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/bridge"
	"github.com/drawbridge/drawbridge/config"
)

func (a *app) routesVerb() *cobra.Command {
	c := &cobra.Command{
		Use:   "routes",
		Short: "List the routes in the order in which they are tried; test one",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(c, args[0])
			}
			_, table, err := outline(a.config(), kinds())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ROUTE\tRESOURCE\t\tTOPIC\tCONNECTORS\tTRANSFORM")
			for _, r := range table.Routes() {
				arrow := "→"
				if r.Direction == "down" {
					arrow = "←"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Resource, arrow, r.Topic, strings.Join(r.Connectors, ", "), r.Transform)
			}
			return w.Flush()
		},
	}
	var device, typ string
	var groups []string
	test := &cobra.Command{
		Use:   "test --device DEVICE RESOURCE",
		Short: "Show which rule, route, transform and topics a report would take; a payload on standard input shows the result",
		Long: `Needs no running gateway and sends nothing.
Exit status 0: the report would be taken; 3: it would be refused, and why.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if device == "" {
				return usage("routes test: --device is missing")
			}
			cfg, table, err := outline(a.config(), kinds())
			if err != nil {
				return err
			}
			payload, err := a.piped()
			if err != nil {
				return err
			}
			realm, err := policyOf(c.Context(), cfg)
			if err != nil {
				return err
			}
			defer realm.Close()
			if known, ok := realm.Lookup(device); ok {
				groups = append(groups, known.Groups...)
			}
			trial := table.Test(realm, device, groups, args[0], typ, payload, time.Now())
			rule := realm.Explain(&auth.Identity{Device: device, Groups: trial.Groups}, auth.Report, "", args[0])
			return a.printTrial(cfg, trial, rule)
		},
	}
	test.Flags().StringVar(&device, "device", "", "the device that reports")
	test.Flags().StringSliceVar(&groups, "group", nil, "a group that its certificate would give it; may be repeated")
	test.Flags().StringVar(&typ, "type", "application/json", "media type of the payload")
	c.AddCommand(test)
	return c
}

// policyOf gives the rules of a file; it reads no secret.
func policyOf(ctx context.Context, cfg *config.Config) (*auth.Realm, error) {
	return auth.NewRealm(ctx, cfg, auth.Options{
		Secret: func(context.Context, string) ([]byte, error) { return nil, errors.New("no secret is read for this") },
		Log:    slog.New(slog.DiscardHandler), Now: time.Now,
	})
}

// piped gives what is on standard input; nil where that is a terminal or nothing.
func (a *app) piped() ([]byte, error) {
	if terminal(a.in) {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(a.in, 16<<20))
	if len(b) == 0 {
		return nil, err
	}
	return b, err
}

func (a *app) printTrial(cfg *config.Config, t bridge.Trial, rule *config.Allow) error {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	row("device", "%s (groups: %s)", t.Device, orNone(strings.Join(t.Groups, ", ")))
	row("resource", "%s", t.Resource)
	if rule != nil {
		row("rule", "[[allow]] at %s:%d", filepath.Base(cfg.Path), rule.Pos.Line)
	} else {
		row("rule", "no rule allows it")
	}
	if t.Route == "" {
		row("route", "no route matches")
	} else {
		row("route", "%s (%s)", t.Route, t.Pattern)
		for _, s := range t.Steps {
			if s.Err != nil {
				row("transform", "%s: %v", s.Step, s.Err)
			} else {
				row("transform", "%s: %s", s.Step, shown(s.Type, s.Data))
			}
		}
		row("topic", "%s", t.Topic)
		row("to", "%s", strings.Join(t.To, ", "))
		row("ack", "%s, qos %d, priority %s", t.Ack, t.QoS, t.Priority)
		if t.Payload != nil {
			row("payload", "%s", shown(t.Type, t.Payload))
		}
		if t.Seal != "" {
			row("seal", "%s", t.Seal)
		}
	}
	answer := "yes"
	if t.Refusal != "" {
		answer = "no: " + t.Refusal
	}
	row("answer", "%s", answer)
	if err := w.Flush(); err != nil {
		return err
	}
	if t.Refusal != "" {
		return no()
	}
	return nil
}

// shown gives a payload as a person can read it.
func shown(typ string, b []byte) string {
	if utf8.Valid(b) && !strings.ContainsAny(string(b), "\x00\t") {
		return strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d octets of %s: %x", len(b), orNone(typ), b[:min(len(b), 64)])
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
