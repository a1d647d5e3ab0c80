package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
)

// Submit implements http.Jobs. What the request names is looked up now: the job
// runs on these contents, or says why it cannot.
func (j jobsOf) Submit(ctx context.Context, spec jobs.Spec) (string, error) {
	in, err := j.a.pin(ctx, spec)
	if err != nil {
		return "", err
	}
	return j.SubmitPinned(ctx, spec, in)
}

// pin resolves the names of a request to contents.
func (a *App) pin(ctx context.Context, spec jobs.Spec) (*jobs.Inputs, error) {
	in, err := a.pinStored(spec)
	if model := capturedModel(spec); err == nil && model != "" {
		in.Calibration, err = a.pinCaptured(ctx, model)
	}
	return in, err
}

// pinStored is pin but for captured inputs, of which it would make a copy.
func (a *App) pinStored(spec jobs.Spec) (*jobs.Inputs, error) {
	src, err := a.source(spec)
	if err != nil {
		return nil, err
	}
	f, _ := src.File(registry.ModelFile)
	in := &jobs.Inputs{Model: jobs.Pin{Name: src.Model, Version: src.ID(), SHA256: f.SHA256, Files: src.Digest()}}
	if c := spec.Calibration; c != nil && c.Dataset != "" {
		if in.Calibration, err = a.pinDataset(c.Dataset); err != nil {
			return nil, err
		}
	}
	if e := spec.Evaluation; e != nil && e.Dataset != "" {
		if in.Evaluation, err = a.pinDataset(e.Dataset); err != nil {
			return nil, err
		}
	}
	return in, nil
}

func (a *App) pinDataset(name string) (*jobs.Pin, error) {
	d, err := a.registry.Dataset(name)
	if err != nil {
		return nil, err
	}
	return &jobs.Pin{Name: d.Name, SHA256: d.SHA256, Kind: string(d.Kind), Bytes: d.Size}, nil
}

// errChanged: what a job was submitted for is not there any more.
var errChanged = errors.New("submit the job again")

// pinnedSource returns the version that was pinned. Versions do not change, but
// a model may be deleted, and another uploaded under its name.
func (a *App) pinnedSource(p jobs.Pin) (registry.Version, error) {
	v, err := a.registry.Version(p.Name, p.Version)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return v, fmt.Errorf("version %s of model %s was deleted after the job had been submitted; %w", p.Version, p.Name, errChanged)
	case err != nil:
		return v, err
	case v.Digest() != p.Files:
		return v, fmt.Errorf("version %s of model %s is not the one that the job was submitted for: the model was deleted and uploaded anew since; %w", p.Version, p.Name, errChanged)
	}
	return v, nil
}

// welcome refuses a result under the name of a model that somebody deleted while
// the job ran: it must not come back.
func (a *App) welcome(name string, src registry.Version) error {
	if name != src.Model {
		return nil
	}
	gone := fmt.Errorf("model %s was deleted while the job ran: nothing was published", name)
	m, err := a.registry.Model(name)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return gone
	case err != nil:
		return err
	}
	for _, v := range m.Versions { // the source alone may well be gone
		if v.Number == src.Number && v.Digest() != src.Digest() {
			return gone
		}
	}
	return nil
}

// pinnedData returns where the pinned contents lie. They outlive their data set
// until the job ends.
func (a *App) pinnedData(ctx context.Context, p *jobs.Pin) (string, error) {
	if p == nil {
		return "", nil
	}
	path, err := a.registry.Contents(ctx, dataset(*p))
	if errors.Is(err, registry.ErrNotFound) {
		return "", fmt.Errorf("data set %s was deleted or replaced after the job had been submitted, and its contents are gone; %w", p.Name, errChanged)
	}
	return path, err
}

func dataset(p jobs.Pin) registry.Dataset {
	return registry.Dataset{Name: p.Name, Kind: registry.Kind(p.Kind), SHA256: p.SHA256, Size: p.Bytes}
}

// kept lists what the jobs that wait or run read.
func (a *App) kept(ctx context.Context) (registry.Kept, error) {
	var k registry.Kept
	list, err := a.queue.List(ctx)
	if err != nil {
		return k, err
	}
	for _, st := range list {
		if st.Status.Final() || st.Inputs == nil {
			continue
		}
		k.Versions = append(k.Versions, st.Inputs.Model.Files)
		for _, p := range []*jobs.Pin{st.Inputs.Calibration, st.Inputs.Evaluation} {
			if p != nil {
				k.Datasets = append(k.Datasets, dataset(*p))
			}
		}
	}
	return k, nil
}
