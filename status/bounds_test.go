package status

import (
	"net/http"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Two tokens may have one label, and what a chip says of itself need not be text.
func TestMetricsOfChipsThatHaveOneName(t *testing.T) {
	g := well()
	g.change(func(s *Snapshot) {
		c := s.Chips[0]
		c.Chip = "token \"gw\" (\xff)"
		s.Chips = []hwcrypto.QueueStats{c, c, c}
	})
	page, _ := start(t, g)
	code, body := get(t, page+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	for _, name := range []string{`token \"gw\" (?)`, `token \"gw\" (?) 2`, `token \"gw\" (?) 3`} {
		if want := `drawbridge_chip_queue_depth{chip="` + name + `"} 0`; !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestPagesThatAreNotThereAreEmpty(t *testing.T) {
	page, _ := start(t, well())
	for _, path := range []string{"/v1/devices?offset=9223372036854775807", "/v1/devices?offset=2147483647&limit=1000", "/v1/devices?offset=-1&limit=-1", "/v1/dead?limit=-1",
		"/devices?page=9223372036854775807", "/devices?page=184467440737095517", "/devices?page=42949673", "/devices?page=2147483647", "/devices?page=-1"} {
		resp, err := http.Get(page + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}
