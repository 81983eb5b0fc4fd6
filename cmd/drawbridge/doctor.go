package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/status"
)

// finding is what one check of doctor has found.
type finding struct {
	ID      string        `json:"id"`     // "clock", "key identity: signature", "connector cloud: tls"
	Result  string        `json:"result"` // "ok", "problem", "skipped"
	Note    string        `json:"note"`   // what was seen
	Hint    string        `json:"hint,omitempty"`
	Took    time.Duration `json:"took_ns"`
	subject string
}

// subjectTimeout bounds the checks of one subject.
const subjectTimeout = 30 * time.Second

func (a *app) doctorVerb() *cobra.Command {
	var asJSON bool
	var skip []string
	c := &cobra.Command{
		Use:   "doctor [CONNECTOR]",
		Short: "Try everything that the gateway depends on: clock, disk, chips, keys, certificates, names, TLS, log-in, a publish and its echo",
		Long: `Works whether or not the gateway runs, and changes nothing. Each check says ok, or what is wrong and what to do.
Exit status 0: all is well; 3: something is not.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, _, err := load(a.config(), kinds())
			if err != nil {
				return err
			}
			only := ""
			if len(args) == 1 {
				if only = args[0]; cfg.Connectors[only] == nil {
					return usage("doctor: there is no connector %q", only)
				}
			}
			found, err := examine(c.Context(), cfg, only, skip)
			if err != nil {
				return err
			}
			return a.printFindings(found, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	c.Flags().StringSliceVar(&skip, "skip", nil, "leave out the checks whose id begins so; may be repeated")
	return c
}

// examine runs the checks of every subject in parallel, and gives the findings in the order of the subjects.
func examine(ctx context.Context, cfg *config.Config, only string, skip []string) ([]finding, error) {
	log := slog.New(slog.DiscardHandler)
	ring, err := openKeys(ctx, cfg, log, nil, time.Now)
	if err != nil {
		return nil, err
	}
	defer ring.Close()
	g, closed, err := aside(ctx, cfg, ring)
	if err != nil {
		return nil, err
	}
	defer closed()

	type subject struct {
		name string
		run  func(context.Context, func(finding))
	}
	var subjects []subject
	if only == "" {
		subjects = append(subjects,
			subject{"clock", func(_ context.Context, tell func(finding)) { tell(checkClock(time.Now())) }},
			subject{"disk", func(_ context.Context, tell func(finding)) { tell(checkDisk(cfg)) }},
			subject{"gateway", func(ctx context.Context, tell func(finding)) { tell(checkGateway(ctx, cfg)) }})
		for _, name := range ring.Names() {
			subjects = append(subjects, subject{"key " + name, func(ctx context.Context, tell func(finding)) {
				ring.Examine(ctx, name, func(s keyring.Step) { tell(asFinding(s.Name, s.Note, s.Err, s.Took)) })
			}})
		}
	}
	for _, name := range sortedNames(cfg.Connectors) {
		if only == "" || name == only {
			subjects = append(subjects, subject{"connector " + name, func(ctx context.Context, tell func(finding)) {
				g.examineConnector(ctx, cfg, cfg.Connectors[name], tell)
			}})
		}
	}
	results := make([][]finding, len(subjects))
	var wg sync.WaitGroup
	for i, s := range subjects {
		if slices.ContainsFunc(skip, func(p string) bool { return strings.HasPrefix(s.name, p) }) {
			results[i] = []finding{{ID: s.name, Result: "skipped", subject: s.name}}
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, subjectTimeout)
			defer cancel()
			s.run(ctx, func(f finding) {
				f.subject = s.name
				if f.ID == "" {
					f.ID = s.name
				} else {
					f.ID = s.name + ": " + f.ID
				}
				results[i] = append(results[i], f)
			})
		})
	}
	wg.Wait()
	return slices.Concat(results...), nil
}

// aside makes a gateway that only connects where the file says, beside the one that runs. closed lets go of it.
func aside(ctx context.Context, cfg *config.Config, ring *keyring.Ring) (g *gateway, closed func(), err error) {
	log := slog.New(slog.DiscardHandler)
	g = &gateway{parts: parts{kinds: kinds(), log: log}, now: time.Now, keys: ring}
	// Tokens are asked for anew and kept nowhere: a refresh token, which the issuer gives another for, is the running gateway's.
	scratch, err := os.MkdirTemp("", "drawbridge-doctor-")
	if err != nil {
		return nil, nil, err
	}
	if g.tokens, err = auth.NewTokens(ctx, cfg.Tokens, auth.TokenOptions{Keys: ring.For("doctor"), State: scratch, Log: log, Now: time.Now}); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(scratch))
	}
	ring.ProveBy(func(ctx context.Context, key string, c *tls.Certificate) error {
		return g.proveCertificate(ctx, cfg, key, c)
	})
	return g, func() {
		g.tokens.Close()
		os.RemoveAll(scratch)
	}, nil
}

func sortedNames(m map[string]*config.Component) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func asFinding(id, note string, err error, took time.Duration) finding {
	f := finding{ID: id, Result: "ok", Note: note, Took: took}
	if err != nil {
		f.Result = "problem"
		f.Note, f.Hint = health.Words(err, time.Now())
	}
	return f
}

// checkClock finds a clock that was never set: certificates and tokens then fail everywhere at once.
func checkClock(now time.Time) finding {
	if now.Before(builtAt()) {
		return finding{Result: "problem", Note: "it is " + now.Format(time.DateTime) + " by this machine's clock",
			Hint: "set the clock, or let NTP do so: timedatectl set-ntp true"}
	}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil && state == unix.TIME_ERROR {
		return finding{Result: "ok", Note: now.UTC().Format(time.DateTime) + " UTC; no time server disciplines it"}
	}
	return finding{Result: "ok", Note: now.UTC().Format(time.DateTime) + " UTC"}
}

// checkDisk writes to the state directory and looks for room.
func checkDisk(cfg *config.Config) finding {
	dir := string(cfg.Gateway.State)
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir) // run makes what is missing
	}
	began := time.Now()
	if err := tryDisk(dir); err != nil {
		return finding{Result: "problem", Note: err.Error(), Hint: "gateway.state names a directory that the gateway may write to"}
	}
	took := time.Since(began)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return asFinding("", "", err, took)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	f := finding{Result: "ok", Took: took, Note: fmt.Sprintf("%s: %d MB free; a synced write takes %.1f ms", dir, free/1e6, float64(took.Microseconds())/1000)}
	if free < int64(cfg.Spool.MaxSize) {
		f.Result, f.Hint = "problem", "make room, or lower spool.max_size: the disk is full before the spool is"
	}
	return f
}

func tryDisk(dir string) error {
	f, err := os.CreateTemp(dir, "doctor-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return err
	}
	return f.Sync()
}

// checkGateway asks the running gateway for its verdict; that none runs is no problem here.
func checkGateway(ctx context.Context, cfg *config.Config) finding {
	s, err := status.NewClient(string(cfg.Status.Socket)).Snapshot(ctx)
	if err != nil {
		return finding{Result: "skipped", Note: "it does not run, or does not answer this user"}
	}
	if !s.Verdict.Well() {
		return finding{Result: "problem", Note: s.Verdict.Sentence, Hint: "see `drawbridge status`"}
	}
	return finding{Result: "ok", Note: s.Verdict.Sentence}
}

func (g *gateway) examineConnector(ctx context.Context, cfg *config.Config, c *config.Component, tell func(finding)) {
	dir, err := os.MkdirTemp("", "drawbridge-doctor-") // the gateway that runs keeps its own state to itself
	if err != nil {
		tell(asFinding("", "", err, 0))
		return
	}
	defer os.RemoveAll(dir)
	scratch := *cfg
	scratch.Gateway.State = config.Path(dir)
	built, err := g.openConnector(&scratch, c)
	if err != nil {
		tell(asFinding("configuration", "", err, 0))
		return
	}
	e, ok := built.Connector.(northbound.Examined)
	if !ok {
		tell(finding{Result: "skipped", Note: "this type of connector cannot be examined"})
		return
	}
	e.Examine(ctx, func(s northbound.Step) { tell(asFinding(s.Name, s.Note, s.Err, s.Took)) })
}

func (a *app) printFindings(found []finding, asJSON bool) error {
	well := !slices.ContainsFunc(found, func(f finding) bool { return f.Result == "problem" })
	if asJSON {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		if err := e.Encode(found); err != nil {
			return err
		}
	} else {
		marks := map[string]string{"ok": "✓", "problem": "✗", "skipped": "–"}
		for _, f := range found {
			fmt.Fprintf(a.out, "%s %s", marks[f.Result], f.ID)
			if f.Note != "" {
				fmt.Fprintf(a.out, ": %s", f.Note)
			}
			fmt.Fprintln(a.out)
			if f.Hint != "" {
				fmt.Fprintf(a.out, "  hint: %s\n", f.Hint)
			}
		}
	}
	if !well {
		return no()
	}
	return nil
}
