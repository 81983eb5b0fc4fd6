//go:build !race

package coap

import "testing"

// The race detector drops what is put into a sync.Pool at random, so allocations are counted without it.
func TestSpoofedHellosAllocateNothing(t *testing.T) {
	hellos := spoofed(t, dtlsListener(t))
	hellos(batchLen)
	if allocs := testing.AllocsPerRun(100, func() { hellos(batchLen) }); allocs > batchLen/8 { // a collection may empty the pools
		t.Errorf("%v allocations for %d hellos", allocs, batchLen)
	}
}
