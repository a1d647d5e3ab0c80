// Package quant turns a trained float model into a quantized one: it plans
// which operators run in integers, chooses ranges and smoothing from
// calibration statistics, quantizes weights and rewrites the graph into the
// form that the target executes in integers.
//
// The work is a table of passes (see Table); the graph is checked after each.
package quant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors of this package.
var (
	// ErrConfig: a setting that does not exist or does not fit the others.
	ErrConfig = errors.New("bad quantization setting")
	// ErrQuantized: the model is quantized already.
	ErrQuantized = errors.New("the model is already quantized")
	// ErrNothing: no operator of the model can run in integers.
	ErrNothing = errors.New("nothing to quantize")
	// ErrUncalibrated: a tensor that needs a range was never observed.
	ErrUncalibrated = errors.New("tensor was not calibrated")
	// ErrWeight: a weight that no codes stand for.
	ErrWeight = errors.New("bad weight")
)

// Scheme is what the weights and activations become.
type Scheme string

// The schemes of this package.
const (
	// INT8 is static: activation ranges come from calibration data.
	INT8 Scheme = "int8"
	// INT8Dynamic measures each activation's range when it runs.
	INT8Dynamic Scheme = "int8-dynamic"
	// INT4 stores the weights of matrix products in 4 bits by block.
	INT4 Scheme = "int4"
	// FP16 stores all weights in half precision.
	FP16 Scheme = "fp16"
	// BF16 stores all weights in bfloat16, which has FP32's range and 8 bits.
	BF16 Scheme = "bf16"
	// A16W8 is INT8 with activations in 16 bits; WithDefaults makes INT8 and Wide of it.
	A16W8 Scheme = "a16w8"
	// Mixed is INT8 with Rules; WithDefaults makes INT8 of it.
	Mixed Scheme = "mixed"
)

// Static reports whether activations get ranges from calibration data.
func (s Scheme) Static() bool { return s == INT8 }

// HalfWeights reports whether the scheme does nothing but store weights in 16 bits.
func (s Scheme) HalfWeights() bool { return s == FP16 || s == BF16 }

// Target names the graph form, which decides what an engine runs in integers.
type Target string

// The targets of this package.
const (
	// QDQ holds standard operators only: QuantizeLinear and DequantizeLinear
	// around float operators. It runs anywhere; engines fuse what they can.
	QDQ Target = "qdq"
	// ORTCPU is for ONNX Runtime's CPU engine: u8 activations, s8 weights,
	// MatMulIntegerToFloat with float outputs, QLinearConv chains.
	ORTCPU Target = "ort-cpu"
	// CPU is the native form (docs/ops.md), for fewbit's kernels: matrix products
	// take activations by row through operators of the fewbit domain, which the
	// file carries as functions of standard operators, so that ONNX Runtime runs
	// it too; convolutions are those of QDQ.
	CPU Target = "cpu"
	// CUDA is the same form, the same file. Its gate does not hold the latency
	// against it that the CPU gives.
	CUDA Target = "cuda"
	// QOperator is QLinearConv, QLinearMatMul and their like, with integer
	// tensors between them wherever ONNX Runtime has the operator.
	QOperator Target = "qoperator"
)

// targetNames lists the targets for people.
const targetNames = "cpu, ort-cpu, cuda, qdq or qoperator"

// Encoder reports whether the form keeps the outputs of matrix products in
// float and fuses what stands between them.
func (t Target) Encoder() bool { return t == ORTCPU || t.Native() }

// Native reports whether the form is that of docs/ops.md.
func (t Target) Native() bool { return t == CPU || t == CUDA }

// nativeName is what a file of the native form says its form is.
const nativeName = "native"

// Form names the graph form in the file: targets of one form write one file.
func (t Target) Form() string {
	if t.Native() {
		return nativeName
	}
	return string(t)
}

// Granularity of weight scales.
type Granularity string

