package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/recipes"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/report"
)

// reportFile is the report among the files of a quantized version.
const reportFile = "report.json"

// beside are the kinds of files that a quantized version takes over from its
// source: tokenizer, preprocessing, labels, pooling.
var beside = []string{".json", ".txt", ".csv"}

// runJob is the queue's Runner. It may be called again for a job that a crash
// interrupted at any point: what it publishes carries the job's id, and a
// version with that id is never made twice.
func (a *App) runJob(ctx context.Context, id string, spec jobs.Spec, progress func(string, float64)) (json.RawMessage, error) {
	name := cmp.Or(spec.Name, spec.Model)
	begin := time.Now()
	a.log.Info("job begins", "id", id, "model", spec.Model, "scheme", spec.Scheme)
	v, done := a.published(name, id)
	if !done {
		var err error
		if v, err = a.quantize(ctx, id, name, spec, progress); err != nil {
			a.log.Warn("job ends without a result", "id", id, "seconds", int(time.Since(begin).Seconds()), "error", err)
			return nil, err
		}
	}
	a.log.Info("job has a result", "id", id, "seconds", int(time.Since(begin).Seconds()), "model", name, "version", v.ID())
	// The version is there for all to see: what follows is part of it and is
	// not undone by a cancellation.
	ctx = context.WithoutCancel(ctx)
	progress("load", progressLoad)
	promoted, err := a.enter(ctx, v, spec.Promote)
	if err != nil {
		return nil, fmt.Errorf("version %s of %s was published, but not promoted: %w", v.ID(), name, err)
	}
	rep, err := a.readReport(id)
	if err != nil {
		return nil, fmt.Errorf("the report of version %s of %s: %w", v.ID(), name, bare.Error(err))
	}
	f, _ := v.File(registry.ModelFile)
	return json.Marshal(result{Model: name, Version: v.ID(), Source: v.About.Source, SHA256: f.SHA256, Promoted: promoted, Report: summarize(rep)})
}

// published returns the version that an earlier run of the job has made.
func (a *App) published(name, id string) (registry.Version, bool) {
	m, err := a.registry.Model(name)
	if err != nil {
		return registry.Version{}, false
	}
	for _, v := range m.Versions {
		if v.About.Key == id {
			return v, true
		}
	}
	return registry.Version{}, false
}

// enter makes a published version serve: as the default when asked for, or
// when it is the first of its model. The switch comes after its first run.
func (a *App) enter(ctx context.Context, v registry.Version, promote bool) (bool, error) {
	if promote {
		return true, a.loaded.Promote(ctx, v.Model, v.ID())
	}
	info, err := a.loaded.Info(v.Model, v.ID())
	if err != nil || !info.Default {
		return false, err
	}
	return true, a.loaded.Load(ctx, v.Model)
}

// source returns the version that a job quantizes: the one it names, or the
// default. When the default is itself a quantized version, it is the one which
// that was made from, so that a job can be repeated after a promotion.
func (a *App) source(spec jobs.Spec) (registry.Version, error) {
	v, err := a.registry.Version(spec.Model, spec.Version)
	if err != nil || spec.Version != "" || v.About.Scheme == "" {
		return v, err
	}
	if model, version, ok := strings.Cut(v.About.Source, "/"); ok && model == spec.Model {
		if src, err := a.registry.Version(model, version); err == nil {
			return src, nil
		}
	}
	return v, nil
}

