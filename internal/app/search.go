package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/report"
)

// schemeSearch is the scheme of a job that chooses one itself.
const schemeSearch = "search"

// searchesDir holds, for each search that has not ended, its journal and the best
// model so far: the next attempt at the job goes on there, after kill -9 too.
const searchesDir = "searches"

func (a *App) searchDir(id string) string {
	return filepath.Join(a.cfg.DataDir, searchesDir, filepath.Base(id))
}

// search looks for the best model that meets what the job asks for, puts it at
// req.Out and reports on it as on one that was asked for by scheme.
func (a *App) search(ctx context.Context, id string, p pipeline.Pipeline, req pipeline.Request, spec jobs.Spec, progress func(string, float64)) (*report.Report, error) {
	dir := a.searchDir(id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("keep the search: %w", bare.Error(err))
	}
	best := filepath.Join(dir, registry.ModelFile)
	limit := time.Duration(spec.TimeLimitS * float64(time.Second))
	if limit == 0 {
		limit = pipeline.DefaultTimeLimit
	}
	begin := time.Now()
	said := func(phase string, _ float64) { // the time that the search may take is what is known
		progress("search: "+phase, min(searchShare, searchShare*time.Since(begin).Seconds()/limit.Seconds()))
	}
	var targets []quant.Target
	if spec.Target != "" {
		targets = []quant.Target{req.Config.Target}
	}
	found, err := p.Search(ctx, pipeline.SearchRequest{
		Model: req.Model, Out: best, Journal: filepath.Join(dir, "search.jsonl"), Calib: req.Calib, Eval: req.Eval, Config: req.Config, Targets: targets,
		MaxLoss: req.MaxLoss, SLO: req.SLO, MaxBytes: int64(math.Ceil(spec.MaxSizeMB * 1e6)), Samples: req.Samples, MaxMemory: req.MaxMemory, TimeLimit: limit, Command: req.Command, Words: req.Words,
	}, said)
	if err != nil && ctx.Err() != nil {
		return nil, err // what was tried stays for the next attempt; pruneSearches removes it when there is none
	}
	defer os.RemoveAll(dir)
	if err != nil {
		return nil, err
	}
	for _, suffix := range []string{"", ".data"} {
		if err := os.Rename(best+suffix, req.Out+suffix); err != nil && !(suffix != "" && errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("keep the model: %w", bare.Error(err))
		}
	}
	rep, err := p.Compare(ctx, pipeline.CompareRequest{Float: req.Model, Quant: req.Out, Data: req.Eval, MaxLoss: req.MaxLoss, SLO: req.SLO, NoLatency: true, Command: req.Command},
		func(phase string, frac float64) {
			progress("compare: "+phase, searchShare+(progressLoad-searchShare)*frac)
		})
	if err != nil {
		return nil, err
	}
	t := found.BestTrial()
	rep.Model.Name, rep.Quantized.Name = req.Name, req.Name
	rep.Warnings = append(rep.Warnings, fmt.Sprintf("search: %d trials, %d of them by an earlier attempt; the best is %s, %.2f times as fast as FP32 (95 %% interval %.2f to %.2f), with a loss of %.3g %% (%.3g to %.3g) on %d samples",
		len(found.Trials), found.Resumed, t.Label, float64(t.Speed), float64(t.SpeedLo), float64(t.SpeedHi), 100*float64(t.Loss), 100*float64(t.LossLo), 100*float64(t.LossHi), t.Samples))
	if rep.Verdict.Status == report.Refused && !req.Force {
		return rep, fmt.Errorf("%w: %s", pipeline.ErrRefused, rep.Verdict.Reasons[0])
	}
	return rep, nil
}

// searchShare of a job's progress is the search; comparing and publishing follow.
const searchShare = 0.9

// pruneSearches removes what searches left whose jobs have ended or are forgotten,
// unless younger than minAge.
func (a *App) pruneSearches(ctx context.Context, minAge time.Duration) error {
	dirs, err := os.ReadDir(filepath.Join(a.cfg.DataDir, searchesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := a.queue.List(ctx)
	if err != nil {
		return err
	}
	open := map[string]bool{}
	for _, st := range list {
		open[st.ID] = !st.Status.Final()
	}
	var errs []error
	for _, d := range dirs {
		if !open[d.Name()] && olderThan(d, minAge) {
			errs = append(errs, os.RemoveAll(a.searchDir(d.Name())))
		}
	}
	return errors.Join(errs...)
}
