package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/report"
)

// jobsOf shows the queue to the HTTP server and adds the reports.
type jobsOf struct {
	*jobs.JetStream
	a *App
}

var (
	_ http.Jobs    = jobsOf{}
	_ http.Reports = jobsOf{}
)

// Get implements http.Jobs. A refused job has a result too: its report.
func (j jobsOf) Get(ctx context.Context, id string) (jobs.Status, error) {
	st, err := j.JetStream.Get(ctx, id)
	return j.refused(st), err
}

func (j jobsOf) refused(st jobs.Status) jobs.Status {
	if st.Status != jobs.Failed || len(st.Result) > 0 {
		return st
	}
	if rep, err := j.a.readReport(st.ID); err == nil {
		st.Result, _ = json.Marshal(result{Report: summarize(rep)}) // no result rather than no status
	}
	return st
}

// Events implements http.Jobs.
func (j jobsOf) Events(ctx context.Context, id string) (<-chan jobs.Status, error) {
	in, err := j.JetStream.Events(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make(chan jobs.Status)
	go func() {
		defer close(out)
		for st := range in {
			select {
			case out <- j.refused(st):
			case <-ctx.Done():
				for range in { // it closes soon: the context is its own
				}
				return
			}
		}
	}()
	return out, nil
}

// Report implements http.Reports: the page is made of the JSON when it is asked for.
func (j jobsOf) Report(_ context.Context, id string) (data, page []byte, err error) {
	data, err = os.ReadFile(j.a.reportPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: the job ended before there was a report", registry.ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	rep, err := report.ReadJSON(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	var b bytes.Buffer
	if err := report.HTML(&b, *rep); err != nil {
		return nil, nil, err
	}
	return data, b.Bytes(), nil
}

const reportSuffix = ".json"

// reportPath is where the report of a job lies. Ids are the queue's: letters
// and digits.
func (a *App) reportPath(id string) string {
	return filepath.Join(a.cfg.DataDir, reportsDir, filepath.Base(id)+reportSuffix)
}

func (a *App) readReport(id string) (*report.Report, error) {
	f, err := os.Open(a.reportPath(id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return report.ReadJSON(f)
}

// keepReport stores a job's report: a temporary file, then its name.
func (a *App) keepReport(id string, data []byte) error {
	f := atomicfile.File{Path: a.reportPath(id), Temp: tempReport + "*"}
	if err := f.WriteBytes(data); err != nil {
		return fmt.Errorf("keep the report: %w", bare.Error(err))
	}
	return nil
}

const tempReport = ".part-"

// pruneReports removes the reports of jobs that the queue has forgotten, and
// what a crash left half-written, unless younger than minAge.
func (a *App) pruneReports(ctx context.Context, minAge time.Duration) error {
	list, err := a.queue.List(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, st := range list {
		known[st.ID] = true
	}
	files, err := os.ReadDir(filepath.Join(a.cfg.DataDir, reportsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if !known[strings.TrimSuffix(f.Name(), reportSuffix)] && olderThan(f, minAge) {
			errs = append(errs, os.Remove(filepath.Join(a.cfg.DataDir, reportsDir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

func olderThan(f fs.DirEntry, age time.Duration) bool {
	info, err := f.Info()
	return err == nil && time.Since(info.ModTime()) >= age
}
