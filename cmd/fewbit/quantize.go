package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/app"
	"github.com/fewbit/fewbit/internal/calib/external"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/recipes"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/task"
)

// quantizeFlags are what quantize takes; a recipe sets the same by the same
// names.
type quantizeFlags struct {
	out, recipe, calib, eval, report                     string
	scheme, method, weights, granularity                 string
	target, precision                                    string
	exclude, learn                                       []string
	operators                                            rulesValue
	samples, evalSamples, maxTokens                      int
	symmetric, noSmooth, noBias, equalize, force, asJSON bool
	io                                                   string
	noLatency, timePasses                                bool
	maxLoss                                              lossValue
	minSQNR                                              float64
	slo                                                  time.Duration
	maxMemory                                            app.Bytes
	dumpPass, calibrator                                 string
	engine                                               engineFlags
	device                                               deviceFlags
}

const equalizeHelp = "scale the channels between convolutions to one range by calibration data"

func newQuantizeCommand() *cobra.Command {
	q := &quantizeFlags{maxLoss: pipeline.DefaultMaxLoss}
	cmd := &cobra.Command{
		Use:   "quantize MODEL.onnx -o OUT.onnx",
		Short: "Quantize a model, judge the result and write it when it is good",
		Long: `Quantize a trained float model after training, compare the result with the original
on data and on this machine's clock, and write it when the gate accepts it: within the
accuracy budget and not slower than FP32. A refused result is written with --force only.

Schemes int8 and a16w8 need --calib DATA; int8-dynamic measures ranges as it runs, int4, fp16
and bf16 store weights in fewer bits; they use --calib when given. Without --eval the result is judged on those samples of --calib
that did not calibrate. --calib also takes a table written by fewbit calibrate.

` + dataHelp,
		Example: `  fewbit quantize model.onnx -o small.onnx --calib texts.jsonl --eval labelled.jsonl
  fewbit quantize model.onnx -o small.onnx --scheme int8-dynamic --report run.html
  fewbit quantize model.onnx -o small.onnx --recipe recipe.yaml
  fewbit quantize model.onnx -o small.onnx --recipe nlp --calib texts.jsonl
  fewbit quantize model.onnx -o small.onnx --calib texts.jsonl --operators 'Gather=int4,/encoder/layer.11/*=fp32'
  fewbit quantize model.onnx -o small.onnx --calib images/ --target qdq --exclude Conv_0,Gemm`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error { return q.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&q.out, "out", "o", "", "where the quantized model goes")
	f.StringVar(&q.recipe, "recipe", "", "read settings from this YAML file, the names of these flags, or from a built-in recipe ("+recipes.Names+"); flags given here win")
	f.StringVar(&q.scheme, "scheme", "", "int8 (static, needs --calib), int8-dynamic, a16w8 (int8 with 16-bit activations, target qdq), int4, fp16 or bf16 (weights only), mixed (int8 with --operators) (default int8)")
	f.StringVar(&q.calib, "calib", "", "calibration data, or a calibration table")
	f.StringVar(&q.method, "method", "", "range method: auto, minmax, entropy, percentile[:P], mse or moving-average (default auto: per tensor by the operator's output error)")
	f.StringVar(&q.calibrator, "calibrator", "", "choose ranges with this program and its arguments, separated by spaces (docs/calibrators.md)")
	f.StringVar(&q.weights, "weights", "", "how weights are rounded: auto, rtn, mse, gptq, adaround, brecq, hqq or, in 4 bits, awq (default auto: gptq with calibration data, else rtn for 8 bits and mse for 4)")
	f.StringSliceVar(&q.learn, "learn", nil, "with --weights brecq: operator names or types whose blocks are learned (default: all blocks)")
	f.StringVar(&q.granularity, "granularity", "", "weight scales: per-channel or per-tensor (default per-channel)")
	f.BoolVar(&q.symmetric, "symmetric", false, "centre activation ranges on zero")
	f.StringVar(&q.target, "target", "", "graph form: ort-cpu (stock operators of ONNX Runtime), cpu or cuda (the native form, for fewbit's kernels), qdq or qoperator (default ort-cpu)")
	f.StringVar(&q.io, quant.PortsFlag, "", "what stands at the model's ends: float, or int8: inputs and outputs go through codes too, for tflite --io int8 and accelerators without float (target qdq) (default float)")
	f.IntVar(&q.samples, "samples", 0, fmt.Sprintf("calibrate with this many samples, spread over the data (0: %d)", pipeline.DefaultSamples))
	f.StringVar(&q.precision, "precision", "", precisionHelp)
	f.StringSliceVar(&q.exclude, "exclude", nil, "operator names or types that stay in float")
	f.Var(&q.operators, "operators", "precision of single operators, MATCH=int8|int8-dynamic|int4|fp16|bf16|fp32 by name, type or class (@embeddings, @attention, @head, @convolutions, @matmuls), * for any characters; later ones win")
	f.StringVar(&q.eval, "eval", "", "evaluation data, labelled or not")
	f.IntVar(&q.evalSamples, "eval-samples", 0, "evaluate on this many samples (0: all)")
	f.IntVar(&q.maxTokens, "max-tokens", 0, fmt.Sprintf("cut texts to this many tokens (0: %d)", task.DefaultMaxTokens))
	f.Var(&q.maxLoss, "max-loss", "accuracy budget, relative to FP32 (1% or 0.01); without labels: of the mean cosine, or of few classes' expected accuracy")
	f.Float64Var(&q.minSQNR, "min-sqnr", 0, "keep the operators in FP32 that harm the output most, as few as bring its SQNR on calibration samples to this many dB (0: none)")
	f.DurationVar(&q.slo, "slo", pipeline.DefaultSLO, "latency target for the 99th percentile")
	f.BoolVar(&q.noSmooth, "no-smooth", false, "leave SmoothQuant out")
	f.BoolVar(&q.noBias, "no-bias-correction", false, "leave bias correction out")
	f.BoolVar(&q.equalize, "equalize", false, equalizeHelp)
	f.BoolVar(&q.noLatency, "no-latency", false, "skip the latency measurement and its part of the gate")
	f.Var(&q.maxMemory, "max-memory", "stay below this much resident memory, in smaller steps that take longer; refuse what does not fit (0: no ceiling)")
	f.BoolVar(&q.force, "force", false, "keep a result that the gate refuses")
	f.StringVar(&q.report, "report", "", "also write the report to this .html or .json file")
	f.BoolVar(&q.asJSON, "json", false, "print the report as one JSON object")
	f.StringVar(&q.dumpPass, "dump-pass", "", `print the graph after this pass ("all": after each)`)
	f.BoolVar(&q.timePasses, "time-passes", false, "print what each pass did and how long it took")
	q.engine.add(cmd)
	q.device.add(cmd)
	return cmd
}

func (q *quantizeFlags) run(cmd *cobra.Command, model string) error {
	asked := cmd.Flags().Changed("min-sqnr")
	if q.recipe != "" {
		if err := applyRecipe(cmd.Flags(), q.recipe); err != nil {
			return err
		}
	}
	cfg, err := q.config()
	if err != nil {
		return fmt.Errorf("quantize: %w", err)
	}
	// A built-in recipe asks for what can be measured; with half weights, or without samples, nothing can.
	if _, builtin := recipes.Read(q.recipe); builtin && !asked && (pipeline.Request{Config: cfg, Calib: q.calib, MinSQNR: q.minSQNR}).CheckMinSQNR() != nil {
		q.minSQNR = 0
	}
	if err := q.check(model, cfg); err != nil {
		return err
	}
	text, err := recipeText(cmd.Flags())
	if err != nil {
		return err
	}
	p, err := q.engine.pipeline()
	if err != nil {
		return err
	}
	if err := q.device.open(cmd, p); err != nil {
		return err
	}
	// Standard output belongs to the JSON object when there is one.
	side := cmd.OutOrStdout()
	if q.asJSON {
		side = cmd.ErrOrStderr()
	}
	if q.calibrator != "" {
		own, err := external.Start(cmd.Context(), strings.Fields(q.calibrator), 0)
		if err != nil {
			return fmt.Errorf("quantize: %w", err)
		}
		defer own.Close()
		cfg.Thresholder, cfg.Method = own, ""
	}
	m := newMeter()
	rep, err := p.Quantize(cmd.Context(), pipeline.Request{
		Model: model, Out: q.out, Config: cfg, Calib: q.calib, Eval: q.eval, Precision: pipeline.Precision(q.precision), Samples: q.samples, EvalSamples: q.evalSamples,
		MaxTokens: q.maxTokens, MaxLoss: float64(q.maxLoss), MinSQNR: q.minSQNR, SLO: q.slo, Force: q.force, NoLatency: q.noLatency, MaxMemory: int64(q.maxMemory),
		Dump: quant.Dump{Pass: q.dumpPass, W: side}, Command: os.Args,
		Words: pipeline.Words{Calib: "--calib DATA", Eval: "--eval DATA", Force: "--force", MaxMemory: "--max-memory"},
	}, m.show)
	m.done()
	if err != nil && !errors.Is(err, pipeline.ErrRefused) {
		return fmt.Errorf("quantize: %w", err)
	}
	rep.Recipe.Text = text
	if q.timePasses {
		if err := passTimes(side, rep.Passes); err != nil {
			return err
		}
	}
	if err := showReport(cmd, rep, q.asJSON, q.report); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("quantize: %w", err)
	}
	return nil
}

