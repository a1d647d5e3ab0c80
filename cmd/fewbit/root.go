package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/app"
	"github.com/fewbit/fewbit/internal/engine/native"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/task"
)

// newRoot builds the whole command line.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "fewbit",
		Short: "Quantize ONNX models, prove them right, serve them fast",
		Long: `fewbit takes a trained FP32 ONNX model, quantizes it after training, proves on
data that it is still right and on this machine that it is faster, and serves it.

Exit status: 0 good; 1 the work failed (a gate refused, a file is bad); 2 wrong use;
130 interrupted (Ctrl-C or SIGTERM; a server that was asked to stop ends with 0).`,
		Example: `  fewbit inspect model.onnx
  fewbit quantize model.onnx -o small.onnx --calib texts.jsonl
  fewbit compare model.onnx small.onnx --data labelled.jsonl`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.Version = version // which adds --version
	root.SetVersionTemplate("fewbit {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s; see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(
		newInspectCommand(), newQuantizeCommand(), newPackCommand(), newTFLiteCommand(), newPruneCommand(), newCalibrateCommand(), newCompareCommand(), newSensitivityCommand(), newSearchCommand(), newEvalCommand(),
		newBenchCommand(), newModelsCommand(), newServeCommand(), newKeysCommand(), newPeakCommand(), newVersionCommand(),
	)
	return root
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2 // as cobra does where it suggests itself
	}
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = fmt.Sprintf(": did you mean %q?", strings.Join(s, `" or "`))
	}
	return usagef("unknown command %q%s; see %s --help", args[0], hint, cmd.CommandPath())
}

// args wraps a cobra argument check so that its errors are those of wrong use.
// names says what the arguments are.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(args) < len(names) {
			return usagef("%s: %s is missing: usage: %s", cmd.Name(), names[len(args)], cmd.UseLine())
		}
		return usagef("%s: unexpected argument %q: usage: %s", cmd.Name(), args[len(names)], cmd.UseLine())
	}
}

// engineFlags are the flags of every command that runs a model.
type engineFlags struct {
	threads int
	library string
	kernels string
}

func (f *engineFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.threads, "threads", 0, "threads of each model (0: all CPUs that the process may use)")
	cmd.Flags().StringVar(&f.kernels, "cpu-lib", "", "path of libfewbit_cpu.so, or of its folder; off does without (default: $"+ort.EnvKernels+", beside the program)")
	cmd.Flags().StringVar(&f.library, "ort-lib", "", "path of the ONNX Runtime library, or of its folder (default: $"+ort.EnvLibrary+", .deps/, the system's)")
}

// pipeline loads the engine.
func (f *engineFlags) pipeline() (*pipeline.Pipeline, error) {
	if f.threads < 0 || f.threads > ort.MaxThreads {
		return nil, usagef("--threads %d: expected 0 (all CPUs) to %d", f.threads, ort.MaxThreads)
	}
	e, err := ort.New(ort.Config{Library: f.library, Kernels: f.kernels, Threads: f.threads})
	if err != nil {
		return nil, err
	}
	child := []string{"peak-memory"}
	if f.threads > 0 {
		child = append(child, "--threads", fmt.Sprint(f.threads))
	}
	child = append(child, "--ort-lib", e.Library())
	if f.kernels != "" {
		child = append(child, "--cpu-lib", f.kernels)
	}
	return &pipeline.Pipeline{Engine: native.New(e, ""), Threads: f.threads, Version: version, PeakMemory: pipeline.PeakInChild(child...)}, nil
}

// deviceFlags are the flags of the commands that calibrate.
type deviceFlags struct{ device, forward string }

func (f *deviceFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.device, "device", app.DeviceCPU, "where to calibrate: cpu, cuda, or auto (the GPU where there is one); the CPU does what the GPU cannot, and the report says why")
	cmd.Flags().StringVar(&f.forward, "forward", app.Arithmetics[0], "how the float model multiplies on the GPU: "+strings.Join(app.Arithmetics, ", ")+"; sums are FP32")
}

// open puts the device into p.
func (f *deviceFlags) open(cmd *cobra.Command, p *pipeline.Pipeline) (err error) {
	if p.Device, err = app.CalibrationDevice(cmd.Context(), f.device, f.forward); err != nil {
		return usagef("%s: --device %s, --forward %s: %w", cmd.Name(), f.device, f.forward, err)
	}
	return nil
}

// dataFlags say how much of a data set is read.
type dataFlags struct {
	samples, maxTokens int
	assets             string
}

// addAssets is for commands whose model need not lie beside its tokenizer.
func (f *dataFlags) addAssets(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.assets, "assets", "", "folder with tokenizer.json, preprocessor_config.json and labels.txt (default: the model's)")
}

func (f *dataFlags) add(cmd *cobra.Command, samples string) {
	cmd.Flags().IntVar(&f.samples, "samples", 0, samples)
	cmd.Flags().IntVar(&f.maxTokens, "max-tokens", 0, fmt.Sprintf("cut texts to this many tokens (0: %d)", task.DefaultMaxTokens))
}

func (f *dataFlags) check() error {
	if f.samples < 0 || f.maxTokens < 0 {
		return usagef("--samples %d, --max-tokens %d: neither may be negative", f.samples, f.maxTokens)
	}
	return nil
}

const dataHelp = `DATA is an .npz or .npy file (one array per model input, first axis = samples,
optionally "label"), a .jsonl file ("text", optionally "label"; the tokenizer lies
beside the model), or a folder or .zip of images (class = subfolder, or labels.csv).`

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactArgs(), Example: "  fewbit version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return say(cmd.OutOrStdout(), "fewbit %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

// say prints to standard output; an error there (a closed pipe, a full disk)
// must not pass for success.
func say(w io.Writer, format string, a ...any) error {
	if _, err := fmt.Fprintf(w, format, a...); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// ms prints milliseconds in the unit and with the digits that are read easily.
func ms(v float64) string {
	switch {
	case v < 1:
		return fmt.Sprintf("%.0f us", 1000*v)
	case v < 10:
		return fmt.Sprintf("%.2f ms", v)
	case v < 1000:
		return fmt.Sprintf("%.1f ms", v)
	}
	return (time.Duration(v) * time.Millisecond).String()
}
