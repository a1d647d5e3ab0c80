// Package data reads the data sets of calibration and evaluation: numeric
// arrays (.npz, .npy), texts (.jsonl) and images (a folder or a .zip). Every
// reader gives samples with a batch dimension of 1, one at a time, so memory
// does not grow with the data set.
//
// Files are hostile input: sizes are checked before anything is allocated, and
// errors name the file's base name only, never its folder.
package data

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/task"
)

// Errors of this package. Their texts say what was read, what was expected and
// what to do.
var (
	// ErrNotFound: there is no such file or folder.
	ErrNotFound = errors.New("data set not found")
	// ErrEmpty: the data set, or the part asked for, has no samples.
	ErrEmpty = errors.New("empty data set")
	// ErrFormat: the bytes are not what the kind of file promises.
	ErrFormat = errors.New("bad data file")
	// ErrUnsupported: a kind of file or array that is not read on purpose.
	ErrUnsupported = errors.New("unsupported data")
	// ErrMismatch: names, types or shapes do not fit the model.
	ErrMismatch = errors.New("data does not fit the model")
	// ErrLabel: a label that cannot be understood or is out of range.
	ErrLabel = errors.New("bad label")
	// ErrNoLabels: labels are needed and there are none.
	ErrNoLabels = errors.New("data set has no labels")
	// ErrTooLarge: a limit of this package is exceeded.
	ErrTooLarge = errors.New("data set too large")
	// ErrOptions: the options contradict themselves.
	ErrOptions = errors.New("bad data options")
)

// Sample is one example.
type Sample struct {
	// Feeds holds the model's inputs, batch dimension 1. Lengths may differ
	// from sample to sample where the model's dimensions are variable. The
	// tensors belong to the caller.
	Feeds engine.Feeds
	// Label is the class when HasLabel is set.
	Label    int
	HasLabel bool
	// ID says where the sample stands in its file: "row 3", "line 12", a path
	// within the folder.
	ID string
	// Tokens is the number of unpadded tokens of a text, else 0.
	Tokens int
}

// Dataset is a sequence of samples. Its methods must not be called at the same
// time from several goroutines.
type Dataset interface {
	// Len returns how many samples Next gives from the start.
	Len() int
	// Next returns the next sample, io.EOF after the last.
	Next(ctx context.Context) (Sample, error)
	// Reset starts again from the first sample; the order stays the same.
	Reset() error
	// LabelNames returns the names of the classes, nil when unknown.
	LabelNames() []string
	// Kind names the kind of data: "npz", "npy", "jsonl", "images", "captured".
	Kind() string
	// Labelled reports whether every sample has a label.
	Labelled() bool
	Close() error
}

// Options say how a data set is read.
type Options struct {
	// Spec is the model's; only the inputs matter.
	Spec engine.IOSpec
	// ModelDir is the folder of the model, where tokenizer.json,
	// preprocessor_config.json and labels.txt are looked for; "" is nowhere.
	ModelDir string
	// MaxTokens is the length at which texts are cut; 0 is
	// task.DefaultMaxTokens.
	MaxTokens int
	// CaptureKey opens captured inputs; nil: they are not read.
	CaptureKey *capture.Key
	// KeepPadding keeps the padding of texts in .npz files. By default each
	// sample is cut to the last position whose attention mask is 1, wherever
	// the model's length is variable: padding distorts the statistics of
	// calibration and costs time.
	KeepPadding bool

	// Samples is how many samples are read; 0 is all. They are spread over the
	// data set by a fixed permutation, so that a file sorted by class gives
	// samples of every class, and come in the order of the file.
	Samples int
	// Skip leaves out the first Skip samples of the permutation: Samples: n
	// and Skip: n are disjoint and together complete.
	Skip int
	// Shard and Shards select one part of the selection above: shard i (from
	// 0) of Shards. All shards together are exactly the whole selection.
	// Shards 0 and 1 are the whole.
	Shard, Shards int
}

