package app

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

// TestPromotionUnderLoad: versions change under requests over HTTP, none fails,
// and the server tells how long they took through it.
func TestPromotionUnderLoad(t *testing.T) {
	s := start(t, "", nil)
	const weights, swaps = 4, 4
	for range 2 {
		s.do("PUT", "/models/m", heavy(t, weights)).into(t, 201, nil)
	}
	stop := make(chan struct{})
	var answered atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a := s.askHeavy("m", weights); a.status != 200 {
					t.Errorf("%v", a)
					return
				}
				answered.Add(1)
			}
		})
	}
	for i := range swaps {
		for n := answered.Load(); answered.Load() < n+8; {
			time.Sleep(time.Millisecond)
		}
		s.do("POST", "/models/m/promote", map[string]any{"version": fmt.Sprint(2 - i%2)}).into(t, 200, nil)
	}
	var seen struct{ Swaps []telemetry.Swap }
	for end := time.Now().Add(20 * time.Second); len(seen.Swaps) < swaps; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", seen)
		}
		s.do("GET", "/telemetry", nil).into(t, 200, &seen)
	}
	close(stop)
	wg.Wait()
	for i, w := range seen.Swaps {
		if w.Name != "m" || w.To != fmt.Sprint(2-i%2) || w.Failed != 0 || w.LoadMS <= 0 {
			t.Errorf("%+v", w)
		}
	}
	last := seen.Swaps[swaps-1]
	if last.Requests == 0 || last.Latencies.P99 == nil {
		t.Fatalf("%+v", last)
	}
	t.Logf("%d requests through the last swap, p50 %.1f ms, p99 %.1f ms", last.Requests, *last.Latencies.P50, *last.Latencies.P99)
	if a := s.do("GET", "/metrics", nil); !strings.Contains(string(a.body), `fewbit_model_swap_p99_seconds{model="m"}`) || !strings.Contains(string(a.body), `fewbit_model_swap_failed_requests{model="m"} 0`) {
		t.Error("the metrics do not tell")
	}
}