// The granularities.
const (
	PerChannel Granularity = "per-channel"
	PerTensor  Granularity = "per-tensor"
)

// Auto is the method that picks a thresholder per tensor by the error of the
// operator's output.
const Auto = "auto"

// MovingAverage is the method whose range follows the samples in their order:
// the exponential moving average of each sample's minimum and maximum.
const MovingAverage = calib.MethodMovingAverage

// External is the method that Config.Thresholder chooses by.
const External = "external"

// WeightMethod says how the codes of weights are found.
type WeightMethod string

// The methods for weights.
const (
	// AutoWeights is GPTQ where there is calibration data, else MSEWeights for
	// 4-bit and RTN for 8-bit weights.
	AutoWeights WeightMethod = "auto"
	// RTN rounds to nearest with the scale of the largest weight.
	RTN WeightMethod = "rtn"
	// MSEWeights rounds to nearest with the scale of least squared error, each row
	// weighed by the power of its input where that is known.
	MSEWeights WeightMethod = "mse"
	// GPTQ solves for the codes by the Hessian of the calibration data.
	GPTQ WeightMethod = "gptq"
	// AdaRound is GPTQ whose codes, and scales of narrow inputs, are then moved as
	// long as the output's error falls; of 8-bit weights.
	AdaRound WeightMethod = "adaround"
	// HQQ finds scales by half-quadratic splitting, without data.
	HQQ WeightMethod = "hqq"
	// AWQ scales the input channels of 4-bit products by what calibration sees in
	// them; 8-bit weights beside them are found as by AutoWeights.
	AWQ WeightMethod = "awq"
	// BRECQ begins with GPTQ and learns the codes, biases and ranges of one block after
	// the other, so that the block gives what the float model's gives.
	BRECQ WeightMethod = "brecq"
)

// NeedsData reports whether the method looks at calibration samples.
func (w WeightMethod) NeedsData() bool { return w == GPTQ || w == AdaRound || w == AWQ || w == BRECQ }

// WeightMethods lists the methods for weights.
var WeightMethods = []WeightMethod{AutoWeights, RTN, MSEWeights, GPTQ, AdaRound, HQQ, AWQ, BRECQ}

// Config says how to quantize. The zero value of each field is its default.
type Config struct {
	Scheme      Scheme      // default INT8
	Target      Target      // default ORTCPU
	Granularity Granularity // default PerChannel
	// Symmetric centres activation ranges on zero.
	Symmetric bool
	// Method is a calib threshold method or Auto (default).
	Method string
	// Thresholder chooses ranges for method External, which it implies.
	Thresholder calib.Thresholder
	// Weights says how the codes of weights are found; default AutoWeights.
	Weights WeightMethod
	// Learn lists operators by name whose blocks BRECQ learns; none is all blocks.
	Learn []string
	// Rules give operators a precision other than the scheme's; later ones win.
	Rules []Rule
	// Exclude lists operator names and operator types that stay in float.
	Exclude []string
	// Wide gives activations 16 bits; scheme A16W8 sets it.
	Wide bool
	// Ports quantizes inputs and outputs of the model too; of target QDQ.
	Ports bool
	// Equalize scales the channels between convolutions by calibration data.
	Equalize bool
	// NoSmooth, NoBiasCorrection and NoEmbeddings switch accuracy and size
	// passes off.
	NoSmooth, NoBiasCorrection, NoEmbeddings bool
	// ReduceRange uses 7-bit weights: for x86 CPUs without VNNI, where the
	// 16-bit sums of u8 x s8 products saturate.
	ReduceRange bool
}