func (q *quantizeFlags) config() (quant.Config, error) {
	ports, err := codesAtPorts(q.io)
	if err != nil {
		return quant.Config{}, err
	}
	return quant.Config{
		Ports:  ports,
		Scheme: quant.Scheme(q.scheme), Target: quant.Target(q.target), Granularity: quant.Granularity(q.granularity), Symmetric: q.symmetric,
		Method: q.method, Weights: quant.WeightMethod(q.weights), Learn: q.learn, Exclude: q.exclude, Rules: q.operators.rules, NoSmooth: q.noSmooth, NoBiasCorrection: q.noBias, Equalize: q.equalize, ReduceRange: pipeline.SaturatesU8S8(),
	}.WithDefaults()
}

// check refuses before any work what would fail after it.
func (q *quantizeFlags) check(model string, cfg quant.Config) error {
	if err := pipeline.Precision(q.precision).Check(); err != nil {
		return usagef("quantize: --precision: %w", err)
	}
	switch {
	case q.out == "":
		return usagef("quantize: -o OUT.onnx is missing: say where the quantized model goes")
	case q.samples < 0 || q.evalSamples < 0 || q.maxTokens < 0:
		return usagef("quantize: --samples %d, --eval-samples %d, --max-tokens %d: none may be negative", q.samples, q.evalSamples, q.maxTokens)
	case !(q.minSQNR >= 0 && q.minSQNR <= pipeline.MaxMinSQNR):
		return usagef("quantize: --min-sqnr %g: give 0 to %d dB", q.minSQNR, pipeline.MaxMinSQNR)
	case q.maxMemory != 0 && q.maxMemory < pipeline.MinCeiling:
		return usagef("quantize: --max-memory %s: expected 0 (no ceiling) or at least %d MiB", q.maxMemory.String(), pipeline.MinCeiling>>20)
	case q.slo < 0:
		return usagef("quantize: --slo %v: it must not be negative", q.slo)
	case q.calibrator != "" && q.method != "":
		return usagef("quantize: --method %s and --calibrator exclude each other", q.method)
	case q.calibrator != "" && !cfg.NeedsCalibration():
		return usagef("quantize: --calibrator chooses ranges, and scheme %s has none: leave it out, or use scheme int8", cfg.Scheme)
	case cfg.NeedsCalibration() && q.calib == "":
		return usagef("quantize: scheme %s needs calibration data: give --calib DATA, or use --scheme %s", cfg.Scheme, quant.INT8Dynamic)
	case q.dumpPass != "" && q.dumpPass != "all" && !slices.Contains(pipeline.PassNames(cfg), q.dumpPass):
		return usagef("quantize: --dump-pass %s: no such pass; use all, or one of %s", q.dumpPass, strings.Join(pipeline.PassNames(cfg), ", "))
	}
	inputs := append([]string{model, q.calib, q.eval, q.recipe}, externalData(model)...)
	if err := checkOutput("quantize: -o", q.out, inputs...); err != nil {
		return err
	}
	if err := checkOutput("quantize: -o", q.out+".data", inputs...); err != nil {
		return err
	}
	if err := checkOutput("quantize: --report", q.report, append(inputs, q.out)...); err != nil {
		return err
	}
	if err := checkFolder(q.out); err != nil {
		return fmt.Errorf("quantize: -o: %w", err)
	}
	return checkReport(q.report)
}

