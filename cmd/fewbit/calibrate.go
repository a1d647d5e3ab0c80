package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
)

func newCalibrateCommand() *cobra.Command {
	var (
		out, path, shard, method, target, precision string
		exclude                                     []string
		symmetric, asJSON                           bool
		engine                                      engineFlags
		device                                      deviceFlags
		data                                        dataFlags
	)
	cmd := &cobra.Command{
		Use:   "calibrate MODEL.onnx --calib DATA -o TABLE.json",
		Short: "Observe a model's activations and write a calibration table",
		Long: `Run calibration samples through a float model once and write what was observed of
each tensor that quantize would quantize: exact histograms, channel maxima and the
ranges of the chosen method. Shards (--shard 2/4: the second of four) split the same
samples; merging their tables gives the bytes of one run.

` + dataHelp,
		Example: `  fewbit calibrate model.onnx --calib texts.jsonl -o table.json
  fewbit calibrate model.onnx --calib texts.jsonl --samples 512 --shard 1/2 -o a.json
  fewbit calibrate merge a.json b.json -o table.json
  fewbit calibrate export table.json --format tensorrt -o model.cache`,
		Args: exactArgs("MODEL.onnx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case path == "":
				return usagef("calibrate: --calib DATA is missing: give samples like those that the model will see")
			case out == "":
				return usagef("calibrate: -o TABLE.json is missing: say where the table goes")
			}
			part, err := calib.ParseShard(shard)
			if err != nil {
				return usagef("calibrate: --shard: %w", err)
			}
			if err := pipeline.Precision(precision).Check(); err != nil {
				return usagef("calibrate: --precision: %w", err)
			}
			if err := data.check(); err != nil {
				return err
			}
			cfg, err := quant.Config{Method: method, Target: quant.Target(target), Symmetric: symmetric, Exclude: exclude}.WithDefaults()
			if err != nil {
				return fmt.Errorf("calibrate: %w", err)
			}
			if err := checkOutput("calibrate: -o", out, append(externalData(args[0]), args[0], path)...); err != nil {
				return err
			}
			if err := checkFolder(out); err != nil {
				return fmt.Errorf("calibrate: -o: %w", err)
			}
			p, err := engine.pipeline()
			if err != nil {
				return err
			}
			if err := device.open(cmd, p); err != nil {
				return err
			}
			m := newMeter()
			res, err := p.CalibrationTable(cmd.Context(), pipeline.TableRequest{
				Model: args[0], Calib: path, Config: cfg, Samples: data.samples, MaxTokens: data.maxTokens, Shard: part, Precision: pipeline.Precision(precision),
			}, m.show)
			m.done()
			if err != nil {
				return fmt.Errorf("calibrate: %w", err)
			}
			if err := writeFile(out, res.Table.Write); err != nil {
				return fmt.Errorf("calibrate: %w", err)
			}
			return showTable(cmd, out, res, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&path, "calib", "", "calibration data")
	f.StringVarP(&out, "out", "o", "", "where the table goes")
	f.StringVar(&method, "method", "", "range method: auto, minmax, entropy, percentile[:P], mse or moving-average (default auto: the ranges of all)")
	f.StringVar(&target, "target", "", "graph form that the table is for: ort-cpu, cpu or cuda (the native form), qdq or qoperator (default ort-cpu)")
	f.StringVar(&precision, "precision", "", precisionHelp)
	f.BoolVar(&symmetric, "symmetric", false, "centre the ranges on zero")
	f.StringSliceVar(&exclude, "exclude", nil, "operator names or types that stay in float")
	f.StringVar(&shard, "shard", "", "calibrate on one part of the samples: i/n, i from 1 to n")
	f.BoolVar(&asJSON, "json", false, "print the receipt as one JSON object")
	data.add(cmd, fmt.Sprintf("calibrate with this many samples, spread over the data (0: %d); shards split them", pipeline.DefaultSamples))
	engine.add(cmd)
	device.add(cmd)
	cmd.AddCommand(newMergeCommand(), newExportCommand())
	return cmd
}

const precisionHelp = "products of the float model while it is observed: bf16, fp32, or auto, which is bf16 where the processor has AVX-512 BF16 (default auto)"

func newMergeCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "merge A.json B.json... -o C.json",
		Short:   "Merge the calibration tables of shards",
		Long:    "Merge the calibration tables of shards, or of different data, of the same model.",
		Example: "  fewbit calibrate merge a.json b.json -o table.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("merge: no table was given: usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("merge: -o C.json is missing: say where the merged table goes")
			}
			if err := checkOutput("merge: -o", out, args...); err != nil {
				return err
			}
			if err := checkFolder(out); err != nil {
				return fmt.Errorf("merge: -o: %w", err)
			}
			tables := make([]*calib.Table, len(args))
			for i, path := range args {
				var err error
				if tables[i], err = readTable(path); err != nil {
					return fmt.Errorf("merge: %w", err)
				}
			}
			t, err := calib.Merge(tables...)
			if err != nil {
				return fmt.Errorf("merge: %w", err)
			}
			rc, err := t.Receipt(nil)
			if err != nil {
				return fmt.Errorf("merge: %w", err)
			}
			if err := writeFile(out, t.Write); err != nil {
				return fmt.Errorf("merge: %w", err)
			}
			return showTable(cmd, out, &pipeline.TableResult{Table: t, Receipt: rc}, asJSON)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "where the merged table goes")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the receipt as one JSON object")
	return cmd
}

