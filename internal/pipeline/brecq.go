package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/reconstruct"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// blocksBytes bounds what samples hold between two blocks, of the float and of the
// quantized model together. The samples that fit are used, the first ones.
const blocksBytes = 2 << 30

// blocksPass is block reconstruction (reconstruct.Learn): one block after the other
// learns from the outputs of the float model, reading what the quantized blocks before
// it give. It begins with the weights that are solved, the corrected biases and the
// chosen ranges, and changes these three.
type blocksPass struct {
	lab      *Lab
	teacher  *graph.Model // the prepared float model
	plans    []*quant.Plan
	choices  quant.Choices
	stats    quant.Statistics // nil: there are none
	solved   *quant.Solved
	samples  func() (data.Dataset, error)
	progress Progress
	warn     func(string)
	budget   int64     // bytes of samples between two blocks
	only     []string  // operators whose blocks are learned; none is all
	until    time.Time // when blocks are no longer begun; zero is never
	learnt   []string  // first operators of the blocks that were learned
	// ceiling tells what is left below a ceiling, and the ceiling; nil is none.
	ceiling func() (left, ceiling int64)
}

var _ quant.Pass = (*blocksPass)(nil)

func (b *blocksPass) Name() string { return string(quant.BRECQ) }

// planned is an operator with the plan that it belongs to.
type planned struct {
	*quant.Op
	plan *quant.Plan
}

// stream is one sample between two blocks.
type stream struct {
	side        engine.Feeds // what quantization does not change
	float, made engine.Feeds // by the float and by the quantized model
}

func (s *stream) bytes() (n int64) {
	for _, f := range []engine.Feeds{s.side, s.float, s.made} {
		for _, t := range f {
			n += int64(len(t.Data))
		}
	}
	return n
}

func (b *blocksPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	ops, segments := b.index(m)
	st := &student{blocksPass: b, m: m, ix: m.Graph.Index(), ops: ops}
	learn, err := b.chosen(ops, segments)
	if err != nil {
		return quant.Stats{}, err
	}
	if err := b.room(m); err != nil {
		return quant.Stats{}, err
	}
	streams, err := b.open(ctx)
	if err != nil {
		return quant.Stats{}, err
	}
	sum := &blocksSum{}
	var longest time.Duration
	for i, seg := range segments {
		left := 0
		for _, l := range learn[i:] {
			if l {
				left++
			}
		}
		if left == 0 {
			break // what follows is not looked at
		}
		if b.ended(longest) {
			sum.late = left
			break
		}
		begin := time.Now()
		said := func(f float64) {
			b.progress.say("learn blocks", (float64(i)+min(f, 1))/float64(len(segments)))
		}
		said(0)
		streams, err = b.block(ctx, st, seg, learn[i], streams, sum, said)
		if err != nil {
			return quant.Stats{}, fmt.Errorf("block %d of %d: %w", i+1, len(segments), err)
		}
		if learn[i] {
			longest = max(longest, time.Since(begin))
			b.learnt = append(b.learnt, st.name(seg))
		}
	}
	if sum.dropped > 0 {
		b.warn(fmt.Sprintf("weights %s learned from %d of %d samples: more would hold over %s between two blocks", quant.BRECQ, sum.samples, sum.samples+sum.dropped, report.Bytes(b.budget)))
	}
	return quant.Stats{Changed: sum.kept, Note: sum.String()}, nil
}

func hasWeight(op *quant.Op) bool { return op.Kind == quant.Linear || op.Kind == quant.Conv }

// open reads the samples.
func (b *blocksPass) open(ctx context.Context) ([]*stream, error) {
	ds, err := b.samples()
	if err != nil {
		return nil, fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	var all []*stream
	for {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, &stream{side: s.Feeds, float: engine.Feeds{}, made: engine.Feeds{}})
	}
	if len(all) < reconstruct.MinSamples {
		return nil, fmt.Errorf("%w: weights %s learn from at least %d samples and there are %d; give more, or use weights %s", ErrFewSamples, quant.BRECQ, reconstruct.MinSamples, len(all), quant.GPTQ)
	}
	return all, nil
}

