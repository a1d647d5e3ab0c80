package eval

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// DefaultLatencySamples is how many samples the latency measurement cycles
	// through.
	DefaultLatencySamples = 16
	maxLatencyBytes       = 512 << 20 // of feeds kept for it
	// fewSamples: below this many, an interval is too wide to decide anything.
	fewSamples = 100
)

// Options configure Compare and Evaluate. The zero value compares the first
// output and measures no latency.
type Options struct {
	// Output is the output that users take; "" is the first one that both
	// models have.
	Output string
	// Kind says how to read it; Auto guesses.
	Kind Kind
	// Mask is the input that marks real tokens; "" means DefaultMask.
	Mask string
	// Taps are tensors inside the graph to compare. Both sessions must offer
	// them as outputs.
	Taps []Tap
	// Inner, when set, offers the taps of the quantized model in place of its
	// session, which can then be the one that users get.
	Inner engine.Session
	// TapSamples is how many samples the taps are compared on; 0 is all.
	TapSamples int
	// MaxSamples stops early; 0 reads all.
	MaxSamples int
	// Seed of the bootstrap.
	Seed uint64
	// Latency asks for an interleaved measurement after the comparison.
	Latency *InterleaveOptions
	// LatencySamples is the number of samples it cycles through; 0 means
	// DefaultLatencySamples.
	LatencySamples int
	// Progress, when set, is called after each sample.
	Progress func(done int)
}

