package main

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
)

// A chip that hangs costs a look at the keys its time, and nobody who asks how the gateway is.
func TestAChipThatHangsHoldsUpNoSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var hangs atomic.Bool
		p := &plan{cfg: &config.Config{Gateway: config.Gateway{State: config.Path(t.TempDir())}}}
		s := &source{
			gateway: &gateway{tasks: ctx, plan: p},
			list: func(ctx context.Context) []keyring.Status {
				if hangs.Load() {
					<-ctx.Done()
					return []keyring.Status{{Name: "identity", Err: "the chip did not answer in time"}}
				}
				time.Sleep(time.Second)
				return []keyring.Status{{Name: "identity"}}
			},
		}
		go s.look(ctx)
		if keys, _ := s.slow(p); len(keys) != 1 || keys[0].Error != "" {
			t.Errorf("at first: %+v", keys)
		}
		hangs.Store(true)
		worst, told := time.Duration(0), false
		for began := time.Now(); time.Since(began) < 2*slowFigures; time.Sleep(time.Second) {
			asked := time.Now()
			keys, _ := s.slow(p)
			worst, told = max(worst, time.Since(asked)), told || keys[0].Error != ""
		}
		if worst > 0 || !told {
			t.Errorf("held up for %v; told %t", worst, told)
		}
		cancel()
		synctest.Wait()
	})
}
