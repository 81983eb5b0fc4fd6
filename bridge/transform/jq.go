package transform

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/itchyny/gojq"
)

// compileJQ compiles an expression that sees its input and nothing else: no environment, no further inputs, no modules.
func compileJQ(expr string) (func(Input) (string, []byte, error), error) {
	query, err := gojq.Parse(expr)
	if err != nil {
		return nil, fmt.Errorf("jq: %w", err)
	}
	code, err := gojq.Compile(query, gojq.WithVariables([]string{"$device", "$resource", "$time"}))
	if err != nil {
		return nil, fmt.Errorf("jq: %w", err)
	}
	return func(in Input) (string, []byte, error) {
		v, err := decodeJSON(in.Data)
		if err != nil {
			return "", nil, err
		}
		data, err := runJQ(code, v, in.Device, in.Resource, float64(in.Time.UnixMilli())/1000)
		return typeJSON, data, err
	}, nil
}

func runJQ(code *gojq.Code, v any, vars ...any) (data []byte, err error) {
	defer func() {
		if recover() != nil {
			data, err = nil, errors.New("the expression cannot be evaluated")
		}
	}()
	run := code.RunWithContext(&fuel{left: maxFuel}, v, vars...)
	result, ok := run.Next()
	if !ok {
		return nil, ErrNothing
	}
	if err, failed := result.(error); failed {
		return nil, jqError(err)
	}
	if next, more := run.Next(); more {
		if err, failed := next.(error); failed {
			return nil, jqError(err)
		}
		return nil, errors.New("the expression yields more than one result; wrap it in [ ]")
	}
	if size := MaxSize; !measure(result, &size, 0) {
		return nil, fmt.Errorf("the result has more than %d octets or is nested too deep", MaxSize)
	}
	if data, err = gojq.Marshal(result); err != nil {
		return nil, errors.New("the result is not JSON")
	}
	return data, nil
}

// jqError leaves out what jq quotes of the payload: that follows the first colon.
func jqError(err error) error {
	if errors.Is(err, errNoFuel) {
		return err
	}
	if _, own := err.(gojq.ValueError); own {
		return errors.New("the expression raised an error")
	}
	what, _, _ := strings.Cut(err.Error(), ":")
	return errors.New(what)
}

// measure counts down what a value takes when it is written. It keeps a small graph that stands for a huge tree from being
// written at all.
func measure(v any, left *int, depth int) bool {
	if *left--; *left < 0 || depth > 8*maxDepth {
		return false
	}
	switch v := v.(type) {
	case string:
		*left -= len(v)
	case []any:
		for _, e := range v {
			if !measure(e, left, depth+1) {
				return false
			}
		}
	case map[string]any:
		for k, e := range v {
			*left -= len(k)
			if !measure(e, left, depth+1) {
				return false
			}
		}
	}
	return *left >= 0
}

// maxFuel is how many instructions one evaluation may take: some 50 ms.
const maxFuel = 1_000_000

var errNoFuel = errors.New("the expression takes too long")

// fuel is a context that ends after so many looks at it. gojq looks once per instruction, so what is cut off does not
// depend on the machine or its load.
type fuel struct{ left int }

func (f *fuel) Done() <-chan struct{} {
	if f.left--; f.left < 0 {
		return spent
	}
	return nil
}

func (f *fuel) Err() error {
	if f.left < 0 {
		return errNoFuel
	}
	return nil
}

func (*fuel) Deadline() (t time.Time, ok bool) { return t, false }
func (*fuel) Value(any) any                    { return nil }

var _ context.Context = (*fuel)(nil)

var spent = func() chan struct{} { c := make(chan struct{}); close(c); return c }()