// checkOutput refuses an output that would replace one of the inputs, or that is
// no ordinary file: results are renamed into place, which would remove a device.
func checkOutput(flag, out string, inputs ...string) error {
	if out == "" {
		return nil
	}
	if st, err := os.Lstat(out); err == nil && !st.Mode().IsRegular() && st.Mode()&os.ModeSymlink == 0 {
		return usagef("%s %s is not a regular file: give a file name", flag, filepath.Base(out))
	}
	for _, in := range inputs {
		if in != "" && sameFile(in, out) {
			return usagef("%s %s is also an input or another output: give another file", flag, filepath.Base(out))
		}
	}
	return nil
}

// externalData lists the files beside the model that hold its weights.
func externalData(model string) []string {
	f, err := onnx.Open(model)
	if err != nil {
		return nil // the command itself will say what is wrong
	}
	defer f.Close()
	var paths []string
	for _, loc := range f.External {
		paths = append(paths, filepath.Join(filepath.Dir(model), loc))
	}
	return paths
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	if err1 != nil || err2 != nil {
		return errors.Is(err1, fs.ErrNotExist) && errors.Is(err2, fs.ErrNotExist) && place(a) == place(b)
	}
	return os.SameFile(x, y)
}

// place is where the file at path, which need not be there, is once its folder's
// links are followed.
func place(path string) string {
	dir := filepath.Dir(path)
	if d, err := filepath.EvalSymlinks(dir); err == nil {
		dir = d
	}
	if d, err := filepath.Abs(dir); err == nil {
		dir = d
	}
	return filepath.Join(dir, filepath.Base(path))
}

