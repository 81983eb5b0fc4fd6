package status

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// LogLine is a line of the log.
type LogLine struct {
	Time    time.Time  `json:"time"`
	Level   slog.Level `json:"level"`
	Message string     `json:"message"`
	Fields  string     `json:"fields,omitempty"` // "key=value key=value"
}

// Recorder keeps the last lines of the log for the page. It is no handler itself: see Handler.
type Recorder struct {
	mu    sync.Mutex
	lines []LogLine // guarded by mu; a ring
	next  int       // guarded by mu; where the next line goes
}

// NewRecorder makes a Recorder of the last n lines.
func NewRecorder(n int) *Recorder { return &Recorder{lines: make([]LogLine, 0, n)} }

// Lines gives the lines that are kept, newest first.
func (r *Recorder) Lines() []LogLine {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := slices.Concat(r.lines[r.next:], r.lines[:r.next])
	slices.Reverse(lines)
	return lines
}

func (r *Recorder) keep(l LogLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) < cap(r.lines) {
		r.lines = append(r.lines, l)
		return
	}
	r.lines[r.next] = l
	r.next = (r.next + 1) % len(r.lines)
}

// Handler gives a handler that hands everything to next and keeps what next writes.
func (r *Recorder) Handler(next slog.Handler) slog.Handler { return &recording{to: r, next: next} }

// recording is a handler beside another one.
type recording struct {
	to     *Recorder
	next   slog.Handler
	prefix string // of groups: "a.b."
	fields string // of attributes so far
}

func (h *recording) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *recording) Handle(ctx context.Context, rec slog.Record) error {
	b := &strings.Builder{}
	b.WriteString(h.fields)
	rec.Attrs(func(a slog.Attr) bool {
		writeAttr(b, h.prefix, a)
		return true
	})
	h.to.keep(LogLine{rec.Time, rec.Level, rec.Message, b.String()})
	return h.next.Handle(ctx, rec)
}

func (h *recording) WithAttrs(attrs []slog.Attr) slog.Handler {
	b := &strings.Builder{}
	b.WriteString(h.fields)
	for _, a := range attrs {
		writeAttr(b, h.prefix, a)
	}
	return &recording{h.to, h.next.WithAttrs(attrs), h.prefix, b.String()}
}

func (h *recording) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &recording{h.to, h.next.WithGroup(name), h.prefix + name + ".", h.fields}
}

func writeAttr(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, sub := range v.Group() {
			writeAttr(b, prefix, sub)
		}
		return
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	text := v.String()
	if text == "" || strings.ContainsAny(text, " \t\r\n\"=") {
		text = fmt.Sprintf("%q", text)
	}
	b.WriteString(prefix + a.Key + "=" + text)
}
