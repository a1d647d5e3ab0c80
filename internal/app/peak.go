package app

import (
	"encoding/json"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/engine/native"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/pipeline"
)

// peakCommand is the hidden command under which both binaries measure one
// model's memory: a peak belongs to a process, so each model gets its own.
const peakCommand = "peak-memory"

// peakArgs are the arguments of this program's child that measures with the
// same library and threads.
func peakArgs(library, kernels string, threads int) []string {
	return []string{peakCommand, "--ort-lib", library, "--cpu-lib", kernels, "--threads", strconv.Itoa(threads)}
}

// NewPeakMemoryCommand returns the hidden command that measures the memory of
// a model alone, for the report of a job. cmd/fewbit has its own of that name.
func NewPeakMemoryCommand() *cobra.Command {
	var c ort.Config
	cmd := &cobra.Command{
		Use: peakCommand + " MODEL.onnx", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := ort.New(c)
			if err != nil {
				return err
			}
			p := pipeline.Pipeline{Engine: native.New(e, "")}
			peak, err := p.PeakOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(peak)
		},
	}
	cmd.Flags().StringVar(&c.Library, "ort-lib", "", "")
	cmd.Flags().StringVar(&c.Kernels, "cpu-lib", "", "")
	cmd.Flags().IntVar(&c.Threads, "threads", 0, "")
	return cmd
}