// checkFolder makes sure that the file at path can be created.
func checkFolder(path string) error {
	dir := filepath.Dir(path)
	st, err := os.Stat(dir)
	switch {
	case err != nil || !st.IsDir():
		return fmt.Errorf("%s: its folder does not exist; create it first", filepath.Base(path))
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return fmt.Errorf("%s is a folder; give the path of a file in it", filepath.Base(path))
	}
	return nil
}

func passTimes(w io.Writer, passes []report.Pass) error {
	var b strings.Builder
	for _, p := range passes {
		fmt.Fprintf(&b, "pass %-20s %8.3f s  %s\n", p.Name, p.Seconds, oneLine(p.Gain))
	}
	return say(w, "%s", b.String())
}

// lossValue is an accuracy budget: "1%" or "0.01".
type lossValue float64

// maxLossValue is the largest budget that means anything.
const maxLossValue = 1

func (v *lossValue) String() string {
	return strconv.FormatFloat(100*float64(*v), 'g', 6, 64) + "%"
}
func (v *lossValue) Type() string { return "share" }
func (v *lossValue) Set(s string) error {
	digits, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	x, err := strconv.ParseFloat(digits, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x > 0 && x <= maxLossValue) {
		return fmt.Errorf("expected a share above 0 and at most 100%%, such as 1%% or 0.01")
	}
	*v = lossValue(x)
	return nil
}
