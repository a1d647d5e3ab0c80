package http

import (
	"fmt"
	"strings"
	"testing"
)

// TestForgottenVersions: the series of versions that are no longer counted go with
// them, or a server that publishes often has ever more.
func TestForgottenVersions(t *testing.T) {
	f := newFixture(t, nil, nil)
	for i := range MaxModelsCounted + 2 {
		m := f.stats.of(&testLease{m: f.models, name: fmt.Sprint("m", i)})
		m.last.Store(int64(i + 1))
		f.metrics.succeeded(m, &timing{})
	}
	text := string(f.call(t, "GET", "/metrics", nil).body)
	const series = `fewbit_inference_phase_duration_seconds_count{model="m%d",phase="total",version="1"}`
	for i, want := range map[int]bool{0: false, 1: false, 2: true, MaxModelsCounted + 1: true} {
		if s := fmt.Sprintf(series, i); strings.Contains(text, s) != want {
			t.Errorf("%s: %v, want %v", s, !want, want)
		}
	}
}
