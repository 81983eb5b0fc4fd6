package needs

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// end is a test that keeps how it ended.
type end struct {
	testing.TB
	how, why string
}

func (e *end) Helper() {}

func (e *end) Fatal(args ...any) {
	e.how, e.why = "failed", strings.TrimSpace(fmt.Sprintln(args...)) // as testing has it
	runtime.Goexit()
}

func (e *end) Skip(args ...any) {
	e.how, e.why = "skipped", strings.TrimSpace(fmt.Sprintln(args...))
	runtime.Goexit()
}

func TestWhatIsMissingIsNotPassedOver(t *testing.T) {
	for ci, how := range map[string]string{"": "skipped", "true": "failed"} {
		t.Setenv("CI", ci)
		e := &end{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Program(e, "no-such-program")
		}()
		<-done
		if e.how != how || e.why != "no-such-program is not installed" {
			t.Errorf("CI=%q: %s: %s", ci, e.how, e.why)
		}
	}
}

func TestProgramIsFound(t *testing.T) {
	if path := Program(t, "sh"); !filepath.IsAbs(path) {
		t.Errorf("sh is %q", path)
	}
}
