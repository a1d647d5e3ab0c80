package telemetry

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSwaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{})
		c.Ended("m", time.Hour, true) // no swap is under way
		end := c.BeginSwap("m", "1", "2")
		for i := range 100 {
			c.Ended("m", time.Duration(i+1)*time.Millisecond, true)
		}
		c.Ended("other", time.Hour, true)
		c.Ended("m", time.Second, false)
		time.Sleep(3 * time.Second)
		end(time.Now())
		time.Sleep(swapTail / 2)
		c.Ended("m", 500*time.Millisecond, true)
		if got := c.Swaps(); len(got) != 0 {
			t.Errorf("before its end: %+v", got)
		}
		time.Sleep(swapTail)
		c.Ended("m", time.Hour, true)
		got := c.Swaps()
		if len(got) != 1 {
			t.Fatalf("%+v", got)
		}
		s := got[0]
		if s.Name != "m" || s.From != "1" || s.To != "2" || s.LoadMS != 3000 || s.Requests != 101 || s.Failed != 1 {
			t.Errorf("%+v", s)
		}
		if p := *s.Latencies.P99; p < 99 || p > 101 || *s.Latencies.Max != 500 {
			t.Errorf("p99 %v, max %v", p, *s.Latencies.Max)
		}
		c.BeginSwap("m", "2", "3")(time.Time{}) // came to nothing
		for range maxSwaps + 5 {
			c.BeginSwap("m", "1", "2")(time.Now())
			time.Sleep(2 * swapTail)
		}
		if got := c.Swaps(); len(got) != maxSwaps || got[0].Latencies.P99 != nil {
			t.Errorf("%d swaps are kept", len(got))
		}
		if n := c.swaps.active.Load(); n != 0 {
			t.Errorf("%d are still watched", n)
		}
	})
}
