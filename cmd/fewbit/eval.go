package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
)

func newEvalCommand() *cobra.Command {
	var (
		asJSON       bool
		path, output string
		engine       engineFlags
		data         dataFlags
	)
	cmd := &cobra.Command{
		Use:   "eval MODEL.onnx --data DATA",
		Short: "Measure a classifier's accuracy on labelled data",
		Long:  "Measure the accuracy of one model, with its 95 % interval, on labelled data.\n\n" + dataHelp,
		Example: `  fewbit eval model.onnx --data test.jsonl
  fewbit eval model.onnx --data images/ --samples 500 --json`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" {
				return usagef("eval: --data DATA is missing: give labelled samples")
			}
			if err := data.check(); err != nil {
				return err
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			m := newMeter()
			res, err := p.Evaluate(cmd.Context(), pipeline.EvalRequest{Model: args[0], Data: path, Samples: data.samples, MaxTokens: data.maxTokens, Output: output, Assets: data.assets}, m.show)
			m.done()
			if err != nil {
				return fmt.Errorf("eval: %w", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), res)
			}
			return say(cmd.OutOrStdout(), "%s", evalText(res))
		},
	}
	cmd.Flags().StringVar(&path, "data", "", "labelled data set")
	cmd.Flags().StringVar(&output, "output", "", "output that holds the class scores (default: the first)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	data.addAssets(cmd)
	data.add(cmd, "evaluate this many samples, spread over the data (0: all)")
	engine.add(cmd)
	return cmd
}

// evalClasses is how many classes the text form lists.
const evalClasses = 20

func evalText(r *pipeline.EvalResult) string {
	var b strings.Builder
	fmt.Fprintln(&b, oneLine(r.Model.Name))
	a := r.Accuracy
	fmt.Fprintf(&b, "  %-12s %.2f %% (95 %%: %.2f %% to %.2f %%; n = %d)\n", "accuracy", 100*a.Value, 100*a.Lo, 100*a.Hi, a.N)
	for i, c := range r.ByClass {
		if i == evalClasses {
			fmt.Fprintf(&b, "  and %d more classes\n", len(r.ByClass)-i)
			break
		}
		name := c.Name
		if i < len(r.Labels) {
			name = r.Labels[i]
		}
		if c.N == 0 {
			fmt.Fprintf(&b, "  %-12s no samples\n", oneLine(name))
			continue
		}
		fmt.Fprintf(&b, "  %-12s %.2f %% (n = %d)\n", oneLine(name), 100*c.Value, c.N)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", oneLine(w))
	}
	return b.String()
}
