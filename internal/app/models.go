package app

import (
	"context"
	"io"
	"slices"

	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// models shows the loaded models to the HTTP server.
type models struct{ a *App }

var (
	_ http.Models = models{}
	_ http.Budget = models{}

	_ http.InlineLoader = models{}
)

func (m models) List() []http.ModelInfo {
	infos := m.a.loaded.List()
	out := make([]http.ModelInfo, len(infos))
	for i, v := range infos {
		out[i] = http.ModelInfo{Name: v.Name, Version: v.Version, State: string(v.State), Reason: v.Reason, Default: v.Default, Lazy: v.Lazy, Memory: v.Memory, Engine: v.Engine,
			Texts: slices.ContainsFunc(v.Files, func(f registry.File) bool { return f.Name == task.TokenizerFile })}
		if v.State == registry.StateUnavailable && v.Default && m.a.starting.Load() { // its turn comes
			out[i].State, out[i].Reason, out[i].Lazy = http.StateLoading, "waiting to be loaded", false
		}
	}
	return out
}

func (m models) Acquire(ctx context.Context, name, version string) (http.Lease, error) {
	l, err := m.a.loaded.Acquire(ctx, name, version)
	if err != nil {
		return nil, err
	}
	return lease{l}, nil
}

// Memory is how the models use their budget.
func (m models) Memory() telemetry.ModelMemory {
	b := m.a.loaded.Memory()
	return telemetry.ModelMemory{BudgetBytes: b.Budget, UsedBytes: b.Used, Loads: b.Loads, Evictions: b.Evicted}
}

func (m models) Load(ctx context.Context, name string) error { return m.a.loaded.Load(ctx, name) }

// LoadFiles publishes what a load request brings and serves its last version.
func (m models) LoadFiles(ctx context.Context, name string, versions []http.InlineVersion) (string, error) {
	var last registry.Version
	for _, v := range versions {
		var err error
		if last, err = m.a.registry.UploadFiles(ctx, name, v.Number, v.Files); err != nil {
			return "", err
		}
	}
	return last.ID(), m.LoadVersion(ctx, name, last.ID())
}

// LoadVersion makes a version the default and loads it.
func (m models) LoadVersion(ctx context.Context, name, version string) error {
	if err := m.a.loaded.Promote(ctx, name, version); err != nil {
		return err
	}
	return m.a.loaded.Load(ctx, name) // one that was unloaded on request only changes its default before
}

func (m models) Unload(ctx context.Context, name string) error { return m.a.loaded.Unload(ctx, name) }

// lease gives the preparer that the registry only carries its type back.
type lease struct{ registry.Lease }

func (l lease) Preparer() http.Preparer {
	p, _ := l.Lease.Preparer().(http.Preparer)
	return p
}

// store keeps what is uploaded in the registry.
type store struct{ a *App }

var _ http.Store = store{}

// PutModel publishes the body as a version. The first one of a model is its
// default and is loaded at once; validation has opened it before.
func (s store) PutModel(ctx context.Context, name string, body io.Reader, size int64) (string, error) {
	v, err := s.a.registry.Upload(ctx, name, body, size, registry.About{})
	if err != nil {
		return "", err
	}
	if info, err := s.a.loaded.Info(name, v.ID()); err == nil && info.Default {
		if err := s.a.loaded.Load(ctx, name); err != nil { // stored all the same: the index has the reason
			s.a.log.Warn("an uploaded model could not be loaded", "model", name, "version", v.ID(), "error", err)
		}
	}
	return v.ID(), nil
}

func (s store) PutDataset(ctx context.Context, name string, body io.Reader, contentType string, size int64) (http.DatasetInfo, error) {
	d, err := s.a.registry.PutDataset(ctx, name, body, size, contentType)
	return datasetInfo(d), err
}

func datasetInfo(d registry.Dataset) http.DatasetInfo {
	return http.DatasetInfo{Name: d.Name, Kind: string(d.Kind), Samples: int64(d.Samples), Labels: d.Labelled, Bytes: d.Size, SHA256: d.SHA256, Created: d.Created}
}

func (s store) Datasets() ([]http.DatasetInfo, error) {
	ds, err := s.a.registry.Datasets()
	out := make([]http.DatasetInfo, len(ds))
	for i, d := range ds {
		out[i] = datasetInfo(d)
	}
	return out, err
}

func (s store) DeleteDataset(_ context.Context, name string) error {
	return s.a.registry.DeleteDataset(name)
}

func (s store) Versions(_ context.Context, name string) ([]http.VersionInfo, error) {
	m, err := s.a.registry.Model(name)
	out := make([]http.VersionInfo, len(m.Versions))
	for i, v := range m.Versions {
		f, _ := v.File(registry.ModelFile)
		out[i] = http.VersionInfo{Version: v.ID(), Default: v.Number == m.Default, Bytes: v.Size(), SHA256: f.SHA256,
			Scheme: v.About.Scheme, Source: v.About.Source, Created: v.Created}
	}
	return out, err
}

func (s store) Promote(ctx context.Context, name, version string) error {
	return s.a.loaded.Promote(ctx, name, version)
}

func (s store) Rollback(ctx context.Context, name string) (string, error) {
	v, err := s.a.loaded.Rollback(ctx, name)
	return v.ID(), err
}

func (s store) Delete(ctx context.Context, name, version string) error {
	if err := s.a.loaded.Delete(ctx, name, version); err != nil {
		return err
	}
	if version == "" {
		return s.a.forget(name)
	}
	return nil
}
