package config

import (
	"testing"
	"time"
)

func TestSizesAndDurations(t *testing.T) {
	for text, want := range map[string]Size{"512": 512, "64KiB": 65536, "256MiB": 256 << 20, "1GiB": 1 << 30, "1.5GiB": 3 << 29, "10MB": 10e6, "0": 0, "7B": 7} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1 MiB", "1mib", "+1", "1e999", "9999999TiB", "0x10", "inf", "nan", "1.MiB."} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	for n, want := range map[Size]string{0: "0", 512: "512", 1 << 30: "1GiB", 3 << 29: "1536MiB", 1000: "1000"} {
		if got := n.String(); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{168 * time.Hour: "168h", 10 * time.Minute: "10m", 90 * time.Second: "1m30s", time.Second: "1s", 0: "0s"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
}
