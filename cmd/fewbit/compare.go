package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/report"
)

func newCompareCommand() *cobra.Command {
	var (
		asJSON, noLatency, gate bool
		path, output, reFile    string
		annotate                string
		maxLoss                 = lossValue(pipeline.DefaultMaxLoss)
		slo                     time.Duration
		engine                  engineFlags
		data                    dataFlags
	)
	cmd := &cobra.Command{
		Use:   "compare FP32.onnx QUANT.onnx --data DATA",
		Short: "Show what a quantized model lost and gained against its original",
		Long: `Compare a quantized model, of any tool, with the float model it was made from:
fidelity by operator and at the output, the task's accuracy with its interval where
the data has labels, latency measured interleaved, size and peak memory. With --gate the
exit status is 1 when the result is past the accuracy budget, or slower than FP32.

` + dataHelp,
		Example: `  fewbit compare model.onnx small.onnx --data labelled.jsonl
  fewbit compare model.onnx small.onnx --data images.zip --report comparison.html
  fewbit compare model.onnx small.onnx --data labelled.jsonl --annotate small-seen.onnx
  fewbit compare model.onnx small.onnx --data labelled.jsonl --max-loss 0.5% --gate`,
		Args: exactArgs("FP32.onnx", "QUANT.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" {
				return usagef("compare: --data DATA is missing: give samples that neither model was calibrated on")
			}
			if err := data.check(); err != nil {
				return err
			}
			if err := checkReport(reFile); err != nil {
				return err
			}
			inputs := append(append(externalData(args[0]), externalData(args[1])...), args[0], args[1], path)
			if err := checkOutput("compare: --report", reFile, append(inputs, annotate)...); err != nil {
				return err
			}
			if annotate != "" {
				for _, out := range []string{annotate, annotate + ".data"} {
					if err := checkOutput("compare: --annotate", out, inputs...); err != nil {
						return err
					}
				}
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			m := newMeter()
			rep, err := p.Compare(cmd.Context(), pipeline.CompareRequest{
				Float: args[0], Quant: args[1], Data: path, Samples: data.samples, MaxTokens: data.maxTokens, Output: output,
				MaxLoss: float64(maxLoss), SLO: slo, NoLatency: noLatency, Command: os.Args,
			}, m.show)
			m.done()
			if err != nil {
				return fmt.Errorf("compare: %w", err)
			}
			if annotate != "" {
				if err := pipeline.Annotate(args[1], annotate, rep); err != nil {
					return fmt.Errorf("compare: --annotate: %w", err)
				}
			}
			if err := showReport(cmd, rep, asJSON, reFile); err != nil {
				return err
			}
			if gate && rep.Verdict.Status == report.Refused {
				return fmt.Errorf("compare: %w: %s", pipeline.ErrRefused, rep.Verdict.Reasons[0])
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&path, "data", "", "data set to compare on, labelled or not")
	f.StringVar(&output, "output", "", "output to compare (default: the first that both models have)")
	f.Var(&maxLoss, "max-loss", "accuracy budget, relative to FP32 (1% or 0.01); without labels: of the mean cosine, or of few classes' expected accuracy")
	f.DurationVar(&slo, "slo", pipeline.DefaultSLO, "latency target for the 99th percentile")
	f.BoolVar(&noLatency, "no-latency", false, "skip the latency measurement")
	f.BoolVar(&gate, "gate", false, "exit with status 1 when the verdict is a refusal")
	f.StringVar(&reFile, "report", "", "also write the report to this .html or .json file")
	f.StringVar(&annotate, "annotate", "", "also write the quantized model here with each operator's figures in its node's metadata, as Netron shows it")
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	data.add(cmd, "compare this many samples, spread over the data (0: all)")
	engine.add(cmd)
	return cmd
}
