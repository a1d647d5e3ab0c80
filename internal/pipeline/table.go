package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// TableRequest asks for a calibration table.
type TableRequest struct {
	Model, Calib string
	Config       quant.Config
	// Samples and Shard select the samples: shards split the same ones.
	Samples   int
	MaxTokens int
	Shard     calib.Shard
	// Precision of the float model's products; "" is AutoPrecision.
	Precision Precision
}

// TableResult is a table and how it came about.
type TableResult struct {
	Table   *calib.Table
	Receipt calib.Receipt
	Seconds float64
	// Engine ran the model, Reason says why it was not the device asked for.
	Engine, Reason string
	// Precision that was used on the engine: FP32 or BF16.
	Precision Precision
}

// CalibrationTable runs the calibration of a quantization and returns what it
// observed. Tables of shards merge into exactly the table of one run.
func (p *Pipeline) CalibrationTable(ctx context.Context, req TableRequest, progress Progress) (*TableResult, error) {
	c, err := req.Config.WithDefaults()
	if err != nil {
		return nil, err
	}
	if len(req.Shard.Parts) > 1 {
		return nil, fmt.Errorf("%w: shard %q: one run calibrates one shard, as in 2/4", data.ErrOptions, req.Shard)
	}
	progress.say("open", 0)
	m, err := graph.Open(req.Model)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	// The digest of a large file takes as long as packing its weights: both at once.
	digest := make(chan digested, 1)
	go func() {
		sum, err := fileSHA256(ctx, req.Model)
		digest <- digested{sum, err}
	}()
	if op := m.Quantized(); op != "" {
		return nil, fmt.Errorf("%w: it contains %s; give the float model it was made from", quant.ErrQuantized, op)
	}
	ops := operatorsOf(m)
	if _, err := quant.Run(ctx, m, quant.Prepare(c), quant.Dump{}); err != nil {
		return nil, err
	}
	if c.Exclude, err = ops.resolve(m, c.Exclude); err != nil {
		return nil, err
	}
	plan, err := quant.NewPlan(m, c)
	if err != nil {
		return nil, err
	}
	o := data.Options{Spec: SpecOf(m), ModelDir: filepath.Dir(req.Model), MaxTokens: req.MaxTokens, Samples: req.Samples}
	if o.Samples == 0 {
		o.Samples = DefaultSamples
	}
	if req.Shard.Of > 0 {
		o.Shard, o.Shards = req.Shard.Parts[0]-1, req.Shard.Of
	}
	ds, err := data.Open(req.Calib, o)
	if err != nil {
		return nil, fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	lab, err := NewLab(p.Engine, p.Threads, p.Scratch)
	if err != nil {
		return nil, err
	}
	defer lab.Close()
	lab.Device, lab.Precision = p.Device, req.Precision
	ev, err := Calibrate(ctx, lab, m, plan, ds, false, progress)
	if err != nil {
		return nil, fmt.Errorf("calibration: %w", err)
	}
	sum := <-digest
	if sum.err != nil {
		return nil, sum.err
	}
	t := ev.Table(sum.sum)
	t.Method, t.Shard = c.Method, req.Shard
	if err := t.Fill(tableScheme(c), tableMethods(c.Method)...); err != nil {
		return nil, err
	}
	chosen, _ := t.Stored(tableMethods(c.Method)[0])
	rc, err := t.Receipt(chosen)
	if err != nil {
		return nil, err
	}
	return &TableResult{Table: t, Receipt: rc, Seconds: ev.Seconds, Engine: ev.Engine, Precision: ev.Precision, Reason: ev.Reason}, nil
}

type digested struct {
	sum string
	err error
}

func tableScheme(c quant.Config) calib.Scheme {
	s := calib.U8
	s.Symmetric = c.Symmetric
	return s
}

// tableMethods are the methods whose ranges a table holds: the one asked for,
// or for auto every candidate, the one that export takes first.
func tableMethods(method string) []string {
	if method == quant.Auto {
		return []string{calib.MethodMSE, calib.MethodMinMax, calib.MethodPercentile, calib.MethodEntropy}
	}
	return []string{method}
}

// ExportRanges computes the symmetric INT8 ranges of a table for other tools'
// files. method "" is the table's own; auto is the one with the smallest
// squared error of the tensor itself.
func ExportRanges(t *calib.Table, method string) (map[string]calib.Range, error) {
	if method == "" {
		method = t.Method
	}
	if method == "" {
		method = quant.Auto
	}
	return t.Ranges(tableMethods(method)[0], calib.S8, 0)
}

// tableMark opens every calibration table; a line of a .jsonl file of texts
// cannot begin like this and be one.
var tableMark = []byte(`{"version":`)

// OpenTable reads the calibration table at path. ok is false, without an
// error, when the file is something else: a data set, or not there.
func OpenTable(path string) (t *calib.Table, ok bool, err error) {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return nil, false, nil // a folder of images; opening a pipe would wait for its writer
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, false, nil // whoever reads it as data says what is wrong with it
	}
	defer f.Close()
	head := make([]byte, len(tableMark))
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head, tableMark) {
		return nil, false, nil // shorter than any table
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, true, fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
	}
	if t, err = calib.ReadTable(f); err != nil {
		return nil, true, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return t, true, nil
}

// TableEvidence makes the evidence of a calibration from its table: histograms
// and channel maxima, but no rows, so ranges are chosen by the tensors' own
// error and nothing is smoothed. The table must be of this model and hold every
// tensor of the plan (ErrCalibration).
func TableEvidence(t *calib.Table, modelSHA256 string, p *quant.Plan) (*Evidence, error) {
	if t.ModelSHA256 != "" && t.ModelSHA256 != modelSHA256 {
		return nil, fmt.Errorf("%w: the table is of another model (sha256 %.12s, this one is %.12s); calibrate this model", ErrCalibration, t.ModelSHA256, modelSHA256)
	}
	for _, name := range p.Tensors {
		if t.Tensors[name] == nil {
			return nil, fmt.Errorf("%w: the table has no tensor %q; calibrate again for this target", ErrCalibration, name)
		}
	}
	return &Evidence{Collector: calib.CollectorOf(t), rows: map[string]*quant.Rows{}, dims: map[string][]int64{}}, nil
}
