package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrCeiling: the run does not fit, or did not stay, below Request.MaxMemory.
var ErrCeiling = errors.New("the memory ceiling is too low")

const (
	// MinCeiling is the lowest ceiling there is: this program with ONNX Runtime
	// takes half of it before it does anything.
	MinCeiling = 128 << 20
	// Of a ceiling a share is left for what allocators and kernels take beside what
	// is predicted, within these bounds.
	slackShare = 8
	slackLeast = 32 << 20
	slackMost  = 256 << 20
	// spillFrom is how much of the prepared weights may lie outside the model's own
	// files before they are written to one and mapped from it.
	spillFrom = 16 << 20
	// codeBytes are the parts of the engine's libraries that only runs touch.
	codeBytes = 32 << 20
	// mappedPart is how much of weights that do not fit as a whole a part of the model
	// reads, and mappedLeast what is counted for them at least: a part and what it leaves
	// to be let go of.
	mappedPart  = 64 << 20
	mappedLeast = 128 << 20
	// probedSamples are looked at for the largest input.
	probedSamples = 64
	// evidenceBytes is what the counts of one observed tensor take, about: linear
	// bins of both signs and some octaves of low ones.
	evidenceBytes = 160 << 10
)

// limits are how much a lab may hold at once under a ceiling.
type limits struct {
	taps, gram int64 // bytes of observed values in one run, and of Hessians
	sizes      map[string]int64
	unknown    int64       // taken for a value whose size is not known
	room       *mappedRoom // for weights that do not fit as a whole; nil: they do
}

func (l *limits) size(value string) int64 {
	if n, ok := l.sizes[value]; ok {
		return n
	}
	return l.unknown
}

// split cuts values, which are observed, into those that fit into one run.
func (l *Lab) split(values []string) [][]string {
	return pieces(values, l.tapLimit(), l.tapBytes)
}

// pieces cuts items into runs whose sizes add up to limit at most, or that are one
// item. There is always one.
func pieces[T any](items []T, limit int64, size func(T) int64) [][]T {
	var held int64
	at, parts := 0, [][]T{}
	for i, v := range items {
		n := size(v)
		if i > at && held+n > limit {
			parts, at, held = append(parts, items[at:i]), i, 0
		}
		held += n
	}
	return append(parts, items[at:])
}

// gramBytes bounds the Hessians collected at a time.
func (l *Lab) gramBytes() int64 {
	if l.limits == nil {
		return gramBudget
	}
	return l.limits.gram
}

// tapBytes is what observing values takes, 0 where it does not matter.
func (l *Lab) tapBytes(value string) int64 {
	if l.limits == nil {
		return 0
	}
	return l.limits.size(value)
}

// tapLimit bounds the sum of tapBytes.
func (l *Lab) tapLimit() int64 {
	if l.limits == nil {
		return 1
	}
	return l.limits.taps
}

// needs is what a run takes, in bytes, from what is known before it.
type needs struct {
	mapped    int64 // weights of the float model that may be resident
	base      int64 // the process with the prepared model
	floats    int64 // that the engine makes of the quantized weights
	evidence  int64 // counts and kept rows
	result    int64 // quantized weights
	live      int64 // values of one run that nobody observes
	choose    int64 // the largest search for a range and smoothing
	solve     int64 // the largest rounding of one weight, and without its Hessian
	round     int64
	blocks    int64 // learning the largest block from the fewest samples
	weights   int64 // of the float model
	largest   int64 // of them, what one operator reads, but for rows looked up
	pack      int64 // weights in BF16 while they are packed
	taps      int64 // all observed values of one sample, and the largest
	tapLeast  int64
	gram      int64 // all Hessians, and the largest
	gramLeast int64
}

// peak is the most that any phase takes when runs observe taps bytes of values, and
// gram bytes of Hessians are collected at a time.
func (n needs) peak(taps, gram int64) int64 {
	calibrate := n.live + taps + n.pack
	weights := n.result + gram + max(n.solve, n.live+taps+n.pack)
	judge := n.result + n.floats + 2*(n.live+taps)
	return n.base + codeBytes + n.mapped + n.evidence + max(calibrate, n.choose, weights, n.result+n.blocks, judge)
}

func (n needs) least() int64 { return n.peak(n.tapLeast, n.gramLeast) }

func slack(ceiling int64) int64 { return min(max(ceiling/slackShare, slackLeast), slackMost) }

// fit chooses the largest steps that fit into room.
func (n needs) fit(room int64) (taps, gram int64) {
	taps, gram = n.taps, min(n.gram, max(gramBudget, n.gramLeast))
	for n.peak(taps, gram) > room && (taps > n.tapLeast || gram > n.gramLeast) {
		// The larger one gives way: each step costs a pass over the samples.
		if gram > n.gramLeast && (gram >= taps || taps <= n.tapLeast) {
			gram = max(gram*3/4, n.gramLeast)
		} else {
			taps = max(taps*3/4, n.tapLeast)
		}
	}
	return taps, gram
}

