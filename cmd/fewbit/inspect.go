package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

func newInspectCommand() *cobra.Command {
	var asJSON bool
	var scheme, target string
	cmd := &cobra.Command{
		Use:   "inspect MODEL.onnx",
		Short: "Describe a model and what quantizing it would change",
		Long: `Describe a model: inputs, outputs, operators, parameters, size, whether it is
quantized already, and which operators would run in integers, with the rule that
each of the others breaks. Nothing is run.`,
		Example: `  fewbit inspect model.onnx
  fewbit inspect model.onnx --json | jq .integer`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := pipeline.Inspect(cmd.Context(), args[0], quant.Config{Scheme: quant.Scheme(scheme), Target: quant.Target(target)})
			if err != nil {
				return fmt.Errorf("inspect: %w", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), in)
			}
			return say(cmd.OutOrStdout(), "%s", inspectText(in))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&scheme, "scheme", "", "scheme to plan for: int8, a16w8, int8-dynamic, int4, fp16 or bf16 (default int8)")
	cmd.Flags().StringVar(&target, "target", "", "target to plan for: ort-cpu, cpu or cuda (the native form), qdq or qoperator (default ort-cpu)")
	return cmd
}

// inspectOperators is how many types of operators the text form counts.
const inspectOperators = 12

func inspectText(in *pipeline.Inspection) string {
	var b strings.Builder
	row := func(name, format string, a ...any) {
		fmt.Fprintf(&b, "  %-11s %s\n", name, oneLine(fmt.Sprintf(format, a...)))
	}
	fmt.Fprintln(&b, oneLine(in.Model.Name))
	row("size", "%s, %d parameters", report.Bytes(in.Model.Bytes), in.Model.Parameters)
	row("sha256", "%s", in.Model.SHA256)
	row("opset", "%s (IR version %d)", opsets(in.Opsets), in.IR)
	for _, v := range in.Inputs {
		row("input", "%s", valueText(v))
	}
	for _, v := range in.Outputs {
		row("output", "%s", valueText(v))
	}
	row("operators", "%d: %s", in.Model.Nodes, in.Summary(inspectOperators))
	if in.Quantized != "" {
		row("quantized", "yes (it contains %s)", in.Quantized)
	} else {
		row("quantized", "no")
	}
	if needs := in.Metadata["fewbit.needs"]; needs != "" {
		row("needs", "%s", needs)
	}
	if in.Nothing != "" {
		row("integer", "%s", in.Nothing)
	}
	if share, ok := in.Integer.Share(); ok {
		verb := "would run"
		if in.Quantized != "" {
			verb = "run"
		}
		row("integer", "%.1f %% of %.4g multiply-accumulates a sample %s in integers", 100*share, float64(in.Integer.Total), verb)
	}
	writeFloats(&b, in.Plan)
	return b.String()
}

// writeFloats lists the operators that stay in float, by rule.
func writeFloats(w io.Writer, ops []report.Operator) {
	type key struct{ op, rule string }
	count := map[key]int{}
	var order []key
	for _, o := range ops {
		if o.Integer {
			continue
		}
		k := key{o.Op, o.Rule}
		if count[k] == 0 {
			order = append(order, k)
		}
		count[k]++
	}
	for _, k := range order {
		fmt.Fprintf(w, "  %-11s %d %s: %s\n", "in float", count[k], oneLine(k.op), oneLine(k.rule))
	}
}

func valueText(v pipeline.ValueInfo) string {
	if v.Dims == nil {
		return fmt.Sprintf("%s %s of unknown rank", v.Name, v.Type)
	}
	dims := make([]string, len(v.Dims))
	for i, d := range v.Dims {
		dims[i] = fmt.Sprint(d)
	}
	return fmt.Sprintf("%s %s[%s]", v.Name, v.Type, strings.Join(dims, ", "))
}

func opsets(m map[string]int64) string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, m[n])
	}
	return strings.Join(names, ", ")
}

// writeJSON prints v, indented, as the one object on standard output.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}
