package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrSynthetic: inputs for the model cannot be made up; give real data.
var ErrSynthetic = errors.New("no synthetic inputs for this model")

// Sizes of what a model leaves variable, for synthetic inputs.
const (
	defaultImage   = 224 // height and width
	defaultChannel = 3
	// MaxSynthetic bounds the elements of one synthetic input.
	MaxSynthetic = 1 << 28
)

// Shape says what the variable dimensions of synthetic inputs become; zero
// fields are 1, 128.
type Shape struct {
	Batch int64 `json:"batch"`
	// Seq is the length of sequences.
	Seq int64 `json:"seq"`
}

func (s Shape) withDefaults() Shape {
	if s.Batch == 0 {
		s.Batch = 1
	}
	if s.Seq == 0 {
		s.Seq = defaultLength
	}
	return s
}

// of returns the dimensions of a synthetic input. Of the variable ones, the
// first is the batch, the others of an input of rank 4 are an image's (NCHW),
// all else is a sequence.
func (s Shape) of(in engine.IO) []int64 {
	s = s.withDefaults()
	dims := make([]int64, len(in.Dims))
	for i, d := range in.Dims {
		switch {
		case d >= 0:
			dims[i] = d
		case i == 0:
			dims[i] = s.Batch
		case len(in.Dims) == 4 && i == 1:
			dims[i] = defaultChannel
		case len(in.Dims) == 4:
			dims[i] = defaultImage
		default:
			dims[i] = s.Seq
		}
	}
	return dims
}

// Synthetic makes feeds for a model: masks of ones, token types of zeros, ids
// below the size of the table that they index, floats of a standard normal
// distribution. The same model and shape give the same values.
func Synthetic(m *graph.Model, s Shape) (engine.Feeds, error) {
	limits := idLimits(m)
	rng := rand.New(rand.NewPCG(1, 2))
	feeds := engine.Feeds{}
	for _, in := range SpecOf(m).Inputs {
		if in.Dims == nil {
			return nil, fmt.Errorf("%w: input %q has no declared rank; give --data", ErrSynthetic, in.Name)
		}
		dims := s.of(in)
		n, err := tensor.Elems(dims)
		if err != nil || n > MaxSynthetic {
			return nil, fmt.Errorf("%w: input %q would be %v; give a smaller --batch or --seq, or --data", ErrSynthetic, in.Name, dims)
		}
		t, err := synthetic(in, dims, int(n), limits[in.Name], rng)
		if err != nil {
			return nil, err
		}
		feeds[in.Name] = t
	}
	return feeds, nil
}

// syntheticID bounds ids when no table says how many there are.
const syntheticID = 100

func synthetic(in engine.IO, dims []int64, n int, limit int64, rng *rand.Rand) (*tensor.Tensor, error) {
	if limit <= 0 {
		limit = syntheticID
	}
	name := strings.ToLower(in.Name)
	id := func() int64 {
		switch {
		case strings.Contains(name, "mask"):
			return 1
		case strings.Contains(name, "type"):
			return 0
		}
		return rng.Int64N(limit)
	}
	switch in.Type {
	case tensor.Int64:
		return tensor.From(fill(n, id), dims...), nil
	case tensor.Int32:
		return tensor.From(fill(n, func() int32 { return int32(id()) }), dims...), nil
	case tensor.Float32:
		return tensor.From(fill(n, func() float32 {
			if strings.Contains(name, "mask") {
				return 1
			}
			return float32(rng.NormFloat64())
		}), dims...), nil
	case tensor.Float64:
		return tensor.From(fill(n, rng.NormFloat64), dims...), nil
	case tensor.Uint8:
		return tensor.From(fill(n, func() uint8 { return uint8(rng.IntN(math.MaxUint8 + 1)) }), dims...), nil
	case tensor.Int8:
		return tensor.From(fill(n, func() int8 { return int8(rng.IntN(math.MaxInt8)) }), dims...), nil
	case tensor.Float16:
		t, err := tensor.New(in.Type, dims...)
		if err != nil {
			return nil, err
		}
		for i := range n {
			h := tensor.F32ToF16(float32(rng.NormFloat64()))
			t.Data[2*i], t.Data[2*i+1] = byte(h), byte(h>>8)
		}
		return t, nil
	case tensor.Bool:
		t, err := tensor.New(in.Type, dims...)
		if err != nil {
			return nil, err
		}
		for i := range t.Data {
			t.Data[i] = 1
		}
		return t, nil
	}
	return nil, fmt.Errorf("%w: input %q has type %v; give --data", ErrSynthetic, in.Name, in.Type)
}