// fitCeiling predicts what the run takes and chooses its steps, before any sample
// runs. It does nothing without a ceiling.
func (r *run) fitCeiling(ctx context.Context) error {
	ceiling := r.req.MaxMemory
	if ceiling == 0 {
		return nil
	}
	bind, err := r.largest(ctx)
	if err != nil {
		return err
	}
	n, lim := r.needs(graph.Sizes(r.m, bind))
	left := slack(ceiling)
	if n.mapped = n.weights; n.least()+left > ceiling {
		n.mapped = min(n.weights, max(mappedLeast, n.largest))
	}
	if n.least()+left > ceiling && n.pack > 0 && r.lab.Precision != BF16 {
		r.lab.Precision, n.pack = FP32, 0
	}
	if least := n.least() + left; least > ceiling {
		err := fmt.Errorf("%w: the smallest steps need about %s and %s is %s: give at least that", ErrCeiling, report.Bytes(least), r.req.Words.maxMemory(), report.Bytes(ceiling))
		if n.blocks > 0 {
			if n.blocks = 0; n.least()+left <= ceiling {
				return fmt.Errorf("%w, or use weights %s, which learns no blocks", err, quant.GPTQ)
			}
		}
		if n.solve, n.gramLeast = n.round, 0; n.least()+left <= ceiling {
			err = fmt.Errorf("%w, or use weights %s, which collects no Hessians", err, quant.RTN)
		}
		return err
	}
	if n.mapped < n.weights {
		r.rep.Warnings = append(r.rep.Warnings, fmt.Sprintf("the weights (%s) do not fit below %s beside what else is needed: models run in parts, whose weights are mapped and let go one after the other", report.Bytes(n.weights), r.req.Words.maxMemory()))
	}
	lim.taps, lim.gram = n.fit(ceiling - left)
	r.lab.limits = lim
	r.rep.Memory.Predicted = n.peak(lim.taps, lim.gram) + left
	if n.mapped < n.weights {
		lim.room = &mappedRoom{part: mappedPart, bytes: n.mapped + ceiling - r.rep.Memory.Predicted, release: r.lab.release}
	}
	r.roomy = n.base+n.evidence+n.result+judgedCopies*(n.weights+n.result)+2*n.live <= ceiling-left
	open := n
	open.floats = n.weights
	r.observable = open.peak(n.tapLeast, 0) <= ceiling-left
	native := n.base - heapBytes() + 2*(n.live+lim.taps) + n.pack
	debug.SetMemoryLimit(max(ceiling-left/2-native, n.evidence+n.result+max(n.solve+lim.gram, n.choose)))
	return nil
}

// judgedCopies is how often an engine holds weights that it read from one file: as
// read, as tensors, and in the order of its kernels.
const judgedCopies = 3

// lean reports whether models are opened in the form that takes the least memory,
// which is not the form whose speed means anything.
func (r *run) lean() bool { return r.lab != nil && r.lab.limits != nil && !r.roomy }

// openJudged opens a model file as it is served, or lean with its weights mapped.
func (r *run) openJudged(ctx context.Context, path string) (engine.Session, error) {
	if !r.lean() {
		return r.Engine.OpenFile(ctx, path, engine.Options{Threads: r.Threads})
	}
	m, err := graph.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return r.lab.Open(ctx, m, nil, engine.Options{ShrinkMemory: true})
}

// spill moves what preparing has made of the weights from memory to a file from
// which they are mapped, so that they need not be resident: once, before anything
// is made of them. It does nothing without a ceiling.
func (r *run) spill() error {
	if r.req.MaxMemory == 0 {
		return nil
	}
	runtime.GC()
	if heapBytes() < spillFrom {
		return nil
	}
	path := filepath.Join(r.lab.dir.path, "prepared.onnx")
	if err := r.m.Save(path, onnx.SaveOptions{External: true, Scratch: true, Release: r.lab.release}); err != nil {
		return err
	}
	m, err := graph.Open(path)
	if err != nil {
		return err
	}
	r.spilled = m
	for _, g := range []*graph.Graph{r.m.Graph, r.float.Graph} {
		for _, name := range g.Inits() {
			if t := m.Graph.Init(name); t != nil {
				g.SetInit(name, t)
			}
		}
	}
	return nil
}