// WithDefaults returns c with its zero fields set, or ErrConfig.
func (c Config) WithDefaults() (Config, error) {
	if c.Scheme == "" {
		c.Scheme = INT8
	}
	wanted := c.Target
	if c.Target == "" {
		c.Target = ORTCPU
		if c.Wide || c.Scheme == A16W8 {
			c.Target = QDQ
		}
	}
	if c.Granularity == "" {
		c.Granularity = PerChannel
	}
	switch {
	case c.Method == "" && c.Thresholder != nil:
		c.Method = External
	case c.Method == "":
		c.Method = Auto
	case c.Thresholder != nil && c.Method != External:
		return c, fmt.Errorf("%w: method %s and a calibrator of one's own exclude each other", ErrConfig, c.Method)
	}
	if c.Weights == "" {
		c.Weights = AutoWeights
	}
	if !slices.Contains(WeightMethods, c.Weights) {
		return c, fmt.Errorf("%w: unknown method %q for weights; use %s", ErrConfig, c.Weights, joined(WeightMethods))
	}
	if len(c.Learn) > 0 && c.Weights != BRECQ {
		return c, fmt.Errorf("%w: operators to learn are for weights %s, and weights are %s: use weights %s, or name none", ErrConfig, BRECQ, c.Weights, BRECQ)
	}
	if c.Weights == AWQ && c.Scheme != INT4 && !slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.Precision == PrecisionINT4 }) {
		return c, fmt.Errorf("%w: weights %s are for 4 bits: use scheme %s, a rule with int4, or weights %s", ErrConfig, AWQ, INT4, GPTQ)
	}
	if c.Weights == AdaRound && c.Scheme == INT4 {
		return c, fmt.Errorf("%w: weights %s are for 8 bits: use weights %s with scheme %s", ErrConfig, AdaRound, GPTQ, INT4)
	}
	switch c.Scheme {
	case INT8, INT8Dynamic, INT4, FP16, BF16:
	case A16W8:
		c.Scheme, c.Wide = INT8, true
	case Mixed:
		if len(c.Rules) == 0 {
			return c, fmt.Errorf("%w: scheme %s is int8 with other precisions for some operators: say which, such as %q: int4", ErrConfig, Mixed, "/encoder/layer.0/*")
		}
		c.Scheme = INT8
	default:
		return c, fmt.Errorf("%w: unknown scheme %q; use %s", ErrConfig, c.Scheme, joined([]Scheme{INT8, A16W8, INT8Dynamic, INT4, Mixed, FP16, BF16}))
	}
	if c.Wide {
		if err := c.checkWide(wanted); err != nil {
			return c, err
		}
		if c.NoSmooth = true; c.Method == Auto { // 16 bits hold what smoothing and clipping are for
			c.Method = calib.MethodMinMax
		}
	}
	switch c.Target {
	case QDQ, ORTCPU, QOperator, CPU, CUDA:
	case "tensorrt":
		return c, fmt.Errorf("%w: target %q is not built yet; use %s", ErrConfig, c.Target, targetNames)
	default:
		return c, fmt.Errorf("%w: unknown target %q; use %s", ErrConfig, c.Target, targetNames)
	}
	if (c.Scheme == INT8Dynamic || c.Scheme == INT4) && !c.Target.Encoder() {
		return c, fmt.Errorf("%w: scheme %s needs target ort-cpu, cpu or cuda; %s has no form of it", ErrConfig, c.Scheme, c.Target)
	}
	if c.Ports && !c.onCodes() {
		return c, fmt.Errorf("%w: %s int8 quantizes a model's inputs and outputs: it needs target %s with scheme %s or %s", ErrConfig, PortsFlag, QDQ, INT8, A16W8)
	}
	if err := c.checkRules(); err != nil {
		return c, err
	}
	if c.Granularity != PerChannel && c.Granularity != PerTensor {
		return c, fmt.Errorf("%w: unknown granularity %q; use %s or %s", ErrConfig, c.Granularity, PerChannel, PerTensor)
	}
	if c.Method != Auto && c.Method != MovingAverage && c.Thresholder == nil {
		if _, err := calib.ByName(c.Method); err != nil {
			return c, fmt.Errorf("%w: unknown method %q; use %s, %s or %s", ErrConfig, c.Method, Auto, strings.Join(calib.Names(), ", "), MovingAverage)
		}
	}
	return c, nil
}