// Result is what Compare found. Pointers are nil where a measure does not
// apply: no labels, no classes, no embeddings, no latency asked for.
type Result struct {
	Samples  int    `json:"samples"`
	Labelled int    `json:"labelled"`
	Output   string `json:"output"`
	Kind     Kind   `json:"kind"`

	RefAccuracy   *Score  `json:"ref_accuracy,omitempty"`
	QuantAccuracy *Score  `json:"quant_accuracy,omitempty"`
	Difference    *Score  `json:"difference,omitempty"` // quantized - reference
	Paired        *Paired `json:"paired,omitempty"`
	// PValue is McNemar's exact test of "no difference".
	PValue *float64 `json:"p_value,omitempty"`

	// Agreement is the share of samples with the same top class.
	Agreement *Score `json:"agreement,omitempty"`
	// Answers is what became of the answers of few classes.
	Answers *Answers `json:"answers,omitempty"`
	// Neighbours is the share of samples with the same nearest other sample.
	Neighbours *Score `json:"neighbours,omitempty"`

	// Detected is what became of a detector's boxes.
	Detected *Detected `json:"detected,omitempty"`

	// Tokens is the mean over samples of the share of tokens with the same top class.
	Tokens *Score `json:"tokens,omitempty"`

	// Cosine describes the cosine of each sample's logits (of all tokens) or pooled embedding; of
	// detections, which have none, each image's share that agrees (Detected).
	Cosine     Summary `json:"cosine"`
	CosineMean Score   `json:"cosine_mean"`
	// Cosines are the same values, sample by sample.
	Cosines []float64 `json:"-"`
	// TokenCosine describes the cosine of single tokens' vectors.
	TokenCosine *TokenCosine `json:"token_cosine,omitempty"`
	// Fidelity is the error of the output (unpadded tokens only; of detections, of
	// the coordinates of boxes that both models found).
	Fidelity Error   `json:"fidelity"`
	SQNR     float64 `json:"sqnr_db"`
	// BrokenSamples had a NaN or infinity where FP32 had a number.
	BrokenSamples int `json:"broken_samples,omitempty"`
	// BlindSamples have no finite number in FP32's own output: nothing can be
	// said of them.
	BlindSamples int `json:"blind_samples,omitempty"`
	// EmptySamples have no element in the output of either model.
	EmptySamples int `json:"empty_samples,omitempty"`
	// Unlike counts, by output, the samples where its length differs between the
	// models; they are left out of its error. The user's output has none, unless it
	// holds detections.
	Unlike map[string]int `json:"unlike,omitempty"`

	// Outputs and Tensors are ranked, worst first.
	Outputs []TensorFidelity `json:"outputs"`
	Tensors []TensorFidelity `json:"tensors,omitempty"`

	// Latency holds the reference as candidate 0, the quantized model as 1.
	Latency  *Latency `json:"latency,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Compare runs every sample through both models and measures, in one pass,
// accuracy, agreement and fidelity, and afterwards latency.
func Compare(ctx context.Context, ref, quant engine.Session, samples Samples, o Options) (*Result, error) {
	c, err := newComparison(ref, quant, o)
	if err != nil {
		return nil, err
	}
	for o.MaxSamples == 0 || c.res.Samples < o.MaxSamples {
		s, err := samples.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = c.sample(ctx, s)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where(s, c.res.Samples), err)
		}
		c.keep(s)
		c.res.Samples++
		if o.Progress != nil {
			o.Progress(c.res.Samples)
		}
	}
	if c.res.Samples == 0 {
		return nil, fmt.Errorf("%w: the data set is empty", ErrNoSamples)
	}
	if err := c.finish(); err != nil {
		return nil, err
	}
	if o.Latency != nil {
		if c.res.Latency, err = c.latency(ctx); err != nil {
			return nil, fmt.Errorf("latency: %w", err)
		}
		c.warn(c.res.Latency.Noise.Warnings()...)
	}
	return c.res, nil
}

type comparison struct {
	ref, quant engine.Session
	o          Options
	res        *Result
	outputs    []Tap // outputs of both models; outputs[main] is the user's
	main       int
	refOuts    []string
	quantOuts  []string
	refTaps    []string // further outputs of the reference, where taps are compared
	quantTaps  []string // those of the quantized model, or of o.Inner
	kindKnown  bool

	errs   Tensors // by output
	taps   Tensors
	paired Paired
	agree  int
	few    answers
	near   neighbours
	token  TokenCosine
	find   *detector
	found  detections
	shares []float64 // of tokens with the same class, by sample
	kept   []engine.Feeds
	bytes  int
	full   bool
}

func newComparison(ref, quant engine.Session, o Options) (*comparison, error) {
	if o.MaxSamples < 0 || o.LatencySamples < 0 || o.TapSamples < 0 {
		return nil, fmt.Errorf("%w: %d samples, %d latency samples, %d samples inside, expected none below 0", ErrOptions, o.MaxSamples, o.LatencySamples, o.TapSamples)
	}
	switch o.Kind {
	case Auto, Classifier, Embedding, TokenClassifier, Detections, Other:
	default:
		return nil, fmt.Errorf("%w: kind %q, expected %q, %q, %q, %q or %q", ErrOptions, o.Kind, Classifier, Embedding, TokenClassifier, Detections, Other)
	}
	if o.Mask == "" {
		o.Mask = DefaultMask
	}
	if o.LatencySamples == 0 {
		o.LatencySamples = DefaultLatencySamples
	}
	c := &comparison{ref: ref, quant: quant, o: o, res: &Result{Kind: o.Kind}, errs: Tensors{}, taps: Tensors{}}
	if err := c.pairOutputs(); err != nil {
		return nil, err
	}
	for _, t := range c.outputs {
		c.refOuts, c.quantOuts = append(c.refOuts, t.Ref), append(c.quantOuts, t.Quant)
	}
	have := c.quantOuts
	if o.Inner != nil {
		have = nil // of what it runs, nothing is asked for yet
	}
	for _, t := range o.Taps {
		if !slices.Contains(c.refOuts, t.Ref) && !slices.Contains(c.refTaps, t.Ref) {
			c.refTaps = append(c.refTaps, t.Ref)
		}
		if !slices.Contains(have, t.Quant) && !slices.Contains(c.quantTaps, t.Quant) {
			c.quantTaps = append(c.quantTaps, t.Quant)
		}
	}
	c.res.Output = c.outputs[c.main].Name
	return c, nil
}

// pairOutputs matches the outputs by name or, when no name is common and both
// have equally many, by position. Taps are not outputs, and texts are not compared.
func (c *comparison) pairOutputs() error {
	tapped := make(map[string]bool)
	if c.o.Inner == nil { // else the quantized session has no taps
		for _, t := range c.o.Taps {
			tapped[t.Ref] = true
		}
	}
	r, q := c.ref.Spec().Outputs, c.quant.Spec().Outputs
	for _, a := range r {
		if tapped[a.Name] && a.Name != c.o.Output {
			continue
		}
		if a.Type == tensor.String && a.Name != c.o.Output {
			continue // the names of classes, say, which the scores beside them give
		}
		if slices.ContainsFunc(q, func(b engine.IO) bool { return b.Name == a.Name }) {
			c.outputs = append(c.outputs, Tap{a.Name, a.Name, a.Name})
		}
	}
	if len(c.outputs) == 0 && len(r) == len(q) {
		for i := range r {
			if r[i].Type == tensor.String {
				continue
			}
			c.outputs = append(c.outputs, Tap{r[i].Name, r[i].Name, q[i].Name})
		}
	}
	if len(c.outputs) == 0 {
		return fmt.Errorf("%w: the models have no output of numbers in common (%s; %s)", ErrOutput, names(r), names(q))
	}
	if c.o.Output == "" {
		return nil
	}
	c.main = slices.IndexFunc(c.outputs, func(t Tap) bool { return t.Name == c.o.Output })
	if c.main < 0 {
		return fmt.Errorf("%w: no output %q in both models (%s; %s)", ErrOutput, c.o.Output, names(r), names(q))
	}
	return nil
}

func names(ios []engine.IO) []string {
	n := make([]string, len(ios))
	for i, io := range ios {
		n[i] = io.Name
	}
	return n
}

func (c *comparison) sample(ctx context.Context, s Sample) error {
	refOuts, quantOuts := c.refOuts, c.quantOuts
	taps := len(c.o.Taps) > 0 && (c.o.TapSamples == 0 || c.res.Samples < c.o.TapSamples)
	if taps {
		refOuts = slices.Concat(refOuts, c.refTaps)
		if c.o.Inner == nil {
			quantOuts = slices.Concat(quantOuts, c.quantTaps)
		}
	}
	rr, err := c.ref.Run(ctx, s.Feeds, refOuts)
	if err != nil {
		return fmt.Errorf("reference model: %w", err)
	}
	defer rr.Close()
	qr, err := c.quant.Run(ctx, s.Feeds, quantOuts)
	if err != nil {
		return fmt.Errorf("quantized model: %w", err)
	}
	defer qr.Close()
	r, q := rr.Tensors(), qr.Tensors()
	if taps {
		if err := c.inner(ctx, s, r, q); err != nil {
			return err
		}
	}
	if err := c.kind(r); err != nil {
		return err
	}
	for i, t := range c.outputs {
		if i != c.main && (c.find == nil || !c.find.has(t)) {
			if err := c.observe(c.errs, t, r, q); err != nil {
				return err
			}
		}
	}
	if c.find != nil {
		return c.detections(r, q)
	}
	return c.mainOutput(s, r, q)
}

// kind decides how the output is read; its first real shape decides, as the
// declared one may be all -1.
func (c *comparison) kind(r engine.Feeds) error {
	if c.kindKnown {
		return nil
	}
	for _, t := range c.outputs {
		if r[t.Ref] == nil {
			return fmt.Errorf("%w: the model did not return %q", ErrOutput, t.Ref)
		}
	}
	c.kindKnown = true
	main := c.outputs[c.main]
	if c.o.Kind == Auto || c.o.Kind == Detections {
		if c.find = findDetector(c.outputs, r); c.find != nil && (c.o.Output == "" || c.find.has(main)) {
			c.res.Kind = Detections
			return nil
		}
		c.find = nil
	}
	switch c.o.Kind {
	case Auto:
		c.res.Kind = KindOf(main.Name, r[main.Ref].Dims)
	case Detections:
		return fmt.Errorf("%w: no boxes [n, 4] with scores [n], nor one output [1, n, 6]", ErrOutput)
	}
	return nil
}

// observe adds a pair of tensors. Where the length depends on the data (what a
// detector proposes), it may differ between the models: such a pair has no
// error, and is counted.
func (c *comparison) observe(into Tensors, t Tap, r, q engine.Feeds) error {
	a, err := floats(t.Ref, r[t.Ref])
	if err != nil {
		return err
	}
	b, err := floats(t.Quant, q[t.Quant])
	if err != nil {
		return err
	}
	if len(a) != len(b) {
		if c.res.Unlike == nil {
			c.res.Unlike = map[string]int{}
		}
		c.res.Unlike[t.Name]++
		return nil
	}
	return into.Observe(t.Name, a, b)
}

func (c *comparison) mainOutput(s Sample, r, q engine.Feeds) error {
	t := c.outputs[c.main]
	a, err := floats(t.Ref, r[t.Ref])
	if err != nil {
		return err
	}
	b, err := floats(t.Quant, q[t.Quant])
	if err != nil {
		return err
	}
	dims := r[t.Ref].Dims
	if !slices.Equal(dims, q[t.Quant].Dims) {
		return fmt.Errorf("%w: %q has shape %v in the reference, %v in the quantized model", ErrOutput, t.Name, dims, q[t.Quant].Dims)
	}
	if len(a) == 0 {
		c.res.EmptySamples++
	}
	x, y := read(c.res.Kind, a, dims, s.Feeds, c.o.Mask), read(c.res.Kind, b, dims, s.Feeds, c.o.Mask)
	if err := c.errs.Observe(t.Name, x.all, y.all); err != nil {
		return err
	}
	var e Error
	if err := e.Observe(x.vector, y.vector); err != nil {
		return err
	}
	cos := e.Cosine()
	if e.Count == 0 && e.RefNonFinite > 0 {
		c.res.BlindSamples++
		cos = 0
	}
	if !e.Sound() {
		c.res.BrokenSamples++
		cos = 0
	}
	c.res.Cosines = append(c.res.Cosines, cos)
	c.tokens(x, y)
	switch c.res.Kind {
	case Embedding:
		c.near.add(x.vector, y.vector)
	case TokenClassifier:
		c.sameTokens(x, y)
	case Classifier:
		return c.classes(s, x.vector, y.vector)
	}
	return nil
}

func (c *comparison) classes(s Sample, x, y []float32) error {
	p, q := ArgMax(x), ArgMax(y)
	if p == q && p >= 0 {
		c.agree++
	}
	c.few.add(x, y)
	if !s.HasLabel {
		return nil
	}
	if err := checkLabel(s.Label, len(x)); err != nil {
		return err
	}
	c.res.Labelled++
	c.paired.Add(p == s.Label, q == s.Label)
	return nil
}

// where names a sample for an error: its place in the file, or its number.
func where(s Sample, n int) string {
	if s.ID != "" {
		return "sample " + s.ID
	}
	return fmt.Sprintf("sample %d", n)
}

func checkLabel(label, classes int) error {
	if label < 0 || label >= classes {
		return fmt.Errorf("%w: class %d, but the model answers %d classes (0..%d)", data.ErrLabel, label, classes, classes-1)
	}
	return nil
}

// keep copies the first samples for the latency measurement.
func (c *comparison) keep(s Sample) {
	if c.o.Latency == nil || c.full || len(c.kept) >= c.o.LatencySamples {
		return
	}
	f := make(engine.Feeds, len(s.Feeds))
	for n, t := range s.Feeds {
		f[n] = t.Clone()
		c.bytes += len(t.Data)
	}
	c.kept = append(c.kept, f)
	c.full = c.bytes > maxLatencyBytes
}

func (c *comparison) finish() error {
	r := c.res
	r.Fidelity = *c.errs[r.Output]
	r.SQNR = r.Fidelity.SQNR()
	r.Outputs, r.Tensors = c.errs.Ranked(), c.taps.Ranked()
	r.Cosine = Summarize(r.Cosines)
	var err error
	if r.CosineMean, err = MeanScore("cosine", r.Cosines, c.o.Seed, true); err != nil {
		return err
	}
	if c.token.N > 0 {
		r.TokenCosine = &c.token
	}
	switch r.Kind {
	case Detections:
		if r.Detected, err = c.found.finish(r.Cosines, c.o.Seed); err != nil {
			return err
		}
		r.EmptySamples = r.Detected.Empty
	case Classifier:
		a := Proportion("top-1 agreement", c.agree, r.Samples)
		r.Agreement = &a
		if r.Answers, err = c.few.finish(c.o.Seed); err != nil {
			return err
		}
	case TokenClassifier:
		if len(c.shares) > 0 {
			s, err := MeanScore("tokens of the same class", c.shares, c.o.Seed, true)
			if err != nil {
				return err
			}
			r.Tokens = &s
		}
	case Embedding:
		if len(c.near.ref) > 1 {
			n := c.near.agreement()
			r.Neighbours = &n
		}
	}
	if r.Labelled > 0 {
		a, b, d, p := c.paired.Ref(), c.paired.Quant(), c.paired.Difference(), c.paired.McNemar()
		r.RefAccuracy, r.QuantAccuracy, r.Difference, r.PValue, r.Paired = &a, &b, &d, &p, &c.paired
		if r.Labelled < r.Samples {
			c.warn(fmt.Sprintf("%d of %d samples have no label and do not count for accuracy", r.Samples-r.Labelled, r.Samples))
		}
	}
	for _, t := range c.outputs {
		if n := r.Unlike[t.Name]; n > 0 {
			c.warn(fmt.Sprintf("output %q has another length than FP32's for %d of %d samples, which its error leaves out", t.Name, n, r.Samples))
		}
	}
	if r.EmptySamples > 0 {
		c.warn(fmt.Sprintf("neither model finds anything in %d of %d samples, which say little", r.EmptySamples, r.Samples))
	}
	if r.Samples < fewSamples {
		c.warn(fmt.Sprintf("only %d samples: the intervals are wide", r.Samples))
	}
	if r.BrokenSamples > 0 {
		c.warn(fmt.Sprintf("%d of %d samples give NaN or infinity where FP32 gives numbers", r.BrokenSamples, r.Samples))
	}
	if r.Fidelity.RefNonFinite > 0 {
		c.warn(fmt.Sprintf("the FP32 output itself holds %d NaN or infinite values", r.Fidelity.RefNonFinite))
	}
	return nil
}

func (c *comparison) warn(w ...string) { c.res.Warnings = append(c.res.Warnings, w...) }

func (c *comparison) latency(ctx context.Context) (*Latency, error) {
	out := c.outputs[c.main]
	return Interleave(ctx, []func(context.Context) error{
		Runner(c.ref, c.kept, []string{out.Ref}),
		Runner(c.quant, c.kept, []string{out.Quant}),
	}, *c.o.Latency)
}

// Runner returns a candidate for Interleave: each call runs the next of feeds,
// in a circle, so that candidates with the same feeds see the same sample in
// the same round.
func Runner(s engine.Session, feeds []engine.Feeds, outs []string) func(context.Context) error {
	i := 0
	return func(ctx context.Context) error {
		if len(feeds) == 0 {
			return fmt.Errorf("%w: nothing to run", ErrNoSamples)
		}
		r, err := s.Run(ctx, feeds[i%len(feeds)], outs)
		i++
		if err != nil {
			return err
		}
		r.Close()
		return nil
	}
}