func (o Options) check() error {
	if o.Samples < 0 || o.Skip < 0 || o.MaxTokens < 0 {
		return fmt.Errorf("%w: samples %d, skip %d, max tokens %d: none may be negative", ErrOptions, o.Samples, o.Skip, o.MaxTokens)
	}
	if o.Shards < 0 || o.Shard < 0 || o.Shard >= max(o.Shards, 1) {
		return fmt.Errorf("%w: shard %d of %d: shards count from 0 to %d", ErrOptions, o.Shard, o.Shards, max(o.Shards, 1)-1)
	}
	if len(o.Spec.Inputs) == 0 {
		return fmt.Errorf("%w: the model has no inputs", ErrMismatch)
	}
	for _, in := range o.Spec.Inputs {
		if len(in.Dims) == 0 {
			return fmt.Errorf("%w: input %q is a scalar; data sets need a batch dimension", ErrMismatch, in.Name)
		}
		if in.Dims[0] > 1 {
			return fmt.Errorf("%w: input %q has the fixed batch %d; export the model with a variable batch, or 1", ErrMismatch, in.Name, in.Dims[0])
		}
	}
	return nil
}

// source is a readable data set without an order of its own. Indices passed
// to read ascend until rewind.
type source interface {
	size() int
	read(ctx context.Context, i int) (Sample, error)
	rewind() error
	labelNames() []string
	labelled() bool
	kind() string
	close() error
}

// set is a selection of a source.
type set struct {
	src    source
	order  []int // ascending indices; nil: all
	n, pos int
	closed bool
}

var _ Dataset = (*set)(nil)

// Open opens the data set at path, recognised by its contents:
//
//   - .npz: one array per model input, by name, first axis = samples, and
//     optionally `label` (integers). A model with one input also takes an
//     .npz with one array, and an .npy.
//   - .jsonl: one object a line: {"text": "...", "text_pair"?: "...",
//     "label"?: 3 or "name"}. The tokenizer is read from ModelDir.
//   - a folder or a .zip of images: class = subfolder, or labels.csv
//     (file,label), or flat and without labels.
//   - captured inputs of a served model, with Options.CaptureKey.
//
// Numbers are converted only where nothing is lost or the loss is of no
// consequence: integers to wider ones (and to narrower ones while they fit),
// bool to integers, FP64 and FP16 to FP32 and back. Integers for a
// floating-point input are refused, because their scale is unknown.
func Open(path string, o Options) (Dataset, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	src, err := openSource(path, o)
	if err != nil {
		return nil, err
	}
	d, err := newSet(src, o)
	if err != nil {
		_ = src.close() // nothing was written
		return nil, err
	}
	return d, nil
}

func newSet(src source, o Options) (*set, error) {
	n := src.size()
	if n == 0 {
		return nil, fmt.Errorf("%w: no samples in it", ErrEmpty)
	}
	order := choose(n, o.Skip, o.Samples)
	total := n
	if order != nil {
		total = len(order)
	}
	if total == 0 {
		return nil, fmt.Errorf("%w: it has %d samples and all are skipped", ErrEmpty, n)
	}
	if o.Shards > 1 {
		order = shard(order, n, o.Shard, o.Shards)
		total = len(order)
	}
	return &set{src: src, order: order, n: total}, nil
}

func (s *set) Len() int             { return s.n }
func (s *set) LabelNames() []string { return s.src.labelNames() }
func (s *set) Kind() string         { return s.src.kind() }
func (s *set) Labelled() bool       { return s.src.labelled() }

func (s *set) Next(ctx context.Context) (Sample, error) {
	if s.closed {
		return Sample{}, fmt.Errorf("%w: it is closed", ErrOptions)
	}
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	if s.pos >= s.n {
		return Sample{}, io.EOF
	}
	i := s.pos
	if s.order != nil {
		i = s.order[s.pos]
	}
	smp, err := s.src.read(ctx, i)
	if err != nil {
		return Sample{}, err
	}
	s.pos++
	return smp, nil
}

func (s *set) Reset() error {
	s.pos = 0
	return s.src.rewind()
}

func (s *set) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.src.close()
}

// RequireLabels returns ErrNoLabels, saying how to give labels, unless every
// sample of d has one.
func RequireLabels(d Dataset) error {
	if d.Labelled() {
		return nil
	}
	how := map[string]string{
		kindNPZ:      "add an integer array `label` with one class a sample",
		kindNPY:      "save an .npz with an integer array `label` beside the input",
		kindJSONL:    `give every line a "label"`,
		kindImages:   "sort the images into one folder a class, or add labels.csv (file,label)",
		kindCaptured: "captured inputs have none; give a labelled data set",
	}[d.Kind()]
	return fmt.Errorf("%w: %s", ErrNoLabels, how)
}

// labels of a data set: the names beside the model, or those met in the data.
func modelLabels(o Options) ([]string, error) {
	if o.ModelDir == "" {
		return nil, nil
	}
	return task.ReadLabels(o.ModelDir)
}