// request words a job that reads in for the pipeline, without where the result goes.
func (a *App) request(ctx context.Context, spec jobs.Spec, in *jobs.Inputs, src registry.Version) (pipeline.Request, error) {
	req := pipeline.Request{
		Name: src.Model,
		Config: quant.Config{
			Scheme: quant.Scheme(spec.Scheme), Target: quant.Target(spec.Target), Granularity: quant.Granularity(spec.Granularity),
			Symmetric: spec.Symmetric, Method: spec.Method, Weights: quant.WeightMethod(spec.Weights), Exclude: spec.Exclude, Equalize: spec.Equalize, ReduceRange: pipeline.SaturatesU8S8(),
		},
		Samples: spec.Samples, MaxLoss: spec.MaxLoss, SLO: time.Duration(spec.SLOms * float64(time.Millisecond)), Force: spec.Force,
		Words:     pipeline.Words{Calib: `"calibration": {"dataset": NAME}`, Eval: `"evaluation": {"dataset": NAME}`, Force: `"force": true`, MaxMemory: `"max_memory_mb"`},
		MaxMemory: int64(math.Ceil(spec.MaxMemoryMB * 1e6)),
	}
	if req.MaxMemory > 0 && req.MaxMemory < pipeline.MinCeiling {
		return req, fmt.Errorf("%w: \"max_memory_mb\" is %g: give 0 for no ceiling, or at least %d", quant.ErrConfig, spec.MaxMemoryMB, int(math.Ceil(pipeline.MinCeiling/1e6)))
	}
	if spec.Scheme == schemeSearch {
		req.Config.Scheme = quant.INT8 // in which what all trials have in common is checked
	}
	rules := spec.Operators
	if spec.Recipe != "" {
		own, err := recipes.Parse(spec.Recipe)
		if err != nil {
			return req, fmt.Errorf("%w: %w", quant.ErrConfig, err)
		}
		rules = append(own.Rules, rules...)
		req.MinSQNR = own.MinSQNR
	}
	for _, text := range rules {
		r, err := quant.ParseRule(text)
		if err != nil {
			return req, fmt.Errorf("operators: %w", err)
		}
		req.Config.Rules = append(req.Config.Rules, r)
	}
	dir, err := a.registry.Dir(src)
	if err != nil {
		return req, err
	}
	req.Model = filepath.Join(dir, registry.ModelFile)
	if req.Calib, err = a.pinnedData(ctx, in.Calibration); err != nil {
		return req, fmt.Errorf("calibration: %w", err)
	}
	if spec.Scheme == schemeSearch || req.CheckMinSQNR() != nil {
		req.MinSQNR = 0 // a search chooses by itself; without samples nothing can be measured
	}
	if in.Calibration != nil {
		req.CalibName = in.Calibration.About
	}
	if req.Eval, err = a.pinnedData(ctx, in.Evaluation); err != nil {
		return req, fmt.Errorf("evaluation: %w", err)
	}
	body, err := json.Marshal(spec)
	req.Command = []string{"POST", "/quantize", string(body)}
	return req, err
}

// quantize runs the pipeline in a scratch folder that the registry removes,
// after a crash too, and publishes what comes out.
func (a *App) quantize(ctx context.Context, id, name string, spec jobs.Spec, progress func(string, float64)) (registry.Version, error) {
	in := jobs.InputsOf(ctx)
	if in == nil { // submitted without
		var err error
		if in, err = a.pin(ctx, spec); err != nil {
			return registry.Version{}, err
		}
	}
	src, err := a.pinnedSource(in.Model)
	if err != nil {
		return registry.Version{}, err
	}
	req, err := a.request(ctx, spec, in, src)
	if err != nil {
		return registry.Version{}, err
	}
	scratch, err := a.registry.NewStage()
	if err != nil {
		return registry.Version{}, err
	}
	defer scratch.Close()
	out, err := a.registry.NewStage()
	if err != nil {
		return registry.Version{}, err
	}
	defer out.Close()
	req.Out = filepath.Join(out.Dir(), registry.ModelFile)
	p := a.pipeline
	p.Scratch = scratch.Dir()
	var rep *report.Report
	if spec.Scheme == schemeSearch {
		rep, err = a.search(ctx, id, p, req, spec, progress)
	} else {
		rep, err = p.Quantize(ctx, req, overall(phasesOf(req.Config.Weights), progress))
	}
	if rep != nil && (err == nil || errors.Is(err, pipeline.ErrRefused)) {
		var b bytes.Buffer
		if err := report.WriteJSON(&b, *rep); err != nil {
			return registry.Version{}, err
		}
		if err := a.keepReport(id, b.Bytes()); err != nil {
			return registry.Version{}, err
		}
		if errors.Is(err, pipeline.ErrRefused) {
			return registry.Version{}, fmt.Errorf(`%w: %s; GET /quantize/%s/report has the details, and "force": true keeps the result`,
				pipeline.ErrRefused, strings.Join(rep.Verdict.Reasons, "; "), id)
		}
		if err := os.WriteFile(filepath.Join(out.Dir(), reportFile), b.Bytes(), 0o644); err != nil {
			return registry.Version{}, fmt.Errorf("keep the report: %w", bare.Error(err))
		}
	}
	if err != nil {
		return registry.Version{}, err
	}
	overall(phases, progress)("publish", 0)
	if err := out.Link(src, besideModel(src)...); err != nil {
		return registry.Version{}, err
	}
	if err := jobs.Owned(ctx); err != nil {
		return registry.Version{}, err
	}
	if err := a.welcome(name, src); err != nil {
		return registry.Version{}, err
	}
	scheme := string(req.Config.Scheme)
	if spec.Scheme == schemeSearch { // what it found
		scheme = cmp.Or(rep.Recipe.Scheme, scheme)
	}
	return a.registry.Publish(ctx, name, out, registry.About{
		Scheme: scheme, Source: src.Model + "/" + src.ID(), TargetMS: spec.SLOms, Key: id,
	})
}

