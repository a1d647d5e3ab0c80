package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/rollout/capture"
)

// maxKeyFile bounds the file of the capture key.
const maxKeyFile = 4096

// readCaptureKey reads the key of captured inputs; nil when there is none.
func (c *Config) readCaptureKey() (*capture.Key, error) {
	text, from := []byte(os.Getenv(capture.KeyEnv)), capture.KeyEnv
	if c.CaptureKey != "" {
		from = "--capture-key " + filepath.Base(c.CaptureKey)
		f, err := os.Open(c.CaptureKey)
		if err != nil {
			return nil, fmt.Errorf("--capture-key %s: %w", c.CaptureKey, bare.Error(err))
		}
		defer f.Close()
		if text, err = io.ReadAll(io.LimitReader(f, maxKeyFile)); err != nil {
			return nil, fmt.Errorf("--capture-key %s: %w", c.CaptureKey, bare.Error(err))
		}
	} else if len(text) == 0 {
		return nil, nil
	}
	key, err := capture.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return key, nil
}

// capturedModel is the model whose captured inputs a job calibrates on, "" for
// none.
func capturedModel(spec jobs.Spec) string {
	if c := spec.Calibration; c != nil && c.Captured != nil {
		return cmp.Or(c.Captured.Model, spec.Model)
	}
	return ""
}

// pinCaptured stores what is captured of a model now, for a job to read.
func (a *App) pinCaptured(ctx context.Context, model string) (*jobs.Pin, error) {
	var st capture.Status
	d, err := a.registry.KeepContents(ctx, model, registry.KindCaptured, func(w io.Writer) (err error) {
		st, err = a.capture.Snapshot(model, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &jobs.Pin{Name: d.Name, SHA256: d.SHA256, Kind: string(d.Kind), Bytes: d.Size, About: provenance(st)}, nil
}

// provenance says in words where captured inputs come from.
func provenance(st capture.Status) string {
	until := st.Ends
	if st.State == capture.Running {
		until = time.Now()
	}
	var by, without []string
	for _, route := range slices.Sorted(maps.Keys(st.Routes)) {
		by = append(by, fmt.Sprintf("%s %d", route, st.Routes[route]))
	}
	for _, in := range st.Inputs {
		if in.Redacted {
			without = append(without, in.Name)
		}
	}
	const minute = "2006-01-02T15:04Z"
	s := fmt.Sprintf("captured inputs of model %s: %d samples of %d rows seen, %s to %s, taken by route: %s",
		st.Model, st.Samples, st.Seen, st.Started.UTC().Format(minute), until.UTC().Format(minute), strings.Join(by, ", "))
	if len(without) > 0 {
		s += "; zeros stand in for the redacted " + strings.Join(without, ", ")
	}
	return s
}

// checkCaptured refuses captured inputs that do not fit the model m in dir.
func (a *App) checkCaptured(ctx context.Context, model string, m *graph.Model, dir string) error {
	st, err := a.capture.Status(model)
	if err != nil {
		return err
	}
	if st.Bytes > maxChecked {
		return nil // the job will tell
	}
	stage, err := a.registry.NewStage()
	if err != nil {
		return err
	}
	defer stage.Close()
	f, err := os.Create(filepath.Join(stage.Dir(), "captured"))
	if err != nil {
		return bare.Error(err)
	}
	_, err = a.capture.Snapshot(model, f)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = bare.Error(cerr)
	}
	if err != nil {
		return err
	}
	return a.firstSample(ctx, f.Name(), m, dir)
}

// forget deletes what was captured of a model that is deleted.
func (a *App) forget(model string) error {
	if err := a.capture.Delete(model); err != nil && !errors.Is(err, capture.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
