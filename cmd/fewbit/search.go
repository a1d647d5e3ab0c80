package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/fewbit/fewbit/internal/app"
	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/recipes"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/task"
)

// searchFlags are what search takes.
type searchFlags struct {
	out, recipe, calib, eval, report, method, weights, precision string
	targets, exclude                                             []string
	operators                                                    rulesValue
	samples, evalSamples, maxTokens                              int
	maxLoss                                                      lossValue
	maxSize, maxMemory                                           app.Bytes
	slo, timeLimit                                               time.Duration
	noSmooth, noBias, equalize, restart, asJSON                  bool
	engine                                                       engineFlags
	device                                                       deviceFlags
}

// Files of a search in the folder that -o names, and beside the model that it names.
const (
	searchModel   = "model.onnx"
	searchJournal = "search.jsonl"
	searchReport  = "report.html"
	searchFacts   = "report.json"
	searchRecipe  = "recipe.yaml"
)

func newSearchCommand() *cobra.Command {
	q := &searchFlags{maxLoss: pipeline.DefaultMaxLoss}
	cmd := &cobra.Command{
		Use:   "search MODEL.onnx -o DIR|OUT.onnx --calib DATA",
		Short: "Find the fastest model within a loss, a latency and a size",
		Long: `Try ways to quantize a float model, measure what each loses on data and how fast it is in
turn with FP32 on this machine, and keep the best. FP16 weights come first: soon after the
start something usable is on disk, and each better model replaces it at once. Then INT8;
where that loses too much, blocks with convolutions are learned from the float model, if
that may suffice, and the most sensitive operators stay higher, as few as measured to
suffice; where a size is asked for, embeddings and the least sensitive operators get 4 bits.

A model is kept only when the whole paired interval of its loss is within --max-loss, and
the interleaved measurement does not find it slower than FP32. Each trial goes into a
journal: after Ctrl-C, kill -9 or the time limit the same command goes on where it was.
-o DIR gets model.onnx, search.jsonl (the journal), report.html, report.json and
recipe.yaml, which makes the best again with quantize; -o OUT.onnx gets OUT.onnx and
OUT.onnx.search.jsonl. Weights that were solved for are kept beside the journal, in a
folder of its name with .weights (1 GiB at most), until the search has ended by itself: the
next start and other forms read them. Exit status 1 when nothing meets what was asked for.

` + dataHelp,
		Example: `  fewbit search model.onnx -o found/ --calib texts.jsonl --eval labelled.jsonl --max-loss 1%
  fewbit search model.onnx -o small.onnx --calib texts.jsonl --slo 20ms --max-size 100MB --time-limit 30m
  fewbit search model.onnx -o found/ --calib images/ --targets ort-cpu,cpu --json`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error { return q.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&q.out, "out", "o", "", "folder, or file ending in .onnx, for the best so far")
	f.StringVar(&q.recipe, "recipe", "", "read settings from this YAML file, the names of these flags, or from a built-in recipe ("+recipes.Names+"); flags given here win")
	f.StringVar(&q.calib, "calib", "", "calibration data")
	f.StringVar(&q.eval, "eval", "", "evaluation data, labelled or not (default: the samples of --calib that do not calibrate)")
	f.StringVar(&q.eval, "data", "", "the same as --eval")
	f.Var(&q.maxLoss, "max-loss", "accuracy budget, relative to FP32 (1% or 0.01); without labels: of the mean cosine, or of few classes' expected accuracy")
	f.DurationVar(&q.slo, "slo", 0, "latency target for the 99th percentile (0: none)")
	f.Var(&q.maxSize, "max-size", "largest file, with its external data (0: any)")
	f.Var(&q.maxMemory, "max-memory", "stay below this much resident memory, in smaller steps that take longer; trials that do not fit are refused (0: no ceiling)")
	f.DurationVar(&q.timeLimit, "time-limit", pipeline.DefaultTimeLimit, "end after this long; what was found stays")
	f.StringSliceVar(&q.targets, "targets", nil, "graph forms to choose from: ort-cpu, cpu or cuda (the native form, which is fast in fewbit only), qdq, qoperator (default ort-cpu)")
	f.StringVar(&q.method, "method", "", "range method: auto, minmax, entropy, percentile[:P], mse or moving-average (default auto)")
	f.StringVar(&q.weights, "weights", "", "how weights are rounded: auto, rtn, mse, gptq, adaround, hqq or, in 4 bits, awq; brecq is gptq, and learns blocks wherever INT8 loses too much, not of convolutions alone (default auto)")
	f.IntVar(&q.samples, "samples", 0, fmt.Sprintf("calibrate with this many samples, spread over the data (0: %d)", pipeline.DefaultSamples))
	f.IntVar(&q.evalSamples, "eval-samples", 0, "judge on this many samples (0: as many as the time limit allows)")
	f.IntVar(&q.maxTokens, "max-tokens", 0, fmt.Sprintf("cut texts to this many tokens (0: %d)", task.DefaultMaxTokens))
	f.StringVar(&q.precision, "precision", "", precisionHelp)
	f.StringSliceVar(&q.exclude, "exclude", nil, "operator names or types that stay in float")
	f.Var(&q.operators, "operators", "precision of single operators in every trial, MATCH=int8|int8-dynamic|int4|fp16|bf16|fp32")
	f.BoolVar(&q.noSmooth, "no-smooth", false, "leave SmoothQuant out")
	f.BoolVar(&q.noBias, "no-bias-correction", false, "leave bias correction out")
	f.BoolVar(&q.equalize, "equalize", false, equalizeHelp)
	f.BoolVar(&q.restart, "restart", false, "forget what the journal holds and start again")
	f.StringVar(&q.report, "report", "", "also write the report to this .html or .json file")
	f.BoolVar(&q.asJSON, "json", false, "print the report as one JSON object")
	q.engine.add(cmd)
	q.device.add(cmd)
	return cmd
}

// interruptedError is an interruption that left something.
type interruptedError struct {
	err  error
	text string
}

func (e *interruptedError) Error() string { return e.text }
func (e *interruptedError) Unwrap() error { return e.err }

func (q *searchFlags) run(cmd *cobra.Command, model string) error {
	if q.recipe != "" {
		if err := applyRecipe(cmd.Flags(), q.recipe); err != nil {
			return err
		}
	}
	req, err := q.request(model)
	if err != nil {
		return err
	}
	if q.folder() {
		switch err := os.Mkdir(q.out, 0o755); {
		case err == nil:
			defer os.Remove(q.out) // only a folder that nothing came to lie in goes
		case !os.IsExist(err):
			return fmt.Errorf("search: -o %s: %w", filepath.Base(q.out), bare.Error(err))
		}
	}
	p, err := q.engine.pipeline()
	if err != nil {
		return err
	}
	if err := q.device.open(cmd, p); err != nil {
		return err
	}
	m := newMeter()
	given, swept := 0, !q.folder()
	req.OnTrial = func(s report.Search) error {
		if !swept { // under the journal's lock nobody else writes here
			swept = true
			sweepFiles(q.out)
		}
		m.line("%s", s.Trials[len(s.Trials)-1].Line())
		if s.Best != given {
			given = s.Best
			m.line("best so far: trial %d", s.Best)
		}
		return q.write(cmd, &s)
	}
	s, err := p.Search(cmd.Context(), req, m.show)
	m.done()
	if s == nil {
		return fmt.Errorf("search: %w", err)
	}
	if werr := q.write(cmd, s); werr != nil {
		return errors.Join(werr, err)
	}
	render := report.SearchText
	if q.asJSON {
		render = report.WriteSearchJSON
	}
	if werr := render(cmd.OutOrStdout(), *s); werr != nil {
		return fmt.Errorf("write the output: %w", werr)
	}
	switch {
	case err != nil && errors.Is(err, context.Canceled) && s.Best > 0:
		return &interruptedError{err, fmt.Sprintf("interrupted: the best of %d trials is kept; the same command goes on", len(s.Trials))}
	case err != nil:
		return fmt.Errorf("search: %w", err)
	}
	return nil
}

// request refuses before any work what would fail after it.
func (q *searchFlags) request(model string) (req pipeline.SearchRequest, err error) {
	if err := pipeline.Precision(q.precision).Check(); err != nil {
		return req, usagef("search: --precision: %w", err)
	}
	switch {
	case q.out == "":
		return req, usagef("search: -o DIR|OUT.onnx is missing: say where the best so far goes")
	case q.calib == "":
		return req, usagef("search: --calib DATA is missing: give samples to calibrate with")
	case q.samples < 0 || q.evalSamples < 0 || q.maxTokens < 0:
		return req, usagef("search: --samples %d, --eval-samples %d, --max-tokens %d: none may be negative", q.samples, q.evalSamples, q.maxTokens)
	case q.maxMemory != 0 && q.maxMemory < pipeline.MinCeiling:
		return req, usagef("search: --max-memory %s: expected 0 (no ceiling) or at least %d MiB", q.maxMemory.String(), pipeline.MinCeiling>>20)
	case q.slo < 0 || q.timeLimit <= 0:
		return req, usagef("search: --slo %v, --time-limit %v: expected a target of 0 or more and a limit above 0", q.slo, q.timeLimit)
	}
	req = pipeline.SearchRequest{
		Model: model, Out: q.out, Journal: q.out + "." + searchJournal, Calib: q.calib, Eval: q.eval,
		Config: quant.Config{Method: q.method, Weights: quant.WeightMethod(q.weights), Exclude: q.exclude, Rules: q.operators.rules,
			NoSmooth: q.noSmooth, NoBiasCorrection: q.noBias, Equalize: q.equalize, ReduceRange: pipeline.SaturatesU8S8()},
		MaxLoss: float64(q.maxLoss), SLO: q.slo, MaxBytes: int64(q.maxSize), Samples: q.samples, EvalSamples: q.evalSamples, MaxTokens: q.maxTokens,
		MaxMemory: int64(q.maxMemory), Precision: pipeline.Precision(q.precision), TimeLimit: q.timeLimit, Restart: q.restart, Command: os.Args,
		Words: pipeline.Words{Calib: "--calib DATA", Eval: "--eval DATA", MaxMemory: "--max-memory"},
	}
	for _, t := range q.targets {
		if slices.Contains(req.Targets, quant.Target(t)) {
			return req, usagef("search: --targets: %s stands there twice", t)
		}
		req.Targets = append(req.Targets, quant.Target(t))
	}
	if q.folder() {
		if st, err := os.Stat(q.out); err == nil && !st.IsDir() {
			return req, usagef("search: -o %s: expected a folder, or a name ending in .onnx", filepath.Base(q.out))
		}
		req.Out, req.Journal = filepath.Join(q.out, searchModel), filepath.Join(q.out, searchJournal)
	}
	inputs := append([]string{model, q.calib, q.eval, q.recipe}, externalData(model)...)
	for _, out := range []string{req.Out, req.Out + ".data", req.Journal} {
		if err := checkOutput("search: -o", out, inputs...); err != nil {
			return req, err
		}
	}
	if err := checkOutput("search: --report", q.report, append(inputs, req.Out, req.Journal)...); err != nil {
		return req, err
	}
	if err := checkFolder(q.out); err != nil && !q.folder() {
		return req, fmt.Errorf("search: -o: %w", err)
	}
	return req, checkReport(q.report)
}

// folder reports whether -o names a folder.
func (q *searchFlags) folder() bool { return !strings.EqualFold(filepath.Ext(q.out), ".onnx") }

// write writes the reports and the recipe of the best so far.
func (q *searchFlags) write(cmd *cobra.Command, s *report.Search) error {
	text, err := q.best(cmd.Flags(), s.BestTrial())
	if err != nil {
		return err
	}
	s.Recipe = text
	files := []string{q.report}
	if q.folder() {
		files = append(files, filepath.Join(q.out, searchReport), filepath.Join(q.out, searchFacts))
	}
	for _, path := range files {
		if path == "" {
			continue
		}
		if err := writeReport(path, report.SearchHTML, report.WriteSearchJSON, *s); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	if !q.folder() || text == "" {
		return nil
	}
	return writeFile(filepath.Join(q.out, searchRecipe), func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// notOfQuantize are settings that mean something to a search only.
var notOfQuantize = []string{"report", "targets", "time-limit", "max-size", "restart", "data", "operators", "slo"}

// best words the trial as a recipe for quantize.
func (q *searchFlags) best(flags *pflag.FlagSet, t *report.Trial) (string, error) {
	if t == nil {
		return "", nil
	}
	given, err := recipeText(flags)
	if err != nil {
		return "", err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(given), &doc); err != nil {
		return "", fmt.Errorf("write the recipe: %w", err)
	}
	text := func(s string) *yaml.Node {
		n := &yaml.Node{}
		n.SetString(s)
		return n
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{text("scheme"), text(t.Scheme), text("target"), text(t.Target)}}
	if len(doc.Content) == 1 {
		for i, pairs := 0, doc.Content[0].Content; i+1 < len(pairs); i += 2 {
			if pairs[i].Value == "weights" && (len(t.Learned) > 0 || pairs[i+1].Value == string(quant.BRECQ)) {
				continue // which blocks are learned says the trial
			}
			if !slices.Contains(notOfQuantize, pairs[i].Value) {
				out.Content = append(out.Content, pairs[i], pairs[i+1])
			}
		}
	}
	if len(t.Operators) > 0 {
		ops := &yaml.Node{Kind: yaml.MappingNode}
		for _, o := range t.Operators {
			r, err := quant.ParseRule(o)
			if err != nil {
				return "", err
			}
			ops.Content = append(ops.Content, text(r.Match), text(string(r.Precision)))
		}
		out.Content = append(out.Content, text("operators"), ops)
	}
	if len(t.Learned) > 0 {
		names := &yaml.Node{Kind: yaml.SequenceNode}
		for _, n := range t.Learned {
			names.Content = append(names.Content, text(n))
		}
		out.Content = append(out.Content, text("weights"), text(string(quant.BRECQ)), text("learn"), names)
	}
	b, err := yaml.Marshal(out)
	if err != nil {
		return "", fmt.Errorf("write the recipe: %w", err)
	}
	return string(b), nil
}
