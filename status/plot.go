package status

import (
	"fmt"
	"strings"
	"time"
)

// plot is one curve or two over time.
type plot struct {
	Title  string
	Now    string // newest value
	Most   string // of the time shown
	Lines  []line
	Legend []string
}

// line is a curve in a box of plotWidth by plotHeight.
type line struct{ D, Area, Class string }

const (
	plotWidth  = 600
	plotHeight = 100
)

// plots draws rate, queue and latency of the points, which are every apart and end about now.
func plots(l *language, points []point, now time.Time, reach, every time.Duration) []plot {
	rates := func(f float64) string { return trim(f) + " /s" }
	counts := func(f float64) string { return number(int64(f)) }
	times := func(f float64) string {
		if f == 0 {
			return "–" // no cloud has confirmed anything
		}
		return l.span(time.Duration(f))
	}
	in := func(p point) float64 { return float64(p.In) }
	out := func(p point) float64 { return float64(p.Out) }
	pending := func(p point) float64 { return float64(p.Pending) }
	latency := func(p point) float64 { return float64(p.Latency) }
	d := drawing{points, now, reach, every}
	return []plot{
		d.plot(l.text("plot.rate"), rates, []string{l.text("plot.in"), l.text("plot.out")}, in, out),
		d.plot(l.text("plot.queue"), counts, nil, pending),
		d.plot(l.text("plot.latency"), times, nil, latency),
	}
}

type drawing struct {
	points       []point
	now          time.Time
	reach, every time.Duration
}

func (d drawing) plot(title string, unit func(float64) string, legend []string, values ...func(point) float64) plot {
	most := 0.0
	for _, p := range d.points {
		for _, v := range values {
			most = max(most, v(p))
		}
	}
	p := plot{Title: title, Most: unit(most), Now: "–", Legend: legend}
	if n := len(d.points); n > 0 {
		p.Now = unit(values[0](d.points[n-1]))
	}
	for i, v := range values {
		curve, area := d.line(v, most)
		p.Lines = append(p.Lines, line{curve, area, fmt.Sprintf("line%d", i)})
	}
	return p
}

// line draws a curve and the area below it; where points are missing there is a gap.
func (d drawing) line(value func(point) float64, most float64) (curve, area string) {
	var c, a strings.Builder
	var last time.Time
	lastX := 0.0
	for _, p := range d.points {
		x := plotWidth * (1 - d.now.Sub(p.At).Seconds()/d.reach.Seconds())
		if x < 0 || x > plotWidth {
			continue
		}
		y := plotHeight - 1 - (plotHeight-4)*value(p)/max(most, 1e-9)
		if last.IsZero() || p.At.Sub(last) > 3*d.every || p.At.Before(last) {
			if a.Len() > 0 {
				fmt.Fprintf(&a, "L%.1f %dZ", lastX, plotHeight)
			}
			fmt.Fprintf(&c, "M%.1f %.1f", x, y)
			fmt.Fprintf(&a, "M%.1f %dL%.1f %.1f", x, plotHeight, x, y)
		} else {
			fmt.Fprintf(&c, "L%.1f %.1f", x, y)
			fmt.Fprintf(&a, "L%.1f %.1f", x, y)
		}
		last, lastX = p.At, x
	}
	if a.Len() > 0 {
		fmt.Fprintf(&a, "L%.1f %dZ", lastX, plotHeight)
	}
	return c.String(), a.String()
}
