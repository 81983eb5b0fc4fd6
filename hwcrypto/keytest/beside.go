package keytest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Beside measures two ways to do one thing in turn, several rounds of each, and prints how they compare: our way and the chip's module alone.
// Each side gives each caller what it calls, which does the thing per times.
func Beside(b *testing.B, what string, callers, per int, ours, module func(testing.TB) func() error) {
	b.Helper()
	const rounds, each = 5, 500 * time.Millisecond
	var rates [2][]float64
	var ratios []float64
	for range rounds {
		for i, side := range []func(testing.TB) func() error{ours, module} {
			var done atomic.Int64
			var wg sync.WaitGroup
			begin := time.Now()
			for range callers {
				f := side(b)
				wg.Go(func() {
					for time.Since(begin) < each {
						if err := f(); err != nil {
							b.Error(err)
							return
						}
						done.Add(int64(per))
					}
				})
			}
			wg.Wait()
			rates[i] = append(rates[i], float64(done.Load())/time.Since(begin).Seconds())
		}
		ratios = append(ratios, rates[0][len(ratios)]/rates[1][len(ratios)])
	}
	for i, name := range []string{"drawbridge", "the module alone"} {
		slices.Sort(rates[i])
		fmt.Printf("bench: %s: %-17s %7.0f/s (min %.0f, max %.0f)\n", what, name, rates[i][rounds/2], rates[i][0], rates[i][rounds-1])
	}
	slices.Sort(ratios)
	fmt.Printf("bench: %s: drawbridge / the module alone = %.2f (min %.2f, max %.2f of %d rounds)\n", what, ratios[rounds/2], ratios[0], ratios[rounds-1], rounds)
	b.ReportMetric(ratios[rounds/2], "ratio")
	b.ReportMetric(0, "ns/op")
}