func fill[T any](n int, f func() T) []T {
	v := make([]T, n)
	for i := range v {
		v[i] = f()
	}
	return v
}

// idLimits finds for each input that indexes constant tables, directly or
// through a Cast, the number of rows of the smallest.
func idLimits(m *graph.Model) map[string]int64 {
	ix := m.Graph.Index()
	limits := map[string]int64{}
	for _, in := range m.Graph.Inputs {
		limit := int64(math.MaxInt64)
		lower := func(table string, axis int) {
			if t := m.Graph.Init(table); t != nil && axis < len(t.Dims) && t.Dims[axis] > 0 {
				limit = min(limit, t.Dims[axis])
			}
		}
		values := []string{in.Name}
		for _, u := range ix.Uses(in.Name) {
			if u.Node.Is("Cast") && len(u.Node.Outputs) == 1 {
				values = append(values, u.Node.Outputs[0])
			}
		}
		for _, v := range values {
			for _, u := range ix.Uses(v) {
				switch {
				case u.Node.Is("Gather") && u.Input == 1:
					lower(u.Node.In(0), int(max(u.Node.Int("axis", 0), 0)))
				case u.Node.Op == "EmbedLayerNormalization" && u.Input == 0:
					lower(u.Node.In(2), 0)
				}
			}
		}
		if limit != math.MaxInt64 {
			limits[in.Name] = limit
		}
	}
	return limits
}

// BenchRequest asks for the latency of a model.
type BenchRequest struct {
	Model string
	// Versus is a second model, measured in turn with the first; "" is none.
	Versus string
	// Data is the path of a data set to take inputs from; "" makes inputs up.
	Data string
	// Samples of Data are cycled through; 0 is eval.DefaultLatencySamples.
	Samples   int
	MaxTokens int
	// Assets is the folder of tokenizer.json and its like; "" is the model's.
	Assets string
	Shape  Shape
	// Duration of the measurement; 0 is DefaultBenchTime.
	Duration time.Duration
}

// Bounds of a benchmark.
const (
	DefaultBenchTime = 3 * time.Second
	benchWarmup      = 5
	// benchRounds are measured at least, unless they take maxBenchFactor times
	// the duration asked for, and leastBenchTime.
	benchRounds    = 20
	maxBenchFactor = 10
	leastBenchTime = 5 * time.Second
)

// BenchModel is the result for one model.
type BenchModel struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	eval.LatencyStats
	// Throughput counts samples a second, one request after the other.
	Throughput float64 `json:"samples_per_second"`
}

// BenchResult is what Bench measured.
type BenchResult struct {
	Machine report.Machine `json:"machine"`
	Inputs  string         `json:"inputs"` // "synthetic" or the data set's name
	Batch   int64          `json:"batch"`
	Seq     int64          `json:"seq,omitempty"` // of synthetic inputs
	Models  []BenchModel   `json:"models"`
	// Speedup is how many times faster the first model is than the second.
	Speedup  *eval.Ratio `json:"speedup,omitempty"`
	Noise    eval.Noise  `json:"noise"`
	Warnings []string    `json:"warnings,omitempty"`
}

