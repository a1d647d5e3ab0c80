package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
)

// pruneFlags are what prune takes.
type pruneFlags struct {
	out, calib, eval, report, method string
	sparsity                         string
	exclude                          []string
	evalSamples                      int
	maxLoss                          lossValue
	asJSON                           bool
	data                             dataFlags
	engine                           engineFlags
}

func newPruneCommand() *cobra.Command {
	p := &pruneFlags{}
	cmd := &cobra.Command{
		Use:   "prune MODEL.onnx -o OUT.onnx --sparsity 2:4|SHARE",
		Short: "Make weights zero, and measure what that loses",
		Long: `Make some weights of a trained float model zero, without training, and measure on data
what that loses. The result is a float model of the same size: quantize it as any other;
weights that are zero stay zero.

--sparsity is a share of the weights of each MatMul, Gemm and Conv (0.5), or 2:4: two of
each four along the input channels. Method magnitude takes the smallest weights; wanda
those that are small beside their inputs; sparsegpt, the default with --calib, those that
the others can make up for best, and lets them. With --max-loss a result that loses more
is not written.

ONNX Runtime, and fewbit's own kernels, multiply zeros like other numbers: a sparse model
is not faster there. It is smaller once compressed, for a download or an image, and 2:4 is
the pattern that the sparse tensor cores of NVIDIA GPUs take, through other software.

` + dataHelp,
		Example: `  fewbit prune model.onnx -o sparse.onnx --sparsity 2:4 --calib texts.jsonl
  fewbit prune model.onnx -o sparse.onnx --sparsity 0.3 --method magnitude --eval labelled.jsonl --max-loss 1%
  fewbit quantize sparse.onnx -o small.onnx --calib texts.jsonl`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&p.out, "out", "o", "", "where the sparse model goes")
	f.StringVar(&p.sparsity, "sparsity", "", "2:4, or the share of weights that become zero, such as 0.5 or 50%")
	f.StringVar(&p.method, "method", "", "magnitude, wanda or sparsegpt (default: sparsegpt with --calib, else magnitude)")
	f.StringSliceVar(&p.exclude, "exclude", nil, "operator names or types that stay as they are")
	f.StringVar(&p.calib, "calib", "", "samples that wanda and sparsegpt look at")
	f.StringVar(&p.eval, "eval", "", "evaluation data, labelled or not (default: the samples of --calib that were not looked at)")
	f.IntVar(&p.evalSamples, "eval-samples", 0, "evaluate on this many samples (0: all)")
	f.Var(&p.maxLoss, "max-loss", "write nothing that loses more, relative to FP32 (1% or 0.01); without labels: of the mean cosine (default: any loss)")
	f.Lookup("max-loss").DefValue = ""
	f.StringVar(&p.report, "report", "", "also write the report to this .html or .json file")
	f.BoolVar(&p.asJSON, "json", false, "print the report as one JSON object")
	p.data.add(cmd, fmt.Sprintf("look at this many samples, spread over the data (0: %d)", pipeline.DefaultSamples))
	p.engine.add(cmd)
	return cmd
}

func (p *pruneFlags) run(cmd *cobra.Command, model string) error {
	sparsity, err := p.check(model)
	if err != nil {
		return err
	}
	pipe, err := p.engine.pipeline()
	if err != nil {
		return err
	}
	m := newMeter()
	rep, err := pipe.Prune(cmd.Context(), pipeline.PruneRequest{
		Model: model, Out: p.out, Sparsity: sparsity, Method: quant.PruneMethod(p.method), Exclude: p.exclude, Calib: p.calib, Eval: p.eval,
		Samples: p.data.samples, EvalSamples: p.evalSamples, MaxTokens: p.data.maxTokens, MaxLoss: float64(p.maxLoss), Command: os.Args,
		Words: pipeline.Words{Calib: "--calib DATA", Eval: "--eval DATA", Force: "a larger --max-loss"},
	}, m.show)
	m.done()
	if err != nil && !errors.Is(err, pipeline.ErrRefused) {
		return fmt.Errorf("prune: %w", err)
	}
	if err := showReport(cmd, rep, p.asJSON, p.report); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	return nil
}

// check refuses before any work what would fail after it.
func (p *pruneFlags) check(model string) (quant.Sparsity, error) {
	none := quant.Sparsity{}
	if p.sparsity == "" {
		return none, usagef("prune: --sparsity is missing: say 2:4, or which share of the weights becomes zero, such as 0.5")
	}
	s, err := quant.ParseSparsity(p.sparsity)
	switch {
	case err != nil:
		return none, usagef("prune: --sparsity: %w", err)
	case p.out == "":
		return none, usagef("prune: -o OUT.onnx is missing: say where the sparse model goes")
	case p.method != "" && !slices.Contains(quant.PruneMethods, quant.PruneMethod(p.method)):
		return none, usagef("prune: --method %q: use magnitude, wanda or sparsegpt", p.method)
	case p.calib == "" && quant.PruneMethod(p.method).NeedsData() && p.method != "":
		return none, usagef("prune: --method %s looks at the operators' inputs: give --calib DATA, or use --method %s", p.method, quant.Magnitude)
	case p.evalSamples < 0:
		return none, usagef("prune: --eval-samples %d: it must not be negative", p.evalSamples)
	case p.maxLoss > 0 && p.calib == "" && p.eval == "":
		return none, usagef("prune: --max-loss needs data to measure the loss on: give --eval DATA")
	}
	if err := p.data.check(); err != nil {
		return none, err
	}
	inputs := append([]string{model, p.calib, p.eval}, externalData(model)...)
	for _, out := range []string{p.out, p.out + ".data"} {
		if err := checkOutput("prune: -o", out, inputs...); err != nil {
			return none, err
		}
	}
	if err := checkOutput("prune: --report", p.report, append(inputs, p.out)...); err != nil {
		return none, err
	}
	if err := checkFolder(p.out); err != nil {
		return none, fmt.Errorf("prune: -o: %w", err)
	}
	return s, checkReport(p.report)
}