// block learns one segment and carries the samples behind it.
func (b *blocksPass) block(ctx context.Context, st *student, seg *reconstruct.Segment, learn bool, streams []*stream, sum *blocksSum, progress func(float64)) ([]*stream, error) {
	// The teacher first: what it gives is the target.
	all := append(slices.Clone(seg.Outs), seg.Carry...)
	teacher, err := st.float(seg, all)
	if err != nil {
		return nil, err
	}
	want := make([]engine.Feeds, len(streams))
	fit, held := len(streams), int64(0)
	if err := b.each(ctx, teacher, streams, func(s *stream) engine.Feeds { return s.float }, all, func(i int, out engine.Feeds) {
		if i >= fit {
			return
		}
		want[i] = out
		held += streams[i].bytes()
		for _, t := range out {
			held += 2 * int64(len(t.Data)) // the student gives as much
		}
		if held > b.budget {
			fit = i
		}
	}); err != nil {
		return nil, err
	}
	if fit < reconstruct.MinSamples {
		return nil, fmt.Errorf("%w: %d samples hold %s between two blocks; use weights %s", ErrFewSamples, fit+1, report.Bytes(held), quant.GPTQ)
	}
	sum.dropped += len(streams) - fit
	streams = streams[:fit]
	sum.samples = fit
	for i, s := range streams {
		for _, v := range seg.Carry {
			s.side[v] = want[i][v]
		}
	}
	if learn {
		if err := b.learn(ctx, st, seg, streams, want, sum, progress); err != nil {
			return nil, err
		}
	}
	made, err := st.quantized(seg, seg.Outs)
	if err != nil {
		return nil, err
	}
	next := make([]engine.Feeds, len(streams))
	if err := b.each(ctx, made.Model, streams, func(s *stream) engine.Feeds { return s.made }, seg.Outs, func(i int, out engine.Feeds) { next[i] = out }); err != nil {
		return nil, err
	}
	for i, s := range streams {
		s.float, s.made = engine.Feeds{}, next[i]
		for _, v := range seg.Outs {
			s.float[v] = want[i][v]
		}
	}
	return streams, nil
}

// learn learns the segment as a whole, or, where a derivative is not known, one operator
// after the other.
func (b *blocksPass) learn(ctx context.Context, st *student, seg *reconstruct.Segment, streams []*stream, want []engine.Feeds, sum *blocksSum, progress func(float64)) error {
	name := st.name(seg)
	if len(seg.Outs) == 1 {
		err := b.one(ctx, st, seg, streams, func(i int) (engine.Feeds, *tensor.Tensor) { return streams[i].made, want[i][seg.Outs[0]] }, name, sum, progress)
		if !errors.Is(err, reconstruct.ErrNoGradient) {
			return err
		}
	}
	sum.layered++
	for _, n := range seg.Nodes {
		op, ok := st.ops[n]
		if !ok || !hasWeight(op.Op) {
			continue
		}
		layer := layerOf(op.Op)
		teacher, err := st.float(seg, layer.Outs)
		if err != nil {
			return err
		}
		targets := make([]*tensor.Tensor, len(streams))
		if err := b.each(ctx, teacher, streams, func(s *stream) engine.Feeds { return s.float }, layer.Outs, func(i int, out engine.Feeds) { targets[i] = out[op.Out] }); err != nil {
			return err
		}
		inputs := make([]engine.Feeds, len(streams))
		if x := op.X[0]; slices.Contains(seg.In, x) {
			for i, s := range streams {
				inputs[i] = s.made
			}
		} else {
			made, err := st.quantized(seg, []string{x})
			if err != nil {
				return err
			}
			if err := b.each(ctx, made.Model, streams, func(s *stream) engine.Feeds { return s.made }, []string{x}, func(i int, out engine.Feeds) { inputs[i] = out }); err != nil {
				return err
			}
		}
		err = b.one(ctx, st, layer, streams, func(i int) (engine.Feeds, *tensor.Tensor) { return inputs[i], targets[i] }, op.Node.Name, sum, progress)
		if err != nil && !errors.Is(err, reconstruct.ErrNoGradient) {
			return err
		}
	}
	return nil
}