// Bench measures latency, one request after the other; with two models both
// take turns, so that what else the machine does hits both alike.
func (p *Pipeline) Bench(ctx context.Context, req BenchRequest, progress Progress) (*BenchResult, error) {
	if req.Duration == 0 {
		req.Duration = DefaultBenchTime
	}
	progress.say("open", 0)
	res := &BenchResult{Machine: p.machine(ctx), Inputs: "synthetic"}
	var runs []func(context.Context) error
	// PairedRatio divides the first candidate's time by the other's: the model
	// compared with comes first.
	paths := []string{req.Model}
	if req.Versus != "" {
		paths = []string{req.Versus, req.Model}
	}
	var feeds []engine.Feeds
	var slow []string
	for _, path := range paths {
		m, err := graph.Open(path)
		if err != nil {
			return nil, err
		}
		res.Models = append(res.Models, BenchModel{Name: filepath.Base(path), Bytes: m.Bytes})
		if feeds == nil {
			feeds, err = p.benchFeeds(ctx, m, req, res)
		}
		m.Close()
		if err != nil {
			return nil, err
		}
		s, err := p.Engine.OpenFile(ctx, path, engine.Options{Threads: p.Threads})
		if err != nil {
			return nil, err
		}
		defer s.Close()
		slow = append(slow, hampered(path, s)...)
		if err := engine.CheckFeeds(s.Spec(), feeds[0]); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		next := 0
		runs = append(runs, func(ctx context.Context) error {
			r, err := s.Run(ctx, feeds[next%len(feeds)], nil)
			if err != nil {
				return err
			}
			next++
			r.Close()
			return nil
		})
	}
	progress.say("measure", 0)
	lat, err := eval.Interleave(ctx, runs, eval.InterleaveOptions{Warmup: benchWarmup, Rounds: benchRounds, MinTime: req.Duration, MaxTime: max(maxBenchFactor*req.Duration, leastBenchTime)})
	if err != nil {
		return nil, err
	}
	for i := range res.Models {
		res.Models[i].LatencyStats = lat.Candidates[i]
		if ms := lat.Candidates[i].MeanMS; ms > 0 {
			res.Models[i].Throughput = 1000 / ms * float64(res.Batch)
		}
	}
	if len(res.Models) == 2 {
		res.Models[0], res.Models[1] = res.Models[1], res.Models[0]
		res.Speedup = &lat.Ratios[1]
	}
	res.Noise, res.Warnings = lat.Noise, append(slow, lat.Noise.Warnings()...)
	progress.say("measure", 1)
	return res, nil
}

// hampered returns the warning that the session of the model at path is slower
// than the model's form allows, if it is.
func hampered(path string, s engine.Session) []string {
	if p, ok := s.(engine.Placed); ok {
		if why := p.Placement().Reason; why != "" {
			return []string{filepath.Base(path) + ": " + why}
		}
	}
	return nil
}

func (p *Pipeline) benchFeeds(ctx context.Context, m *graph.Model, req BenchRequest, res *BenchResult) ([]engine.Feeds, error) {
	if req.Data == "" {
		f, err := Synthetic(m, req.Shape)
		if err != nil {
			return nil, err
		}
		s := req.Shape.withDefaults()
		res.Batch, res.Seq = 1, s.Seq
		for _, in := range SpecOf(m).Inputs {
			if len(in.Dims) > 0 {
				res.Batch = s.of(in)[0]
				break
			}
		}
		return []engine.Feeds{f}, nil
	}
	n := req.Samples
	if n == 0 {
		n = eval.DefaultLatencySamples
	}
	ds, err := data.Open(req.Data, data.Options{Spec: SpecOf(m), ModelDir: assets(req.Assets, req.Model), MaxTokens: req.MaxTokens, Samples: n})
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	defer ds.Close()
	res.Inputs, res.Batch = filepath.Base(req.Data), 1
	var all []engine.Feeds
	for {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		all = append(all, s.Feeds)
	}
}
