package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

func newSensitivityCommand() *cobra.Command {
	var (
		calib, eval, out, scheme, target, weights string
		asJSON, equalize                          bool
		top, evalSamples                          int
		exclude                                   []string
		operators                                 rulesValue
		engine                                    engineFlags
		data                                      dataFlags
		device                                    deviceFlags
		precision                                 string
	)
	cmd := &cobra.Command{
		Use:   "sensitivity MODEL.onnx --calib DATA [-o REPORT]",
		Short: "Rank the operators by what quantizing them costs",
		Long: `Rank the operators of a float model by what quantizing them costs, and say what to try
for the worst. All operators get a proxy that needs no run of the model: the relative error
of the weight, or of the operator's output where the choice of its range measured it.
The worst by the proxy (--top) are then measured at the model's output: with only this
operator quantized, and with all but this one. Bias correction and embeddings stay out.

` + dataHelp,
		Example: `  fewbit sensitivity model.onnx --calib texts.jsonl
  fewbit sensitivity model.onnx --calib images/ --top 50 -o worst.html
  fewbit sensitivity model.onnx --calib texts.jsonl --scheme int4 --json`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case calib == "":
				return usagef("sensitivity: --calib DATA is missing: give samples to calibrate and to judge with")
			case evalSamples < 0:
				return usagef("sensitivity: --eval-samples %d: it must not be negative", evalSamples)
			}
			if err := data.check(); err != nil {
				return err
			}
			if top < -1 {
				return usagef("sensitivity: --top %d: give a number of operators, 0 for %d, or -1 for all", top, pipeline.DefaultSensitivityTop)
			}
			if err := pipeline.Precision(precision).Check(); err != nil {
				return usagef("sensitivity: --precision: %w", err)
			}
			if err := checkReport(out); err != nil {
				return err
			}
			if err := checkOutput("sensitivity: -o", out, args[0], calib, eval); err != nil {
				return err
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			if err := device.open(cmd, p); err != nil {
				return err
			}
			m := newMeter()
			rep, err := p.Sensitivity(cmd.Context(), pipeline.SensitivityRequest{
				Model: args[0], Calib: calib, Eval: eval, Samples: data.samples, EvalSamples: evalSamples, MaxTokens: data.maxTokens, Top: top, Precision: pipeline.Precision(precision), Command: os.Args,
				Config: quant.Config{Scheme: quant.Scheme(scheme), Target: quant.Target(target), Weights: quant.WeightMethod(weights), Exclude: exclude, Rules: operators.rules, Equalize: equalize, ReduceRange: pipeline.SaturatesU8S8()},
				Words:  pipeline.Words{Calib: "--calib DATA", Eval: "--eval DATA"},
			}, m.show)
			m.done()
			if err != nil {
				return fmt.Errorf("sensitivity: %w", err)
			}
			return showSensitivity(cmd.OutOrStdout(), *rep, asJSON, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&calib, "calib", "", "calibration data")
	f.StringVar(&eval, "eval", "", "evaluation data (default: the samples of --calib that do not calibrate)")
	f.StringVarP(&out, "out", "o", "", "write the report to this .html or .json file")
	f.StringVar(&scheme, "scheme", "", "int8, int8-dynamic, int4 or mixed (default int8)")
	f.StringVar(&target, "target", "", "graph form: ort-cpu (stock operators of ONNX Runtime), cpu or cuda (the native form, for fewbit's kernels), qdq or qoperator (default ort-cpu)")
	f.StringVar(&weights, "weights", "", "how weights are rounded: auto, rtn, mse, gptq, adaround, hqq or, in 4 bits, awq; brecq is compared as gptq, with which it begins (default auto)")
	f.StringSliceVar(&exclude, "exclude", nil, "operator names or types that stay in float")
	f.Var(&operators, "operators", "precision of single operators, MATCH=int8|int8-dynamic|int4|fp16|bf16|fp32")
	f.BoolVar(&equalize, "equalize", false, equalizeHelp)
	f.IntVar(&top, "top", 0, fmt.Sprintf("measure this many operators, the worst by the proxy (0: %d; -1: all)", pipeline.DefaultSensitivityTop))
	f.IntVar(&evalSamples, "eval-samples", 0, fmt.Sprintf("judge on this many samples (0: %d)", pipeline.DefaultSensitivitySamples))
	f.StringVar(&precision, "precision", "", precisionHelp)
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	data.add(cmd, fmt.Sprintf("calibrate with this many samples, spread over the data (0: %d)", pipeline.DefaultSamples))
	engine.add(cmd)
	device.add(cmd)
	return cmd
}

// showSensitivity prints the report and writes it to path, unless that is "".
func showSensitivity(w io.Writer, s report.Sensitivity, asJSON bool, path string) error {
	if path != "" {
		if err := writeReport(path, report.SensitivityHTML, report.WriteSensitivityJSON, s); err != nil {
			return fmt.Errorf("-o: %w", err)
		}
	}
	render := report.SensitivityText
	if asJSON {
		render = report.WriteSensitivityJSON
	}
	if err := render(w, s); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}
