package keytest

import (
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// Means holds what is said of err to the words what and to a hint that contains hint.
func Means(t testing.TB, err error, what, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if e, ok := health.Explain(err, time.Now()); !ok {
		t.Errorf("%v: not explained", err)
	} else if w, h := e.Words(); w != what || !strings.Contains(h, hint) {
		t.Errorf("%v:\ngot  %s\nhint %s\nwant %s\nhint %s", err, w, h, what, hint)
	}
}