// besideModel names the files of a version that belong to every version made
// from it.
func besideModel(v registry.Version) (names []string) {
	for _, f := range v.Files {
		if f.Name != reportFile && slices.Contains(beside, path.Ext(f.Name)) {
			names = append(names, f.Name)
		}
	}
	return names
}

// checkJob refuses at once what the job would fail with later: a setting that
// is not built, a model that cannot be quantized, data that does not fit it.
func (a *App) checkJob(spec jobs.Spec) error {
	ctx := context.Background()
	in, err := a.pinStored(spec)
	if err != nil {
		return err
	}
	src, err := a.pinnedSource(in.Model)
	if err != nil {
		return err
	}
	req, err := a.request(ctx, spec, in, src)
	if err != nil {
		return err
	}
	if req.Config, err = req.Config.WithDefaults(); err != nil {
		return err
	}
	if capturedModel(spec) == "" { // what was captured becomes data when the job runs
		if err := pipeline.CheckData(req); err != nil {
			return err
		}
	}
	m, err := graph.Open(req.Model)
	if err != nil {
		return err
	}
	defer m.Close()
	if op := m.Quantized(); op != "" {
		return fmt.Errorf("model %s version %s: %w: it contains %s; name the float version it was made from", src.Model, src.ID(), quant.ErrQuantized, op)
	}
	for field, file := range map[string]string{"calibration": req.Calib, "evaluation": req.Eval} {
		if file == "" {
			continue
		}
		if err := a.firstSample(ctx, file, m, filepath.Dir(req.Model)); err != nil {
			return fmt.Errorf("%s data: %w", field, err)
		}
	}
	if model := capturedModel(spec); model != "" {
		if err := a.checkCaptured(ctx, model, m, filepath.Dir(req.Model)); err != nil {
			return fmt.Errorf("calibration data: %w", err)
		}
	}
	return pipeline.CheckExclude(ctx, m, req.Config)
}

// maxChecked bounds the data sets that checkJob looks into: a request should
// not wait for the index of a huge file.
const maxChecked = 64 << 20

// firstSample reads one sample as the job will.
func (a *App) firstSample(ctx context.Context, file string, m *graph.Model, dir string) error {
	if st, err := os.Stat(file); err != nil || st.Size() > maxChecked {
		return nil // the job will tell
	}
	ds, err := data.Open(file, data.Options{Spec: pipeline.SpecOf(m), ModelDir: dir, CaptureKey: a.pipeline.CaptureKey})
	if err != nil {
		return err
	}
	defer ds.Close()
	_, err = ds.Next(ctx)
	return err
}
