package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Error is one mistake in the file.
type Error struct {
	Path string // the file as it was named
	Pos  Pos
	Msg  string // what is wrong, in plain words
	Hint string // what to do about it; may be empty

	missing bool // the file is right, and names another that is not there
}

// Error gives "file:line:col: message", and the hint in parentheses where there is one.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s:%d:%d: %s", e.Path, e.Pos.Line, e.Pos.Col, e.Msg)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Errors is every mistake in the file, in the order in which they stand there.
type Errors []*Error

// Error gives one line per mistake.
func (l Errors) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Present gives err without what it says of files that are named and not there, for those who make such files. Nil where that is all.
func Present(err error) error {
	l, ok := errors.AsType[Errors](err)
	if !ok {
		return err
	}
	return slices.DeleteFunc(slices.Clone(l), func(e *Error) bool { return e.missing }).sorted()
}

// Join makes one sorted Errors of those in errs, as the parser and the compiler of routes each return theirs.
// Of two lists that complain of the same line, the first is believed: the other sees what follows from the mistake.
// Nil where all are nil; an error that is neither Errors nor *Error is returned as it is.
func Join(errs ...error) error {
	var all Errors
	told := map[int]bool{}
	for _, err := range errs {
		if err == nil {
			continue
		}
		l, ok := errors.AsType[Errors](err)
		if e, single := errors.AsType[*Error](err); !ok && single {
			l, ok = Errors{e}, true
		}
		if !ok {
			return err
		}
		before := len(all)
		for _, e := range l {
			if !told[e.Pos.Line] {
				all = append(all, e)
			}
		}
		for _, e := range all[before:] {
			told[e.Pos.Line] = true
		}
	}
	return all.sorted()
}

// sorted gives nil where there is no mistake.
func (l Errors) sorted() error {
	if len(l) == 0 {
		return nil
	}
	slices.SortStableFunc(l, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col), cmp.Compare(a.Msg, b.Msg))
	})
	return slices.CompactFunc(l, func(a, b *Error) bool { return *a == *b })
}
