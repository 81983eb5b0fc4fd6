package bridge

import (
	"testing"

	"github.com/drawbridge/drawbridge/northbound"
)

func TestWhatWaitsForAConnectorThatIsGoneCanBeGivenUp(t *testing.T) {
	r := newRig(t)
	r.use(map[string]northbound.Connector{"cloud": &cloud{}})
	for range 3 {
		if err := r.report("th-17", "/sensors/temp", "1"); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.Forget("cloud"); n != 0 || err == nil {
		t.Errorf("given up although it is there: %d, %v", n, err)
	}
	r.use(nil)
	if n, err := r.Forget("cloud"); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, l := range r.queue.Ledger() {
		if l.Pending != 0 || l.Expired != 3 {
			t.Errorf("%+v", l)
		}
	}
}
