package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/native"
	"github.com/fewbit/fewbit/internal/engine/ort"
)

const howSides = `One model in this process, no server: one request at a time on all threads, two and four requests joined in one run on all threads, and ` +
	`one request on each thread side by side (a session of one thread for each). The four take turns of 0.8 s; the first turn of each is not counted. ` +
	`Texts a second: medians of the turns, with the lowest and the highest, which say how calm the machine was.`

// sides measures what else could be done with the cores while requests wait.
func sides(ctx context.Context, o options, cpu *ort.Engine, res *harness.Result) error {
	const turn = 800 * time.Millisecond
	rounds := 5
	if harness.Full() {
		rounds = 12
	}
	e := native.New(cpu, "")
	threads := cpu.Threads()
	all, err := e.OpenFile(ctx, o.model, engine.Options{})
	if err != nil {
		return err
	}
	defer all.Close()
	var single []engine.Session
	for range threads {
		s, err := e.OpenFile(ctx, o.model, engine.Options{Threads: 1})
		if err != nil {
			return err
		}
		defer s.Close()
		single = append(single, s)
	}
	for _, n := range []int{16, 64, 128} {
		what := []string{"one after the other", "two joined", "four joined", "side by side"}
		rates := make([][]float64, len(what))
		took := make([][]time.Duration, len(what))
		for round := range rounds + 1 {
			for i := range what {
				rows, on := 1<<i, []engine.Session{all}
				if i == len(what)-1 {
					rows, on = 1, single
				}
				rate, runs, err := texts(ctx, on, rows, n, turn)
				if err != nil {
					return err
				}
				if round > 0 {
					rates[i], took[i] = append(rates[i], rate), append(took[i], runs...)
				}
			}
		}
		for i := range what {
			slices.Sort(took[i])
			ratio := median(rates[i]) / median(rates[0])
			res.Add(harness.Row{What: fmt.Sprintf("%d tokens, %s", n, what[i]),
				Ours: fmt.Sprintf("%.1f/s (%.1f to %.1f), a run p50 %.1f ms (n = %d)", median(rates[i]), slices.Min(rates[i]), slices.Max(rates[i]), harness.Milliseconds(harness.Quantile(took[i], .5)), len(took[i])),
				Peer: fmt.Sprintf("one after the other: %.1f/s", median(rates[0])), Ratio: &ratio, Details: map[string]any{"texts_per_second": rates[i], "threads": threads}})
		}
	}
	return nil
}

// texts runs each session in a loop of its own, rows texts of n tokens at a time.
func texts(ctx context.Context, on []engine.Session, rows, n int, d time.Duration) (rate float64, took []time.Duration, err error) {
	feeds, err := textFeeds(on[0].Spec(), rows, n)
	if err != nil {
		return 0, nil, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for _, s := range on {
		spec := s.Spec()
		wg.Go(func() {
			for time.Since(start) < d {
				began := time.Now()
				r, e := s.Run(ctx, feeds, []string{spec.Outputs[len(spec.Outputs)-1].Name})
				if e == nil {
					r.Close()
				}
				mu.Lock()
				if e != nil {
					err = e
				}
				took = append(took, time.Since(began))
				mu.Unlock()
				if e != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(rows*len(took)) / time.Since(start).Seconds(), took, err
}