// layerOf is an operator alone, with its bias and activation.
func layerOf(op *quant.Op) *reconstruct.Segment {
	s := &reconstruct.Segment{In: op.X[:1], Outs: []string{op.Out}}
	for _, n := range []*graph.Node{op.Node, op.Add, op.Act} {
		if n != nil {
			s.Nodes = append(s.Nodes, n)
		}
	}
	return s
}

// one learns a segment that gives one value, and adopts what was learned.
func (b *blocksPass) one(ctx context.Context, st *student, seg *reconstruct.Segment, streams []*stream, sample func(i int) (engine.Feeds, *tensor.Tensor), name string, sum *blocksSum, progress func(float64)) error {
	made, err := st.quantized(seg, seg.Outs)
	if err != nil {
		return err
	}
	if len(made.Weights) == 0 {
		return nil
	}
	samples := make([]reconstruct.Sample, len(streams))
	for i, s := range streams {
		in, want := sample(i)
		feeds := maps.Clone(s.side)
		maps.Copy(feeds, in)
		samples[i] = reconstruct.Sample{In: feeds, Want: want}
	}
	made.Model = made.open
	res, err := reconstruct.Learn(ctx, b.lab, &made.Block, samples, progress)
	if err != nil {
		return err
	}
	if res.Kept {
		made.adopt()
	}
	sum.add(name, res)
	return nil
}

// each runs the samples through m and hands over copies of outs.
func (b *blocksPass) each(ctx context.Context, m *graph.Model, streams []*stream, of func(*stream) engine.Feeds, outs []string, use func(i int, out engine.Feeds)) error {
	s, err := b.lab.Open(ctx, m, nil, engine.Options{DisableOptimization: true})
	if err != nil {
		return err
	}
	defer s.Close()
	for i, x := range streams {
		feeds := engine.Feeds{}
		for _, in := range s.Spec().Inputs {
			if feeds[in.Name] = of(x)[in.Name]; feeds[in.Name] == nil {
				feeds[in.Name] = x.side[in.Name]
			}
		}
		r, err := s.Run(ctx, feeds, outs)
		if err != nil {
			return err
		}
		out := engine.Feeds{}
		for k, v := range r.Tensors() {
			out[k] = v.Clone()
		}
		r.Close()
		use(i, out)
	}
	return nil
}

// blocksSum is what the report says.
type blocksSum struct {
	blocks, kept     int
	layered          int // segments that were learned one operator after the other
	late             int // blocks that had no time
	samples, dropped int
	logs             float64
	lines            []string
}

func (s *blocksSum) add(name string, r reconstruct.Result) {
	s.blocks++
	line := fmt.Sprintf("%s %.3g -> %.3g", name, r.Before, r.After)
	if !r.Kept {
		line += ", left"
		r.After = r.Before
	} else {
		s.kept++
	}
	if r.After > 0 && r.Before > 0 {
		s.logs += math.Log(r.After / r.Before)
	}
	s.lines = append(s.lines, line)
}

func (s *blocksSum) String() string {
	switch {
	case s.blocks == 0 && s.late > 0:
		return fmt.Sprintf("no blocks: %d had no time", s.late)
	case s.blocks == 0:
		return "no blocks"
	}
	note := fmt.Sprintf("%d of %d blocks are better on samples held back; their outputs' squared error is %.0f %% of that before (geometric mean of all)", s.kept, s.blocks, 100*math.Exp(s.logs/float64(s.blocks)))
	if s.layered > 0 {
		note += fmt.Sprintf("; %d were learned operator by operator, for want of a derivative", s.layered)
	}
	if s.late > 0 {
		note += fmt.Sprintf("; %d more had no time", s.late)
	}
	return note + "; relative error by block: " + strings.Join(s.lines, "; ")
}
