package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// The exit statuses of every verb.
const (
	exitYes    = 0
	exitFailed = 1 // it was tried and failed
	exitUsage  = 2 // asked wrongly; a bad file too
	exitNo     = 3 // the answer is no: no route, denied, unwell
)

type streams struct {
	in       io.Reader
	out, err io.Writer
}

// failure is an error with its exit status and, where there is something to do, a hint. A nil err prints nothing.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// Hint says what to do; the status socket passes it on.
func (f *failure) Hint() string { return f.hint }

// no is the answer no, which has been printed already.
func no() error { return &failure{code: exitNo} }

func usage(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

func hinted(err error, hint string, args ...any) error {
	return &failure{code: exitFailed, err: err, hint: fmt.Sprintf(hint, args...)}
}

// app is what the verbs share.
type app struct {
	streams
	configPath string // --config; empty: defaultConfig
}

const defaultConfig = "/etc/drawbridge/drawbridge.toml"

func (a *app) config() string {
	if a.configPath == "" {
		return defaultConfig
	}
	return a.configPath
}

// execute runs one command line and gives its exit status.
func execute(ctx context.Context, args []string, s streams) int {
	root := (&app{streams: s}).command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitYes
	}
	return report(s.err, err)
}

// report prints err the way that every verb does and gives the exit status.
func report(w io.Writer, err error) int {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{code: exitFailed, err: err}
		if e, ok := health.Explain(err, time.Now()); ok {
			var what string
			if what, f.hint = e.Words(); !strings.Contains(err.Error(), what) {
				f.err = fmt.Errorf("%w: %s", err, what) // what was tried stands first
			}
		}
	}
	if bad, ok := errors.AsType[config.Errors](err); ok {
		// Each line says where; a prefix would hide that from editors that jump to it.
		for _, e := range bad {
			fmt.Fprintln(w, e.Error())
		}
		fmt.Fprintf(w, "drawbridge: error: %s: %s\n", bad[0].Path, plural(len(bad), "mistake"))
		return exitUsage
	}
	if text := f.Error(); text != "" {
		fmt.Fprintf(w, "drawbridge: error: %s\n", strings.TrimRight(text, "\n"))
	}
	if f.hint != "" {
		fmt.Fprintf(w, "drawbridge: hint: %s\n", f.hint)
	}
	return f.code
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "drawbridge",
		Short:         "IoT edge gateway: devices to clouds, stored before yes, keys in a chip",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(c, args[0])
			}
			return c.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "the configuration `file` (default "+defaultConfig+")")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &failure{code: exitUsage, err: err, hint: "see `" + c.CommandPath() + " -h`"}
	})
	root.AddCommand(a.verbs()...)
	for _, c := range root.Commands() {
		strictArgs(c)
	}
	return root
}

// strictArgs makes a wrong number of arguments an error of usage.
func strictArgs(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return &failure{code: exitUsage, err: err, hint: "see `" + c.CommandPath() + " -h`"}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}

func unknownVerb(c *cobra.Command, verb string) error {
	f := &failure{code: exitUsage, err: fmt.Errorf("unknown command %q", verb), hint: "see `drawbridge -h`"}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(verb); len(near) > 0 {
		f.hint = "did you mean `drawbridge " + near[0] + "`?"
	}
	return f
}
