package status

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// WriteText writes what `drawbridge status` prints.
func (s *Snapshot) WriteText(w io.Writer) error {
	b := &strings.Builder{}
	g := s.Gateway
	fmt.Fprintf(b, "%s · drawbridge %s · up %s · %s of memory · %s on disk\n\n%s\n",
		g.ID, g.Version, english.since(g.Started, s.Time), Size(g.RSSBytes), Size(g.StateBytes), s.Verdict.Sentence)
	for _, p := range s.Problems {
		writeProblem(b, p, s.Time)
	}
	table(b, "listener\ttype\taddress\tsecurity\tstate\tdevices", len(s.Listeners), func(t io.Writer, i int) {
		l := s.Listeners[i]
		state := "bound"
		if !l.Bound {
			state = cmp.Or(l.Error, "not bound")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", l.Name, l.Type, l.Address, strings.Join(l.Security, " "), state, l.Devices)
	})
	table(b, "connector\ttype\tstate\tfor\twaiting\tin flight\tlast error", len(s.Connectors), func(t io.Writer, i int) {
		c := s.Connectors[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", c.Name, c.Type, c.State, english.since(c.Since, s.Time), s.Pending(c.Name), c.InFlight, c.lastError(s.Time))
	})
	table(b, "route\tconnector\taccepted\tdelivered\tpending\texpired\tdead", len(s.Ledger), func(t io.Writer, i int) {
		l := s.Ledger[i]
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\n", l.Route, l.Connector, l.Accepted, l.Delivered, l.Pending, l.Expired, l.Dead)
	})
	s.writeSpool(b)
	table(b, "key\twhere\talgorithm\tcertificate\tends", len(s.Keys), func(t io.Writer, i int) {
		k := s.Keys[i]
		where := k.Info.Where
		if k.Error != "" {
			where = k.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.Name, where, k.Info.Algorithm, cmp.Or(k.Subject, "none"), k.ends(s.Time))
	})
	if said := s.PSKs.String(); said != "" {
		fmt.Fprintf(b, "\n%s\n", said)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeProblem(w io.Writer, p health.Problem, now time.Time) {
	fmt.Fprintf(w, "\n%s: %s", p.Severity, p.Title)
	if p.Subject != "" {
		fmt.Fprintf(w, " (%s)", p.Subject)
	}
	fmt.Fprintf(w, ", for %s\n", english.since(p.Since, now))
	if p.Detail != "" {
		fmt.Fprintf(w, "  %s\n", p.Detail)
	}
	if p.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", p.Hint)
	}
}

// table writes a table with its columns aligned; nothing where there are no rows.
func table(w io.Writer, header string, rows int, row func(w io.Writer, i int)) {
	if rows == 0 {
		return
	}
	fmt.Fprintln(w)
	text := &strings.Builder{}
	t := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(header))
	for i := range rows {
		row(t, i)
	}
	t.Flush()
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func (s *Snapshot) writeSpool(w io.Writer) {
	q := s.Spool
	fmt.Fprintf(w, "\nspool: %d messages wait, %s of %s", q.Records, Size(q.Bytes), Size(q.MaxBytes))
	if !q.Oldest.IsZero() {
		fmt.Fprintf(w, ", the oldest for %s", english.since(q.Oldest, s.Time))
	}
	if q.Full {
		fmt.Fprint(w, ", full")
	}
	if q.Dropped > 0 {
		fmt.Fprintf(w, ", %d dropped to make room", q.Dropped)
	}
	if q.Lost > 0 {
		fmt.Fprintf(w, ", %d lost by damage to the disk", q.Lost)
	}
	fmt.Fprintln(w)
}

func (c *Connector) lastError(now time.Time) string {
	if c.LastError == "" {
		return "none"
	}
	if c.LastFault.IsZero() {
		return c.LastError
	}
	return fmt.Sprintf("%s ago: %s", english.since(c.LastFault, now), c.LastError)
}

func (k *Key) ends(now time.Time) string {
	switch days := k.DaysLeft(now); {
	case k.Ends.IsZero():
		return "-"
	case k.Ends.Before(now):
		return "ended " + k.Ends.UTC().Format(time.DateOnly)
	default:
		return fmt.Sprintf("%s, %d days left", k.Ends.UTC().Format(time.DateOnly), days)
	}
}