// joined lists names for people: "a, b or c".
func joined[T ~string](names []T) string {
	s := ""
	for i, n := range names {
		switch {
		case i > 0 && i == len(names)-1:
			s += " or "
		case i > 0:
			s += ", "
		}
		s += string(n)
	}
	return s
}

// threshold is the range that a method gives h.
func (c Config) threshold(h *calib.Histogram, method string, s calib.Scheme) (calib.Range, error) {
	if method == External && c.Thresholder != nil {
		return c.Thresholder.Threshold(h, s)
	}
	th, err := calib.ByName(method)
	if err != nil {
		return calib.Range{}, err
	}
	return th.Threshold(h, s)
}

// Lowered reports whether Lower makes integer operators of what Insert wrote.
func (c Config) Lowered() bool {
	return c.Scheme.Static() && c.Target != QDQ && !c.Target.Native()
}

// weightScheme is the integer type of weights: symmetric s8, 7 bits with
// ReduceRange.
func (c Config) weightScheme() calib.Scheme {
	s := calib.S8
	s.ReduceRange = c.ReduceRange
	return s
}

// actScheme is the integer type of activations.
func (c Config) actScheme() calib.Scheme {
	s := calib.U8
	if c.Wide {
		s.Type = tensor.Uint16
	}
	s.Symmetric = c.Symmetric
	return s
}

// Name is the scheme as one asks for it.
func (c Config) Name() string {
	if c.Wide {
		return string(A16W8)
	}
	return string(c.Scheme)
}

// checkWide refuses what 16-bit activations have no form for.
func (c Config) checkWide(target Target) error {
	switch {
	case c.Scheme != INT8:
		return fmt.Errorf("%w: 16-bit activations belong to scheme %s, not %s", ErrConfig, A16W8, c.Scheme)
	case target != "" && target != QDQ:
		return fmt.Errorf("%w: scheme %s needs target %s: no integer kernel of target %s takes 16-bit activations", ErrConfig, A16W8, QDQ, target)
	}
	return nil
}

// Pass is one step over the model.
type Pass interface {
	Name() string
	Run(ctx context.Context, m *graph.Model) (Stats, error)
}

// Stats is what a pass reports of itself.
type Stats struct {
	// Changed counts what the pass changed, in units that Note names.
	Changed int
	// Note says in a few words what was done and, where known, gained.
	Note string
}

// Ran is the record of one executed pass.
type Ran struct {
	Name string
	Stats
	Seconds float64
}

// Dump names a pass after which the graph's text form is written to W;
// "all" dumps after every pass.
type Dump struct {
	Pass string
	W    io.Writer
}

// Run executes the passes in order, checking the graph after each.
func Run(ctx context.Context, m *graph.Model, table []Pass, dump Dump) ([]Ran, error) {
	var ran []Ran
	for _, p := range table {
		if err := ctx.Err(); err != nil {
			return ran, err
		}
		start := time.Now()
		s, err := p.Run(ctx, m)
		if err == nil {
			err = m.Check()
		}
		if err != nil {
			return ran, fmt.Errorf("pass %s: %w", p.Name(), err)
		}
		ran = append(ran, Ran{p.Name(), s, time.Since(start).Seconds()})
		if dump.W != nil && (dump.Pass == p.Name() || dump.Pass == "all") {
			if _, err := fmt.Fprintf(dump.W, "# after %s: %s\n", p.Name(), s.Note); err != nil {
				return ran, err
			}
			if err := m.WriteText(dump.W); err != nil {
				return ran, err
			}
		}
	}
	return ran, nil
}

// passFunc makes a Pass of a function.
type passFunc struct {
	name string
	run  func(ctx context.Context, m *graph.Model) (Stats, error)
}

func (p passFunc) Name() string { return p.name }
func (p passFunc) Run(ctx context.Context, m *graph.Model) (Stats, error) {
	return p.run(ctx, m)
}

var _ Pass = passFunc{}
