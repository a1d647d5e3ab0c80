package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tflite"
)

// exported is what tflite --json prints.
type exported struct {
	Bytes    int64         `json:"bytes"`
	Integer  int           `json:"integer_operators"`
	Float    int           `json:"float_operators"`
	FloatOps []string      `json:"float_operator_names"`
	Inputs   []tflite.Port `json:"inputs"`
	Outputs  []tflite.Port `json:"outputs"`
}

func newTFLiteCommand() *cobra.Command {
	var out, ioKind string
	var shapes []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tflite MODEL.onnx -o MODEL.tflite",
		Short: "Write a model of images for TensorFlow Lite",
		Long: `Write what quantize --target qdq made, or a float model, as a TensorFlow Lite file for phones,
boards and their accelerators: the same scales, zero points and codes, activations in int8 with
a zero point, weights in int8 by output channel. Operators that were left float stay float.
What --scheme a16w8 --symmetric made has activations in int16 and biases in int64 (TensorFlow
Lite's 16x8); what --scheme fp16 made has weights in float16 that are dequantized when it is opened.

With --io int8 inputs and outputs are codes too (int16 of a16w8), as microcontrollers and accelerators without
float want them; their scales and zero points stand in the file, and with --json.

Values of rank 4 are laid out with channels last there: an input [batch, 3, 224, 224] becomes
[batch, 224, 224, 3]. Dimensions other than the batch must have sizes: --shape gives those that
have none. Nothing is run.`,
		Example: `  fewbit quantize model.onnx -o small.onnx --calib images/ --target qdq
  fewbit tflite small.onnx -o small.tflite
  fewbit quantize model.onnx -o codes.onnx --calib images/ --target qdq --io int8
  fewbit tflite codes.onnx -o codes.tflite --io int8
  fewbit tflite detector.onnx -o detector.tflite --shape images=1,3,320,320`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("tflite: -o MODEL.tflite is missing: say where the file goes")
			}
			if err := checkOutput("tflite: -o", out, append([]string{args[0]}, externalData(args[0])...)...); err != nil {
				return err
			}
			if err := checkFolder(out); err != nil {
				return fmt.Errorf("tflite: -o: %w", err)
			}
			given, err := parseShapes(shapes)
			if err != nil {
				return err
			}
			ports, err := codesAtPorts(ioKind)
			if err != nil {
				return fmt.Errorf("tflite: %w", err)
			}
			m, err := graph.Open(args[0])
			if err != nil {
				return fmt.Errorf("tflite: %w", err)
			}
			defer m.Close()
			res, err := tflite.Convert(m, tflite.Options{Description: "written by fewbit " + version, Shapes: given, Ports: ports})
			if errors.Is(err, tflite.ErrShapes) {
				return usagef("tflite: --shape: %w", err)
			}
			if err != nil {
				return fmt.Errorf("tflite: %w", err)
			}
			if err := writeFile(out, func(w io.Writer) error { _, err := w.Write(res.File); return err }); err != nil {
				return fmt.Errorf("tflite: %w", err)
			}
			e := exported{int64(len(res.File)), res.Integer, res.Float, res.FloatOps, res.Inputs, res.Outputs}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), e)
			}
			return say(cmd.OutOrStdout(), "%s", tfliteText(filepath.Base(out), e))
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "where the file goes")
	cmd.Flags().StringArrayVar(&shapes, "shape", nil, "sizes of an input in the model's own order, as name=1,3,224,224 (again for another input)")
	cmd.Flags().StringVar(&ioKind, quant.PortsFlag, "", "type of the file's inputs and outputs: float, or int8, of a model that quantize made with --io int8 (default float)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// codesAtPorts reads --io.
func codesAtPorts(kind string) (bool, error) {
	switch kind {
	case "", "float":
		return false, nil
	case "int8":
		return true, nil
	}
	return false, usagef("--%s %q: expected float or int8", quant.PortsFlag, kind)
}

// maxShapeDims is how many dimensions a --shape may name.
const maxShapeDims = 8

func parseShapes(flags []string) (map[string][]int64, error) {
	shapes := map[string][]int64{}
	for _, f := range flags {
		name, dims, ok := strings.Cut(f, "=")
		parts := strings.Split(dims, ",")
		if !ok || name == "" || len(parts) > maxShapeDims {
			return nil, usagef("tflite: --shape %q: expected the form input=1,3,224,224", f)
		}
		if _, again := shapes[name]; again {
			return nil, usagef("tflite: --shape: input %q is given twice", name)
		}
		for _, p := range parts {
			n, err := strconv.ParseInt(p, 10, 32)
			if err != nil || n < 1 {
				return nil, usagef("tflite: --shape %q: %q is not a size of 1 or more", f, p)
			}
			shapes[name] = append(shapes[name], n)
		}
	}
	return shapes, nil
}

// floatsNamed is how many float operators the text names.
const floatsNamed = 5

func tfliteText(name string, e exported) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %d operators on int8, %d on float\n", oneLine(name), report.Bytes(e.Bytes), e.Integer, e.Float)
	port := func(what string, p tflite.Port) {
		dims := strings.Trim(fmt.Sprint(p.Shape), "[]")
		fmt.Fprintf(&b, "  %-7s %s %s [%s]\n", what, oneLine(p.Name), p.Type, strings.ReplaceAll(strings.Replace(dims, "-1", "batch", 1), " ", ", "))
	}
	for _, p := range e.Inputs {
		port("input", p)
	}
	for _, p := range e.Outputs {
		port("output", p)
	}
	if e.Integer == 0 {
		return b.String() // a float model
	}
	for i, f := range e.FloatOps {
		if i == floatsNamed {
			fmt.Fprintf(&b, "  and %d more\n", len(e.FloatOps)-i)
			break
		}
		fmt.Fprintf(&b, "  float   %s\n", oneLine(f))
	}
	return b.String()
}
