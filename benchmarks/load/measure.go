package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
)

// The bars, and how much is measured.
const (
	barSaturation = 0.97
	barPoisson    = 3.0
	barGoodput    = 0.90
	barRecovery   = time.Second
	// barMemory is how much more memory the overloaded server may take.
	barMemory = 1.25

	clients       = 16
	poissonShare  = 0.8
	overloadTimes = 10
	// afterShare is the load after the overload, by which the recovery shows.
	afterShare = 0.5
	recovered  = 20
	// longRun is how many arrivals show what queueing alone does.
	longRun = 1e6
)

// ownCPU is the processor time of this process, which the server does not have.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// lengths of the measurements, for quick and full counts.
func length(quick, full time.Duration) time.Duration {
	if harness.Full() {
		return full
	}
	return quick
}

// nullEndpoint measures a request that does nothing: what the machine adds.
func nullEndpoint(res *harness.Result, a *asker) (p99 time.Duration, err error) {
	const rate = 100
	harness.OpenLoop(a.null, rate, time.Second, 1)
	t := harness.Count(harness.OpenLoop(a.null, rate, length(4*time.Second, 10*time.Second), 2))
	if t.Answered == 0 {
		return 0, errNoAnswer
	}
	res.Add(harness.Row{What: "null endpoint, 100 requests a second", Ours: fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", t.P50MS, t.P99MS), Details: t})
	return time.Duration(t.P99MS * float64(time.Millisecond)), nil
}

// saturation compares a closed loop of clients with the session, in turn, and
// returns the server's rate and the session's median latency.
func saturation(ctx context.Context, res *harness.Result, a *asker, s engine.Session) (rate float64, p50 time.Duration, err error) {
	f := a.request(0)
	each := length(2*time.Second, 3*time.Second) // short turns: both see the same machine
	rounds := 9
	inProcess := func(d time.Duration) (float64, error) {
		var ends []time.Duration
		for start := time.Now(); time.Since(start) < d; {
			began := time.Now()
			r, err := s.Run(ctx, a.feeds, []string{a.spec.Outputs[len(a.spec.Outputs)-1].Name})
			if err != nil {
				return 0, err
			}
			r.Close()
			ends = append(ends, time.Since(start))
			took := time.Since(began)
			if p50 == 0 {
				p50 = took
			}
			p50 += (took - p50) / 16
		}
		return rateOf(ends), nil
	}
	if _, err := inProcess(time.Second); err != nil {
		return 0, 0, err
	}
	if _, err := closedLoop(f, 2*time.Second); err != nil {
		return 0, 0, err
	}
	var raw, served, ratios []float64
	for range rounds {
		x, err := inProcess(each)
		if err != nil {
			return 0, 0, err
		}
		y, err := closedLoop(f, each)
		if err != nil {
			return 0, 0, err
		}
		raw, served, ratios = append(raw, x), append(served, y), append(ratios, y/x)
	}
	ratio, best := median(ratios), median(served)
	holds := ratio >= barSaturation
	res.Add(harness.Row{What: "BERT-base INT8 saturated, requests a second", Ours: fmt.Sprintf("%.1f", best), Peer: fmt.Sprintf("session in process: %.1f", median(raw)),
		Ratio: &ratio, Bar: fmt.Sprintf(">= %.2fx", barSaturation), Holds: &holds,
		Details: map[string]any{"clients": clients, "seconds_each": each.Seconds(), "in_process": raw, "served": served, "ratios": ratios, "session_ms": harness.Milliseconds(p50)}})
	return best, p50, nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// closedLoop returns the answers a second that the clients get, each asking
// again as soon as it is answered.
func closedLoop(f func() error, d time.Duration) (float64, error) {
	var mu sync.Mutex
	var ends []time.Duration
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range clients {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := f(); err != nil {
					failed.Store(&err)
					return
				}
				mu.Lock()
				ends = append(ends, time.Since(start))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	slices.Sort(ends)
	return rateOf(ends[:len(ends)-min(clients, len(ends))]), nil // the last ones were not followed by others
}

// rateOf is what ended in a second, between the first end and the last.
func rateOf(ends []time.Duration) float64 {
	if len(ends) < 2 {
		return 0
	}
	return float64(len(ends)-1) / (ends[len(ends)-1] - ends[0]).Seconds()
}

// ideal is what the same arrivals would see at a server that does nothing but
// run one request after the other, each for the same time (Lindley's recursion).
func ideal(samples []harness.Sample, service time.Duration) harness.Tally {
	took := make([]time.Duration, len(samples))
	free := time.Duration(0)
	for i, s := range samples {
		free = max(free, s.Due) + service
		took[i] = free - s.Due
	}
	slices.Sort(took)
	return harness.Tally{Sent: len(took), Answered: len(took), P50MS: harness.Milliseconds(harness.Quantile(took, .5)), P90MS: harness.Milliseconds(harness.Quantile(took, .9)),
		P99MS: harness.Milliseconds(harness.Quantile(took, .99)), MaxMS: harness.Milliseconds(harness.Quantile(took, 1))}
}

// poisson measures the latency at a share of what saturates the server.
func poisson(res *harness.Result, a *asker, full float64) {
	rate := poissonShare * full
	service := time.Duration(float64(time.Second) / full)
	cpu := ownCPU()
	samples := harness.OpenLoop(a.request(0), rate, length(25*time.Second, 60*time.Second), 3)
	cpu = ownCPU() - cpu
	t, best := harness.Count(samples), ideal(samples, service)
	endless := ideal(harness.Poisson(rate, time.Duration(longRun/rate*float64(time.Second)), 6), service)
	ratio := t.P99MS / max(t.P50MS, 1e-3)
	holds := ratio <= barPoisson && t.Refused+t.Failed == 0
	res.Add(harness.Row{What: fmt.Sprintf("BERT-base INT8, Poisson arrivals at %.0f %% of saturation, p99 against p50", 100*poissonShare),
		Ours: fmt.Sprintf("p99 %.1f ms (n = %d)", t.P99MS, t.Answered), Peer: fmt.Sprintf("p50 %.1f ms (one request after the other, nothing else: p99 %.1f, p50 %.1f for these arrivals, %.1fx in the long run)", t.P50MS, best.P99MS, best.P50MS, endless.P99MS/endless.P50MS),
		Ratio: &ratio, Bar: fmt.Sprintf("<= %.0fx", barPoisson), Holds: &holds, Details: map[string]any{"rate": rate, "latency": t, "one_after_the_other": best, "long_run": endless, "client_cpu_seconds": cpu.Seconds()}})
}

// overload sends many times what the server can do, each request with the target
// as its deadline, then a normal load.
func overload(res *harness.Result, a *asker, full float64, target time.Duration) {
	f := a.request(target)
	before := harness.Resident(a.srv.PID)
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := before
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(50 * time.Millisecond):
				most = max(most, harness.Resident(a.srv.PID))
			}
		}
	}()
	span := length(10*time.Second, 20*time.Second)
	cpu := ownCPU()
	storm := harness.OpenLoop(f, overloadTimes*full, span, 4)
	cpu = ownCPU() - cpu
	calm := harness.OpenLoop(f, afterShare*full, 4*time.Second, 5)
	close(stop)
	most := <-peak
	t := harness.Count(storm)
	good := 0
	for _, s := range storm {
		if s.Err == nil && s.Took <= target {
			good++
		}
	}
	goodput := float64(good) / span.Seconds()
	ratio := goodput / full
	holds := ratio >= barGoodput
	res.Add(harness.Row{What: fmt.Sprintf("overload %dx, answers within the target of %v a second", overloadTimes, target), Ours: fmt.Sprintf("%.1f", goodput),
		Peer: fmt.Sprintf("saturation: %.1f", full), Ratio: &ratio, Bar: fmt.Sprintf(">= %.2fx", barGoodput), Holds: &holds,
		Details: map[string]any{"rate": overloadTimes * full, "seconds": span.Seconds(), "latency": t, "client_cpu_seconds": cpu.Seconds()}})
	inTime := t.P99MS <= harness.Milliseconds(target) && t.Answered > 0
	res.Add(harness.Row{What: fmt.Sprintf("overload %dx, p99 of what is answered", overloadTimes), Ours: fmt.Sprintf("%.1f ms (n = %d)", t.P99MS, t.Answered),
		Peer: fmt.Sprintf("refusals: p99 %.1f ms (n = %d)", t.RefusedP99MS, t.Refused), Bar: fmt.Sprintf("<= %v", target), Holds: &inTime, Details: t})
	grown := float64(most) / max(float64(before), 1)
	bounded := grown <= barMemory
	res.Add(harness.Row{What: fmt.Sprintf("overload %dx, resident memory of the server", overloadTimes), Ours: fmt.Sprintf("%.0f MB", float64(most)/1e6),
		Peer: fmt.Sprintf("before: %.0f MB", float64(before)/1e6), Ratio: &grown, Bar: fmt.Sprintf("<= %.2fx", barMemory), Holds: &bounded, Details: map[string]int64{"before": before, "most": most}})
	last, row := time.Duration(0), 0
	for _, s := range calm {
		if row++; s.Err != nil || s.Took > target {
			row = 0
		}
		if row == recovered {
			break
		}
		if row == 0 {
			last = s.Due
		}
	}
	back := last <= barRecovery && row == recovered
	res.Add(harness.Row{What: fmt.Sprintf("after overload, at %.0f %% of saturation, until %d in a row are in time", 100*afterShare, recovered), Ours: fmt.Sprintf("%.2f s", last.Seconds()),
		Bar: fmt.Sprintf("<= %v", barRecovery), Holds: &back, Details: harness.Count(calm)})
}