// largest gives each variable dimension of an input the largest size in the first
// samples.
func (r *run) largest(ctx context.Context) (map[string]int64, error) {
	bind := map[string]int64{}
	for name, dims := range r.shapes() {
		for i, d := range dims {
			bind[fmt.Sprintf("%s[%d]", name, i)] = d
		}
	}
	if r.req.Calib == "" {
		return bind, nil
	}
	if _, table, err := OpenTable(r.req.Calib); table || err != nil {
		return bind, err
	}
	ds, err := r.openCalib()
	if err != nil {
		return nil, fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	seen := map[string]int64{}
	for range probedSamples {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		for name, t := range s.Feeds {
			for i, d := range t.Dims {
				key := fmt.Sprintf("%s[%d]", name, i)
				seen[key] = max(seen[key], d)
			}
		}
	}
	maps.Copy(bind, seen)
	return bind, nil
}

// needs measures this process and predicts the rest.
func (r *run) needs(sizes map[string]int64) (needs, *limits) {
	lim := &limits{sizes: sizes}
	for _, s := range sizes {
		lim.unknown = max(lim.unknown, s)
	}
	g, cfg := r.m.Graph, r.req.Config
	n := needs{base: r.settle(), live: lim.live(g), weights: weightBytes(r.m), largest: mostRead(g)}
	tap := func(t string) {
		n.taps += lim.size(t)
		n.tapLeast = max(n.tapLeast, lim.size(t))
	}
	if cfg.Scheme.HalfWeights() {
		n.result = n.weights / 2
		if r.req.Calib != "" {
			for _, node := range g.Nodes {
				for _, o := range node.Outputs {
					tap(o)
				}
			}
		}
		return n, lim
	}
	observed := newCalibration(r.lab, r.m, r.plan, true)
	n.evidence = int64(len(observed.specs)) * evidenceBytes
	for _, k := range observed.rows {
		n.evidence += int64(quant.RowLimit(k)) * int64(k) * perFloat
	}
	for _, t := range observed.taps {
		tap(t)
	}
	if p, _, err := r.lab.Precision.resolve(r.lab.Engine); err == nil && p == BF16 && r.req.Calib != "" {
		n.pack = n.weights / 2
	}
	solves := r.req.Calib != "" && (cfg.Weights == quant.AutoWeights || cfg.Weights.NeedsData())
	if cfg.Scheme.Static() && !cfg.Lowered() { // the engine folds what dequantizes them
		n.floats = n.weights
	}
	planned := map[string]bool{}
	for _, op := range r.plan.Ops {
		w := g.Init(op.W)
		if w == nil || op.Kind != quant.Linear && op.Kind != quant.Conv {
			continue
		}
		planned[op.W] = true
		tap(op.Out) // bias correction and the comparison look at it
		e := w.Len()
		if op.Precision == quant.PrecisionINT4 {
			n.result += e/2 + e/8
		} else {
			n.result += e + e/16
		}
		n.round = max(n.round, roundBytes*e)
		n.solve = max(n.solve, n.round)
		if gram, err := quant.GramOf(op, w.Dims); err == nil && solves {
			n.solve = max(n.solve, solveBytes*e+factorBytes*int64(gram.K)*int64(gram.K))
			n.gram += gram.Bytes()
			n.gramLeast = max(n.gramLeast, gram.Bytes())
		}
	}
	if cfg.Weights == quant.BRECQ {
		learner, sample := r.blocks().needs(r.m, lim.size)
		n.blocks = learnResidue + learner + reconstruct.MinSamples*sample
	}
	for _, group := range r.plan.Linears() {
		k, all := g.Init(group[0].W).Dims[group[0].InAxis], int64(0)
		for _, op := range group {
			all += g.Init(op.W).Dims[op.OutAxis]
		}
		n.choose = max(n.choose, 3*perFloat*(k*all+int64(quant.RowLimit(int(k)))*(k+all)))
	}
	for _, name := range g.Inits() { // embeddings become 8 bits
		if t := g.Init(name); !planned[name] && !cfg.NoEmbeddings && t.Type == tensor.Float32 && len(t.Dims) == 2 {
			n.result += t.Len() + perFloat*t.Dims[0]
		}
	}
	return n, lim
}

// What rounding one weight holds beside it, in bytes: of each weight a copy in
// floats and one the other way round, errors, codes and both roundings; of each
// pair of its inputs the factored Hessian in 64 bits and in 32.
const (
	perFloat    = 4
	roundBytes  = 16
	solveBytes  = 26
	factorBytes = 12
)

// live returns the most bytes that the values of a run of g take at once, each from
// the operator that makes it to the last that reads it.
func (l *limits) live(g *graph.Graph) int64 {
	last := map[string]int{}
	for i, n := range g.Nodes {
		for _, in := range n.Inputs {
			last[in] = i
		}
	}
	ends := map[int]int64{}
	var now, most int64
	for i, n := range g.Nodes {
		for _, o := range n.Outputs {
			if o == "" {
				continue
			}
			size := l.size(o)
			now += size
			if at, read := last[o]; read {
				ends[at] += size
			}
		}
		most = max(most, now)
		now -= ends[i]
	}
	return most
}

// mostRead is the most bytes of constants that one operator of g reads as a whole:
// tables in which it looks rows up do not count.
func mostRead(g *graph.Graph) (most int64) {
	for _, n := range g.Nodes {
		if strings.HasPrefix(n.Op, "Gather") {
			continue
		}
		size := int64(0)
		for _, in := range n.Inputs {
			if t := g.Init(in); t != nil {
				size += int64(len(t.Data))
			}
		}
		most = max(most, size)
	}
	return most
}

// settle gives back what this process can do without and returns what is left.
func (r *run) settle() int64 {
	if r.lab.release != nil {
		r.lab.release()
	}
	debug.FreeOSMemory()
	m, err := engine.ReadMemory()
	if err != nil {
		return MinCeiling / 2
	}
	return m.RSS
}

func heapBytes() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