func newExportCommand() *cobra.Command {
	var out, format, method string
	cmd := &cobra.Command{
		Use:   "export TABLE.json --format tensorrt|ort -o FILE",
		Short: "Write a calibration table in another tool's format",
		Long: `Write symmetric INT8 ranges as TensorRT's calibration cache (tensorrt) or as
ONNX Runtime's calibration.cache (ort).`,
		Example: `  fewbit calibrate export table.json --format tensorrt -o model.cache
  fewbit calibrate export table.json --format ort --method entropy -o calibration.cache`,
		Args: exactArgs("TABLE.json"),
		RunE: func(cmd *cobra.Command, args []string) error {
			write := map[string]func(io.Writer, map[string]calib.Range) error{"tensorrt": calib.WriteTensorRT, "ort": calib.WriteORT}[format]
			switch {
			case write == nil:
				return usagef("export: --format %q: expected tensorrt or ort", format)
			case out == "":
				return usagef("export: -o FILE is missing: say where the cache goes")
			}
			if err := checkOutput("export: -o", out, args...); err != nil {
				return err
			}
			if err := checkFolder(out); err != nil {
				return fmt.Errorf("export: -o: %w", err)
			}
			t, err := readTable(args[0])
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			ranges, err := pipeline.ExportRanges(t, method)
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			if err := writeFile(out, func(w io.Writer) error { return write(w, ranges) }); err != nil {
				return fmt.Errorf("export: %w", err)
			}
			return say(cmd.OutOrStdout(), "%s: %d tensors for %s\n", filepath.Base(out), len(ranges), format)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "where the cache goes")
	cmd.Flags().StringVar(&format, "format", "", "tensorrt or ort")
	cmd.Flags().StringVar(&method, "method", "", "range method (default: the table's own)")
	return cmd
}

func readTable(path string) (*calib.Table, error) {
	name := filepath.Base(path)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
	}
	defer f.Close()
	t, err := calib.ReadTable(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// tableReceipt is the JSON form of what calibrate prints.
type tableReceipt struct {
	Table   string  `json:"table"`
	Shard   string  `json:"shard,omitempty"`
	Method  string  `json:"method"`
	Seconds float64 `json:"seconds,omitempty"`
	// Engine ran the model; Reason says why it was not the GPU asked for.
	Engine string `json:"engine,omitempty"`
	Reason string `json:"engine_reason,omitempty"`
	// Precision of the float model's products, of one run on the CPU.
	Precision pipeline.Precision `json:"precision,omitempty"`
	calib.Receipt
}

// tableWarnings is how many warnings the text form prints.
const tableWarnings = 10

func showTable(cmd *cobra.Command, path string, res *pipeline.TableResult, asJSON bool) error {
	t, rc := res.Table, res.Receipt
	r := tableReceipt{Table: filepath.Base(path), Shard: t.Shard.String(), Method: t.Method, Seconds: res.Seconds, Engine: res.Engine, Precision: res.Precision, Reason: res.Reason, Receipt: rc}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d samples, %d tensors, method %s", oneLine(r.Table), rc.Samples, len(rc.Tensors), t.Method)
	if r.Shard != "" {
		fmt.Fprintf(&b, ", shard %s", r.Shard)
	}
	if r.Precision != "" {
		fmt.Fprintf(&b, ", products in %s", r.Precision)
	}
	if r.Seconds > 0 {
		fmt.Fprintf(&b, ", %.1f s", r.Seconds)
	}
	b.WriteByte('\n')
	if r.Reason != "" {
		fmt.Fprintf(&b, "warning: calibrated on the CPU, not on the GPU: %s\n", oneLine(r.Reason))
	}
	for i, w := range rc.Warnings {
		if i == tableWarnings {
			fmt.Fprintf(&b, "warning: and %d more\n", len(rc.Warnings)-i)
			break
		}
		fmt.Fprintf(&b, "warning: %s\n", oneLine(w))
	}
	return say(cmd.OutOrStdout(), "%s", b.String())
}
