package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/report"
)

func newBenchCommand() *cobra.Command {
	var (
		asJSON     bool
		engineName string
		req        pipeline.BenchRequest
		engine     engineFlags
		data       dataFlags
	)
	cmd := &cobra.Command{
		Use:   "bench MODEL.onnx",
		Short: "Measure a model's latency and throughput",
		Long: `Measure latency (p50, p90, p99) and throughput of a model, one request after the
other, on inputs made up from its description or taken from data. With --vs both
models take turns, so that what else the machine does hits both alike.

` + dataHelp,
		Example: `  fewbit bench model.onnx --threads 2 --seq 128
  fewbit bench small.onnx --vs model.onnx --data texts.jsonl --json`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case engineName == "cuda":
				return usagef("bench: --engine cuda: this build has no CUDA engine; use --engine cpu")
			case engineName != "cpu":
				return usagef("bench: --engine %s: unknown engine; use cpu", engineName)
			case req.Shape.Batch < 0 || req.Shape.Seq < 0 || req.Duration < 0:
				return usagef("bench: --batch %d, --seq %d, --duration %v: none may be negative", req.Shape.Batch, req.Shape.Seq, req.Duration)
			case req.Data != "" && (cmd.Flags().Changed("batch") || cmd.Flags().Changed("seq")):
				return usagef("bench: --batch and --seq shape made-up inputs; leave them out with --data")
			}
			if err := data.check(); err != nil {
				return err
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			req.Model, req.Samples, req.MaxTokens, req.Assets = args[0], data.samples, data.maxTokens, data.assets
			m := newMeter()
			res, err := p.Bench(cmd.Context(), req, m.show)
			m.done()
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), res)
			}
			return say(cmd.OutOrStdout(), "%s", benchText(res))
		},
	}
	f := cmd.Flags()
	f.StringVar(&engineName, "engine", "cpu", "engine: cpu")
	f.StringVar(&req.Data, "data", "", "take the inputs from this data set instead of making them up")
	f.StringVar(&req.Versus, "vs", "", "measure this model in turn with MODEL and print the ratio")
	f.Int64Var(&req.Shape.Batch, "batch", 1, "batch size of made-up inputs")
	f.Int64Var(&req.Shape.Seq, "seq", 128, "sequence length of made-up inputs")
	f.DurationVar(&req.Duration, "duration", pipeline.DefaultBenchTime, "measure for this long")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	data.addAssets(cmd)
	data.add(cmd, "cycle through this many samples of --data (0: 16)")
	engine.add(cmd)
	return cmd
}

func benchText(r *pipeline.BenchResult) string {
	var b strings.Builder
	inputs := r.Inputs
	if r.Seq > 0 {
		inputs = fmt.Sprintf("synthetic, batch %d, variable lengths %d", r.Batch, r.Seq)
	}
	fmt.Fprintf(&b, "%s, %d threads, %s, inputs %s\n", oneLine(r.Machine.CPU), r.Machine.Threads, r.Machine.Engine, oneLine(inputs))
	for _, m := range r.Models {
		fmt.Fprintf(&b, "  %s (%s)\n", oneLine(m.Name), report.Bytes(m.Bytes))
		fmt.Fprintf(&b, "    %-11s p50 %s, p90 %s, p99 %s (n = %d)\n", "latency", ms(m.P50MS), ms(m.P90MS), ms(m.P99MS), m.N)
		fmt.Fprintf(&b, "    %-11s %.4g samples/s\n", "throughput", m.Throughput)
	}
	if s := r.Speedup; s != nil {
		fmt.Fprintf(&b, "  %s runs at %.2f times the speed of %s (95 %%: %.2f to %.2f; n = %d, interleaved)\n",
			oneLine(r.Models[0].Name), s.Median, oneLine(r.Models[1].Name), s.Lo, s.Hi, s.N)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", oneLine(w))
	}
	return b.String()
}
